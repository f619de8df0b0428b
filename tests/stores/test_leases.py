"""Stores with a lease: the memory store keeps the contract of it, and broken ones are noticed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_ckpt import RunLockedError, StoreConflictError
from trio_ckpt.abc import Checkpoint, Fold, Owner, RunKey, Store
from trio_ckpt.stores import MemoryStore
from trio_ckpt.stores.memory import _MemoryLock
from trio_ckpt.testing import FaultyStore, Hang, check_store

LEASE_S = 30.0


def maker_of(kind: type[MemoryStore], lease_s: float = LEASE_S) -> Callable[[], Awaitable[Store]]:
    """A maker of handles onto one store of a kind."""
    first = kind(lease_s=lease_s)

    async def maker() -> Store:
        handle = kind(lease_s=lease_s)
        handle._memory = first._memory
        return handle

    return maker


async def test_memory_with_a_lease(autojump_clock: MockClock) -> None:
    await check_store(maker_of(MemoryStore), lease_s=LEASE_S)
    assert trio.current_time() > 5 * LEASE_S


async def test_a_wrapped_store_has_the_lease_of_its_handle(autojump_clock: MockClock) -> None:
    maker = maker_of(MemoryStore)

    async def faulty() -> Store:
        return FaultyStore(await maker(), {1_000_000: Hang()})

    await check_store(faulty, lease_s=LEASE_S)


@pytest.mark.parametrize("lease_s", [None, 1.0])
async def test_another_lease_than_is_checked_is_noticed(lease_s: float | None) -> None:
    async def maker() -> Store:
        return MemoryStore(lease_s=lease_s)

    with pytest.raises(AssertionError, match=f"its lease_s is {lease_s} s, not 30.0 s"):
        await check_store(maker, lease_s=LEASE_S)


# ---------------------------------------------------------------------------------------
# Stores that each break one clause
# ---------------------------------------------------------------------------------------


class NeverEnds(MemoryStore):
    def _renew(self, lock: _MemoryLock) -> None:
        lock.ends_at = trio.current_time() + 1_000 * LEASE_S


class EndsTooSoon(MemoryStore):
    def _renew(self, lock: _MemoryLock) -> None:
        lock.ends_at = trio.current_time() + LEASE_S / 2


class SaysNoEnd(MemoryStore):
    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        try:
            async with super().lock_run(run_id) as owner:
                yield owner
        except RunLockedError as error:
            error.lease_left_s = None
            raise


class ShowsFormerOwners(MemoryStore):
    async def read_owner(self, run_id: str) -> Owner | None:
        lock = self._memory.locks.get(run_id)
        if lock is not None:
            self._renew(lock)
        return await super().read_owner(run_id)


class GivesTheSameNumber(MemoryStore):
    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        lock = self._memory.locks.get(run_id)
        if lock is not None and lock.left_s == 0:
            self._memory.runs[run_id].owner -= 1
        async with super().lock_run(run_id) as owner:
            yield owner


class RenewsNothing(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        lock = self._memory.locks.get(run.run_id)
        ends_at = lock.ends_at if lock is not None else 0.0
        outcomes = await super().save(run, group, folds, summary=summary)
        if lock is not None and not self.renews(group):
            lock.ends_at = ends_at
        return outcomes

    def renews(self, group: Sequence[Checkpoint]) -> bool:
        return False


class RenewsByRecordsOnly(RenewsNothing):
    def renews(self, group: Sequence[Checkpoint]) -> bool:
        return bool(group)


class RenewsByNothingOnly(RenewsNothing):
    def renews(self, group: Sequence[Checkpoint]) -> bool:
        return not group


class ReleasesTheHeirsLock(MemoryStore):
    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id) as owner:
            try:
                yield owner
            finally:
                lock = self._memory.locks.get(run_id)
                if lock is not None and self._memory.runs[run_id].owner != owner:
                    del self._memory.locks[run_id]


class RefusesTheLate(MemoryStore):
    def _find_owned(self, key: RunKey) -> Any:
        lock = self._memory.locks.get(key.run_id)
        if lock is not None and lock.left_s == 0:
            raise StoreConflictError("too late")
        return super()._find_owned(key)


class DoesNotRenewTheLate(MemoryStore):
    def _renew(self, lock: _MemoryLock) -> None:
        if lock.left_s != 0:
            super()._renew(lock)


class KeepsDoubtForEver(MemoryStore):
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        try:
            return await super().save(run, group, folds, summary=summary)
        except trio.Cancelled:
            self._memory.locks[run.run_id].ends_at += 1_000 * LEASE_S
            raise


class RaisesTheDead(MemoryStore):
    """Who is in the block of his lock can make a run again that was removed."""

    mine: tuple[str, int] | None = None

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        async with super().lock_run(run_id) as owner:
            self.mine = run_id, owner
            try:
                yield owner
            finally:
                self.mine = None

    def _find_owned(self, key: RunKey) -> Any:
        run = self._memory.runs.get(key.run_id)
        if run is not None and not run.generations and self.mine == (key.run_id, key.owner):
            self._memory.locks.setdefault(key.run_id, _MemoryLock(""))
            return run
        return super()._find_owned(key)


BROKEN = {
    NeverEnds: "Any process may take a run over.*ends in 30000.0 s",
    EndsTooSoon: "Any process may take a run over.*taken over",
    SaysNoEnd: "Any process may take a run over.*ends in None s",
    ShowsFormerOwners: "Any process may take a run over.*still has the run",
    GivesTheSameNumber: "Any process may take a run over.*after owner 1 comes 1",
    RenewsNothing: "Each save renews the lease",
    RenewsByRecordsOnly: "Each save renews the lease",
    RenewsByNothingOnly: "Each save renews the lease",
    ReleasesTheHeirsLock: "An owner whose run was taken over.*does not release it.*taken over",
    RefusesTheLate: "An owner whose lease has ended goes on.*too late",
    DoesNotRenewTheLate: "An owner whose lease has ended goes on.*taken over",
    KeepsDoubtForEver: "A lock that is kept because a save was abandoned.*RunLockedError",
    RaisesTheDead: "A run that was taken over and removed is not brought back",
}


@pytest.mark.parametrize(
    ("kind", "clause"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", "")
)
async def test_broken_store_is_caught(
    kind: type[MemoryStore], clause: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(AssertionError, match=f"(?s)^{clause}"):
        await check_store(maker_of(kind), lease_s=LEASE_S)


# ---------------------------------------------------------------------------------------
# The memory store
# ---------------------------------------------------------------------------------------


async def test_a_crash_leaves_the_lease(autojump_clock: MockClock) -> None:
    """Another process cannot see that the owner is gone, and waits for the end of the lease."""
    store = MemoryStore(lease_s=LEASE_S)
    async with store.lock_run("r"):
        await trio.sleep(10)
        after = store.after_crash()
    with pytest.raises(RunLockedError, match=r"its lease ends in 20\.0 s") as caught:
        async with after.lock_run("r"):
            pass
    assert caught.value.lease_left_s == 20
    await trio.sleep(20)
    async with after.lock_run("r") as owner:
        assert owner == 2
    async with store.lock_run("r") as owner:  # the original is another store
        assert owner == 2


async def test_a_crash_ends_a_lock_without_a_lease() -> None:
    store = MemoryStore()
    async with store.lock_run("r"):
        async with store.after_crash().lock_run("r") as owner:
            assert owner == 2
        with pytest.raises(RunLockedError, match="is open here already") as caught:
            async with store.lock_run("r"):
                pass
        assert caught.value.lease_left_s is None


async def test_a_handle_in_doubt_releases_its_next_lock(autojump_clock: MockClock) -> None:
    store = MemoryStore(lease_s=LEASE_S)
    async with store.lock_run("r") as owner:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.save(RunKey("r", 0, owner), [])
    with pytest.raises(RunLockedError):
        async with store.lock_run("r"):
            pass
    await trio.sleep(LEASE_S)
    for _ in range(2):
        async with store.lock_run("r"):
            pass


@pytest.mark.parametrize("lease_s", [0, -1, float("nan"), float("inf"), "30", True])
def test_a_lease_is_a_number_of_seconds(lease_s: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lease_s must be a number of seconds > 0"):
        MemoryStore(lease_s=lease_s)
