"""The gate: so many at once, so far apart, none during a pause."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from examples._web.politeness import HostGate


async def starts_of(gate: HostGate, requests: int, *, each_s: float = 0.0) -> list[float]:
    """The times at which so many requests, made at once, start."""
    starts: list[float] = []
    began = trio.current_time()

    async def request() -> None:
        async with gate.slot():
            starts.append(trio.current_time() - began)
            await trio.sleep(each_s)

    async with trio.open_nursery() as nursery:
        for _ in range(requests):
            nursery.start_soon(request)
    return starts


async def test_at_most_per_host_at_once(autojump_clock: trio.testing.MockClock) -> None:
    assert await starts_of(HostGate(2), 5, each_s=1) == pytest.approx([0, 0, 1, 1, 2])


async def test_starts_are_spaced(autojump_clock: trio.testing.MockClock) -> None:
    assert await starts_of(HostGate(3, 0.5), 4) == pytest.approx([0, 0.5, 1.0, 1.5])


async def test_spacing_counts_from_start_to_start(autojump_clock: trio.testing.MockClock) -> None:
    assert await starts_of(HostGate(1, 2), 3, each_s=1.5) == pytest.approx([0, 2, 4])


async def test_a_pause_holds_everybody(autojump_clock: trio.testing.MockClock) -> None:
    gate = HostGate(2)
    gate.pause(10)
    assert await starts_of(gate, 3) == pytest.approx([10, 10, 10])


async def test_a_pause_extends_and_never_shortens(autojump_clock: trio.testing.MockClock) -> None:
    gate = HostGate(1)
    gate.pause(10)
    gate.pause(3)
    assert gate.paused_for_s == pytest.approx(10)
    await trio.sleep(4)
    gate.pause(8)
    assert gate.paused_for_s == pytest.approx(8)
    await trio.sleep(9)
    assert gate.paused_for_s == 0


async def test_a_pause_reaches_those_who_wait_already(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = HostGate(2, 5)
    async with gate.slot():
        pass
    async with trio.open_nursery() as nursery:

        async def pause_later() -> None:
            await trio.sleep(1)
            gate.pause(20)

        nursery.start_soon(pause_later)
        assert await starts_of(gate, 2) == pytest.approx([21, 26])


async def test_the_order_is_that_of_arrival(autojump_clock: trio.testing.MockClock) -> None:
    gate = HostGate(8, 10)
    order: list[int] = []

    async def request(number: int) -> None:
        await trio.sleep(number)
        async with gate.slot():
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(request, number)
    assert order == list(range(8))


async def test_cancelled_waiters_leave_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = HostGate(1, 10)
    async with gate.slot():
        pass
    with trio.move_on_after(1) as sleeping:
        await starts_of(gate, 3)
    assert sleeping.cancelled_caught
    assert await starts_of(gate, 2) == pytest.approx([9, 19])


async def test_an_error_in_the_block_gives_the_slot_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = HostGate(1)
    with pytest.raises(RuntimeError, match="ours"):
        async with gate.slot():
            raise RuntimeError("ours")
    with trio.fail_after(1):
        await starts_of(gate, 1)


async def test_bad_figures_are_refused() -> None:
    for seconds in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="a pause takes"):
            HostGate(1).pause(seconds)
    with pytest.raises(ValueError, match="per_host"):
        HostGate(0)
    with pytest.raises(ValueError, match="delay_s"):
        HostGate(1, -1)
