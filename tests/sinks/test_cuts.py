"""A connection that is cut during the COMMIT neither loses rows nor doubles them."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from typing import Any, Literal

import attrs
import pytest

from tests.opening import begin
from tests.sinks.program import AGAIN, BATCHES, open_sink, read_rows, undisturbed
from tests.stores.postgres.servers import LosingProxy, Server
from trio_ckpt import Batch, RunStoppedError, SaveOutcomeUnknownError
from trio_ckpt.sinks import Sink, _stream_rows
from trio_ckpt.stores import MemoryStore

COMMIT = b"COMMIT"


@attrs.define(eq=False)
class CuttingProxy(LosingProxy):
    """Cuts connections at a COMMIT: before the server gets it, or before the client is answered.

    Attributes:
        cut: What is lost; None: nothing.
        every: How many COMMITs pass before the next one is lost.
        is_dead: Whether new connections are refused after a cut.
    """

    cut: Literal["question", "answer"] | None = None
    every: int = 3
    is_dead: bool = False
    commits: int = 0
    cuts: int = 0

    def _pass_on(self, client: socket.socket) -> None:
        if self.is_dead and self.cuts:
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self.target))
        is_cut = False
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data or (is_cut and source is server):
                        return
                    if source is client and COMMIT in data and self.cut is not None:
                        self.commits += 1
                        if self.commits % self.every == 0:
                            self.cuts += 1
                            if self.cut == "question":
                                return
                            is_cut = True
                    (server if source is client else client).sendall(data)


@pytest.fixture
def proxy(server: Server) -> Iterator[tuple[CuttingProxy, int]]:
    proxy = CuttingProxy(server.port)
    with proxy.serve() as port:
        yield proxy, port


def through(postgres: str, server: Server, port: int) -> str:
    return postgres.replace(f":{server.port}/", f":{port}/")


async def write(sink: Sink, batch: Batch[Any]) -> None:
    """Write the rows of a batch; an error of the database is one for the retry table."""
    try:
        async with sink.transaction(batch) as connection:
            for line in range(2):
                await connection.execute(f"INSERT INTO pages VALUES ({batch.index}, {line})")
            await connection.execute("UPDATE counted SET batches = batches + 1")
            batch.complete()
    except Exception as error:
        if batch.state.value == "over":
            raise
        batch.fail(error)


@pytest.mark.parametrize("cut", ["question", "answer"])
async def test_a_cut_during_the_commit_neither_loses_nor_doubles_rows(
    postgres: str,
    server: Server,
    proxy: tuple[CuttingProxy, int],
    cut: Literal["question", "answer"],
) -> None:
    cutter, port = proxy
    sink, attempts = open_sink(through(postgres, server, port)), 0
    async with begin() as run, run.open_stream("s", sink=sink, retry=AGAIN) as stream:
        cutter.cut = cut
        async for batch in stream.batches(range(BATCHES)):
            attempts += 1
            await write(sink, batch)
    assert cutter.cuts >= BATCHES // 3
    assert read_rows(postgres) == undisturbed()
    # Rows whose COMMIT did not arrive are written again; those whose answer was lost are not.
    assert attempts == (BATCHES + cutter.cuts if cut == "question" else BATCHES)


async def test_a_database_that_does_not_answer_ends_the_run(
    postgres: str,
    server: Server,
    proxy: tuple[CuttingProxy, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_stream_rows, "ASK_S", 0.2)
    cutter, port = proxy
    store, sink = MemoryStore(), open_sink(through(postgres, server, port))

    async def work() -> None:
        async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
            cutter.cut, cutter.is_dead, cutter.every = "answer", True, 1
            async for batch in stream.batches(range(3)):
                await write(sink, batch)

    with pytest.raises(RunStoppedError) as stopped:
        await work()
    unknown = stopped.value.__cause__
    assert isinstance(unknown, SaveOutcomeUnknownError)
    assert "does not say whether the rows of batch 0 of run 'r', stream 's' are" in str(unknown)
    sink = open_sink(postgres)
    async with begin(store.after_crash()) as run, run.open_stream("s", sink=sink) as stream:
        assert stream.remaining(total=3) == [1, 2]
        async for batch in stream.batches(range(3)):
            await write(sink, batch)
    assert read_rows(postgres) == undisturbed(3)
