"""Waiting for a run that another owner still has."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from trio_ckpt import RunLockedError, open_run
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore, open_store

LEASE_S = 30.0


async def own(store: Store, seconds: float, run_id: str = "r") -> None:
    """Own a run for some time, by its lock alone."""
    async with store.lock_run(run_id):
        await trio.sleep(seconds)


async def test_a_run_that_is_owned_is_refused_at_once_by_default(
    autojump_clock: MockClock,
) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own, store, 10)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RunLockedError):
            async with open_run("r", store=store):
                pass
        assert trio.current_time() == 0


@pytest.mark.parametrize("wait_s", [10.5, 100, math.inf])
async def test_a_run_is_opened_when_its_owner_has_ended(
    wait_s: float, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a second, and it is said once."""
    store = MemoryStore()
    with caplog.at_level(logging.INFO, "trio_ckpt"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own, store, 10)
            await trio.testing.wait_all_tasks_blocked()
            async with open_run("r", store=store, wait_for_lock_s=wait_s):
                assert 10 <= trio.current_time() <= 11
    said = [text for text in caplog.messages if "waiting for it" in text]
    assert len(said) == 1
    assert f"(wait_for_lock_s={wait_s:g})" in said[0]


async def test_the_wait_for_a_run_ends(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own, store, 10)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RunLockedError):
            async with open_run("r", store=store, wait_for_lock_s=4.2):
                pass
        assert trio.current_time() == pytest.approx(4.2)


async def test_a_run_that_is_free_at_the_end_of_the_wait_is_opened(
    autojump_clock: MockClock,
) -> None:
    """The last attempt is at the end, not before it."""
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own, store, 4)
        await trio.testing.wait_all_tasks_blocked()
        async with open_run("r", store=store, wait_for_lock_s=4.2):
            assert trio.current_time() == pytest.approx(4.2, abs=0.6)


async def test_waiting_for_a_run_can_be_cancelled(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own, store, 10)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(3) as scope:
            async with open_run("r", store=store, wait_for_lock_s=100):
                pass
        assert scope.cancelled_caught
    async with open_run("r", store=store):
        pass


async def test_a_dead_owners_run_is_opened_when_its_lease_ends(autojump_clock: MockClock) -> None:
    """Not up to a second later: the refusal says when that is."""
    store = MemoryStore(lease_s=LEASE_S)
    async with store.lock_run("r"):
        await trio.sleep(7.77)
        after = store.after_crash()
    async with open_run("r", store=after, wait_for_lock_s=100):
        assert trio.current_time() == pytest.approx(LEASE_S)


async def test_a_lease_that_is_renewed_is_waited_for_again(autojump_clock: MockClock) -> None:
    store = MemoryStore(lease_s=LEASE_S)

    async def work() -> None:
        async with open_run("r", store=store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(100)):
                await trio.sleep(1)
                batch.complete()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        async with open_run("r", store=store, wait_for_lock_s=1_000) as run:
            assert 100 <= trio.current_time() <= 102
            assert run.exit_code == 0


@pytest.mark.parametrize("scheme", ["json", "sqlite"])
async def test_local_stores_wait_for_their_lock(
    scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner ends when it is known that another start waits for it."""
    store, is_waited_for = await open_store(f"{scheme}:{tmp_path / 'store'}"), trio.Event()

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for it" in record.getMessage():
                is_waited_for.set()

    async def end_when_waited_for(*, task_status: trio.TaskStatus[None]) -> None:
        async with store.lock_run("r"):
            task_status.started()
            await is_waited_for.wait()

    handler = Waits()
    logging.getLogger("trio_ckpt").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "trio_ckpt"):
            async with trio.open_nursery() as nursery:
                await nursery.start(end_when_waited_for)
                async with open_run("r", store=store, wait_for_lock_s=math.inf) as run:
                    assert run.exit_code == 0
    finally:
        logging.getLogger("trio_ckpt").removeHandler(handler)
    await store.aclose()
