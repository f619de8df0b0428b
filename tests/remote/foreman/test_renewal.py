"""A foreman on a store with a lease: it keeps what it has, waits for a former one, and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.remote import functions
from tests.remote.functions import gates, seen
from tests.remote.site import F, open_site, until
from trio_ckpt import (
    LeaseLostError,
    RunStoppedError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from trio_ckpt._util.exceptions import leaves_of
from trio_ckpt.abc import Store
from trio_ckpt.remote import TaskStatus, read_job
from trio_ckpt.remote._foreman import dispatch
from trio_ckpt.remote._foreman.renewal import keep_lock
from trio_ckpt.remote._foreman.store_proxy import StoreProxy
from trio_ckpt.remote._foreman.task_checkpoints import TaskCheckpoints, read_task_checkpoints
from trio_ckpt.stores import MemoryStore

JOB, FIRST, LEASE_S = "job-x", "job-x.000000", 10.0


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


class SilentStore(MemoryStore):
    """A store whose saves fail while it is silent."""

    is_silent = False

    async def save(self, *args: Any, **kwargs: Any) -> list[Exception | None]:
        if self.is_silent:
            raise StoreError("the server does not answer")
        return await super().save(*args, **kwargs)


async def test_an_item_that_saves_seldom_keeps_its_lock(autojump_clock: MockClock) -> None:
    store = MemoryStore(lease_s=LEASE_S)
    async with open_site(store) as site, site.client() as client:
        await site.start_worker("box")
        await client.submit(F + "wait", ["x"], job_id=JOB, checkpoint_interval_s=10_000.0)
        await until(lambda: seen)
        for _ in range(30):
            await trio.sleep(LEASE_S / 3)
            assert await store.read_owner(FIRST) is not None


async def test_a_lock_is_renewed_only_where_nothing_is_saved(autojump_clock: MockClock) -> None:
    store, count = MemoryStore(lease_s=LEASE_S), 0
    save = store.save

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return await save(*args, **kwargs)

    store.save = counted  # type: ignore[method-assign]
    async with store.lock_run("r") as owner:
        proxy = StoreProxy(store, "r", owner)
        async with keep_lock(proxy):
            for _ in range(10):
                await trio.sleep(1)
                proxy.owned_at = trio.current_time()
            assert count == 0
            await trio.sleep(LEASE_S * 0.9)
        assert count == 2


async def test_a_lock_that_another_has_ends_the_block(autojump_clock: MockClock) -> None:
    store = MemoryStore(lease_s=LEASE_S)
    async with store.lock_run("r") as owner:
        proxy = StoreProxy(store, "r", owner - 1)
        with pytest.raises(StoreConflictError):
            async with keep_lock(proxy):
                await trio.sleep_forever()


async def test_a_lock_that_cannot_be_renewed_is_lost_in_time(autojump_clock: MockClock) -> None:
    store = SilentStore(lease_s=LEASE_S)
    async with store.lock_run("r") as owner:
        store.is_silent, began = True, trio.current_time()
        with pytest.raises(LeaseLostError, match="the server does not answer"):
            async with keep_lock(StoreProxy(store, "r", owner)):
                await trio.sleep_forever()
        assert trio.current_time() - began < LEASE_S


async def test_a_save_that_is_answered_keeps_a_lock_meanwhile(autojump_clock: MockClock) -> None:
    """Renewals are not answered for a while, and what the worker saves then is."""
    store = SilentStore(lease_s=LEASE_S)
    async with store.lock_run("r") as owner:
        store.is_silent, proxy = True, StoreProxy(store, "r", owner)
        async with keep_lock(proxy):
            await trio.sleep(LEASE_S * 0.6)
            proxy.owned_at = trio.current_time()
            await trio.sleep(LEASE_S * 0.5)
            store.is_silent = False
            await trio.sleep(2 * LEASE_S)


@pytest.mark.parametrize("what", ["too old", "damaged"])
async def test_a_state_that_a_killed_foreman_had_is_discarded(
    what: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that it has left is waited for."""
    reads = 0

    async def found(store: Store, task_id: str) -> TaskCheckpoints:
        nonlocal reads
        reads += 1
        saved = await read_task_checkpoints(store, task_id)
        if reads == 1 and what == "damaged":
            raise StoreDamagedError("a record is not what was saved")
        if what == "too old" and saved.last_checkpoint_at is not None:
            return msgspec.structs.replace(saved, last_checkpoint_at=0.0)
        return saved

    store = MemoryStore(lease_s=LEASE_S)
    async with open_site(store) as site, site.client() as client:
        await site.start_worker("box")
        options = {"max_age_s": 1e3} if what == "too old" else {}
        await client.submit(F + "train", [1], job_id=JOB, checkpoint_interval_s=1.0, **options)
        await until(lambda: len(seen) > 3)
        left = store.after_crash()
        assert await left.read_owner(FIRST) is not None
        await site.kill_foreman(left)
        site.kill_worker("box")
        monkeypatch.setattr(dispatch, "read_task_checkpoints", found)
        await site.start_foreman()
        await site.start_worker("other")
        assert (await client.attach(JOB))[0]["steps"] == functions.STEPS
    begun = [done for name, done, *_ in seen if name == 1]
    assert begun == [0, 0], "it did not start from the beginning"


