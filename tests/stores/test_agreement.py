"""The store in memory says what the stores on disk say, whatever is asked of them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import trio
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace

from tests.stores.tools import owned
from trio_ckpt._util.errors import StoreDamagedError, StoreError
from trio_ckpt.abc import Checkpoint, Fold, RunKey, Store
from trio_ckpt.stores import MemoryStore, open_store

GENERATIONS = 5  # looked for where the run is gone
BLOBS = (b"zero", b"one1", b"two22", b"three")
DIGESTS = tuple(hashlib.sha256(payload).hexdigest() for payload in BLOBS)
STREAMS = ('["a"]', '["b"]', '["c"]')

# Each number is what is added to the right one: most are right, some are not.
_near = st.sampled_from([0, 0, 0, 0, 0, 1, -1])
_saves = st.tuples(
    st.just("save"),
    st.lists(
        st.tuples(st.sampled_from(STREAMS), _near, st.lists(st.sampled_from(DIGESTS), max_size=3)),
        max_size=8,
    ),
    st.lists(st.tuples(st.sampled_from(STREAMS), _near), max_size=2),
    _near,  # owner
    st.sampled_from([0, 0, 0, 0, 1, 2, -1]),  # generation
)
_prunes = st.tuples(st.just("prune"), st.integers(0, 3), _near, _near)  # keep, owner, generation
_drops = st.tuples(
    st.just("drop"),
    st.sampled_from(STREAMS),
    st.lists(st.integers(-1, 8), max_size=5),
    _near,  # owner
    _near,  # generation
)
_puts = st.tuples(st.just("put"), st.sampled_from(BLOBS))
_steps = st.one_of(
    _saves, _saves, _saves, _saves, _prunes, _drops, _drops, _puts, st.tuples(st.just("reopen"))
)


class _Driver:
    """Does the steps on one store and notes what it says."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.said: list[Any] = []

    async def save(
        self,
        owner: int,
        group: list[tuple[str, int, list[str]]],
        folds: list[tuple[str, int]],
        generation: int,
    ) -> None:
        stored = await self.store.read_run("run")
        assert stored is not None  # it is locked
        heads = {entry.stream: entry.sequence for entry in stored.streams}
        run = RunKey("run", stored.generation + generation, owner)
        if generation == 1:
            heads = {}
        checkpoints = []
        for stream, off, blobs in group:
            sequence = heads.get(stream, 0) + 1 + off
            payload = f"{stream} {sequence}".encode()
            checkpoints.append(Checkpoint(stream, sequence, payload, blobs=tuple(blobs)))
            heads[stream] = heads.get(stream, 0) + (off == 0)
        sums = [Fold(stream, max(0, heads.get(stream, 0) + off), b"f") for stream, off in folds]
        try:
            outcomes = await self.store.save(run, checkpoints, sums)
        except StoreError as error:
            self.said.append(type(error))
        else:
            self.said.append([type(outcome) for outcome in outcomes])

    async def prune(self, owner: int, keep: int, generation: int) -> None:
        stored = await self.store.read_run("run")
        assert stored is not None  # it is locked
        run = RunKey("run", stored.generation + generation, owner)
        try:
            self.said.append(await self.store.prune(run, keep=keep))
        except StoreError as error:
            self.said.append(type(error))

    async def drop(self, owner: int, stream: str, sequences: list[int], generation: int) -> None:
        stored = await self.store.read_run("run")
        assert stored is not None  # it is locked
        run = RunKey("run", stored.generation + generation, owner)
        try:
            self.said.append(await self.store.drop_blobs(run, stream, sequences))
        except StoreError as error:
            self.said.append(type(error))

    async def look_for_blobs(self) -> None:
        for digest in DIGESTS:
            try:
                self.said.append(await self.store.read_blob("run", digest, 1, 2))
            except StoreDamagedError as error:
                self.said.append(type(error))

    async def look(self) -> None:
        stored = await self.store.read_run("run")
        self.said.append(stored is None)
        for number in range(-1, GENERATIONS if stored is None else stored.generation + 2):
            again = await self.store.read_run("run", number)
            if again is not None:
                again = (again.owner, {entry.stream: entry for entry in again.streams})
            self.said.append(again)
            for stream in STREAMS:
                page = await self.store.history("run", stream, generation=number, limit=3)
                self.said.append((page.records, page.cursor is None))
        runs = [(run, run.updated_at is None) for run in await self.store.list_runs()]
        self.said.append([(replace(run, updated_at=None), is_new) for run, is_new in runs])


async def _open(scheme: str, folder: Path, before: Store | None = None) -> Store:
    if isinstance(before, MemoryStore):
        return before.reopen()
    if scheme == "memory":
        return MemoryStore()
    return await open_store(f"{scheme}:{folder}", durability="process")


async def _run(steps: list[tuple[Any, ...]], folder: Path) -> None:
    said: dict[str, list[Any]] = {}
    for scheme in ("memory", "sqlite", "json"):
        driver = _Driver(await _open(scheme, folder / scheme))
        async with owned(driver.store) as run:
            for payload in BLOBS:
                await driver.store.put_blob(run, payload)
        for step in [*steps, ("reopen",)]:
            async with driver.store.lock_run("run") as owner:
                await driver.look_for_blobs()
                if step[0] == "save":
                    _, group, folds, off, generation = step
                    await driver.save(owner + off, group, folds, generation)
                elif step[0] == "prune":
                    _, keep, off, generation = step
                    await driver.prune(owner + off, keep, generation)
                elif step[0] == "drop":
                    _, stream, sequences, off, generation = step
                    await driver.drop(owner + off, stream, sequences, generation)
                elif step[0] == "put":
                    await driver.store.put_blob(RunKey("run", 0, owner), step[1])
                await driver.look_for_blobs()
            await driver.look()
            if step[0] == "reopen":
                await driver.store.aclose()
                driver.store = await _open(scheme, folder / scheme, driver.store)
        await driver.store.aclose()
        said[scheme] = driver.said
    assert said["memory"] == said["sqlite"]
    assert said["memory"] == said["json"]


@settings(max_examples=60, deadline=None)
@given(st.lists(_steps, max_size=12))
def test_memory_and_disk_agree(steps: list[tuple[Any, ...]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        trio.run(_run, steps, folder / "store")
    finally:
        shutil.rmtree(folder)
