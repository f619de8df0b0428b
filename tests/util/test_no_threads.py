"""Where the system starts no more threads there is an error, never a hang, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from trio._core._thread_cache import clear_worker_threads

import trio_ckpt
from trio_ckpt._util.exceptions import leaves_of
from trio_ckpt._util.threads import WorkerThread, run_blocking
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.stores._local.beside import Beside

BATCHES = 2
NOISE = np.random.default_rng(0).random(700_000)  # its blob is hashed and synced by threads


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], list[int]]:
    """Has the starts of threads fail whose number is chosen; returns where the count goes."""
    start = threading.Thread.start

    def fail_when(is_refused: Callable[[int], bool]) -> list[int]:
        clear_worker_threads()  # trio's idle ones would do
        starts: list[int] = []

        def refuse(thread: threading.Thread) -> None:
            starts.append(len(starts))
            if is_refused(starts[-1]):
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        return starts

    return fail_when


Failing = Callable[[Callable[[int], bool]], list[int]]


async def test_each_call_says_that_there_is_no_thread(failing: Failing) -> None:
    """The second, too: one that waits for a thread which never began would wait for ever."""
    worker = WorkerThread("test")
    failing(lambda number: number < 4)
    for run in (worker.run, run_blocking):
        for _ in range(2):
            with pytest.raises(trio_ckpt.NoThreadError, match="can't start new thread"):
                await run(divmod, 7, 2)
    for run in (worker.run, run_blocking):
        assert await run(divmod, 7, 2) == (3, 1)
    worker.stop()


async def test_error_of_the_function_stays_as_it_is(failing: Failing) -> None:
    def fail() -> None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
        await run_blocking(fail)


def test_thread_beside_says_that_there_is_none(failing: Failing) -> None:
    failing(lambda _number: True)
    with pytest.raises(trio_ckpt.NoThreadError):
        Beside[int]("test beside", lambda _items: None)


async def session(url: str, outputs: Path) -> None:
    async with (
        trio_ckpt.open_run("r", store=url, output_dir=outputs) as run,
        run.open_stream("s", state={"a": np.zeros(NOISE.size)}) as stream,
    ):
        async for batch in stream.batches(range(BATCHES)):
            stream.state["a"] += NOISE
            async with stream.snapshots(every_s=0) as snapshots:
                await snapshots.point("half")
                await snapshots.wait()
            await batch.write_json(f"{batch.index}.json", batch.index)
            batch.append_json("lines.jsonl", batch.index)
            batch.complete(records=1)


@contextmanager
def ours() -> Iterator[None]:
    """Let errors of the library pass, and no others."""
    try:
        yield
    except BaseException as error:
        if not all(isinstance(leaf, trio_ckpt.TrioCkptError) for leaf in leaves_of(error)):
            raise


@pytest.mark.parametrize(("kind", "how"), [("sqlite", "from then on"), ("json", "once")])
def test_run_ends_with_an_error_wherever_it_gets_no_thread(
    failing: Failing, tmp_path: Path, kind: str, how: str
) -> None:
    starts = failing(lambda _number: False)
    trio.run(session, f"{kind}:{tmp_path}/0", tmp_path / "out-0")
    assert len(starts) > 8
    for number in range(len(starts)):
        url, outputs = f"{kind}:{tmp_path}/{number + 1}", tmp_path / f"out-{number + 1}"
        failing(lambda n, at=number: n == at if how == "once" else n >= at)  # type: ignore[misc]
        with ours():
            trio.run(session, url, outputs)
        failing(lambda _number: False)
        trio.run(session, url, outputs)
        assert (outputs / "lines.jsonl").read_text() == "0\n1\n"
        assert {path.name for path in outputs.iterdir()} >= {"0.json", "1.json"}
        trio.run(_check, url)


class WithoutThreads(MemoryStore):
    """The saves of some numbers get no thread, so they never begin."""

    saves = 0
    refused: frozenset[int] = frozenset()

    async def save(self, *args: Any, **kw: Any) -> Any:
        self.saves += 1
        if self.saves in self.refused:
            raise trio_ckpt.NoThreadError(RuntimeError("can't start new thread"))
        return await super().save(*args, **kw)


@pytest.mark.parametrize("number", range(3))
async def test_save_that_never_began_has_a_known_outcome(number: int) -> None:
    """Nothing was saved, so the run goes on: it is not that the outcome is unknown."""
    store = WithoutThreads()
    async with trio_ckpt.open_run("r", store=store, handle_signals=False) as run:
        store.refused = frozenset({store.saves + 1 + number})
        with pytest.raises(trio_ckpt.NoThreadError):
            await complete_three(run)
        assert list(run.view().streams["s",].progress.confirmed) == list(range(number))
        await complete_three(run)
        assert list(run.view().streams["s",].progress.confirmed) == [0, 1, 2]


async def complete_three(run: trio_ckpt.Run) -> None:
    async with run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()


async def _check(url: str) -> None:
    store = await open_store(url)
    assert [finding async for finding in store.check() if finding.is_damage] == []
    view = await store.load_run("r")
    assert view is not None
    assert len(view.streams["s",].progress.confirmed) == BATCHES
    await store.aclose()
