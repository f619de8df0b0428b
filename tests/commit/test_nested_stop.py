"""A stop does not wait for a batch whose body waits for a loop that the stop has parked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    RetryRule,
    RetryTable,
    Run,
    RunStoppedError,
    Status,
    run_batches,
)
from trio_ckpt.stores import MemoryStore

HOUR_S = 3_600
Inner = Callable[[Run, int], Awaitable[None]]


async def one_by_one(run: Run, number: int) -> None:
    async with run.open_stream("inner", str(number)) as stream:
        async for batch in stream.batches(range(20)):
            await trio.sleep(1)
            batch.complete()


async def at_once(run: Run, number: int) -> None:
    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(1)
        batch.complete()

    async with run.open_stream("inner", str(number)) as stream:
        await run_batches(stream, range(40), handle, concurrency=2)


async def two_deep(run: Run, number: int) -> None:
    async def handle(batch: Batch[int]) -> None:
        await one_by_one(run, 100 * number + batch.index)
        batch.complete()

    async with run.open_stream("middle", str(number)) as stream:
        await run_batches(stream, range(4), handle, concurrency=2)


async def paused(run: Run, number: int) -> None:
    """The inner loop waits an hour for a server when the stop comes."""
    rule = RetryRule((OSError,), retry_after=lambda _: HOUR_S / 2)
    async with run.open_stream("inner", str(number), retry=RetryTable((rule,))) as stream:
        async for batch in stream.batches(range(20)):
            await trio.sleep(1)
            if batch.index == 5 and batch.attempt == 1:
                batch.fail(OSError("later"))
            else:
                batch.complete()


async def outer(store: MemoryStore, inner: Inner, stop_after_s: float | None) -> int:
    async with begin(store, grace_s=HOUR_S) as run:
        async with trio.open_nursery() as nursery:
            if stop_after_s is not None:
                nursery.start_soon(stop_after, run, stop_after_s)
            async with run.open_stream("outer") as stream:
                async for batch in stream.batches(range(2)):
                    await inner(run, batch.index)
                    batch.complete()
        return run.exit_code


async def stop_after(run: Run, seconds: float) -> None:
    await trio.sleep(seconds)
    run.request_stop()


@pytest.mark.parametrize("inner", [one_by_one, at_once, two_deep, paused])
async def test_a_body_that_waits_for_a_parked_loop_is_not_waited_for(
    inner: Inner, autojump_clock: trio.testing.MockClock
) -> None:
    store, began = MemoryStore(), trio.current_time()
    with pytest.raises(RunStoppedError) as caught:
        await outer(store, inner, 12.5)
    assert caught.value.exit_code == 75
    assert trio.current_time() - began <= 14
    assert await outer(store, inner, None) == 0
    view = await store.load_run("r")
    assert view is not None
    assert {entry.progress.status for key, entry in view.streams.items() if key} == {
        Status.COMPLETE
    }
    assert not any(entry.progress.failures for entry in view.streams.values())


async def test_a_body_that_works_beside_a_parked_loop_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The nursery is the program's own, which may cancel it when its work is done."""
    store, began = MemoryStore(), trio.current_time()

    async def work_beside(run: Run, number: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_by_one, run, number)
            await trio.sleep(18)
            nursery.cancel_scope.cancel()

    with pytest.raises(RunStoppedError) as caught:
        await outer(store, work_beside, 12.5)
    assert caught.value.exit_code == 75
    assert trio.current_time() - began == 18
    view = await store.load_run("r")
    assert view is not None
    assert list(view.streams[("outer",)].progress.confirmed) == [0]


async def test_a_stop_waits_again_when_a_pause_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The body with a loop that was paused is open like any other one."""
    store: Any = MemoryStore()
    began = trio.current_time()

    async def pause_then_work(run: Run, number: int) -> None:
        rule = RetryRule((OSError,), retry_after=lambda _: 5.0)
        async with run.open_stream("inner", str(number), retry=RetryTable((rule,))) as stream:
            async for batch in stream.batches(range(1)):
                if batch.attempt == 1:
                    batch.fail(OSError("later"))
                else:
                    batch.complete()
        await trio.sleep(20)

    with pytest.raises(RunStoppedError):
        await outer(store, pause_then_work, 12.5)
    assert trio.current_time() - began >= 25
    assert list((await store.load_run("r")).streams[("outer",)].progress.confirmed) == [0]