async def test_a_foreman_that_loses_a_job_ends(autojump_clock: MockClock) -> None:
    """Another one may have it: the process exits with 75, and is started again."""
    store = SilentStore(lease_s=LEASE_S)

    async def run() -> None:
        async with open_site(store) as site, site.client() as client:
            await site.start_worker("box")
            await client.submit(F + "wait", ["x", "y"], job_id=JOB)
            await client.submit(F + "wait", ["z"], job_id="job-y")
            store.is_silent = True
            await trio.sleep(2 * LEASE_S)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    (error,) = leaves_of(caught.value)
    assert isinstance(error, RunStoppedError)
    assert error.exit_code == 75
    assert isinstance(error.__cause__, LeaseLostError)


class HangingStore(MemoryStore):
    """A store whose saves do not end while it hangs."""

    is_hanging = False

    async def save(self, *args: Any, **kwargs: Any) -> list[Exception | None]:
        if self.is_hanging:
            await trio.sleep_forever()
        return await super().save(*args, **kwargs)


async def test_a_foreman_whose_save_hangs_ends_with_its_lease(autojump_clock: MockClock) -> None:
    """It cannot know whether it still has its job."""
    store = HangingStore(lease_s=LEASE_S)

    async def run() -> None:
        async with open_site(store) as site, site.client() as client:
            await site.start_worker("box")
            await client.submit(F + "wait", ["x"], job_id=JOB)
            await until(lambda: seen)
            store.is_hanging = True
            gates["x"].set()
            await trio.sleep(2 * LEASE_S)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    (error,) = leaves_of(caught.value)
    assert isinstance(error, RunStoppedError)
    assert error.exit_code == 75


async def test_a_foreman_waits_for_what_a_killed_one_has_left(autojump_clock: MockClock) -> None:
    """Its locks hold until their leases end."""
    store = MemoryStore(lease_s=LEASE_S)
    async with trio.open_nursery() as holding:

        async def hold(run_id: str, task_status: trio.TaskStatus[None]) -> None:
            async with store.lock_run(run_id):
                task_status.started()
                await trio.sleep_forever()

        async with open_site(store) as site, site.client() as client:
            await site.start_worker("box")
            await client.submit(F + "wait", ["x"], job_id=JOB, checkpoint_interval_s=1.0)
            await until(lambda: seen)
            await site.kill_foreman()
            for run_id in (JOB, FIRST):
                await trio.testing.wait_all_tasks_blocked()  # it has given them back
                assert await store.read_owner(run_id) is None
                await holding.start(hold, run_id)
            began = trio.current_time()
            await site.start_foreman()
            gates["x"].set()
            assert await client.attach(JOB) == ["x"]
            assert LEASE_S - 1 < trio.current_time() - began < 2 * LEASE_S
        holding.cancel_scope.cancel()
    view = await read_job(store, JOB)
    assert (view.status, view.tasks[0].attempts) == (TaskStatus.COMPLETED, 1)
