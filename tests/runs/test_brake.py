"""The brake: an outage stops the run, and is not the fault of its items."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    Limits,
    RetryRule,
    RetryTable,
    Run,
    RunStoppedError,
    Status,
    Stream,
    StreamFailedError,
    Then,
    open_run,
    read_history,
    run_batches,
)
from trio_ckpt._commit.limit_watch import Streak
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._runs.brake import REASON, _ends_row, requeue_record
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import World, explore_crashes

Clock = trio.testing.MockClock

TWICE_THEN_SKIP = RetryTable([RetryRule((OSError,), attempts=2, then=Then.SKIP, backoff_s=1.0)])
ONCE = RetryTable([RetryRule((OSError,), attempts=1, then=Then.SKIP)])
LIMITS = Limits(consecutive_failures=20)


class Provider:
    """Answers calls until it dies."""

    def __init__(self, dies_at: int | None) -> None:
        self.dies_at = dies_at
        self.calls: list[int] = []

    async def answer(self, item: int) -> None:
        self.calls.append(item)
        await trio.sleep(0.1)
        if self.dies_at is not None and item >= self.dies_at:
            raise ConnectionError("the provider is down")


async def collect(
    store: Store,
    provider: Provider,
    *,
    count: int = 1_000,
    concurrency: int = 8,
    limits: Limits | None = LIMITS,
    retry: RetryTable = TWICE_THEN_SKIP,
) -> int:
    """Ask for each item that is left; returns the exit code."""

    async def ask(batch: Batch[int]) -> None:
        await provider.answer(batch.index)
        batch.complete()

    try:
        async with begin(store, limits=limits) as run, run.open_stream("s", retry=retry) as stream:
            await run_batches(stream, range(count), ask, concurrency=concurrency)
        return run.exit_code
    except RunStoppedError as stopped:
        return stopped.exit_code if "in a row have failed" in str(stopped.reason) else -1


async def progress_of(store: Store, key: str = "s") -> Progress:
    status = await read_run_status(store, "r")
    assert status is not None
    return status.parts[(key,)]


@pytest.mark.parametrize("retry", [ONCE, TWICE_THEN_SKIP], ids=["once", "twice"])
async def test_a_provider_that_dies_costs_few_calls(
    retry: RetryTable, autojump_clock: Clock
) -> None:
    store, dead = MemoryStore(), Provider(dies_at=100)
    assert await collect(store, dead, retry=retry) == 75
    touched = {item for item in dead.calls if item >= 100}
    assert len(touched) <= 28
    progress = await progress_of(store)
    assert not progress.skipped
    assert not progress.failures
    assert progress.confirmed.stop == 100
    alive = Provider(dies_at=None)
    assert await collect(store, alive, retry=retry) == 0
    assert sorted(alive.calls) == list(range(100, 1_000))  # the rest, nothing twice
    assert len((await progress_of(store)).confirmed) == 1_000


async def test_without_a_brake_everything_is_skipped(autojump_clock: Clock) -> None:
    store = MemoryStore()
    assert await collect(store, Provider(dies_at=100), limits=None) == 3
    assert len((await progress_of(store)).skipped) == 900


async def test_an_outage_that_goes_on_skips_nothing(autojump_clock: Clock) -> None:
    store = MemoryStore()
    for _ in range(5):
        provider = Provider(dies_at=100)
        assert await collect(store, provider, count=300) == 75
        assert len({item for item in provider.calls if item >= 100}) <= 28
        assert not (await progress_of(store)).skipped
    assert await collect(store, Provider(dies_at=None), count=300) == 0


async def test_failures_between_successes_are_no_outage(autojump_clock: Clock) -> None:
    store = MemoryStore()

    class Flaky(Provider):
        async def answer(self, item: int) -> None:
            await trio.sleep(0.1)
            if item % 10 != 9:
                raise ConnectionError("the provider is busy")

    assert await collect(store, Flaky(None), count=200, concurrency=1, retry=ONCE) == 3
    assert len((await progress_of(store)).skipped) == 180


async def test_a_skip_with_a_text_is_a_decision(autojump_clock: Clock) -> None:
    store = MemoryStore()
    async with begin(store, limits=Limits(consecutive_failures=5)) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(50)):
                batch.skip("it is empty")
        assert run.exit_code == 3


async def test_the_last_items_of_a_list_are_not_its_end(autojump_clock: Clock) -> None:
    store, after = MemoryStore(), list[str]()

    async def work() -> None:
        limits = Limits(consecutive_failures=3)
        async with begin(store, limits=limits) as run, run.open_stream("s", retry=ONCE) as stream:
            async for batch in stream.batches(range(5)):
                if batch.index >= 2:
                    batch.fail(OSError("down"))
                else:
                    batch.complete()
            after.append("the loop has ended")

    with pytest.raises(RunStoppedError) as caught:
        await work()
    assert caught.value.exit_code == 75
    assert after == []
    assert list((await progress_of(store)).confirmed) == [0, 1]


async def test_streams_that_failed_in_an_outage_go_on(autojump_clock: Clock) -> None:
    store, limits = MemoryStore(), Limits(consecutive_failures=4)
    final = RetryTable([RetryRule((OSError,), attempts=1, then=Then.FAIL_STREAM, retryable=False)])

    async def work(*, is_down: bool) -> list[str]:
        done: list[str] = []
        async with begin(store, limits=limits) as run:
            for name in "abcdefgh":
                async with run.open_stream(name, retry=final, on_fail="record") as stream:
                    async for batch in stream.batches(range(1)):
                        if is_down:
                            batch.fail(OSError("down"))
                        else:
                            done.append(name)
                            batch.complete()
        return done

    with pytest.raises(RunStoppedError):
        await work(is_down=True)
    assert await work(is_down=False) == list("abcdefgh")  # none has failed for good


async def test_the_history_says_why_batches_are_requeued(autojump_clock: Clock) -> None:
    store = MemoryStore()
    await collect(store, Provider(dies_at=10), count=200)
    kinds = [one.kind async for one in read_history(store, "r", ("s",))]
    assert kinds[0] == "redo"
    assert kinds.count("redo") == 1


async def test_items_of_requeued_batches_may_not_change(autojump_clock: Clock) -> None:
    store = MemoryStore()
    some = Provider(dies_at=7)
    assert await collect(store, some, count=60, retry=ONCE) == 75
    progress = await progress_of(store)
    assert progress.skipped_items == 0
    assert await collect(store, Provider(None), count=60, retry=ONCE) == 0


def test_older_skips_keep_their_part_of_the_sum() -> None:
    progress = Progress()
    for index in range(4):
        skip = Record(kind=RecordKind.SKIP, at=1.0, index=index, item=bytes([index]) * 8)
        apply(progress, progress.sequence + 1, skip)
    before = Progress()
    for index in range(2):
        skip = Record(kind=RecordKind.SKIP, at=1.0, index=index, item=bytes([index]) * 8)
        apply(before, before.sequence + 1, skip)
    streak = Streak(skipped={2: bytes([2]) * 8, 3: bytes([3]) * 8})
    record = requeue_record(progress, streak)
    assert record is not None
    apply(progress, progress.sequence + 1, record)
    assert (progress.items, progress.skipped_items) == (before.items, before.skipped_items)
    assert list(progress.skipped) == list(progress.done) == [0, 1]
    assert requeue_record(progress, streak) is None


# -- a kill in the outage --------------------------------------------------------------------------


async def fail_some(store: Store, count: int) -> RunStoppedError:
    """Let so many batches fail, then stop the run."""
    try:
        async with begin(store, limits=LIMITS) as run, run.open_stream("s", retry=ONCE) as stream:
            async for batch in stream.batches(range(100)):
                batch.fail(OSError("down"))
                count -= 1
                if count == 0:
                    run.request_stop()
    except RunStoppedError as stopped:
        return stopped
    raise AssertionError("the run was not stopped")


async def test_a_row_of_failures_goes_on_over_sessions() -> None:
    store = MemoryStore()
    for _ in range(3):
        assert (await fail_some(store, 6)).reason is None
    assert len((await progress_of(store)).skipped) == 18
    assert "20 attempts in a row have failed" in str((await fail_some(store, 6)).reason)
    progress = await progress_of(store)
    assert not progress.skipped
    assert progress.items == progress.skipped_items == 0


async def test_a_confirmed_batch_ends_the_row_of_a_session() -> None:
    store = MemoryStore()
    await fail_some(store, 15)
    async with begin(store) as run, run.open_stream("other") as stream, stream.open_batch() as one:
        one.complete()
    assert (await fail_some(store, 15)).reason is None


async def down_until_it_stops(world: World) -> None:
    """Two at once; the provider is down until the brake has stopped a session."""

    async def ask(batch: Batch[int]) -> None:
        await trio.sleep(0.1)
        if batch.index >= 2 and not world.count("stopped"):
            raise ConnectionError("down")
        batch.complete()

    is_over = False
    while not is_over:
        try:
            limits = Limits(consecutive_failures=3)
            async with open_run("r", store=world.store, limits=limits) as run:
                async with run.open_stream("s", retry=ONCE) as stream:
                    await run_batches(stream, range(8), ask, concurrency=2)
                is_over = True
        except RunStoppedError as stopped:
            world.note("stopped" if stopped.reason else "asked to stop")


def nothing_is_skipped(world: World) -> None:
    progress = world.progress("s")
    assert list(progress.confirmed) == list(range(8))
    assert not progress.skipped
    assert not progress.failures


def test_no_kill_in_an_outage_leaves_a_batch_skipped() -> None:
    found = explore_crashes(down_until_it_stops, nothing_is_skipped, schedules=40)
    assert found.points["store"] > 8
    assert not found.left_out


async def test_a_batch_on_which_others_built_stays_skipped(autojump_clock: Clock) -> None:
    """With a cursor it cannot be done again alone: it would begin after the ones behind it."""
    store = MemoryStore()
    is_braking, has_begun = trio.Event(), trio.Event()

    async def with_cursor(run: Run) -> None:
        stream: Stream[None]
        async with run.open_stream("a", retry=ONCE) as stream:
            async for batch in stream.batches(range(4)):
                if batch.index == 0:
                    batch.skip(ConnectionError("down"))
                    continue
                has_begun.set()
                await is_braking.wait()
                batch.complete(cursor=batch.index)

    async def failing(run: Run) -> None:
        stream: Stream[None]
        await has_begun.wait()
        async with run.open_stream("b", retry=ONCE) as stream:
            async for batch in stream.batches(range(9)):
                batch.skip(ConnectionError("down"))

    with pytest.raises(RunStoppedError):
        async with (
            begin(store, limits=Limits(consecutive_failures=4)) as run,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(with_cursor, run)
            nursery.start_soon(failing, run)
            await trio.sleep(1)
            is_braking.set()
    view = await store.load_run("r")
    assert view is not None
    assert list(view.streams[("a",)].progress.skipped) == [0]
    assert list(view.streams[("a",)].progress.confirmed) == [1]
    assert not view.streams[("b",)].progress.skipped


async def test_an_outage_is_one_beside_another_limit(autojump_clock: Clock) -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError, match="5 of 5 batches are done"):
        await fail_all(store, range(5), Limits(batches=5, consecutive_failures=5))
    view = await store.load_run("r")
    assert view is not None
    assert not view.streams[("s",)].progress.skipped


async def fail_all(store: Store, indexes: range, limits: Limits) -> None:
    stream: Stream[None]
    async with begin(store, limits=limits) as run, run.open_stream("s", retry=ONCE) as stream:
        async for batch in stream.batches(indexes):
            batch.skip(ConnectionError("down"))
        pytest.fail("the loop has ended, though its batches are re-queued")


async def test_a_loop_that_is_cut_has_not_ended_either(autojump_clock: Clock) -> None:
    stream: Stream[None]
    with pytest.raises(RunStoppedError):
        async with (
            begin(limits=Limits(consecutive_failures=5)) as run,
            run.open_stream("s", retry=ONCE) as stream,
        ):
            async for batch in stream.batches(lambda: iter(range(50)), end=4):
                batch.skip(ConnectionError("down"))
            pytest.fail("the loop has ended, though its batches are re-queued")


async def test_a_stream_that_the_program_failed_stays_failed(autojump_clock: Clock) -> None:
    store = MemoryStore()
    stream: Stream[None]
    with pytest.raises(RunStoppedError):
        async with begin(store, limits=Limits(consecutive_failures=4)) as run:
            with pytest.raises(StreamFailedError):
                async with run.open_stream("a", retry=ONCE) as stream:
                    async for batch in stream.batches(range(4)):
                        if batch.index == 0:
                            batch.skip(ConnectionError("down"))
                            continue
                        await stream.fail("the list is wrong", retryable=False)
            async with run.open_stream("b", retry=ONCE) as stream:
                async for batch in stream.batches(range(9)):
                    batch.skip(ConnectionError("down"))
    view = await store.load_run("r")
    assert view is not None
    assert view.streams[("a",)].progress.status is Status.FAILED
    assert not view.streams[("b",)].progress.skipped


def test_a_damage_that_was_redone_does_not_end_a_row() -> None:
    redone = Record(kind=RecordKind.REDO, at=1.0, metadata={"reason": "an output was damaged"})
    assert not _ends_row(redone)
    assert _ends_row(Record(kind=RecordKind.REDO, at=1.0, metadata={"reason": REASON}))
    assert _ends_row(Record(kind=RecordKind.RETRY, at=1.0))
