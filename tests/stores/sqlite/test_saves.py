"""The SQLite store: saves that fail, and what is said of them."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.hangs import HANG_S
from tests.stores.tools import A, B, chain, failing_commit, heads
from trio_ckpt._util.errors import (
    RunLockedError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
)
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores import SqliteStore
from trio_ckpt.stores._sqlite import writer
from trio_ckpt.stores._sqlite.schema import MAX_ROWS


async def test_full_database_saves_nothing_and_goes_on(folder: Path) -> None:
    """SQLITE_FULL is reported with the path; when there is room again, saving goes on."""
    store = await SqliteStore.open(folder)

    def limit(pages: int) -> None:
        store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")

    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 2))
        await store._writing.run(limit, 20)
        big = Checkpoint(A, 3, bytes(500_000))
        with pytest.raises(StoreError, match=r"state.db: saving failed: .*full \(SQLITE_FULL\)"):
            await store.save(run, [*chain(B, 1, 1), big])
        assert await heads(store) == {A: 2}
        await store._writing.run(limit, 1_000_000)
        assert await store.save(run, [*chain(B, 1, 1), big]) == [None, None]
    assert await heads(store) == {A: 3, B: 1}
    await store.aclose()


async def test_commit_that_raised_but_saved(folder: Path) -> None:
    """The heads are read back: what is there was saved, and is not saved again."""
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        with failing_commit(store, sqlite3.SQLITE_BUSY, is_done=True):
            assert await store.save(run, chain(A, 1, 2)) == [None, None]
        assert await store.save(run, chain(A, 3, 3)) == [None]
    await store.aclose()


async def test_commit_that_raised_and_saved_nothing(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 1))
        with (
            failing_commit(store, sqlite3.SQLITE_FULL, is_done=False),
            pytest.raises(StoreError, match="as planned"),
        ):
            await store.save(run, [*chain(A, 2, 2), *chain(B, 1, 1)])
        assert await heads(store) == {A: 1}
        assert await store.save(run, [*chain(A, 2, 2), *chain(B, 1, 1)]) == [None, None]
    await store.aclose()


async def test_read_back_is_not_fooled_by_an_open_transaction(folder: Path) -> None:
    """Where even ROLLBACK fails, the heads that the connection sees are not yet saved."""
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        with (
            failing_commit(store, sqlite3.SQLITE_FULL, is_done=False, can_roll_back=False),
            pytest.raises(SaveOutcomeUnknownError),
        ):
            await store.save(RunKey("run", 0, owner), chain(A, 1, 1))
    await store.aclose()


@pytest.mark.parametrize("is_done", [False, True])
async def test_failed_fsync_leaves_the_outcome_unknown(folder: Path, is_done: bool) -> None:
    """After it nothing more is written, and the run stays locked while the process lives."""
    store = await SqliteStore.open(folder)
    other = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        with (
            failing_commit(store, sqlite3.SQLITE_IOERR_FSYNC, is_done=is_done),
            pytest.raises(SaveOutcomeUnknownError, match="it is unknown whether"),
        ):
            await store.save(run, chain(A, 1, 1))
        with pytest.raises(StoreError, match="nothing more is written"):
            await store.save(run, chain(B, 1, 1))
    for handle in (store, other):
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
            async with handle.lock_run("run"):
                pass
    async with other.lock_run("another"):
        pass
    await store.aclose()
    await other.aclose()


async def test_a_log_whose_name_is_not_durable_confirms_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite does not look whether its own fsync of the folder went well."""
    store = await SqliteStore.open(folder)

    def fail(_folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(writer, "sync_folder", fail)
    with pytest.raises(SaveOutcomeUnknownError, match="Input/output error"):
        async with store.lock_run("run"):
            pass
    await store.aclose()


async def test_the_name_of_the_log_is_made_durable_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(folder)
    synced: list[Path] = []
    monkeypatch.setattr(writer, "sync_folder", synced.append)
    async with store.lock_run("run") as owner:
        for number in (1, 2):
            await store.save(RunKey("run", 0, owner), [Checkpoint(A, number, b"")])
    await store.aclose()
    assert synced == [folder]


async def test_save_that_was_given_up_on_keeps_the_lock(folder: Path) -> None:
    """The cancelled save is still in the thread; the store is closed after it has ended."""
    store = await SqliteStore.open(folder)
    blocker = sqlite3.connect(folder / "state.db", isolation_level=None)
    async with store.lock_run("run") as owner:
        assert await heads(store) == {}  # a connection reads, too
        blocker.execute("BEGIN IMMEDIATE")
        with trio.move_on_after(0.05) as scope:
            await store.save(RunKey("run", 0, owner), chain(A, 1, 1))
        assert scope.cancelled_caught
    with pytest.raises(RunLockedError):
        async with store.lock_run("run"):
            pass
    writing, reading = store._writing._thread, store._reading._thread
    assert writing is not None
    assert reading is not None
    with trio.fail_after(HANG_S):  # it does not wait for the save
        await store.aclose()
    assert writing.is_alive()
    await trio.to_thread.run_sync(reading.join)
    assert store._reader._connection is None
    blocker.execute("COMMIT")
    blocker.close()
    await trio.to_thread.run_sync(writing.join)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        _ = store._writer._connection.total_changes
    again = await SqliteStore.open(folder)
    assert await heads(again) == {A: 1}  # it landed
    await again.aclose()


async def _intrude(store: SqliteStore, run: RunKey, group: list[Checkpoint]) -> None:
    """Save as a process would whose lock the kernel did not keep from a second one."""
    store._owners[run.run_id] = run.owner
    assert await store.save(run, group) == [None] * len(group)


async def test_second_writer_with_the_same_owner_is_noticed(folder: Path) -> None:
    """What is remembered of a run is not trusted: the database compares and sets."""
    store, intruder = await SqliteStore.open(folder), await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 1))
        await _intrude(intruder, run, chain(A, 2, 2))
        with pytest.raises(StoreConflictError, match="without owning the run"):
            await store.save(run, [*chain(A, 2, 2), *chain(B, 1, 1)])
        assert await heads(store) == {A: 2}
        (outcome,) = await store.save(run, chain(A, 2, 2))
        assert "the next one is 3" in str(outcome)
        assert await store.save(run, [*chain(A, 3, 3), *chain(B, 1, 1)]) == [None, None]
        await _intrude(intruder, run, chain(A, 4, 4))
        assert await store.save(run, chain(A, 5, 5)) == [None]
    await store.aclose()
    await intruder.aclose()


