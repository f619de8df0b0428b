"""What to do with a batch that failed: a table, first match wins.

`Gate._decide` asks it for a failed attempt that is left for the next batch, as the table `GATE` in
`trio_ckpt._commit.exits` says, and for no other.  The delay passes in the loop: in
`LoopCursor.settle_open`, or in `WorkQueue.leave` where several tasks share it.  Batches that have
failed for good are re-queued by the next session (`trio_ckpt._commit.redo.retry_record`).
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs
import msgspec

from .._util.arguments import (
    checked_by,
    exception_classes,
    flag,
    function,
    instance,
    one_of,
    optional,
    ratio,
    seconds,
    several,
    whole_number,
)
from .._util.exceptions import class_name, failures_in
from .._util.log import Place, get_logger
from .deferrals import MAX_DEFER_S

if TYPE_CHECKING:
    from ..outputs._validate import Validator

log = get_logger(__name__)


class Then(enum.Enum):
    """What happens when a rule's attempts are used up."""

    FAIL = "fail"  # the batch fails for good; its loop raises, and so does the run
    FAIL_STREAM = "fail the stream"  # as FAIL; on_fail="record" lets the next stream go on
    SKIP = "skip"  # the batch is recorded as skipped; the loop goes on


class Again(msgspec.Struct, frozen=True):
    """The batch runs again.

    Attributes:
        after_s: How long to wait before, in seconds on trio's clock.
        pauses: Whether the whole stream waits, as the server asked: no batch of it is begun
            before then.
        defers: Whether the batch is deferred, because the wait is too long to sleep for it: others
            go on, as after `Batch.defer`.
    """

    after_s: float
    pauses: bool = False
    defers: bool = False


class GiveUp(msgspec.Struct, frozen=True):
    """The batch does not run again in this session.

    Attributes:
        then: What happens instead.
        retryable: Whether the next session may try again by itself.
    """

    then: Then
    retryable: bool = True


def _as_classes(errors: Iterable[type[BaseException]]) -> tuple[type[BaseException], ...]:
    return exception_classes("errors", errors)


def _as_rules(rules: Iterable[RetryRule]) -> tuple[RetryRule, ...]:
    return tuple(
        instance("a rule", rule, RetryRule, "a RetryRule")
        for rule in several("rules", rules, "RetryRule")
    )


@attrs.frozen
class RetryRule:
    """One line of a `RetryTable`.

    Attributes:
        errors: The exceptions that it matches.  In a group of exceptions, such as a nursery
            raises, each part is matched, unless `errors` has a class of groups, for example
            ``ExceptionGroup``.
        when: A predicate that the exception must satisfy, too; default: all match.
        attempts: How often a batch is tried in all, the first time included.
        then: What happens after the last attempt.
        retryable: Whether a plain resume tries the batch again after that.
        backoff_s: The wait before the second attempt, in seconds; it doubles before each
            further one.
        max_backoff_s: The longest backoff, in seconds.
        jitter: Each wait is longer by up to this fraction, so that retries spread out.
        retry_after: Reads from the exception how long the server asks to wait, in seconds; None
            where it does not say.  The whole stream then waits as long, or the backoff if that
            is longer.
        max_retry_after_s: How long a retry may sleep.  Where a server asks for more seconds than
            this, the batch is deferred, as by `Batch.defer`; `then` happens at once where it asks
            for more than 366 days.
    """

    errors: tuple[type[BaseException], ...] = attrs.field(converter=_as_classes)
    when: Callable[[BaseException], bool] | None = attrs.field(
        default=None, validator=optional(function)
    )
    attempts: int = attrs.field(default=5, validator=checked_by(whole_number, least=1))
    then: Then = attrs.field(default=Then.FAIL, validator=checked_by(one_of, choices=tuple(Then)))
    retryable: bool = attrs.field(default=True, validator=checked_by(flag))
    backoff_s: float = attrs.field(default=1.0, validator=checked_by(seconds))
    max_backoff_s: float = attrs.field(default=60.0, validator=checked_by(seconds))
    jitter: float = attrs.field(default=0.1, validator=checked_by(ratio))
    retry_after: Callable[[BaseException], float | None] | None = attrs.field(
        default=None, validator=optional(function)
    )
    max_retry_after_s: float = attrs.field(
        default=3_600.0, validator=checked_by(seconds, is_endless_allowed=True)
    )

    def matches(self, error: BaseException) -> bool:
        """Whether it matches an error; a group as a whole only where `errors` has groups."""
        errors = self.errors
        if _is_of_groups(type(error)):
            errors = tuple(filter(_is_of_groups, errors))
        return isinstance(error, errors) and (self.when is None or self.when(error))


