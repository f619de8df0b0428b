"""What to do with a batch that failed: a table, first match wins, one pure function."""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import cast

import attrs
import trio

from ._arguments import (
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


class Then(enum.Enum):
    """What happens when a rule's attempts are used up."""

    FAIL = "fail"  # the batch fails for good; its loop raises, and so does the run
    FAIL_STREAM = "fail the stream"  # the same; on_fail="record" lets the next stream go on
    SKIP = "skip"  # the batch is recorded as skipped; the loop goes on


@attrs.frozen
class Again:
    """The batch runs again.

    Attributes:
        after_s: After so many seconds, on trio's clock.
        pauses: The other side asked to wait: no batch of the stream is begun before that.
    """

    after_s: float
    pauses: bool = False


@attrs.frozen
class GiveUp:
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
        errors: The exceptions it is for.
        when: Which of them; default: all.
        attempts: How often a batch is tried in all, the first time included.
        then: What happens after the last of them.
        retryable: Whether a plain resume tries again what failed so.
        backoff_s: Before the second attempt, in seconds; doubled before each further one.
        max_backoff_s: The doubling ends here.
        jitter: Each wait is longer by up to this fraction, so that many do not come at once.
        retry_after: Reads from the exception how long the other side asks to wait,
            in seconds; None where it does not say.  The whole stream waits as long, and
            the backoff, where that is longer.
        max_retry_after_s: Nobody waits longer than that: `then` happens at once.
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
        """Whether it is for this error."""
        return isinstance(error, self.errors) and (self.when is None or self.when(error))

    def again(self, error: BaseException, attempts: int) -> Again | None:
        """How long to wait after the `attempts`-th failure; None: it would be too long."""
        doublings = min(attempts - 1, 64)  # 2**64 s outlasts every max_backoff_s
        wait = min(math.ldexp(self.backoff_s, doublings), self.max_backoff_s)
        wait *= 1 + random.random() * self.jitter  # noqa: S311  # spreads load, no secret
        asked = self.retry_after(error) if self.retry_after is not None else None
        if asked is None:
            return Again(wait)
        if not asked <= self.max_retry_after_s:
            return None
        return Again(max(wait, asked), pauses=True)


@attrs.frozen
class RetryTable:
    """Rules by class of error; the first that matches wins, and none means FAIL.

    A table is code, not data: the next session may have another.

    Attributes:
        rules: In order.
    """

    rules: tuple[RetryRule, ...] = attrs.field(default=(), converter=_as_rules)

    def decide(self, error: BaseException, attempts: int) -> Again | GiveUp:
        """Say what becomes of a batch that has failed `attempts` times, with `error` now."""
        error = _alone(error)
        for rule in self.rules:
            if rule.matches(error):
                again = rule.again(error, attempts) if attempts < rule.attempts else None
                return again or GiveUp(rule.then, rule.retryable)
        return GiveUp(Then.FAIL)


def _alone(error: BaseException) -> BaseException:
    """The one exception in groups of one, such as a nursery makes."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _alone(group.exceptions[0]) if len(group.exceptions) == 1 else group


NO_RETRIES = RetryTable()

TOO_MANY_REQUESTS = 429
REFUSED = frozenset({401, 403, 404, 410, 451})  # asking again changes nothing
SERVER_ERROR = 500
NETWORK_ERRORS = (TimeoutError, ConnectionError, trio.TooSlowError, trio.BrokenResourceError)


def http_retries(
    *,
    status_of: Callable[[BaseException], int | None] | None = None,
    retry_after: Callable[[BaseException], float | None] | None = None,
    errors: tuple[type[BaseException], ...] = (),
    attempts: int = 5,
    backoff_s: float = 1.0,
    max_backoff_s: float = 60.0,
) -> RetryTable:
    """The table that suits most collections over HTTP.

    =====================================  ==================================================
    429                                    the stream waits as the server asks; then again
    5xx, timeouts, broken connections      again, with backoff
    401, 403, 404, 410, 451                the stream fails, and is not retried by itself
    anything else                          the batch fails, and its loop raises
    =====================================  ==================================================

    Args:
        status_of: Reads the status code from an exception; default: its ``status_code`` or
            ``status``, or that of its ``response``, where that is an int.
        retry_after: Reads the seconds of Retry-After (RFC 9110, section 10.2.3) from it;
            default: its ``retry_after``, or that header of its ``response``: a number, or a
            text as servers send it, seconds or a date.
        errors: What else means a timeout or a broken connection: the exceptions of the
            library that makes the requests.
        attempts: How often a batch is tried in all.
        backoff_s: As for `RetryRule`.
        max_backoff_s: As for `RetryRule`.
    """
    status_of = status_of or _status_of
    retry_after = retry_after or _retry_after
    broken: tuple[type[BaseException], ...] = (*NETWORK_ERRORS, *errors)

    def status(error: BaseException) -> int:
        return status_of(error) or 0

    return RetryTable(
        (
            RetryRule(
                (Exception,),
                when=lambda error: status(error) == TOO_MANY_REQUESTS,
                attempts=attempts,
                then=Then.FAIL_STREAM,
                backoff_s=backoff_s,
                max_backoff_s=max_backoff_s,
                retry_after=retry_after,
            ),
            RetryRule(
                (Exception,),
                when=lambda error: status(error) in REFUSED,
                attempts=1,
                then=Then.FAIL_STREAM,
                retryable=False,
            ),
            RetryRule(
                (Exception,),
                when=lambda e: isinstance(e, broken) or status(e) >= SERVER_ERROR,
                attempts=attempts,
                then=Then.FAIL_STREAM,
                backoff_s=backoff_s,
                max_backoff_s=max_backoff_s,
                retry_after=retry_after,
            ),
        )
    )


def _status_of(error: BaseException) -> int | None:
    for thing in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            code = getattr(thing, name, None)
            if isinstance(code, int):
                return code
    return None


def _retry_after(error: BaseException) -> float | None:
    asked: object = getattr(error, "retry_after", None)
    headers: object = getattr(getattr(error, "response", None), "headers", None)
    if asked is None and isinstance(headers, Mapping):
        asked = cast("Mapping[str, object]", headers).get("Retry-After")
    if isinstance(asked, str):
        asked = _seconds_of(asked)
    if isinstance(asked, int | float) and math.isfinite(asked) and asked >= 0:
        return float(asked)
    return None


def _seconds_of(text: str) -> float | None:
    """What a Retry-After header asks for: seconds, or a date."""
    try:
        return float(text)
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # a megabyte that few need

    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