async def _saved(store: SqliteStore, stream: str) -> list[tuple[int, bytes]]:
    page = await store.history("run", stream)
    return sorted((record.sequence, record.payload) for record in page.records)


async def test_a_group_larger_than_a_statement_is_saved_whole(folder: Path) -> None:
    """Many streams with one record, and one with many, in any order."""
    store = await SqliteStore.open(folder)
    names = [f'["s{n}"]' for n in range(2 * MAX_ROWS + 7)]
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [Checkpoint(name, 1, b"1") for name in (*names, A)])
        group = [Checkpoint(name, 2, b"2") for name in names]
        for place, checkpoint in enumerate(chain(A, 2, 100)):
            group.insert(2 * place, checkpoint)
        assert await store.save(run, group) == [None] * len(group)
        assert await heads(store) == {**dict.fromkeys(names, 2), A: 100}
        assert await _saved(store, names[-1]) == [(1, b"1"), (2, b"2")]
        assert await _saved(store, A) == [(n, b"%d" % n) for n in range(1, 101)]
        assert await store.save(run, chain(A, 101, 101)) == [None]
    await store.aclose()


async def test_a_bad_record_late_in_a_large_group_is_the_only_one_refused(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [*chain(A, 1, 1), *chain(B, 1, 1)])
        bad = Checkpoint(B, 2, "no bytes")  # type: ignore[arg-type]
        *outcomes, refused = await store.save(run, [*chain(A, 2, MAX_ROWS + 2), bad])
        assert outcomes == [None] * (MAX_ROWS + 1)
        assert isinstance(refused, StoreError)
        assert await heads(store) == {A: MAX_ROWS + 2, B: 1}
        assert await _saved(store, A) == [(n, b"%d" % n) for n in range(1, MAX_ROWS + 3)]
    await store.aclose()
    with closing(sqlite3.connect(folder / "state.db")) as database:
        assert database.execute("SELECT count(*) FROM log").fetchone() == (MAX_ROWS + 3,)


