"""What is waited for wakes only who waits for it: nothing costs more, the more there is.

Each test counts the steps that trio takes for an item, at two sizes ten times apart.
"""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import Batch, Frontier, RetryRule, RetryTable, Run, run_batches


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks."""

    taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


Program = Callable[[Run, int], Awaitable[None]]


async def count_steps(program: Program, count: int) -> float:
    """Steps for each item."""
    steps = Steps()
    async with begin() as run:
        trio.lowlevel.add_instrument(steps)
        try:
            await program(run, count)
        finally:
            trio.lowlevel.remove_instrument(steps)
    return steps.taken / count


async def tail(run: Run, count: int) -> None:
    """As many workers as items, which end one after the other: ever more are idle."""
    gates = [trio.Event() for _ in range(count + 1)]

    async def handle(batch: Batch[int]) -> None:
        await gates[batch.index].wait()
        batch.complete()
        gates[batch.index + 1].set()

    gates[0].set()
    async with run.open_stream("s") as stream:
        await run_batches(stream, range(count), handle, concurrency=count)


async def waiters(run: Run, count: int) -> None:
    """A waiter for each batch."""
    await run.add_streams([("s",)])
    async with trio.open_nursery() as nursery:
        for index in range(count):
            nursery.start_soon(run.wait_confirmed, ("s",), [index])
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(count)):
                batch.complete()


async def waiters_for_all(run: Run, count: int) -> None:
    """Few waiters, each for all batches."""
    await run.add_streams([("s",)])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run.wait_confirmed, ("s",), range(count))
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(count)):
                batch.complete()


async def waiters_elsewhere(run: Run, count: int) -> None:
    """Waiters for streams that nothing comes from while another one works."""
    await run.add_streams([(f"t{number}",) for number in range(count)])
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(run.wait_confirmed, (f"t{number}",), [0])
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(count)):
                batch.complete()
        nursery.cancel_scope.cancel()


async def retries(run: Run, count: int) -> None:
    """All fail at once and are due one after the other, while the workers are idle."""
    table = RetryTable((RetryRule((OSError,), attempts=2, backoff_s=1, jitter=0.5),))

    async def handle(batch: Batch[int]) -> None:
        if batch.attempt == 1:
            raise OSError
        batch.complete()

    async with run.open_stream("s", retry=table) as stream:
        await run_batches(stream, range(count), handle, concurrency=count)


async def frontier(run: Run, count: int) -> None:
    """One item leads to the next, and a hundred workers wait."""

    async def handle(batch: Batch[int]) -> None:
        if batch.item + 1 < count:
            batch.add([batch.item + 1])
        batch.complete()

    async with run.open_stream("s", state=Frontier([0])) as stream:
        await run_batches(stream, None, handle, concurrency=100)


PROGRAMS = [tail, waiters, waiters_for_all, waiters_elsewhere, retries, frontier]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_an_item_costs_the_same_steps_however_many_there_are(
    autojump_clock: MockClock, program: Program
) -> None:
    few, many = await count_steps(program, 60), await count_steps(program, 600)
    assert many < 1.5 * few + 5
    assert many < 30


# -- and each task that is concerned wakes -----------------------------------------------------


async def test_workers_that_are_idle_take_what_comes_to_the_frontier() -> None:
    most = now = 0

    async def handle(batch: Batch[int]) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        if batch.item == 0:
            batch.add(range(1, 9))
            batch.complete()
            await batch.confirm()  # they are there from here on, not when this handler ends
            await reached.wait()
        elif now == 8:
            reached.set()
        else:
            await reached.wait()
        batch.complete()
        now -= 1

    reached = trio.Event()
    with trio.fail_after(HANG_S):
        async with begin() as run, run.open_stream("s", state=Frontier([0])) as stream:
            await run_batches(stream, None, handle, concurrency=8)
    assert (most, len(stream.progress.confirmed)) == (8, 9)


async def test_a_retry_that_is_due_earlier_than_others_is_not_late(
    autojump_clock: MockClock,
) -> None:
    due = {0: 50.0, 1: 5.0, 2: 20.0, 3: 1.0}
    seen: dict[int, float] = {}
    rule = RetryRule(
        (OSError,), attempts=2, backoff_s=0, retry_after=None, when=lambda _error: True
    )

    async def handle(batch: Batch[int]) -> None:
        if batch.attempt == 1:
            raise OSError(batch.index)
        seen[batch.index] = trio.current_time() - start
        batch.complete()

    class Table(RetryTable):
        def decide(self, error: BaseException, attempts: int) -> Any:
            again = super().decide(error, attempts)
            return type(again)(due[error.args[0]])

    start = trio.current_time()
    for concurrency in (1, 2, 4):
        seen.clear()
        async with begin() as run, run.open_stream("s", retry=Table((rule,))) as stream:
            start = trio.current_time()
            await run_batches(stream, range(4), handle, concurrency=concurrency)
        assert seen == due


async def test_a_waiter_is_told_of_batches_that_were_adopted(tmp_path: Any) -> None:
    (tmp_path / "0").write_text("found")
    async with begin(output_dir=tmp_path) as run:
        async with run.open_stream("s") as stream, trio.open_nursery() as nursery:
            nursery.start_soon(run.wait_confirmed, stream, [0])
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(HANG_S):
                await stream.rescan(str, total=1, adopt_outputs=True)
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()


async def test_a_waiter_hears_of_a_stream_that_was_opened_and_left_at_once() -> None:
    async with begin() as run:
        await run.add_streams([("s",)])
        told: list[str] = []

        async def wait() -> None:
            try:
                await run.wait_confirmed(("s",), [0])
            except Exception as error:
                told.append(type(error).__name__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            async with run.open_stream("s"):
                pass
        assert told == ["StreamEndedError"]
