"""A stop says nothing about a batch: a body that catches it and fails its batch loses nothing."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchCancelledError,
    BatchFailedError,
    RetryRule,
    RetryTable,
    Run,
    RunStoppedError,
    Status,
    Then,
    run_batches,
)
from trio_ckpt.stores import MemoryStore

SKIPS = RetryTable([RetryRule((Exception,), attempts=1, then=Then.SKIP)])
GRACE_S = 5


Settle = Callable[[Batch[Any], BaseException], bool]
SETTLES: dict[str, Settle] = {
    "fail": lambda batch, error: batch.fail(error),
    "skip": lambda batch, error: batch.skip(error),
    "token": lambda batch, error: batch.token.fail(error),
    "in groups": lambda batch, error: batch.fail(
        BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [error])])
    ),
}


async def wait_for_another(run: Run) -> None:
    async with run.open_stream("inner") as inner:
        async for part in inner.batches(range(3)):
            part.complete()
            run.request_stop()


async def check_left(store: MemoryStore) -> None:
    """The batch was neither failed nor skipped, and its next attempt is its first."""
    async with begin(store, grace_s=GRACE_S) as run:
        assert run.found.skipped == run.found.to_retry == 0
        async with run.open_stream("outer") as stream:
            async for batch in stream.batches(range(2)):
                assert batch.attempt == 1
                batch.complete()
            assert stream.statistics().confirmed == 2


@pytest.mark.parametrize("settle", SETTLES.values(), ids=SETTLES)
async def test_a_stop_that_a_body_fails_its_batch_with_is_left_out(
    settle: Settle, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError):
        async with begin(store, grace_s=GRACE_S) as run:
            async with run.open_stream("outer", retry=SKIPS) as stream:
                async for batch in stream.batches(range(2)):
                    try:
                        await wait_for_another(run)
                    except RunStoppedError as error:
                        settle(batch, error)
    await check_left(store)


@pytest.mark.parametrize("settle", SETTLES.values(), ids=SETTLES)
async def test_a_cancellation_that_a_body_fails_its_batch_with_is_left_out(
    settle: Settle, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    async with begin(store, grace_s=GRACE_S) as run:
        async with run.open_stream("outer", retry=SKIPS) as stream:
            with trio.move_on_after(1):
                async for batch in stream.batches(range(2)):
                    try:
                        await trio.sleep_forever()
                    except trio.Cancelled as error:
                        settle(batch, error)
                        raise
        assert stream.status is Status.INTERRUPTED
    await check_left(store)


async def test_a_handler_that_fails_its_batch_with_a_stop_leaves_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError):
        async with begin(store, grace_s=GRACE_S) as run:

            async def handle(batch: Batch[int]) -> None:
                try:
                    await wait_for_another(run)
                except RunStoppedError as error:
                    batch.fail(error)

            async with run.open_stream("outer") as stream:
                await run_batches(stream, range(2), handle, concurrency=1, retry=SKIPS)
    await check_left(store)


async def test_who_waits_for_such_a_batch_learns_that_it_was_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = list[str]()

    async def wait(batch: Batch[Any]) -> None:
        with pytest.raises(BatchCancelledError):
            await batch.token.wait()
        told.append("token")

    with pytest.raises(RunStoppedError):
        async with begin(MemoryStore(), grace_s=GRACE_S) as run, trio.open_nursery() as nursery:
            async with run.open_stream("outer") as stream:
                async for batch in stream.batches(range(1)):
                    nursery.start_soon(wait, batch)
                    try:
                        await wait_for_another(run)
                    except RunStoppedError as error:
                        batch.fail(error)
    assert told == ["token"]


REAL: dict[str, BaseException] = {
    "an error": KeyError("k"),
    "the end of a program": SystemExit(3),
    "Ctrl-C": KeyboardInterrupt(),
    "an error beside a stop": BaseExceptionGroup(
        "both", [KeyError("k"), RunStoppedError("r", exit_code=75, resume_command=None)]
    ),
    "the stop of another run": RunStoppedError("other", exit_code=75, resume_command=None),
}


@pytest.mark.parametrize("error", REAL.values(), ids=REAL)
async def test_what_is_no_stop_fails_the_batch(error: BaseException) -> None:
    """Also what ends a program, where a body catches it and calls it a failure."""
    store = MemoryStore()
    with pytest.raises(BatchFailedError):
        async with begin(store, grace_s=GRACE_S) as run:
            async with run.open_stream("outer") as stream:
                async for batch in stream.batches(range(2)):
                    batch.fail(error)
    async with begin(store, grace_s=GRACE_S) as run:
        assert run.found.to_retry == 1


async def test_a_wait_that_a_body_gives_up_on_may_fail_the_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(BatchFailedError):
        async with begin(MemoryStore(), grace_s=GRACE_S) as run:
            async with run.open_stream("outer") as stream:
                async for batch in stream.batches(range(2)):
                    with trio.move_on_after(1):
                        try:
                            await trio.sleep_forever()
                        except trio.Cancelled as error:
                            batch.fail(error)
                            raise


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(3), KeyboardInterrupt()])
async def test_a_rule_that_raises_fails_its_batch_alone(error: BaseException) -> None:
    """Whatever it raises: the error of the batch is the one that leaves."""

    def when(_: BaseException) -> bool:
        raise error

    table = RetryTable([RetryRule((ValueError,), when=when)])
    store = MemoryStore()
    with pytest.raises(BatchFailedError, match="of the batch"):
        async with (
            begin(store, grace_s=GRACE_S) as run,
            run.open_stream("outer", retry=table) as stream,
        ):
            async for batch in stream.batches(range(2)):
                batch.fail(ValueError("of the batch"))
    async with begin(store, grace_s=GRACE_S) as run:
        assert run.found.to_retry == 1
