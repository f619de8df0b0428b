"""What `prune` finds along chains is what the whole log has, and costs what it removes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.stores.tools import A, B, chain
from trio_ckpt.abc import Checkpoint, Pruned, RunKey
from trio_ckpt.remote._foreman.dispatch import prune_task
from trio_ckpt.stores import SqliteStore
from trio_ckpt.stores._sqlite import prune

OTHERS = 5  # other runs in the store


async def _fill(store: SqliteStore, run_id: str) -> RunKey:
    async with store.lock_run(run_id) as owner:
        for generation in range(2):
            run = RunKey(run_id, generation, owner)
            digest = await store.put_blob(run, f"{run_id} {generation}".encode())
            group = [*chain(A, 1, 9), Checkpoint(B, 1, b"", digest), *chain(B, 2, 3)]
            assert await store.save(run, group) == [None] * len(group)
    return run


def _rows(folder: Path) -> dict[str, int]:
    connection = sqlite3.connect(folder / "state.db")
    tables = ("log", "attached", "folds", "heads", "streams")
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
    }
    connection.close()
    return counts


@pytest.mark.parametrize("damage", [None, "UPDATE log SET prev = 0 WHERE sequence = 5"])
@pytest.mark.parametrize("most", [0, 10**9])
async def test_chains_and_the_whole_log_give_the_same_rows(
    folder: Path, most: int, damage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a chain is broken: then the whole log is read."""
    monkeypatch.setattr(prune, "MAX_CHAINED", most)
    store = await SqliteStore.open(folder)
    for number in range(OTHERS):
        await _fill(store, f"other {number}")
    before = _rows(folder)
    await _fill(store, "run")
    await store.aclose()
    if damage is not None:
        with sqlite3.connect(folder / "state.db") as connection:
            connection.execute(damage)
        connection.close()
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        assert await store.prune(RunKey("run", 1, owner), keep=1) == Pruned(1, 12, 11 + 5)
        assert await store.prune(RunKey("run", 1, owner), keep=0) == Pruned(1, 12, 11 + 5)
    assert _rows(folder) == before
    await store.aclose()


async def _steps_of_an_end(folder: Path, others: int) -> int:
    """Hundreds of instructions of SQLite that the end of a work item takes."""
    store = await SqliteStore.open(folder)
    for number in range(others):
        await _fill(store, f"job-x.{number:06d}")
    await _fill(store, "job-x.item")
    await store.list_runs("", None, 1)  # opens the reader's connection
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch() -> None:
        store._writer._connection.set_progress_handler(count, 100)  # type: ignore[attr-defined]

    def watch_reads() -> None:
        store._reader._connection.set_progress_handler(count, 100)  # type: ignore[attr-defined]

    async with store.lock_run("job-x"):  # as a foreman does for its job
        await store._writing.run(watch)
        assert store._reading is not None
        await store._reading.run(watch_reads)
        assert await prune_task(store, "job-x.item") > 0
        found = steps
    await store.aclose()
    return found


async def test_the_end_of_a_work_item_reads_no_other_run(tmp_path: Path) -> None:
    few = await _steps_of_an_end(tmp_path / "few", 10)
    many = await _steps_of_an_end(tmp_path / "many", 100)
    assert 0 < many <= few + 5, f"{few} hundred instructions beside 10 runs, {many} beside 100"
