"""The retry table: first match wins, and the same question has the same answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from trio_ckpt import Again, GiveUp, RetryRule, RetryTable, Then, http_retries
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


# ---------------------------------------------------------------------------------------
# The table for HTTP
# ---------------------------------------------------------------------------------------


class HttpError(Exception):
    """A client's: some have the code themselves, some have a response."""

    def __init__(self, how: str, code: Any, retry_after: Any = None) -> None:
        super().__init__(code)
        if how.startswith("response."):
            self.response = SimpleNamespace(**{how.removeprefix("response."): code})
        else:
            setattr(self, how, code)
        if retry_after is not None:
            self.retry_after = retry_after


HTTP = http_retries(attempts=3, backoff_s=2.0, max_backoff_s=3.0)


@pytest.mark.parametrize(
    "how", ["status_code", "status", "response.status_code", "response.status"]
)
@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_what_is_refused_fails_the_stream_for_good_and_at_once(how: str, code: int) -> None:
    assert HTTP.decide(HttpError(how, code), 1) == GiveUp(Then.FAIL_STREAM, retryable=False)


@pytest.mark.parametrize(
    "how", ["status_code", "status", "response.status_code", "response.status"]
)
@pytest.mark.parametrize("code", [429, 500, 502, 503, 599])
def test_what_may_pass_runs_again_and_then_fails_the_stream_for_now(how: str, code: int) -> None:
    error = HttpError(how, code)
    first = HTTP.decide(error, 1)
    assert isinstance(first, Again)
    assert not first.pauses
    assert 2.0 <= first.after_s <= 2.2
    second = HTTP.decide(error, 2)
    assert isinstance(second, Again)
    assert 3.0 <= second.after_s <= 3.3
    assert HTTP.decide(error, 3) == GiveUp(Then.FAIL_STREAM)


@pytest.mark.parametrize("code", [429, 503])
def test_what_the_server_asks_for_pauses_the_stream(code: int) -> None:
    assert HTTP.decide(HttpError("status", code, 30), 1) == Again(30.0, pauses=True)
    assert HTTP.decide(HttpError("status", code, 0), 1).pauses  # type: ignore[union-attr]


@pytest.mark.parametrize("asked", ["soon", "-1", -1, float("nan"), float("inf"), [30]])
def test_what_is_no_number_of_seconds_asks_for_nothing(asked: Any) -> None:
    verdict = HTTP.decide(HttpError("status", 429, asked), 1)
    assert isinstance(verdict, Again)
    assert not verdict.pauses
    assert verdict.after_s < 3


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        BrokenPipeError(),
        trio.TooSlowError(),
        trio.BrokenResourceError(),
    ],
)
def test_a_broken_network_is_tried_again(error: Exception) -> None:
    assert isinstance(HTTP.decide(error, 1), Again)
    assert HTTP.decide(error, 3) == GiveUp(Then.FAIL_STREAM)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        HttpError("status", 400),
        HttpError("status", 418),
        HttpError("status", "500"),
        HttpError("status", None),
        HttpError("other", 500),
        FileNotFoundError(),
    ],
)
def test_anything_else_fails_its_batch(error: Exception) -> None:
    assert HTTP.decide(error, 1) == GiveUp(Then.FAIL)


def test_a_client_may_be_read_in_its_own_way() -> None:
    table = http_retries(
        status_of=lambda error: error.args[0], retry_after=lambda error: error.args[1], attempts=2
    )
    assert table.decide(ValueError(429, 90.0), 1) == Again(90.0, pauses=True)
    assert table.decide(ValueError(404, None), 1) == GiveUp(Then.FAIL_STREAM, retryable=False)
    assert table.decide(ValueError(None, None), 1) == GiveUp(Then.FAIL)
