"""Waiting for batches by their stream's key, before and while they are worked on."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchFailedError,
    CheckpointFailedError,
    Run,
    RunStoppedError,
    StreamEndedError,
    UnknownStreamError,
)
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import seeded_scheduler


async def work(run: Run, name: str = "s", count: int = 3) -> None:
    async with run.open_stream(name) as stream:
        async for batch in stream.batches(range(count)):
            batch.complete(records=1)


async def test_wait_confirmed(autojump_clock: trio.testing.MockClock) -> None:
    store, waited = MemoryStore(), []

    async def wait(run: Run, name: str, index: int) -> None:
        try:
            await run.wait_confirmed((name,), [index])
            waited.append((name, index, "durable"))
        except (CheckpointFailedError, StreamEndedError) as error:
            waited.append((name, index, type(error).__name__))

    async with begin(store) as run, trio.open_nursery() as nursery:
        await run.add_streams([("s",), ("f",), ("never",)])
        for case in [("s", 2), ("s", 9), ("f", 0), ("never", 0)]:
            nursery.start_soon(wait, run, *case)
        await trio.testing.wait_all_tasks_blocked()
        await work(run)
        async with run.open_stream("f") as stream:
            async for batch in stream.batches(range(1)):
                batch.skip("no")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(waited) == [
        ("f", 0, "CheckpointFailedError"),
        ("s", 2, "durable"),
        ("s", 9, "StreamEndedError"),
    ]
    async with begin(store) as run:
        with pytest.raises(CheckpointFailedError, match="skipped"):
            await run.wait_confirmed(("f",), [0])


@pytest.mark.parametrize("order", [0, 1])
async def test_a_waiter_may_begin_with_the_loop_it_waits_for(order: int) -> None:
    """Trio runs new tasks in any order, so either may be the first."""
    async with begin("memory:") as run:
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                begun = [(run.wait_confirmed, ("s",), range(3)), (work, run)]
                for func, *args in begun[:: 1 if order else -1]:
                    nursery.start_soon(func, *args)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("order", range(8))
def test_a_loop_that_was_just_started_is_waited_for_in_any_order(depth: int, order: int) -> None:
    """Also one that a nursery in the started task starts."""

    async def start(run: Run, deeper: int) -> None:
        async with trio.open_nursery() as nursery:
            if deeper:
                nursery.start_soon(start, run, deeper - 1)
            else:
                nursery.start_soon(work, run)

    async def main() -> None:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(start, run, depth)
            await run.wait_confirmed(("s",), range(3))

    with seeded_scheduler(order):
        trio.run(main)


@pytest.mark.parametrize("key", [("page",), ("pages", "more"), (), ("@mine",)])
async def test_a_key_of_no_stream_is_refused(key: tuple[str, ...]) -> None:
    async with begin("memory:") as run:
        await work(run, "pages")
        for call in (run.wait_confirmed(key, [0]), run.rewind(key, to=0, reason="no")):
            with pytest.raises(UnknownStreamError, match=r"has no stream .* add_streams"):
                await call


@pytest.mark.parametrize("key", ["pages", b"pages", {"pages": 1}, 5, None])
async def test_a_key_that_is_no_tuple_is_refused(key: Any) -> None:
    """`("pages")` is a text: the comma is missing."""
    async with begin("memory:") as run:
        await work(run, "pages")
        for call in (run.wait_confirmed(key, [0]), run.rewind(key, to=0, reason="no")):
            with pytest.raises(TypeError, match="must be a tuple of its parts, not"):
                await call


async def test_a_stream_of_an_earlier_session_is_known() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await work(run, count=1)
    async with begin(store) as run, trio.open_nursery() as nursery:
        nursery.start_soon(run.wait_confirmed, ("s",), [0])
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_a_stop_ends_waiting_for_what_is_not_opened_any_more() -> None:
    with pytest.raises(RunStoppedError):
        async with begin("memory:") as run:
            run.request_stop()
            await run.wait_confirmed(("never",), [0])
    with pytest.raises(RunStoppedError):
        async with begin("memory:") as run:
            await run.add_streams([("later",)])
            run.request_stop()
            await run.wait_confirmed(("later",), [0])


async def complete(batch: Batch[Any]) -> None:
    batch.complete()


async def skip(batch: Batch[Any]) -> None:
    batch.skip("no")


async def give_up(batch: Batch[Any]) -> None:
    batch.fail("no")


@pytest.mark.parametrize("settle", [complete, skip, give_up])
async def test_a_settled_batch_wakes_its_waiter_while_its_stream_goes_on(
    settle: Callable[[Batch[Any]], Awaitable[None]], autojump_clock: trio.testing.MockClock
) -> None:
    heard: list[int] = []

    async def wait(run: Run, indexes: list[int]) -> None:
        with contextlib.suppress(CheckpointFailedError):
            await run.wait_confirmed(("s",), indexes)
        heard.append(max(indexes))

    async with (
        begin("memory:") as run,
        trio.open_nursery() as nursery,
        run.open_stream("s") as stream,
    ):
        for indexes in ([0], [0, 1], [1], [2]):
            nursery.start_soon(wait, run, indexes)
        async for batch in stream.batches(range(4)):
            if batch.index < 2:
                batch.complete()
                await batch.confirm()
            elif batch.index == 2:
                await settle(batch)
                with contextlib.suppress(BatchFailedError):
                    await batch.confirm()
                if settle is give_up:
                    break
            await trio.testing.wait_all_tasks_blocked()
            assert heard == {0: [0], 1: [0, 1, 1]}.get(batch.index, [0, 1, 1, 2])
            batch.complete()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [0, 1, 1, 2]
