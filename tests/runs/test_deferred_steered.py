"""What is asked of a run that waits for deferred batches: a stop, a pause, more workers."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.runs.steered import begin_steered, done, refused
from trio_ckpt import Batch, Run, RunStoppedError, read_sessions, run_batches
from trio_ckpt._runs.steering import Steering
from trio_ckpt.stores import MemoryStore

Clock = trio.testing.MockClock
Steer = Callable[[Run, Steering], Awaitable[None]]


async def begun_by(store: MemoryStore, steer: Steer, due_s: float, loop: str) -> dict[int, float]:
    """Work on six batches, of which two are deferred once; returns when each began last."""
    begun, deferred = dict[int, float](), set[int]()

    async def handle(batch: Batch[Any]) -> None:
        begun[batch.index] = trio.current_time()
        await trio.sleep(1.0)
        if batch.index in (1, 4) and batch.index not in deferred:
            deferred.add(batch.index)
            batch.defer(until=due_s)
        else:
            batch.complete()

    settings: dict[str, Any] = {"state": {"n": 0}} if loop == "with a state" else {}
    async with begin_steered(store, wait_for_deferred_s=1_000) as (run, steering):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steer, run, steering)
            async with run.open_stream("s", **settings) as stream:
                if loop == "run_batches":
                    await run_batches(stream, range(6), handle, concurrency=2)
                else:
                    async for batch in stream.batches(range(6)):
                        await handle(batch)
    return begun


@pytest.mark.parametrize("loop", ["run_batches", "batches", "with a state"])
async def test_a_stop_ends_a_wait_at_once(loop: str, autojump_clock: Clock) -> None:
    async def stop(run: Run, steering: Steering) -> None:
        await trio.sleep(100)
        run.request_stop()

    store = MemoryStore()
    with pytest.raises(RunStoppedError) as stopped:
        await begun_by(store, stop, 500, loop)
    assert trio.current_time() == pytest.approx(100, abs=1)
    assert (stopped.value.exit_code, stopped.value.reason, stopped.value.next_due) == (
        75,
        None,
        None,
    )
    [session] = await read_sessions(store, "r")
    assert session.next_due is None


@pytest.mark.parametrize("loop", ["run_batches", "batches", "with a state"])
async def test_what_becomes_due_in_a_pause_waits_for_its_end(
    loop: str, autojump_clock: Clock
) -> None:
    async def pause(run: Run, steering: Steering) -> None:
        await trio.sleep(50)
        await done(steering, "pause")
        await trio.sleep(700)
        await done(steering, "resume")

    begun = await begun_by(MemoryStore(), pause, 200, loop)
    assert len(begun) == 6
    assert begun[4] >= 750
    assert begun[1] >= 750


async def test_more_workers_wait_with_the_others(autojump_clock: Clock) -> None:
    async def hire(run: Run, steering: Steering) -> None:
        for count in (5, 1, 3):
            await trio.sleep(50)
            await done(steering, "concurrency", count=count)

    begun = await begun_by(MemoryStore(), hire, 300, "run_batches")
    assert begun[1] == pytest.approx(301, abs=3)
    assert begun[4] == pytest.approx(303, abs=3)


async def test_a_deferral_is_not_lifted_by_ctl(autojump_clock: Clock) -> None:
    async def requeue(run: Run, steering: Steering) -> None:
        await trio.sleep(50)
        why = await refused(steering, "requeue", stream=("s",), steps=(1, 1))
        assert "`trio-ckpt retry` lifts deferrals" in why

    begun = await begun_by(MemoryStore(), requeue, 300, "run_batches")
    assert begun[1] > 300
