"""Time limits of a process that was stopped: SIGSTOP, a container that was paused, a closed lid."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ckpt._util.patience import MAX_LATE, end_awake, give_up_after, sleep_awake, wait_awake


async def test_time_in_which_a_process_is_stopped_does_not_count(mock_clock: MockClock) -> None:
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_jump, mock_clock, 100.0, event)
        assert await wait_awake(event, 60.0)


async def _jump(clock: MockClock, seconds: float, then: trio.Event) -> None:
    """The process is stopped for a while, and what it waits for comes when it goes on."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    then.set()


async def test_a_wait_ends_in_time_that_does_count(autojump_clock: MockClock) -> None:
    assert not await wait_awake(trio.Event(), 60.0)
    assert trio.current_time() == pytest.approx(60, abs=0.1)
    await sleep_awake(5.0)
    assert trio.current_time() == pytest.approx(65, abs=0.1)


async def test_a_save_that_a_stop_made_late_is_not_unknown(mock_clock: MockClock) -> None:
    landed = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_jump, mock_clock, 100.0, landed)
        assert await end_awake(landed.wait, 60.0)


async def test_what_does_not_end_is_cancelled(autojump_clock: MockClock) -> None:
    assert not await end_awake(trio.sleep_forever, 60.0)


@pytest.mark.parametrize("limit_s", [0.5, 8.0, 60.0])
async def test_a_limit_is_over_in_time(autojump_clock: MockClock, limit_s: float) -> None:
    with give_up_after(limit_s) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(limit_s, abs=0.01)


@pytest.mark.parametrize("began_s", [1.0, 54.0, 56.0, 59.0])
async def test_what_comes_soon_after_a_stop_is_in_time(
    autojump_clock: MockClock, began_s: float
) -> None:
    """Whenever the process was stopped, however often."""
    event = trio.Event()

    async def be_stopped() -> None:
        await trio.sleep(began_s)
        for _ in range(3):
            autojump_clock.jump(7_200)
            await trio.sleep(0.4)
        event.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_stopped)
        with give_up_after(60) as scope:
            await event.wait()
    assert not scope.cancelled_caught


async def test_a_program_that_is_always_late_is_not_stopped(mock_clock: MockClock) -> None:
    async def be_late() -> None:
        while True:
            await wait_all_tasks_blocked()
            mock_clock.jump(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_late)
        with give_up_after(60) as scope:
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()
    assert scope.cancelled_caught
    assert trio.current_time() <= 60 + (MAX_LATE + 2) * 10


@pytest.mark.parametrize("is_shielded", [False, True])
async def test_a_limit_is_shielded_or_not(autojump_clock: MockClock, is_shielded: bool) -> None:
    with trio.move_on_after(1), give_up_after(60, is_shielded=is_shielded):
        await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(60 if is_shielded else 1, abs=0.01)
