"""A scope around a loop that is cancelled ends its batch: that is no forgotten token."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchCancelledError,
    Status,
    Stream,
    TokenNeverSettledError,
    run_batches,
)
from trio_ckpt._runs.surroundings import Surroundings
from trio_ckpt.stores import MemoryStore


@asynccontextmanager
async def timeout(_stream: Stream[Any]) -> AsyncGenerator[None]:
    with trio.move_on_after(5):
        yield


@asynccontextmanager
async def outer_timeout(_stream: Stream[Any]) -> AsyncGenerator[None]:
    with trio.move_on_after(5), trio.move_on_after(60), trio.CancelScope():
        yield


@asynccontextmanager
async def scope_that_is_cancelled(_stream: Stream[Any]) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_later, scope)
            yield


@asynccontextmanager
async def nursery_that_is_cancelled(_stream: Stream[Any]) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_later, nursery.cancel_scope)
        yield


async def cancel_later(scope: trio.CancelScope) -> None:
    await trio.sleep(5)
    scope.cancel()


WAYS = [timeout, outer_timeout, scope_that_is_cancelled, nursery_that_is_cancelled]
EVERY_WAY = pytest.mark.parametrize("around", WAYS, ids=lambda way: way.__name__)


async def work(stream: Stream[Any], count: int = 5) -> None:
    async for batch in stream.batches(range(count)):
        await trio.sleep(2)
        batch.complete()


@EVERY_WAY
async def test_a_budget_of_time_around_a_loop_leaves_the_stream_interrupted(
    autojump_clock: MockClock, around: Any
) -> None:
    store, codes = MemoryStore(), list[int]()
    for _ in range(3):
        async with begin(store) as run:
            async with run.open_stream("s") as stream:
                async with around(stream):
                    await work(stream)
            codes.append(run.exit_code)
        assert stream.progress.failures == {}  # a cancellation is no failure
    assert codes == [75, 75, 0]
    assert stream.status is Status.COMPLETE


@EVERY_WAY
async def test_a_loop_that_was_cancelled_is_gone_on_with_in_the_same_block(
    autojump_clock: MockClock, around: Any
) -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async with around(stream):
            await work(stream)
        assert len(stream.progress.confirmed) == 2
        await stream.save()  # between batches: the one that was open is given up
        assert stream.status is Status.IN_PROGRESS
        await work(stream)
        assert (stream.status, run.exit_code) == (Status.COMPLETE, 0)


async def test_who_waits_for_the_batch_is_told_that_it_was_cancelled(
    autojump_clock: MockClock,
) -> None:
    told: list[BaseException] = []

    async def wait(batch: Batch[Any]) -> None:
        with pytest.raises(BatchCancelledError) as caught:
            await batch.token.wait()
        told.append(caught.value)

    async with trio.open_nursery() as nursery, begin("memory:") as run:
        async with run.open_stream("s") as stream:
            with trio.move_on_after(1):
                async for batch in stream.batches(range(2)):
                    nursery.start_soon(wait, batch)
                    batch.spend(usd=1)
                    await trio.sleep_forever()
        assert run.statistics().spent == {"usd": 1}
    assert [error.batch_index for error in told] == [0]


@pytest.mark.parametrize("has_state", [False, True])
async def test_a_batch_that_was_complete_when_it_was_cancelled(
    autojump_clock: MockClock, has_state: bool
) -> None:
    """It is confirmed, unless a state may have gone on since: then it runs again."""
    state: Any = {"n": 0} if has_state else None
    async with begin("memory:") as run, run.open_stream("s", state=state) as stream:
        with trio.move_on_after(1):
            async for batch in stream.batches(range(2)):
                if has_state:
                    stream.state["n"] += 1
                batch.complete()
                await trio.sleep_forever()
        await stream.save()
        assert list(stream.progress.confirmed) == ([] if has_state else [0])
        if has_state:
            assert stream.state == {"n": 0}


async def test_a_batch_that_is_left_by_break_is_still_a_forgotten_one(
    autojump_clock: MockClock,
) -> None:
    async with begin("memory:") as run:
        with pytest.raises(TokenNeverSettledError):
            async with run.open_stream("s") as stream:
                with trio.move_on_after(5):
                    await work(stream)
                with trio.move_on_after(5) as scope:
                    async for _ in stream.batches(range(5)):
                        break
                assert not scope.cancelled_caught
        with pytest.raises(TokenNeverSettledError):
            async with run.open_stream("t") as stream:
                with trio.move_on_after(5):
                    await work(stream)
                async with stream.open_batch():
                    await stream.save()


async def test_a_body_that_times_out_inside_is_still_a_forgotten_one(
    autojump_clock: MockClock,
) -> None:
    async def handle(batch: Batch[int]) -> None:
        with trio.move_on_after(1):
            await trio.sleep_forever()

    async with begin("memory:") as run:
        with pytest.raises(TokenNeverSettledError):
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    await handle(batch)
        with pytest.raises(TokenNeverSettledError):
            async with run.open_stream("t") as stream:
                await run_batches(stream, range(2), handle)


async def test_a_budget_around_run_batches(autojump_clock: MockClock) -> None:
    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(2)
        batch.complete()

    async with begin("memory:") as run, run.open_stream("s") as stream:
        with trio.move_on_after(5):
            await run_batches(stream, range(5), handle)
        assert len(stream.progress.confirmed) == 2
        await run_batches(stream, range(5), handle)
        assert (stream.status, run.exit_code) == (Status.COMPLETE, 0)


# -- another trio --------------------------------------------------------------------------------


@attrs.define
class Chain:
    """The scopes around a task, as no trio keeps them."""

    inner: object = None


@pytest.mark.parametrize("status", [None, Chain(), Chain(Chain())])
@EVERY_WAY
async def test_on_a_trio_that_keeps_scopes_otherwise_nothing_is_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, around: Any, status: object
) -> None:
    """A nursery is seen; a scope alone is a forgotten token, which says so."""
    shown = SimpleNamespace(_cancel_status=status)

    def remember(self: Surroundings, task: trio.lowlevel.Task) -> None:
        shown.child_nurseries = list(task.child_nurseries)
        real_remember(self, cast("trio.lowlevel.Task", shown))

    real_remember = Surroundings.remember
    monkeypatch.setattr(Surroundings, "remember", remember)
    store, is_seen = MemoryStore(), around is nursery_that_is_cancelled
    with nullcontext() if is_seen else pytest.raises(TokenNeverSettledError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async with around(stream):
                await work(stream)
    monkeypatch.undo()
    async with begin(store) as run:
        async with run.open_stream("s") as stream:
            assert len(stream.progress.confirmed) == 2
            await work(stream)
        assert run.exit_code == 0
