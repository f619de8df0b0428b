"""The store in memory says what the store on disk says, whatever is asked of them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import trio
from hypothesis import given, settings, strategies as st

from trio_ckpt._errors import StoreError
from trio_ckpt.abc import Checkpoint, Fold, RunKey, Store
from trio_ckpt.stores import MemoryStore, SqliteStore

STREAMS = ('["a"]', '["b"]', '["c"]')

# Each number is what is added to the right one: most are right, some are not.
_near = st.sampled_from([0, 0, 0, 0, 0, 1, -1])
_saves = st.tuples(
    st.just("save"),
    st.lists(st.tuples(st.sampled_from(STREAMS), _near), max_size=8),
    st.lists(st.tuples(st.sampled_from(STREAMS), _near), max_size=2),
    _near,  # owner
    st.sampled_from([0, 0, 0, 0, 1, 2, -1]),  # generation
)
_steps = st.one_of(_saves, _saves, _saves, st.tuples(st.just("reopen")))


class _Driver:
    """Does the steps on one store and notes what it says."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.said: list[Any] = []

    async def save(
        self,
        owner: int,
        group: list[tuple[str, int]],
        folds: list[tuple[str, int]],
        generation: int,
    ) -> None:
        stored = await self.store.read_run("run")
        assert stored is not None
        heads = {entry.stream: entry.sequence for entry in stored.streams}
        run = RunKey("run", stored.generation + generation, owner)
        if generation == 1:
            heads = {}
        checkpoints = []
        for stream, off in group:
            sequence = heads.get(stream, 0) + 1 + off
            checkpoints.append(Checkpoint(stream, sequence, f"{stream} {sequence}".encode()))
            heads[stream] = heads.get(stream, 0) + (off == 0)
        sums = [Fold(stream, max(0, heads.get(stream, 0) + off), b"f") for stream, off in folds]
        try:
            outcomes = await self.store.save(run, checkpoints, sums)
        except StoreError as error:
            self.said.append(type(error))
        else:
            self.said.append([type(outcome) for outcome in outcomes])

    async def look(self) -> None:
        stored = await self.store.read_run("run")
        assert stored is not None
        for number in range(-1, stored.generation + 2):
            again = await self.store.read_run("run", number)
            if again is not None:
                again = (again.owner, {entry.stream: entry for entry in again.streams})
            self.said.append(again)
            for stream in STREAMS:
                page = await self.store.history("run", stream, generation=number, limit=3)
                self.said.append((page.records, page.cursor is None))
        self.said.append(await self.store.list_runs())


async def _run(steps: list[tuple[Any, ...]], folder: Path) -> None:
    memory = _Driver(MemoryStore())
    disk = _Driver(await SqliteStore.open(folder, durability="process"))
    for driver in (memory, disk):
        for step in [*steps, ("reopen",)]:
            async with driver.store.lock_run("run") as owner:
                if step[0] == "save":
                    _, group, folds, off, generation = step
                    await driver.save(owner + off, group, folds, generation)
            if step[0] == "reopen":
                await driver.look()
                await driver.store.aclose()
                if isinstance(driver.store, MemoryStore):
                    driver.store = driver.store.reopen()
                else:
                    driver.store = await SqliteStore.open(folder, durability="process")
        await driver.store.aclose()
    assert memory.said == disk.said


@settings(max_examples=60, deadline=None)
@given(st.lists(_steps, max_size=12))
def test_memory_and_disk_agree(steps: list[tuple[Any, ...]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        trio.run(_run, steps, folder / "store")
    finally:
        shutil.rmtree(folder)