def _attempt_after(rule: RetryRule, error: BaseException, attempts: int) -> Again | None:
    """How long to wait after the `attempts`-th failure; None: longer than any deferral."""
    doublings = min(attempts - 1, 64)  # 2**64 s outlasts every max_backoff_s
    wait = min(math.ldexp(rule.backoff_s, doublings), rule.max_backoff_s)
    wait *= 1 + random.random() * rule.jitter  # noqa: S311  # spreads load, no secret
    asked = rule.retry_after(error) if rule.retry_after is not None else None
    if asked is None:
        return Again(wait)
    wait = max(wait, asked)
    if asked <= rule.max_retry_after_s:
        return Again(wait, pauses=True)
    return Again(wait, defers=True) if wait <= MAX_DEFER_S else None  # None also for NaN


def _is_of_groups(kind: type[BaseException]) -> bool:
    return issubclass(kind, BaseExceptionGroup)


@attrs.frozen
class RetryTable:
    """Rules by class of error; the first that matches wins, and without a match the batch FAILs.

    Each exception of a group gets a verdict, and the gravest one is that on the batch: FAIL before
    FAIL_STREAM before SKIP before another attempt, and of two alike the one that the next session
    does not try again.  Where all of them are to be tried again, the longest wait counts.
    ``trio.Cancelled`` in the group is ignored.

    A table is code, not data: the next session may have another.

    Attributes:
        rules: The rules, in order.
    """

    rules: tuple[RetryRule, ...] = attrs.field(default=(), converter=_as_rules)

    def decide(self, error: BaseException, attempts: int) -> Again | GiveUp:
        """Decide what happens to a batch that has failed `attempts` times, now with `error`.

        Args:
            error: The exception of the newest attempt.
            attempts: How often the batch was tried; at least 1.
        """
        instance("error", error, BaseException, "an exception")
        attempts = whole_number("attempts", attempts, least=1)
        parts = failures_in(error, lambda part: self._rule_for(part) is not None)
        return _gravest([self._verdict_on(part, attempts) for part in parts])

    def _rule_for(self, error: BaseException) -> RetryRule | None:
        return next((rule for rule in self.rules if rule.matches(error)), None)

    def _verdict_on(self, error: BaseException, attempts: int) -> Again | GiveUp:
        rule = self._rule_for(error)
        if rule is None:
            return GiveUp(Then.FAIL)
        again = _attempt_after(rule, error, attempts) if attempts < rule.attempts else None
        return again or GiveUp(rule.then, rule.retryable)


def _gravest(verdicts: list[Again | GiveUp]) -> Again | GiveUp:
    """The verdict on a batch, of the verdicts on all its exceptions."""
    given_up = [verdict for verdict in verdicts if isinstance(verdict, GiveUp)]
    if given_up or not verdicts:
        return max(given_up, key=_gravity, default=GiveUp(Then.FAIL))
    waits = [verdict for verdict in verdicts if isinstance(verdict, Again)]
    defers = any(verdict.defers for verdict in waits)
    return Again(
        max(verdict.after_s for verdict in waits),
        pauses=any(verdict.pauses for verdict in waits) and not defers,
        defers=defers,
    )


_BY_GRAVITY = (Then.SKIP, Then.FAIL_STREAM, Then.FAIL)


def _gravity(verdict: GiveUp) -> tuple[int, bool]:
    return _BY_GRAVITY.index(verdict.then), not verdict.retryable


NO_RETRIES = RetryTable()


class LoopPolicy(msgspec.Struct, frozen=True):
    """What a loop does with its batches.

    Attributes:
        retry: What happens after a failed attempt.
        validator: The check that the outputs of a batch must pass; None: there is no check.
        is_parallel: Whether several batches may be open at once.
    """

    retry: RetryTable
    validator: Validator | None = None
    is_parallel: bool = False

    def verdict_on(self, error: BaseException | str, attempts: int, place: Place) -> Again | GiveUp:
        """The verdict of the retry table; where one of its rules raises, the batch fails.

        Args:
            error: What went wrong with the newest attempt.
            attempts: How often the batch was tried.
            place: The batch, for the log.
        """
        problem = error if isinstance(error, BaseException) else Exception(error)
        try:
            return self.retry.decide(problem, attempts)
        except BaseException:  # it must not replace the batch's own error
            log.exception("the retry table failed for %s", class_name(problem), extra=place)
            return GiveUp(Then.FAIL)