GROUPS = {
    "one stream": chain(A, 2, 4),
    "two by turns": [*chain(A, 2, 2), *chain(B, 2, 2), *chain(A, 3, 3), *chain(B, 3, 3)],
    "a gap": [*chain(A, 2, 2), *chain(A, 4, 5)],
    "one twice": [*chain(A, 2, 2), *chain(A, 2, 2), *chain(B, 2, 2)],
    "a new stream": [*chain(A, 2, 2), *chain('["new"]', 1, 2)],
    "a bad value": [*chain(A, 2, 2), Checkpoint(B, 2, "no bytes")],  # type: ignore[arg-type]
    "a bad value between": [Checkpoint(A, 2, "no bytes"), *chain(A, 3, 3), *chain(B, 2, 2)],  # type: ignore[arg-type]
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
async def test_a_group_in_one_piece_is_saved_as_record_by_record(
    folder: Path, group: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for way in ("in one piece", "record by record"):
        if way == "record by record":
            monkeypatch.setattr(writer.SqliteWriter, "_append_together", lambda *_: {})
        store = await SqliteStore.open(folder / way)
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            await store.save(run, [*chain(A, 1, 1), *chain(B, 1, 1)])
            outcomes = [repr(outcome) for outcome in await store.save(run, group)]
            saved = [await _saved(store, stream) for stream in (A, B)]
            found.append((outcomes, saved, await heads(store)))
        await store.aclose()
        with closing(sqlite3.connect(folder / way / "state.db")) as database:
            rows = "SELECT id, stream, sequence, prev, payload FROM log ORDER BY id"
            found[-1] += (database.execute(rows).fetchall(),)
    assert found[0] == found[1]


@pytest.mark.parametrize("taken", [A, B])
async def test_a_group_behind_a_second_writer_saves_nothing(folder: Path, taken: str) -> None:
    store, intruder = await SqliteStore.open(folder), await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [*chain(A, 1, 1), *chain(B, 1, 1)])
        await _intrude(intruder, run, chain(taken, 2, 2))
        with pytest.raises(StoreConflictError, match="without owning the run"):
            await store.save(run, [*chain(A, 2, 3), *chain(B, 2, 2)])
        assert await heads(store) == {A: 1, B: 1, taken: 2}
    await store.aclose()
    await intruder.aclose()


async def test_prune_whose_commit_failed_removes_nothing(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
        run = RunKey("run", 1, owner)
        await store.save(run, chain(A, 1, 2))
        with (
            failing_commit(store, sqlite3.SQLITE_FULL, is_done=False),
            pytest.raises(StoreError, match="as planned") as caught,
        ):
            await store.prune(run, keep=0)
        assert not isinstance(caught.value, SaveOutcomeUnknownError)
        assert await heads(store) == {A: 2}
        assert len((await store.history("run", A, generation=0)).records) == 3
        assert (await store.prune(run, keep=1)).records == 3
    await store.aclose()


async def test_prune_with_an_unknown_outcome_keeps_the_lock(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 3))
        with (
            failing_commit(store, sqlite3.SQLITE_IOERR_FSYNC, is_done=False),
            pytest.raises(SaveOutcomeUnknownError),
        ):
            await store.prune(run, keep=0)
    with pytest.raises(RunLockedError):
        async with store.lock_run("run"):
            pass
    await store.aclose()


async def test_room_of_what_was_pruned_is_used_again(folder: Path) -> None:
    """The database does not shrink, and does not grow either until that is used up."""
    store = await SqliteStore.open(folder, durability="process")
    sizes = []
    async with store.lock_run("run") as owner:
        for generation in range(4):
            run = RunKey("run", generation, owner)
            await store.save(run, [Checkpoint(A, n, bytes(4_000)) for n in range(1, 200)])
            await store.prune(run, keep=1)
            await store._writing.run(_checkpoint_log, store)
            sizes.append((folder / "state.db").stat().st_size)
    assert sizes[3] == sizes[1]
    await store.aclose()


def _checkpoint_log(store: SqliteStore) -> None:
    store._writer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
