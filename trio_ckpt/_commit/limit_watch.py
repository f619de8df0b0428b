"""Counts what the limits of an open run are about, and stops the run when one is reached.

Theory of operation
===================

What is counted is durable.  The open streams report the end of each attempt when its record is in
the store and progress has moved (`OpenStream.advance`), in the same step of the scheduler.  So a
limit never counts work that a crash could take back, and the loop that has gone over a limit
cannot ask for another batch before the stop has begun.

**The brake.**  Failures in a row that reach `Limits.consecutive_failures` are an outage: of the
provider, the network, the disk.  They say nothing about the items.  From the first of these
failures on the watch knows which batches failed or were skipped (`Streak`).  A confirmed batch
begins the row again at 0.  It shows that the outage is over only where its attempt was begun after
the first of these failures: of several at once one may have been answered just before.  Once the
brake is on nothing ends it: what fails while the stop waits for the open batches is of the same
outage.  When the streams are closed, `trio_ckpt._runs.brake` re-queues these batches by records of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs
import msgspec
import trio

from .._journal.record import ErrorInfo, Record, RecordKind, error_line
from .._tokens.token import AnyToken
from .._util.exact_sum import ExactSum, add_amounts, add_sums
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.uninterrupted import uninterrupted
from .limits import (
    FailureCounter,
    LimitReached,
    Limits,
    batches_done,
    out_of_time,
    over_reserved,
    over_spent,
)
from .shutdown import Stop

log = get_logger(__name__)


@attrs.define(eq=False, repr=False)
class Streak:
    """The batches of one stream that have failed, or were skipped, in a row of failures.

    Attributes:
        failed: The batches that have failed; they may run again.
        skipped: The batches that were given up, each with the digest of its item.
    """

    failed: set[int] = attrs.field(factory=set[int])
    skipped: dict[int, bytes] = attrs.field(factory=dict[int, bytes])

    @property
    def indexes(self) -> set[int]:
        """All of them."""
        return self.failed | self.skipped.keys()

    def discard(self, index: int | None) -> None:
        """Take out a batch that has not failed after all."""
        self.failed.discard(-1 if index is None else index)

    def add(self, record: Record) -> None:
        """Add the batch of a failed attempt, as its record says how it ended."""
        if record.index is None:
            return
        if record.kind is RecordKind.SKIP:
            self.failed.discard(record.index)
            self.skipped[record.index] = record.item
        else:
            self.failed.add(record.index)


@uninterrupted
@attrs.define(eq=False, repr=False)
class LimitWatch:
    """Counts for the limits of a run, and stops it when one is reached.

    Attributes:
        run_id: The run.
        limits: Its limits.
        stop: Its stop.
        grace_s: How long a stop waits for open batches, in seconds.
        spent: What all attempts of all sessions have cost, by name, with what those that are over
            have left reserved.
        reserved: What open attempts have reserved and what notes cost, by name.
        streaks: What has failed in the outage that there may be, by stream.
        is_braking: Whether an outage has stopped the run.
        reached: The limit that has stopped the run; None: none has.
    """

    run_id: str
    limits: Limits
    stop: Stop
    grace_s: float
    spent: dict[str, ExactSum]
    reserved: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    streaks: dict[StreamKey, Streak] = attrs.field(factory=dict[StreamKey, Streak], init=False)
    is_braking: bool = attrs.field(default=False, init=False)
    reached: LimitReached | None = attrs.field(default=None, init=False)
    _failures: FailureCounter = attrs.field(init=False)
    _opened_at: float = attrs.field(init=False)  # on trio's clock, and by the wall clock
    _opened_on: datetime = attrs.field(init=False)
    _done: int = attrs.field(default=0, init=False)
    _attempts: int = attrs.field(default=0, init=False)  # begun in this session
    _begun: dict[AnyToken, tuple[int, float]] = attrs.field(
        factory=dict[AnyToken, tuple[int, float]], init=False
    )  # the number and the time of each open attempt
    _begun_then: int = attrs.field(default=0, init=False)  # at the first failure in `streaks`
    _ends_at: float = attrs.field(default=math.inf, init=False)  # on trio's clock
    _is_runtime: bool = attrs.field(default=False, init=False)  # `runtime_s` ends before `stop_at`
    _longest_s: float = attrs.field(default=0.0, init=False)
    _timer: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        self._failures = FailureCounter(self.limits)
        self._opened_at, self._opened_on = trio.current_time(), datetime.now(UTC)
        self._set_deadline()

    def _set_deadline(self) -> None:
        """Compute when the session has to be over, as the limits are now."""
        self._ends_at, self._is_runtime, limits = math.inf, False, self.limits
        if limits.runtime_s is not None:
            self._ends_at, self._is_runtime = self._opened_at + limits.runtime_s, True
        if limits.stop_at is not None:
            left_s = (limits.stop_at - self._opened_on).total_seconds()
            if self._opened_at + left_s < self._ends_at:
                self._ends_at, self._is_runtime = self._opened_at + left_s, False
        self._timer.deadline = self._begins_to_stop_at()

    # -- what the streams report ----------------------------------------------------------------

    def began(self, token: AnyToken) -> None:
        """Note that an attempt has begun: when, and before which failures."""
        self._attempts += 1
        self._begun[token] = self._attempts, trio.current_time()

    def ended(self, token: AnyToken) -> None:
        """Note that an attempt is over, however it ended."""
        _, began = self._begun.pop(token)
        self._longest_s = max(self._longest_s, trio.current_time() - began)
        if self.has_deadline:
            self._timer.deadline = self._begins_to_stop_at()

    def add_cost(self, record: Record) -> None:
        """Add what an attempt has cost, now that its record is durable."""
        if record.spent or record.reserved:
            add_amounts(self.spent, record.spent)
            add_amounts(self.spent, record.reserved or {})
            self.check_spent()

    def check_spent(self) -> None:
        """Stop the run if it has spent what it may."""
        self.stop_for(over_spent(self.limits, self.spent))

    def reserve(self, change: Mapping[str, ExactSum]) -> bool:
        """Count what an open attempt reserves, or stop the run: a limit has no room for it.

        Args:
            change: What its reservations change by.

        Returns:
            Whether it is counted.
        """
        reached = over_reserved(self.limits, self.spent, self.reserved, change)
        if reached is not None:
            self.stop_for(reached)
            return False
        add_sums(self.reserved, change)
        return True

    def unreserve(self, change: Mapping[str, ExactSum]) -> None:
        """Take back what could not be saved."""
        add_sums(self.reserved, change, sign=-1)

    def end_reserved(self, reserved: Mapping[str, ExactSum]) -> None:
        """Count as spent what was reserved, because its attempt is over; see `add_cost`.

        It stops no run: a record may follow that takes out what the attempt has settled.
        """
        add_sums(self.reserved, reserved, sign=-1)
        add_sums(self.spent, reserved)

    def saved(self, token: AnyToken, record: Record, *, is_failure: bool) -> None:
        """Count an attempt whose record is durable.

        Args:
            token: Its token.
            record: The record of its end.
            is_failure: Whether it failed; a batch that its body skips on purpose has not.
        """
        self.add_cost(record)
        if record.kind in (RecordKind.BATCH, RecordKind.SKIP):
            self._done += 1
            self.stop_for(batches_done(self.limits, self._done))
        if is_failure or record.kind is RecordKind.BATCH:
            self._failures.add(is_failure=is_failure)
        if self.limits.consecutive_failures is not None:
            self._follow_streak(token, record, is_failure=is_failure)
        if is_failure:
            self.stop_for(self._failures.reached(_name_of(record.error)))

    def _follow_streak(self, token: AnyToken, record: Record, *, is_failure: bool) -> None:
        key = token.stream
        if is_failure:
            if not self.streaks:
                self._begun_then = self._attempts
            self.streaks.setdefault(key, Streak()).add(record)
            return
        is_later = self._begun[token][0] > self._begun_then
        if record.kind is RecordKind.BATCH and is_later and not self.is_braking:
            self.streaks.clear()
        elif key in self.streaks:
            self.streaks[key].discard(record.index)

    def takes_back(self, key: StreamKey) -> bool:
        """Whether batches of a stream are re-queued because an outage has stopped the run."""
        return self.is_braking and key in self.streaks

    def continue_streak(self, streaks: Mapping[StreamKey, Streak], failures: int) -> None:
        """Go on counting a row of failures with which the last session ended.

        Args:
            streaks: The batches that failed, by stream.
            failures: How many attempts failed in a row.
        """
        self.streaks.update(streaks)
        self._failures.in_a_row = failures

    def change_limits(self, limits: Limits) -> None:
        """Change what the run may spend or do; it stops if it has reached that already."""
        self.limits = limits
        self.check_spent()
        self.stop_for(batches_done(limits, self._done))
        self._set_deadline()

    def stop_for(self, reached: LimitReached | None) -> None:
        """Stop the run in good order if a limit is reached; the first one is the reason."""
        if reached is None:
            return
        # An outage is one also where another limit was reached before it.
        self.is_braking = self.is_braking or reached.limit == "consecutive_failures"
        if self.reached is not None:
            return
        self.reached = reached
        log.info(
            "run %r: limit %s: %s: stopping in good order",
            self.run_id,
            reached.limit,
            reached.reason,
            extra=at(self.run_id),
        )
        self.stop.request(reason=f"limit {reached.limit}: {reached.reason}")

    def stop_at_start(self, reached: LimitReached | None) -> None:
        """Stop a run that has just been opened, before it hands anything out."""
        if reached is not None:
            reason = f"{reached.reason}: nothing is handed out until that changes"
            self.stop_for(msgspec.structs.replace(reached, reason=reason))

    @property
    def has_deadline(self) -> bool:
        """Whether the session has to be over at some time."""
        return self._ends_at != math.inf

    @property
    def is_late(self) -> bool:
        """Whether the time of the session is over."""
        return self._ends_at <= trio.current_time()

    # -- time -----------------------------------------------------------------------------------

    def _begins_to_stop_at(self) -> float:
        """When a session begins to stop, so that what is open then is over at its deadline."""
        return self._ends_at - min(self._longest_s, self.grace_s)

    async def watch_time(self) -> None:
        """Stop the run before its deadline, which may be set while this waits for it.

        Cancellation: a cancellation point; no stop is requested after that.
        """
        with self._timer:
            await trio.sleep_forever()
        self.stop_for(self.out_of_time())

    def out_of_time(self) -> LimitReached:
        """The deadline of the session."""
        return out_of_time(self.limits, is_runtime=self._is_runtime)


def _name_of(error: ErrorInfo | None) -> str:
    return "a failure" if error is None else error_line(error)
