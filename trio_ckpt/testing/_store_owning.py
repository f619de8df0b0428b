"""The clauses of the store contract about owning a run and its generations."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

import trio

from .._journal.store import Fold, Owner, RunKey, Store
from .._util.errors import RunLockedError
from ._store_case import A, B, Case, chain, expect, expect_conflict

MAX_WAITS = 100  # of a caller for a lock; it is cancelled at each


async def owner_grows(case: Case) -> None:
    """Each lock of a run yields a greater owner number, from 1 on, also after it was reopened."""
    store = await case.open()
    numbers: list[int] = []
    for _ in range(3):
        for _ in range(2):
            async with store.lock_run(case.run_id) as owner:
                numbers.append(owner)
                expect((await case.read(store)).owner == owner, "read_run tells another owner")
        store = await case.reopen(store)
    is_rising = numbers == sorted(set(numbers))
    expect(is_rising and numbers[0] > 0, f"the numbers were {numbers}")


async def fence(case: Case) -> None:
    """A save that carries another owner number than the newest saves nothing."""
    store = await case.open()
    async with store.lock_run(case.run_id) as old:
        await case.save_all(store, RunKey(case.run_id, 0, old), chain(A, 1, 1))
    other = await case.open()
    async with other.lock_run(case.run_id) as owner:
        await case.save_all(other, RunKey(case.run_id, 0, owner), chain(A, 2, 2))
        for wrong in (old, owner + 1):
            key = RunKey(case.run_id, 0, wrong)
            await expect_conflict(store, key, [*chain(B, 1, 1), *chain(A, 3, 3)])
        await expect_conflict(store, RunKey(case.run_id, 1, old), chain(A, 1, 1))
        await expect_conflict(store, RunKey(case.run_id, 0, old), [])
        expect(await other.save(RunKey(case.run_id, 0, owner), []) == [], "nothing was a problem")
        await case.save_all(other, RunKey(case.run_id, 0, owner), chain(A, 3, 3))
    await case.expect_saved(store, {A: 3})


async def lock_excludes(case: Case) -> None:
    """A run has one owner at a time; a second one learns the owner's host, process and start."""
    store, other = await case.open(), await case.open()
    async with store.lock_run(case.run_id):
        for handle in (other, store):
            await _expect_locked(handle, case.run_id)
        async with other.lock_run(f"{case.run_id} 2"):
            pass
    async with other.lock_run(case.run_id):
        await _expect_locked(store, case.run_id)
    async with store.lock_run(case.run_id):
        pass
    try:
        async with store.lock_run(case.run_id):
            raise KeyError("the body's own")
    except KeyError:
        pass
    async with other.lock_run(case.run_id):
        pass


async def _expect_locked(store: Store, run_id: str) -> None:
    try:
        async with store.lock_run(run_id):
            pass
    except RunLockedError as error:
        expect(error.run_id == run_id, f"run_id is {error.run_id!r}")
        expect(error.host == socket.gethostname(), f"host is {error.host!r}")
        expect(error.pid == os.getpid(), f"pid is {error.pid!r}")
        since = datetime.fromisoformat(error.since)
        expect(since.tzinfo is not None, f"since is {error.since!r}, without a time zone")
        return
    raise AssertionError("a second owner was let in")


async def lock_cancelled(case: Case) -> None:
    """Cancelled on the way in, a lock is not held; cancelled inside, it is given back."""
    store = await case.open()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with store.lock_run(case.run_id):
            await trio.lowlevel.checkpoint()
    async with store.lock_run(case.run_id):
        pass
    with trio.CancelScope() as scope:
        async with store.lock_run(case.run_id):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with store.lock_run(case.run_id):
        pass


async def lock_sent_and_not_waited_for(case: Case) -> None:
    """A lock whose caller is gone before the answer comes is not held, so it can be sent again."""
    store, other = await case.open(), await case.open()
    for waits in range(1, MAX_WAITS):
        with trio.CancelScope() as scope:
            at_wait = _CancelAtWait(trio.lowlevel.current_task(), scope, waits)
            trio.lowlevel.add_instrument(at_wait)
            try:
                await _lock_once(store, case.run_id)
            finally:
                trio.lowlevel.remove_instrument(at_wait)
        for handle in (store, other):
            await _lock_once(handle, case.run_id)
        if not scope.cancel_called:
            break


class _CancelAtWait(trio.abc.Instrument):
    """Cancels a scope at the wait of a task that has a certain number, from 1."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, waits: int) -> None:
        self._task = task
        self._scope = scope
        self._left = waits

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a wait; called by trio when a task has begun it."""
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def _lock_once(store: Store, run_id: str) -> None:
    async with store.lock_run(run_id):
        pass


