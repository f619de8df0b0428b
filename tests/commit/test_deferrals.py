"""Deferred batches of a stream: until when, by which clock, and which are handed out next."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

from trio_ckpt._commit.deferrals import MAX_DEFER_S, Deferrals, due_time
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.deferral import Deferral
from trio_ckpt._journal.folds import decode_progress, encode_progress
from trio_ckpt._journal.progress import FailedAttempt, Progress
from trio_ckpt._journal.record import ErrorInfo, Record, RecordKind, Taken
from trio_ckpt._journal.summary import failing, summarize

ERROR = ErrorInfo("HttpError", "429")
Clock = trio.testing.MockClock


def attempt(index: int, due: float | None, error: ErrorInfo | None = None, n: int = 0) -> Record:
    kind = RecordKind.ATTEMPT
    return Record(kind=kind, at=1_000.0, index=index, attempts=n, due=due, error=error)


def progress_of(*records: Record) -> Progress:
    progress = Progress()
    for sequence, record in enumerate(records, 1):
        apply(progress, sequence, record)
    return progress


# -- the argument --------------------------------------------------------------------------------


def test_seconds_count_from_now() -> None:
    before = time.time()
    assert before + 60 <= due_time(60) <= time.time() + 60


def test_a_datetime_is_that_moment() -> None:
    until = datetime.now(UTC) + timedelta(hours=3)
    assert due_time(until) == until.timestamp()


def test_a_moment_that_is_over_is_now() -> None:
    assert abs(due_time(datetime(1970, 1, 1, tzinfo=UTC)) - time.time()) < 5


@pytest.mark.parametrize(
    "until", [-1, math.nan, math.inf, MAX_DEFER_S + 60, datetime(2030, 1, 1), "soon", None, True]
)
def test_other_times_are_refused(until: object) -> None:
    with pytest.raises((TypeError, ValueError), match="until must be"):
        due_time(until)


# -- progress ------------------------------------------------------------------------------------


def test_a_body_that_defers_has_not_failed() -> None:
    progress = progress_of(attempt(3, 2_000.0))
    assert progress.deferred == {3: Deferral(1_000.0, 2_000.0)}
    assert not progress.failures
    assert not progress.is_done(3)


def test_a_failed_attempt_that_is_deferred_counts() -> None:
    progress = progress_of(attempt(3, 2_000.0, ERROR, 2))
    assert progress.failures == {3: FailedAttempt(2, ERROR)}
    assert failing(progress) == 0  # it waits for its time
    summary = summarize((), {("s",): progress})
    assert (summary.deferred, summary.next_due) == (1, 2_000.0)


def test_a_deferral_keeps_the_attempts_before_it() -> None:
    progress = progress_of(attempt(3, None, ERROR, 2), attempt(3, 2_000.0, None, 2))
    assert progress.failures == {3: FailedAttempt(2, ERROR)}


@pytest.mark.parametrize(
    "end",
    [
        Record(at=1.0, index=3),
        Record(kind=RecordKind.SKIP, at=1.0, index=3, error=ERROR),
        attempt(3, None, ERROR, 1),
        Record(kind=RecordKind.RETRY, at=1.0, steps=(3, 1)),
    ],
    ids=["batch", "skip", "attempt", "retry"],
)
def test_a_deferral_ends_with_the_next_end_of_its_batch(end: Record) -> None:
    assert not progress_of(attempt(3, 2_000.0), end).deferred


def test_a_fold_has_the_deferrals() -> None:
    progress = progress_of(attempt(3, 2_000.0), attempt(5, 1_500.5, ERROR, 1))
    assert decode_progress(encode_progress(progress)).deferred == progress.deferred


# -- clocks --------------------------------------------------------------------------------------


def test_what_is_left_is_never_longer_than_was_asked_for() -> None:
    deferral = Deferral(at=1_000.0, due=1_060.0)
    assert deferral.left_s(1_010.0) == 50.0
    assert deferral.left_s(5_000.0) == 0.0
    assert deferral.left_s(-1e9) == 60.0  # the clock was years ahead when it was deferred


async def test_a_clock_that_is_set_changes_nothing_in_a_session(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    deferrals = Deferrals(progress_of(attempt(0, 1_060.0)))
    for now in (0.0, 10**9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert deferrals.due_at(0) == pytest.approx(60.0)
    await trio.sleep(60.1)
    assert deferrals.due_at(0) is None


# -- what is handed out next -----------------------------------------------------------------------


async def test_deferred_batches_are_passed_over_until_they_are_due(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    records = [attempt(0, 1_010.0), attempt(1, 1_020.0), attempt(2, 1_030.0)]
    deferrals = Deferrals(progress_of(*records, Record(at=1.0, index=3)))
    assert deferrals.first_free(0) == 4
    assert deferrals.next_due == pytest.approx(10.0)
    await trio.sleep(10.5)
    assert (deferrals.first_free(0), deferrals.first_free(1)) == (0, 4)
    assert deferrals.first_free(1) == 4
    await trio.sleep(100)
    assert (deferrals.first_free(1), deferrals.next_due) == (1, None)
    deferrals.reconsider(0)
    assert deferrals.first_free(1) == 1  # what lies before the loop is not handed out


async def test_the_newest_deferral_of_a_batch_counts(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    progress = progress_of(attempt(0, 1_010.0))
    deferrals = Deferrals(progress)
    apply(progress, 2, attempt(0, 1_500.0))
    deferrals.add(0)
    await trio.sleep(20)
    assert deferrals.first_free(0) == 1
    assert deferrals.next_due == pytest.approx(500.0)


async def test_what_was_re_queued_is_held_back_no_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    progress = progress_of(attempt(0, 1_010.0))
    deferrals = Deferrals(progress)
    apply(progress, 2, Record(kind=RecordKind.RETRY, at=1.0, steps=(0, 1)))
    assert deferrals.next_due is None
    assert deferrals.first_free(0) == 0


async def test_what_was_re_queued_is_left_whatever_is_due_before(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """It was given up, and re-queued: it is not deferred any more."""
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    progress = progress_of(attempt(0, 1_010.0), attempt(1, 1_500.0), Record(at=1.0, index=2))
    deferrals = Deferrals(progress)
    assert deferrals.first_free(0) == 3
    apply(progress, 4, Record(kind=RecordKind.SKIP, at=1.0, index=1))
    deferrals.reconsider(1)
    assert deferrals.first_free(0) == 3
    apply(progress, 5, Record(kind=RecordKind.RETRY, at=1.0, steps=(1, 1)))
    deferrals.reconsider(1)
    assert (deferrals.first_free(0), deferrals.due_at(1)) == (1, None)
    apply(progress, 6, Record(kind=RecordKind.REDO, at=1.0, steps=(2, 1), taken=Taken({}, {})))
    deferrals.reconsider(2)
    apply(progress, 7, Record(at=1.0, index=1))
    assert deferrals.first_free(0) == 2


async def test_a_step_does_not_look_at_what_is_done_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    calls, first_left = 0, Progress.first_left

    def counted(progress: Progress, start: int) -> int:
        nonlocal calls
        calls += 1
        return first_left(progress, start)

    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    monkeypatch.setattr(Progress, "first_left", counted)
    progress = Progress()
    deferrals = Deferrals(progress)
    for index in range(400):
        assert deferrals.first_free(0) == index
        is_deferred = index % 2 == 0
        apply(progress, index + 1, attempt(index, 9e9) if is_deferred else done_of(index))
        if is_deferred:
            deferrals.add(index)
    assert calls < 3 * 400


def done_of(index: int) -> Record:
    return Record(at=1.0, index=index)
