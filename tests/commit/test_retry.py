"""The retry table: first match wins, and the same question has the same answer."""

from __future__ import annotations

import pytest
import trio

from trio_ckpt import Again, GiveUp, RetryRule, RetryTable, Then
from trio_ckpt._commit.retry import NO_RETRIES


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


# -- groups, as nurseries raise them ----------------------------------------------------------


class GoneError(Exception):
    pass


def asked(seconds: float) -> RateLimitedError:
    return RateLimitedError(seconds)


GROUPS = RetryTable(
    (
        RetryRule((GoneError,), attempts=1, then=Then.FAIL_STREAM, retryable=False),
        RetryRule((KeyError,), attempts=1, then=Then.SKIP),
        RetryRule((IndexError,), attempts=1, then=Then.FAIL_STREAM),
        RetryRule((FileNotFoundError,), attempts=2, jitter=0.0, then=Then.SKIP),
        RetryRule(
            (RateLimitedError,), jitter=0.0, retry_after=lambda error: getattr(error, "seconds", 0)
        ),
        rule(attempts=4),
    )
)


def cancelled() -> BaseException:
    """What trio raises in a task that is cancelled."""
    found = list[BaseException]()

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                found.append(error)
                raise

    trio.run(main)
    return found[0]


def group(*parts: BaseException) -> BaseException:
    return BaseExceptionGroup("Exceptions from Trio nursery", parts)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        pytest.param([OSError(), OSError()], Again(1.0), id="like errors"),
        pytest.param([OSError(), group(OSError(), group(OSError()))], Again(1.0), id="nested"),
        pytest.param([asked(30), OSError()], Again(30.0, pauses=True), id="who asks to wait"),
        pytest.param([asked(7), asked(30), asked(9)], Again(30.0, pauses=True), id="the longest"),
        pytest.param([OSError(), KeyError()], GiveUp(Then.SKIP), id="skip over again"),
        pytest.param([KeyError(), IndexError()], GiveUp(Then.FAIL_STREAM), id="stream over skip"),
        pytest.param([IndexError(), ValueError()], GiveUp(Then.FAIL), id="fail over all"),
        pytest.param([OSError(), group(ValueError())], GiveUp(Then.FAIL), id="fail deep inside"),
        pytest.param(
            [IndexError(), GoneError()],
            GiveUp(Then.FAIL_STREAM, retryable=False),
            id="for good over not",
        ),
        pytest.param([cancelled(), OSError()], Again(1.0), id="beside a cancelled task"),
        pytest.param([cancelled(), cancelled()], GiveUp(Then.FAIL), id="nothing but cancelled"),
        pytest.param([OSError(), KeyboardInterrupt()], GiveUp(Then.FAIL), id="Ctrl-C"),
        pytest.param([OSError(), SystemExit(1)], GiveUp(Then.FAIL), id="an exit"),
    ],
)
def test_the_gravest_verdict_on_a_group_counts(
    parts: list[BaseException], verdict: Again | GiveUp
) -> None:
    assert GROUPS.decide(group(*parts), 1) == verdict
    assert GROUPS.decide(group(*reversed(parts)), 1) == verdict
    assert GROUPS.decide(group(group(*parts)), 1) == verdict


def test_each_error_of_a_group_has_the_attempts_of_its_rule() -> None:
    parts = group(FileNotFoundError(), OSError())
    assert GROUPS.decide(parts, 1) == Again(1.0)
    assert GROUPS.decide(parts, 2) == GiveUp(Then.SKIP)
    assert GROUPS.decide(group(OSError(), OSError()), 3) == Again(4.0)
    assert GROUPS.decide(group(OSError(), OSError()), 4) == GiveUp(Then.FAIL)


def test_a_rule_that_names_groups_is_for_them_as_a_whole() -> None:
    two = RetryRule(
        (ExceptionGroup,), when=lambda error: "two" in str(error), then=Then.SKIP, attempts=1
    )
    table = RetryTable((rule(), two))
    assert table.decide(ExceptionGroup("two", [OSError(), OSError()]), 1) == GiveUp(Then.SKIP)
    assert table.decide(ExceptionGroup("one", [OSError()]), 1) == Again(1.0)
    inside = ExceptionGroup("outer", [OSError(), ExceptionGroup("two", [ValueError()])])
    assert table.decide(inside, 1) == GiveUp(Then.SKIP)
    assert not rule().matches(ExceptionGroup("two", [OSError()]))


def test_a_rule_for_all_exceptions_is_asked_about_each() -> None:
    seen = list[type]()
    every = RetryRule((Exception,), when=lambda error: seen.append(type(error)) is None)
    table = RetryTable((every,))
    assert isinstance(table.decide(group(OSError(), group(KeyError())), 1), Again)
    assert set(seen) == {OSError, KeyError}


def test_a_group_that_names_one_error_often_is_looked_at_once() -> None:
    error: BaseException = OSError()
    for _ in range(60):  # 2**60 ways to the one error
        error = group(error, error)
    assert GROUPS.decide(error, 1) == Again(1.0)


def test_a_group_may_be_deeper_than_the_stack() -> None:
    error: BaseException = OSError()
    for _ in range(5_000):
        error = group(error)
    assert GROUPS.decide(error, 1) == Again(1.0)
