"""The helper of the clauses of `check_store`."""

from __future__ import annotations

import math
import reprlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVarTuple

import attrs

from .._journal.store import Checkpoint, HistoryPage, RunKey, Store, StoredRun, StoredStream
from .._util.errors import StoreConflictError

Ts = TypeVarTuple("Ts")

A, B, C = '["a"]', '["b"]', '["c"]'


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def payload_of(sequence: int) -> bytes:
    return b"%d\x00\xff" % sequence


def chain(stream: str, first: int, last: int) -> list[Checkpoint]:
    return [Checkpoint(stream, n, payload_of(n)) for n in range(first, last + 1)]


@attrs.frozen
class Case:
    """One clause in progress: opens handles, and reports what is wrong."""

    maker: Callable[[], Awaitable[Store]]
    run_id: str
    handles: AsyncExitStack
    lease_s: float = math.inf  # infinite: no clause about leases is checked

    async def open(self) -> Store:
        store = await self.maker()
        self.handles.push_async_callback(store.aclose)
        is_right = self.lease_s in (store.lease_s, math.inf)
        expect(is_right, f"its lease_s is {store.lease_s} s, not {self.lease_s} s")
        return store

    @asynccontextmanager
    async def own(self, store: Store, generation: int = 0) -> AsyncGenerator[RunKey]:
        """Lock the clause's run."""
        async with store.lock_run(self.run_id) as owner:
            yield RunKey(self.run_id, generation, owner)

    async def save_all(self, store: Store, run: RunKey, group: Sequence[Checkpoint]) -> None:
        outcomes = await store.save(run, group)
        expect(outcomes == [None] * len(group), f"saving gave {outcomes}")

    async def reopen(self, store: Store) -> Store:
        await store.aclose()
        return await self.open()

    async def read(self, store: Store, generation: int | None = None) -> StoredRun:
        stored = await store.read_run(self.run_id, generation)
        if stored is None:
            raise AssertionError(f"generation {generation} of the run is not there")
        expect(stored.run_id == self.run_id, f"it came back as run {stored.run_id!r}")
        return stored

    async def read_stream(self, store: Store, stream: str) -> StoredStream:
        found = [entry for entry in (await self.read(store)).streams if entry.stream == stream]
        expect(len(found) == 1, f"stream {stream} is there {len(found)} times")
        return found[0]

    async def expect_saved(self, store: Store, sequences: dict[str, int]) -> None:
        """Each of these streams has the records 1 … n, and there are no others."""
        stored = await self.read(store)
        heads = {entry.stream: entry.sequence for entry in stored.streams}
        expect(heads == sequences, f"the newest records are {heads}, not {sequences}")
        for entry in stored.streams:
            expect_tail(entry, 1)

    async def expect_no_run(self, store: Store) -> None:
        """The run is not there, in no generation and in no list."""
        for generation in (None, 0, 1, 2, 3):
            stored = await store.read_run(self.run_id, generation)
            expect(stored is None, f"generation {generation} of a run that is gone: {stored}")
        ids = [summary.run_id for summary in await store.list_runs()]
        expect(self.run_id not in ids, "a run that is gone is listed")
        page = await store.history(self.run_id, A)
        expect(page == HistoryPage((), None), f"a run that is gone has a history: {page}")


def expect_tail(entry: StoredStream, first: int) -> None:
    found = [(record.sequence, record.payload) for record in entry.tail]
    wanted = [(n, payload_of(n)) for n in range(first, entry.sequence + 1)]
    expect(found == wanted, f"the tail of {entry.stream} is {found[:5]}, not {wanted[:5]}")


async def expect_raised(
    error: type[Exception], otherwise: str, use: Callable[[*Ts], Awaitable[object]], *args: *Ts
) -> None:
    try:
        found = await use(*args)
    except error:
        return
    raise AssertionError(f"{otherwise}: not {error.__name__}, but {reprlib.repr(found)}")


async def expect_conflict(store: Store, run: RunKey, group: Sequence[Checkpoint]) -> None:
    what = f"a save as {run} was taken"
    await expect_raised(StoreConflictError, what, store.save, run, group)
