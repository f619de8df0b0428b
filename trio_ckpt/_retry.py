"""What to do with a batch that failed: a table, first match wins, one pure function."""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable

import attrs


class Then(enum.Enum):
    """What happens when a rule's attempts are used up."""

    FAIL = "fail"  # the batch fails for good; its loop raises
    SKIP = "skip"  # the batch is recorded as skipped; the loop goes on


@attrs.frozen
class Again:
    """The batch runs again.

    Attributes:
        after_s: After so many seconds, on trio's clock.
    """

    after_s: float


@attrs.frozen
class RetryRule:
    """One line of a `RetryTable`.

    Attributes:
        errors: The exceptions it is for.
        attempts: How often a batch is tried in all, the first time included.
        then: What happens after the last of them.
        backoff_s: Before the second attempt, in seconds; doubled before each further one.
        max_backoff_s: The doubling ends here.
        jitter: Each wait is longer by up to this fraction, so that many do not come at once.
        retry_after: Reads from the exception how long the other side asks to wait,
            in seconds; None where it does not say.  It replaces a shorter backoff.
    """

    errors: tuple[type[BaseException], ...]
    attempts: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    then: Then = Then.FAIL
    backoff_s: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))
    max_backoff_s: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    jitter: float = attrs.field(default=0.1, validator=attrs.validators.ge(0))
    retry_after: Callable[[BaseException], float | None] | None = None

    def wait_s(self, error: BaseException, attempts: int) -> float:
        """Seconds to wait after the `attempts`-th failure."""
        doublings = min(attempts - 1, 64)  # 2**64 s outlasts every max_backoff_s
        wait = min(math.ldexp(self.backoff_s, doublings), self.max_backoff_s)
        wait *= 1 + random.random() * self.jitter  # noqa: S311  # spreads load, no secret
        asked = self.retry_after(error) if self.retry_after is not None else None
        return wait if asked is None else max(wait, asked)


@attrs.frozen
class RetryTable:
    """Rules by class of error; the first that matches wins, and none means FAIL.

    Attributes:
        rules: In order.
    """

    rules: tuple[RetryRule, ...] = ()

    def decide(self, error: BaseException, attempts: int) -> Again | Then:
        """Say what becomes of a batch that has failed `attempts` times, with `error` now."""
        for rule in self.rules:
            if isinstance(error, rule.errors):
                if attempts < rule.attempts:
                    return Again(rule.wait_s(error, attempts))
                return rule.then
        return Then.FAIL


NO_RETRIES = RetryTable()
