"""What the watch of a run counts, and when it stops the run."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from trio_ckpt import CheckpointCoordinator, Limits
from trio_ckpt._commit.limit_watch import LimitWatch, Streak
from trio_ckpt._commit.shutdown import Stop
from trio_ckpt._journal.record import ErrorInfo, Record, RecordKind
from trio_ckpt._tokens.token import AnyToken

Clock = trio.testing.MockClock


def make_watch(**limits: Any) -> LimitWatch:
    return LimitWatch("r", Limits(**limits), Stop(30.0), 30.0, {})


def make_tokens(count: int) -> list[AnyToken]:
    coordinator = CheckpointCoordinator()
    tokens = [coordinator.create_checkpoint("r", index, stream=("s",)) for index in range(count)]
    for token in tokens:
        token.complete()  # a pending one that is forgotten warns; the watch does not look
    return tokens


def end(watch: LimitWatch, token: AnyToken, kind: RecordKind = RecordKind.BATCH) -> None:
    error = None if kind is RecordKind.BATCH else ErrorInfo("OSError", "down")
    record = Record(kind=kind, at=1.0, index=token.batch_index, item=b"12345678", error=error)
    watch.saved(token, record, is_failure=kind is not RecordKind.BATCH)
    watch.ended(token)


def held(watch: LimitWatch) -> set[int]:
    streak = watch.streaks.get(("s",), Streak())
    return streak.failed | streak.skipped.keys()


async def test_the_first_limit_is_the_reason() -> None:
    watch = make_watch(batches=1, spent={"cost_usd": 1})
    watch.add_cost(Record(at=1.0, spent={"cost_usd": 2}))
    [token] = make_tokens(1)
    watch.began(token)
    end(watch, token)
    assert watch.stop.is_requested
    assert watch.stop.reason == "limit spent: 2 of 1 cost_usd are spent"


async def test_a_batch_begun_before_a_failure_ends_no_outage() -> None:
    watch = make_watch(consecutive_failures=5)
    early, failing, late = make_tokens(3)
    watch.began(early)
    watch.began(failing)
    end(watch, failing, RecordKind.SKIP)
    end(watch, early)
    assert held(watch) == {1}
    watch.began(late)
    end(watch, late)
    assert held(watch) == set()


async def test_after_the_brake_only_a_confirmed_batch_leaves() -> None:
    watch = make_watch(consecutive_failures=2)
    tokens = make_tokens(4)
    for token in tokens:
        watch.began(token)
    end(watch, tokens[0], RecordKind.ATTEMPT)
    end(watch, tokens[1], RecordKind.SKIP)
    assert watch.is_braking
    end(watch, tokens[2], RecordKind.SKIP)  # it was open, and is of the same outage
    watch.began(tokens[0])
    end(watch, tokens[0])
    assert held(watch) == {1, 2}


@pytest.mark.parametrize(("took_s", "stops_at"), [(4, 26), (50, 50)])
async def test_the_longest_attempt_is_left_before_the_end(
    took_s: int, stops_at: int, autojump_clock: Clock
) -> None:
    watch = make_watch(runtime_s=30)
    [token] = make_tokens(1)
    requested = float("nan")

    async def wait() -> None:
        nonlocal requested
        await watch.watch_time()
        requested = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        watch.began(token)
        await trio.sleep(took_s)
        watch.ended(token)
    assert requested == pytest.approx(min(stops_at, 30), abs=0.01)