async def generations(case: Case) -> None:
    """The next generation begins empty; the older ones stay readable by number."""
    store = await case.open()
    async with store.lock_run(case.run_id) as owner:
        await case.save_all(store, RunKey(case.run_id, 0, owner), chain(A, 1, 3))
        await store.save(RunKey(case.run_id, 0, owner), [], [Fold(A, 3, b"old")])
        await expect_conflict(store, RunKey(case.run_id, 2, owner), chain(A, 1, 1))
        fresh = RunKey(case.run_id, 1, owner)
        await case.save_all(store, fresh, [*chain(A, 1, 1), *chain(B, 1, 2)])
        await expect_conflict(store, RunKey(case.run_id, 0, owner), chain(A, 4, 4))
        await case.save_all(store, fresh, chain(A, 2, 2))
    store = await case.reopen(store)
    await case.expect_saved(store, {A: 2, B: 2})
    expect((await case.read(store)).generation == 1, "the newest is not 1")
    archive = await case.read(store, 0)
    expect(archive.generation == 0, f"generation 0 came back as {archive.generation}")
    heads = {entry.stream: entry.sequence for entry in archive.streams}
    expect(heads == {A: 3}, f"generation 0 has {heads}")
    page = await store.history(case.run_id, A, generation=0)
    expect([r.sequence for r in page.records] == [3, 2, 1], "generation 0 has another history")
    expect(await store.read_run(case.run_id, 2) is None, "there is a generation 2")


async def read_owner(case: Case) -> None:
    """read_owner returns the present owner of a run, on any handle; None: there is none."""
    store, other = await case.open(), await case.open()
    expect(await store.read_owner(case.run_id) is None, "a run that is not there has an owner")
    expect(await store.read_run(case.run_id) is None, "looking for its owner made a run")
    began = datetime.now(UTC) - timedelta(seconds=1)  # it may be told in whole seconds
    async with store.lock_run(case.run_id) as number:
        for handle in (store, other):
            owner = await handle.read_owner(case.run_id)
            _expect_this_process(owner, began)
        async with other.lock_run(f"{case.run_id} 2"):
            pass
        expect(await other.read_owner(f"{case.run_id} 2") is None, "one given back has an owner")
    for handle in (other, store):
        expect(await handle.read_owner(case.run_id) is None, "one given back has an owner")
    async with other.lock_run(case.run_id) as following:
        expect(following == number + 1, f"after owner {number}, looking, comes {following}")
        _expect_this_process(await store.read_owner(case.run_id), began)


def _expect_this_process(owner: Owner | None, began: datetime) -> None:
    if owner is None:
        raise AssertionError("a run that is locked has no owner")
    expect(owner.host == socket.gethostname(), f"host is {owner.host!r}")
    expect(owner.pid == os.getpid(), f"pid is {owner.pid!r}")
    expect(owner.since.utcoffset() == timedelta(0), f"since is {owner.since!r}, not in UTC")
    now = datetime.now(UTC)
    expect(began <= owner.since <= now, f"since is {owner.since}, not from {began} to {now}")


LOOKS = 40


async def reading_the_owner_refuses_no_lock(case: Case) -> None:
    """Locking a run is not refused while another process reads its owner."""
    store, other = await case.open(), await case.open()
    done = trio.Event()

    async def look() -> None:
        while not done.is_set():
            await other.read_owner(case.run_id)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(look)
        try:
            for _ in range(LOOKS):
                async with store.lock_run(case.run_id):
                    pass
        except RunLockedError as error:
            raise AssertionError(f"it was: {error}") from error
        finally:
            done.set()


async def lock_makes_the_run(case: Case) -> None:
    """Only a lock makes a run: nothing is saved without one, or after it was given back."""
    store, other = await case.open(), await case.open()
    for handle in (store, other):
        for number in (0, 1, 2):
            await _expect_refused(handle, RunKey(case.run_id, 0, number))
    expect(await store.read_run(case.run_id) is None, "a save without a lock made a run")
    async with case.own(store) as run:
        await case.save_all(store, run, chain(A, 1, 1))
    for handle in (store, other):
        await _expect_refused(handle, run)
        await _expect_refused(handle, RunKey(case.run_id, 1, run.owner))
    await case.expect_saved(await case.reopen(store), {A: 1})


async def _expect_refused(store: Store, run: RunKey) -> None:
    for group in ([], chain(A, 1, 1), chain(A, 2, 2)):
        await expect_conflict(store, run, group)
