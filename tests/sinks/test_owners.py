"""A former owner of a run commits no rows, however long it was paused and wherever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.hangs import HANG_S, PROGRAM_S
from tests.opening import begin
from tests.sinks.program import connect, is_postgres, open_sink, read_rows, undisturbed, undo
from tests.sinks.test_transactions import EMPTY, insert
from tests.stores.postgres.servers import Server
from trio_ckpt import RunStoppedError, SinkError, SinkFencedError
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.sinks._marker import MarkerRow
from trio_ckpt.sinks._session import Session
from trio_ckpt.sinks._stream_rows import StreamRows
from trio_ckpt.stores import MemoryStore

ROOT = Path(__file__).parents[2]
PAUSED_LEASE_S = 8  # longer than anything an owner does between two renewals
OTHER_OWNER = "UPDATE trio_ckpt_markers SET owner = 9 WHERE slot = 0"


def change(database: str, statement: str) -> None:
    connection = connect(database)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def commit_after(database: str, statement: str) -> None:
    """Commit a batch after the markers were changed."""
    sink = open_sink(database)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        change(database, statement)
        async for batch in stream.batches(range(1)):
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.complete()


async def test_the_marker_of_a_former_owner_is_refused(database: str) -> None:
    with pytest.raises(RunStoppedError) as stopped:
        await commit_after(database, OTHER_OWNER)
    assert isinstance(stopped.value.__cause__, SinkFencedError)
    assert str(stopped.value.__cause__).endswith(
        "run 'r', stream 's' belongs to a newer owner, number 9; this process commits nothing more "
        "there"
    )
    assert stopped.value.exit_code == 75
    assert read_rows(database) == EMPTY


async def test_a_former_owner_takes_no_rows_back(database: str) -> None:
    sink = open_sink(database, undo=undo)

    async def work() -> None:
        async with begin() as run, run.open_stream("s", sink=sink) as stream:
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    batch.complete()
            change(database, OTHER_OWNER)
            await stream.redo([0], reason="wrong")

    with pytest.raises(RunStoppedError) as stopped:
        await work()
    assert isinstance(stopped.value.__cause__, SinkFencedError)
    assert read_rows(database)[0] == [(0, 0)]


async def test_a_former_owner_opens_no_stream(database: str) -> None:
    store, sink = MemoryStore(), open_sink(database)
    async with begin(store) as run, run.open_stream("s", sink=sink):
        pass
    change(database, OTHER_OWNER)
    with pytest.raises(SinkFencedError, match="belongs to a newer owner, number 9"):
        async with begin(store.after_crash()) as run, run.open_stream("s", sink=sink):
            raise AssertionError


FENCE_OF_ANOTHER = """
INSERT INTO trio_ckpt_markers (run, stream, slot, owner, began, sequence)
VALUES ('r', '["s"]', 0, 1, 1000, 0)
"""


async def test_of_two_that_open_first_one_is_refused(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, check_new = open_sink(postgres), StreamRows._check_new

    def check_and_lose(self: StreamRows) -> None:
        monkeypatch.undo()
        check_new(self)
        change(postgres, FENCE_OF_ANOTHER)

    async with begin() as run:
        async with run.open_stream("other", sink=sink):
            monkeypatch.setattr(StreamRows, "_check_new", check_and_lose)
        with pytest.raises(SinkError, match="has markers of another run 'r', stream 's', begun at"):
            async with run.open_stream("s", sink=sink):
                raise AssertionError


async def test_the_marker_of_another_run_of_that_number_is_refused(database: str) -> None:
    with pytest.raises(RunStoppedError):
        await commit_after(database, "UPDATE trio_ckpt_markers SET began = 1000 WHERE slot = 0")
    assert read_rows(database) == EMPTY


async def test_markers_that_are_lost_meanwhile_are_noticed(database: str) -> None:
    with pytest.raises(SinkError, match="has lost its markers of run 'r', stream 's' while it was"):
        await commit_after(database, "DELETE FROM trio_ckpt_markers")
    with pytest.raises(SinkError, match="has lost its markers of run 'r', stream 's' while it was"):
        await commit_after(database, "DROP TABLE trio_ckpt_markers")
    assert read_rows(database) == EMPTY


async def test_taking_a_stream_waits_for_the_transaction_of_its_owner(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a commit that lands after the new owner has read the markers would be done again."""
    assert await taken_during_commit(database, monkeypatch) == [None, 0]


