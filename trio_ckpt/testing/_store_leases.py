"""The clauses of the store contract about leases.  Time passes in them, some leases in each.

Where the store's clock is that of a server, a slow machine may spend a lease between two calls.
A clause then ends without a judgement, so that it never blames a store for that.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import trio

from .._journal.store import RunKey, Store
from .._util.errors import RunLockedError, StoreConflictError
from ._store_case import A, B, Case, chain, expect, expect_conflict, expect_raised

PART = 0.6  # of a lease: it has not ended after one, and has after two
OVER = 1.25  # of a lease: it has ended


async def a_lease_ends(case: Case) -> None:
    """Any process may take a run over when its lease has ended, and not before."""
    store, other = await case.open(), await case.open()
    asked_at = trio.current_time()
    async with store.lock_run(case.run_id) as old:
        if not await _is_held(case, other, asked_at):
            return
        found = await other.read_owner(case.run_id)
        left_s = None if found is None else found.lease_left_s
        expect(left_s is not None and left_s <= case.lease_s, f"the owner is {found}")
        await trio.sleep(case.lease_s * PART)
        if not await _is_held(case, other, asked_at):
            return
        await trio.sleep(case.lease_s * (OVER - PART))
        found = await other.read_owner(case.run_id)
        expect(found is None, f"the lease has ended, and {found} still has the run")
        async with other.lock_run(case.run_id) as owner:
            expect(owner > old, f"after owner {old} comes {owner}")
            await case.save_all(other, RunKey(case.run_id, 0, owner), chain(A, 1, 1))
    await case.expect_saved(store, {A: 1})


async def _is_held(case: Case, other: Store, renewed_at: float) -> bool:
    """Check that a run is refused; False: its lease may have ended meanwhile.

    Args:
        case: The clause, which owns the run on another handle.
        other: Asks for the run.
        renewed_at: A time before the lease was renewed, on trio's clock.
    """
    try:
        async with other.lock_run(case.run_id):
            after_s = trio.current_time() - renewed_at
    except RunLockedError as error:
        left_s = error.lease_left_s
        says = f"the error says that the lease of {case.lease_s} s ends in {left_s} s"
        expect(left_s is not None and 0 < left_s <= case.lease_s, says)
        return True
    expect(after_s >= case.lease_s, f"it was taken over {after_s} s after its owner renewed it")
    return False


async def saving_renews_the_lease(case: Case) -> None:
    """Each save renews the lease, also one of nothing."""
    store, other = await case.open(), await case.open()
    renewed_at = trio.current_time()
    async with store.lock_run(case.run_id) as owner:
        run = RunKey(case.run_id, 0, owner)
        for group in (chain(A, 1, 1), [], [], chain(A, 2, 2)):
            await trio.sleep(case.lease_s * PART)
            if not await _is_held(case, other, renewed_at):
                return
            renewed_at = trio.current_time()
            await case.save_all(store, run, group)


async def a_takeover_fences(case: Case) -> None:
    """An owner whose run was taken over changes nothing more, and does not release it."""
    store, other, third = await case.open(), await case.open(), await case.open()
    async with AsyncExitStack() as former:
        old = await former.enter_async_context(store.lock_run(case.run_id))
        zombie = RunKey(case.run_id, 0, old)
        await case.save_all(store, zombie, chain(A, 1, 1))
        await trio.sleep(case.lease_s * OVER)
        renewed_at = trio.current_time()
        async with other.lock_run(case.run_id) as owner:
            run = RunKey(case.run_id, 0, owner)
            await case.save_all(other, run, chain(A, 2, 2))
            for group in (chain(A, 3, 3), chain(B, 1, 1), []):
                await expect_conflict(store, zombie, group)
            await expect_conflict(store, RunKey(case.run_id, 1, old), chain(A, 1, 1))
            drop = partial(store.drop_blobs, stream=A, sequences=[1])
            await expect_raised(StoreConflictError, f"a drop as {zombie} was done", drop, zombie)
            prune = partial(store.prune, keep=0)
            await expect_raised(StoreConflictError, f"pruning as {zombie} was done", prune, zombie)
            await former.aclose()
            if await _is_held(case, third, renewed_at):
                await case.save_all(other, run, chain(A, 3, 3))
                await case.expect_saved(third, {A: 3})


async def a_late_owner_goes_on(case: Case) -> None:
    """An owner whose lease has ended goes on if no process has taken the run over."""
    store, other = await case.open(), await case.open()
    async with case.own(store) as run:
        await case.save_all(store, run, chain(A, 1, 1))
        await trio.sleep(case.lease_s * OVER)
        renewed_at = trio.current_time()
        await case.save_all(store, run, chain(A, 2, 2))
        await _is_held(case, other, renewed_at)
    await case.expect_saved(other, {A: 2})


async def a_lock_in_doubt_ends_with_its_lease(case: Case) -> None:
    """A lock that is kept because a save was abandoned ends with its lease."""
    store, other = await case.open(), await case.open()
    async with case.own(store) as run:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.save(run, chain(A, 1, 1))
    await trio.sleep(case.lease_s * OVER)
    for handle in (other, store):
        async with case.own(handle) as run:
            await case.save_all(handle, run, [])


async def no_zombie_brings_a_run_back(case: Case) -> None:
    """A run that was taken over and removed is not brought back by its former owner."""
    store, other = await case.open(), await case.open()
    async with store.lock_run(case.run_id) as old:
        await case.save_all(store, RunKey(case.run_id, 0, old), chain(A, 1, 2))
        await trio.sleep(case.lease_s * OVER)
        async with other.lock_run(case.run_id) as owner:
            await other.prune(RunKey(case.run_id, 0, owner), keep=0)
        for generation in range(3):
            for group in ([], chain(A, 1, 1), chain(A, 3, 3)):
                await expect_conflict(store, RunKey(case.run_id, generation, old), group)
        await case.expect_no_run(other)
    await case.expect_no_run(await case.reopen(store))
    async with other.lock_run(case.run_id) as following:
        expect(following > owner, f"after owner {owner} comes {following}")
