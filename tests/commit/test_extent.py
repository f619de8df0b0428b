"""What is left, and when it will be done: of what can be done, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import (
    Batch,
    Frontier,
    Run,
    Status,
    Stream,
    run_batches,
)
from trio_ckpt._commit.extent import Extent
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import ErrorInfo
from trio_ckpt._journal.statistics import MIN_STUCK_AFTER_S, STUCK_AFTER_S, stuck_after_s
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import MemoryStore


async def warm(stream: Stream[Any], items: Any = None, *, count: int = 25, **part: int) -> None:
    """A batch each second, `count` of them."""
    async for batch in stream.batches(items, **part):
        await trio.sleep(1)
        batch.complete()
        count -= 1
        if not count:
            await batch.confirm()
            return


def progress_of(done: range, **facts: Any) -> Progress:
    return Progress(confirmed=IndexSet(done), **facts)


FAILED_FOR_GOOD = {"status": Status.FAILED, "error": ErrorInfo("E", "e", retryable=False)}
FAILED_FOR_NOW = {"status": Status.FAILED, "error": ErrorInfo("E", "e")}


# -- the pure part -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "facts", "left", "ahead"),
    [
        ({}, {}, None, None),
        ({"expected": 20}, {}, 15, 15),
        ({"expected": 20, "end": 9}, {}, 15, 5),
        ({"expected": 20, "start": 10, "end": 12}, {}, 15, 3),
        ({"expected": 20, "start": 0, "end": 3}, {}, 15, 0),
        ({"expected": 3}, {}, 0, 0),
        ({}, {"expected": 20}, 15, 15),
        ({"is_open_ended": True}, {"last_index": 9}, 5, 5),
        ({"is_open_ended": True, "expected": 20}, {"last_index": 9}, 5, 5),
        ({"is_open_ended": True, "estimate": 40}, {"last_index": 9}, 5, 5),
        ({"is_open_ended": True, "end": 9}, {}, 5, 5),
        ({"is_open_ended": True, "estimate": 40}, {"estimate": 40}, 35, 35),
        ({"is_open_ended": True}, {"estimate": 40}, 35, 35),
        ({"is_open_ended": True}, {"estimate": 5}, None, 0),  # it was too few
        ({"is_open_ended": True, "estimate": 40, "end": 9}, {"estimate": 40}, 5, 5),
        ({"expected": 20}, FAILED_FOR_GOOD, 0, 15),  # as a start would do nothing for it
        ({"is_open_ended": True, "estimate": 40}, FAILED_FOR_GOOD, 0, 35),
        ({"expected": 20}, FAILED_FOR_NOW, 15, 15),
    ],
)
def test_what_is_left_in_all_and_of_the_part(
    known: dict[str, Any], facts: dict[str, Any], left: int | None, ahead: int | None
) -> None:
    extent = Extent(progress_of(range(5), **facts), **known)
    assert (extent.left, extent.ahead) == (left, ahead)


async def test_a_stream_that_failed_for_good_has_nothing_left_while_open() -> None:
    async with begin() as run, run.open_stream("s", on_fail="record") as stream:
        async for batch in stream.batches(range(9)):
            assert run.statistics().left == 9
            await stream.fail("no", retryable=False)
            assert batch.state.value != "open"
            break
        assert (stream.statistics().left, run.statistics().left) == (0, 0)
    assert run.statistics().left == 0


def test_a_frontier_says_itself_how_many_there_are() -> None:
    extent = Extent(progress_of(range(5)), items=range(8))
    assert (extent.left, extent.ahead) == (3, 3)


def test_how_long_is_too_long() -> None:
    assert stuck_after_s(None) == STUCK_AFTER_S
    assert stuck_after_s(0.001) == MIN_STUCK_AFTER_S
    assert stuck_after_s(60.0) == 600


# -- estimates and parts -------------------------------------------------------------------


async def test_an_open_end_has_an_eta_once_it_is_said_how_many_there_are(
    autojump_clock: MockClock,
) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", first_index=1) as stream:
        assert (stream.expected_batches, stream.statistics().left) == (None, None)
        await warm(stream, expected=100)
        now = stream.statistics()
        assert (stream.expected_batches, now.left) == (100, 75)
        assert now.eta_s == pytest.approx(75)
        stream.expected_batches = 45  # as the API says now
        assert stream.statistics().left == 20
        assert run.statistics().eta_s == pytest.approx(20)
        await warm(stream, count=1)
    async with begin(store) as run:  # and a reader from outside
        assert run.group("s").left == 19
        async with run.open_stream("s", first_index=1) as stream:
            assert (stream.expected_batches, stream.statistics().left) == (45, 19)
            async for batch in stream.batches():  # an estimate decides nothing
                batch.complete(last=batch.index == 50)
            assert (stream.status, stream.statistics().left) == (Status.COMPLETE, 0)


async def test_an_estimate_that_was_too_low_is_no_end(autojump_clock: MockClock) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        await warm(stream, expected=10)
        assert (stream.statistics().left, stream.statistics().eta_s) == (None, None)
        await stream.finish()
        assert stream.statistics().left == 0


async def test_a_list_says_itself_how_many_there_are() -> None:
    async def handle(batch: Batch[int]) -> None:
        batch.complete()

    async with begin() as run:
        async with run.open_stream("s") as stream:
            with pytest.raises(TypeError, match="expected must be left out"):
                stream.batches([1, 2], expected=3)
            with pytest.raises(TypeError, match="expected must be left out"):
                await run_batches(stream, [1, 2], handle, expected=3)
            for wrong in (-1, 1.5, True, "7"):
                with pytest.raises((TypeError, ValueError), match="expected"):
                    stream.batches(expected=wrong)  # type: ignore[call-overload]
            await run_batches(stream, lambda: [1, 2], handle, expected=2)
            async for batch in stream.batches([1, 2, 3]):
                batch.complete()
            with pytest.raises(TypeError, match="the length of this source is known"):
                stream.expected_batches = 7
        async with run.open_stream("f", state=Frontier(["a"])) as stream:
            with pytest.raises(TypeError, match="the length of this source is known"):
                await run_batches(stream, None, handle, expected=3)


@pytest.mark.parametrize("items", [range(1000), lambda: iter(range(1000)), None])
async def test_a_part_has_an_eta_of_its_own(autojump_clock: MockClock, items: Any) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        await warm(stream, items, start=10, end=59)
        assert stream.statistics().eta_s == pytest.approx(25)
        assert run.statistics().eta_s == pytest.approx(25)
        await warm(stream, items, start=10, end=59)
        assert stream.statistics().eta_s in (None, 0.0)  # nothing of the part is ahead


# -- what cannot be done -------------------------------------------------------------------


async def show(run: Run) -> tuple[int | None, float | None]:
    now = run.statistics()
    return now.left, None if now.eta_s is None else round(now.eta_s, 3)


@pytest.mark.parametrize(("retryable", "left"), [(False, 75), (True, 165)])
async def test_what_failed_is_not_counted(
    autojump_clock: MockClock, retryable: bool, left: int
) -> None:
    """For good: no start would do it. For now: this session will not, another one will."""
    async with begin() as run:
        async with run.open_stream("bad", on_fail="record") as stream:
            async for batch in stream.batches(range(100)):
                if batch.index == 10:
                    await stream.fail("403", retryable=retryable)
                    break
                batch.complete()
            assert stream.statistics().eta_s in (None, 0.0)
        async with run.open_stream("good") as stream:
            await warm(stream, range(100))
            now = run.statistics()
            assert now.left == left
            assert now.eta_s == pytest.approx(75 * now.session_s / now.session_confirmed)
            assert run.group("bad").left == (90 if retryable else 0)
            await warm(stream, range(100), count=100)
        assert (run.statistics().left, run.statistics().eta_s) == (
            (90, None) if retryable else (0, 0.0)
        )


async def test_a_stream_that_stands_still_is_not_counted(autojump_clock: MockClock) -> None:
    async def stand_still(run: Run) -> None:
        async with run.open_stream("stuck") as stream:
            async for _ in stream.batches(range(50)):
                await trio.sleep_forever()

    async with begin() as run, trio.open_nursery() as nursery:
        nursery.start_soon(stand_still, run)
        async with run.open_stream("good") as stream:
            await warm(stream, range(100))
            assert run.statistics().eta_s == pytest.approx(75 + 50)  # it may come yet
            await trio.sleep(STUCK_AFTER_S)
            await warm(stream, range(100), count=1)
            now = run.statistics()
            assert now.left == 74 + 50
            assert now.eta_s == pytest.approx(74 / (now.rate_per_s or 0))
            await warm(stream, range(100), count=100)
        assert await show(run) == (50, None)  # not "1.7 s to go" for ever
        nursery.cancel_scope.cancel()


async def test_a_slow_stream_is_not_taken_for_one_that_stands_still(
    autojump_clock: MockClock,
) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(40)):
            await trio.sleep(600)
            if batch.index == 30:
                assert stream.statistics().eta_s == pytest.approx(10 * 600, rel=0.1)
                break
            batch.complete()
        batch.complete()


async def test_what_another_session_left_counts_until_it_is_passed_over(
    autojump_clock: MockClock,
) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        for name in ("a", "b"):
            async with run.open_stream(name) as stream:
                await warm(stream, range(100), count=40)
    async with begin(store) as run:
        async with run.open_stream("a") as stream:
            await warm(stream, range(100))
            assert run.statistics().eta_s == pytest.approx(35 + 60)
        assert run.statistics().eta_s == pytest.approx(60)  # "a" was left: this session is done


# -- after the end -------------------------------------------------------------------------


@pytest.mark.parametrize("is_complete", [True, False])
def test_statistics_are_there_after_the_loop_has_ended(is_complete: bool) -> None:
    async def main() -> tuple[Run, Stream[None]]:
        async with begin() as run, run.open_stream("s") as stream:
            await warm(stream, range(30), count=100 if is_complete else 25)
        await trio.sleep(100)
        return run, stream

    run, stream = trio.run(main, clock=MockClock(autojump_threshold=0))
    now = run.statistics()
    assert (now.confirmed, now.left) == ((30, 0) if is_complete else (25, 5))
    assert now.session_s == pytest.approx(now.confirmed)  # and not a second more
    assert now == run.statistics()
    assert (now.in_flight, now.waiting) == (0, ())
    assert stream.statistics().confirmed == now.confirmed
    assert stream.statistics().session_s == pytest.approx(now.confirmed)
    assert run.groups()["s",].confirmed == now.confirmed
    assert run.exit_code == (0 if is_complete else 75)
    assert stream.status is (Status.COMPLETE if is_complete else Status.INTERRUPTED)
    assert (stream.remaining(), stream.expected_batches) == (
        ([], 30) if is_complete else ([25, 26, 27, 28, 29], 30)
    )


async def test_a_stream_moves_while_its_batches_end(autojump_clock: MockClock) -> None:
    """All are handed out at once, as the items of a job are: that was long ago when they end."""
    found: list[float | None] = []

    async with begin() as run, run.open_stream("s") as stream:

        async def work(batch: Batch[int]) -> None:
            await trio.sleep(10.0 * (batch.index + 1))
            if batch.index == 20:
                found.append(stream.statistics().eta_s)
            batch.complete()

        await run_batches(stream, range(30), work, concurrency=30)
    assert found == [pytest.approx(10 * 10, rel=0.1)]