async def test_taking_a_stream_sees_what_it_has_waited_for(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a transaction has one view of the database for all its statements."""
    level = "%20-cdefault_transaction_isolation%3Drepeatable%5C%20read"
    assert await taken_during_commit(postgres + level, monkeypatch) == [None, 0]


async def taken_during_commit(database: str, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The batches of the markers that a new owner reads while batch 0 is being committed."""
    sink, other, may_commit = open_sink(database), open_sink(database), trio.Event()
    committed, taken = Session.commit, list[MarkerRow]()

    async def commit(self: Session) -> None:
        if self.driver is sink._driver:
            await may_commit.wait()
        await committed(self)

    async def take() -> None:
        open_stream = loop_cursor_of(stream).open_stream
        own = sink._streams["r", ("s",)]
        assert own._marked is not None
        rows = StreamRows(other._driver, other._session, None, open_stream, own._pages)
        taken.extend(await rows._take(attrs.evolve(own._marked, owner=9)))

    async def let_commit() -> None:
        nursery.start_soon(take)
        await trio.sleep(0.3)  # long enough to read the markers, if nothing keeps it
        may_commit.set()

    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        monkeypatch.setattr(Session, "commit", commit)
        async with trio.open_nursery() as nursery:
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    batch.complete()
                    nursery.start_soon(let_commit)
    for session in other._sessions:
        session.stop()
    return [row.batch for row in taken]


def start(database: str, store: str, place: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.sinks.program", database, store, place]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def pause_and_wake(database: str, store: str, place: str, *, options: str = "") -> tuple[int, Any]:
    """Pause an owner in a transaction, let another process end its run, and wake it.

    Its lease ends while it is paused; that of the other process lasts, however slow the machine is.

    Args:
        database: Where the rows are.
        store: The address of the store, with a schema of its own.
        place: Where the owner is paused.
        options: Of the owner's connection to the database.

    Returns:
        The exit code of the one that was woken, and what `read_rows` returned before that.
    """
    with start(database + options, f"{store}&lease_s={PAUSED_LEASE_S}", place) as owner:
        try:
            _, status = os.waitpid(owner.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), status
            with start(database, f"{store}&lease_s={HANG_S}", "0") as heir:
                _, said = heir.communicate(timeout=PROGRAM_S)
                assert heir.returncode == 0, said.decode()
            rows = read_rows(database)
            owner.send_signal(signal.SIGCONT)
            owner.communicate(timeout=PROGRAM_S)
        finally:
            owner.kill()
    return owner.returncode, rows


@pytest.mark.parametrize("place", ["begin", "marker", "commit", "record"])
def test_an_owner_that_was_paused_commits_nothing(
    postgres: str, server: Server, place: str
) -> None:
    """The run moves on when its lease ends, so the store has one; rows it has locked, in 60 s."""
    options = "%20-cidle_in_transaction_session_timeout%3D10s"
    store = server.url(f"?schema=paused_{place}")
    code, rows = pause_and_wake(postgres, store, place, options=options)
    assert rows == undisturbed()
    assert code == (1 if place == "marker" else 75)  # its session was ended in the body
    assert read_rows(postgres) == undisturbed()


@pytest.mark.parametrize("place", ["begin", "record"])
def test_an_owner_of_sqlite_that_was_paused_commits_nothing(
    sqlite: str, server: Server, place: str
) -> None:
    """In a transaction it would keep the whole file, as any writer of SQLite does."""
    store = server.url(f"?schema=paused_sqlite_{place}")
    code, rows = pause_and_wake(sqlite, store, place)
    assert rows == undisturbed()
    assert code == 75
    assert read_rows(sqlite) == undisturbed()
    assert not is_postgres(sqlite)
