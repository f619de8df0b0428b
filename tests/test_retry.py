"""The retry table: first match wins, and the same question has the same answer."""

from __future__ import annotations

import pytest

from trio_ckpt import Again, GiveUp, RetryRule, RetryTable, Then
from trio_ckpt._retry import NO_RETRIES


class RateLimitedError(Exception):
    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds


def rule(**changes: object) -> RetryRule:
    return RetryRule((OSError,), **{"jitter": 0.0, **changes})  # type: ignore[arg-type]


def waits(table: RetryTable, error: BaseException, attempts: range) -> list[float]:
    verdicts = [table.decide(error, attempt) for attempt in attempts]
    assert all(isinstance(verdict, Again) for verdict in verdicts)
    return [verdict.after_s for verdict in verdicts if isinstance(verdict, Again)]


def test_no_rule_means_fail() -> None:
    assert NO_RETRIES.decide(OSError(), 1) == GiveUp(Then.FAIL)
    assert RetryTable((rule(),)).decide(ValueError(), 1) == GiveUp(Then.FAIL)


def test_the_first_match_wins() -> None:
    gone = RetryRule((FileNotFoundError,), attempts=1, then=Then.SKIP)
    assert RetryTable((gone, rule())).decide(FileNotFoundError(), 1) == GiveUp(Then.SKIP)
    assert RetryTable((rule(), gone)).decide(FileNotFoundError(), 1) == Again(1.0)


@pytest.mark.parametrize("then", Then)
def test_attempts_are_counted_with_the_first(then: Then) -> None:
    table = RetryTable((rule(attempts=3, then=then),))
    assert isinstance(table.decide(OSError(), 2), Again)
    assert table.decide(OSError(), 3) == GiveUp(then)
    assert table.decide(OSError(), 4) == GiveUp(then)  # the table became stricter since


def test_backoff_doubles_up_to_its_end() -> None:
    table = RetryTable((rule(attempts=10, backoff_s=0.5, max_backoff_s=3.0),))
    assert waits(table, OSError(), range(1, 6)) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_backoff_has_no_overflow() -> None:
    table = RetryTable((rule(attempts=10**9),))
    assert waits(table, OSError(), range(10**8, 10**8 + 1)) == [60.0]


def test_jitter_only_lengthens_and_spreads() -> None:
    table = RetryTable((rule(attempts=2, backoff_s=10.0, jitter=0.5),))
    seen = {waits(table, OSError(), range(1, 2))[0] for _ in range(50)}
    assert all(10.0 <= wait <= 15.0 for wait in seen)
    assert len(seen) > 1


@pytest.mark.parametrize(("asked", "waited"), [(30.0, 30.0), (0.1, 1.0), (None, 1.0)])
def test_what_the_other_side_asks_replaces_a_shorter_backoff(
    asked: float | None, waited: float
) -> None:
    limited = RetryRule(
        (RateLimitedError,), jitter=0.0, retry_after=lambda error: getattr(error, "seconds", None)
    )
    assert RetryTable((limited,)).decide(RateLimitedError(asked), 1) == Again(
        waited, pauses=asked is not None
    )


@pytest.mark.parametrize(
    "bad", [{"attempts": 0}, {"backoff_s": -1.0}, {"max_backoff_s": -1.0}, {"jitter": -0.1}]
)
def test_impossible_rules_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        rule(**bad)


def test_the_first_rule_that_matches_wins_when_both_say_when() -> None:
    table = RetryTable(
        (
            RetryRule(
                (OSError,), when=lambda error: error.args == (1,), then=Then.SKIP, attempts=1
            ),
            RetryRule((OSError,), when=lambda error: bool(error.args), retryable=False, attempts=1),
        )
    )
    assert table.decide(OSError(1), 1) == GiveUp(Then.SKIP)
    assert table.decide(OSError(2), 1) == GiveUp(Then.FAIL, retryable=False)
    assert table.decide(OSError(), 1) == GiveUp(Then.FAIL)
