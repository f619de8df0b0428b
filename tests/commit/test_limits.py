"""The pure part of limits: what they may be, and which one is reached."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from trio_ckpt import Limits
from trio_ckpt._commit.limits import (
    FailureCounter,
    batches_done,
    checked_limits,
    out_of_time,
    over_spent,
    plain_limits,
    too_little_free,
)
from trio_ckpt._util.exact_sum import ExactSum, add_amounts

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


def sums(**amounts: float) -> dict[str, ExactSum]:
    found = dict[str, ExactSum]()
    add_amounts(found, amounts)
    return found


@pytest.mark.parametrize(
    "bad",
    [
        {"spent": 50},
        {"spent": {"cost_usd": -1}},
        {"spent": {"cost_usd": "50"}},
        {"spent": {"cost_usd": float("nan")}},
        {"spent": {"": 1}},
        {"spent": {5: 1}},
        {"batches": 0},
        {"batches": 2.5},
        {"runtime_s": 0},
        {"runtime_s": float("inf")},
        {"stop_at": datetime(2027, 1, 1)},
        {"stop_at": 1.8e9},
        {"min_free_bytes": 0},
        {"min_free_bytes": True},
        {"consecutive_failures": 0},
        {"failure_share": 0.2},
        {"failure_share": (0.2,)},
        {"failure_share": [0.2, 200]},
        {"failure_share": (1.0, 200)},
        {"failure_share": (-0.1, 200)},
        {"failure_share": (0.2, 0)},
        {"failure_share": (0.2, 10**7)},
    ],
    ids=str,
)
def test_a_limit_that_is_none_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
        Limits(**bad)


def test_the_record_has_only_the_limits_that_are_set() -> None:
    limits = Limits(spent={"cost_usd": 50}, stop_at=NEW_YEAR, failure_share=(0.2, 200))
    assert plain_limits(limits) == {
        "spent.cost_usd": 50,
        "stop_at": "2027-01-01T00:00:00+00:00",
        "failure_share": [0.2, 200],
    }
    assert plain_limits(Limits()) == {}


def test_what_was_given_cannot_change_a_limit() -> None:
    given = {"cost_usd": 50.0}
    limits = Limits(spent=given)
    given["cost_usd"] = 5_000.0
    assert limits.spent == {"cost_usd": 50.0}


def test_limits_without_a_limit_are_none() -> None:
    assert checked_limits(Limits()) is None
    assert checked_limits(None) is None
    with pytest.raises(TypeError, match="limits must be Limits"):
        checked_limits({"batches": 5})  # type: ignore[arg-type]


def test_a_cost_is_reached_exactly() -> None:
    limits = Limits(spent={"cost_usd": 0.3, "tokens": 100})
    assert over_spent(limits, sums(cost_usd=0.1, tokens=99)) is None
    assert over_spent(limits, {}) is None
    reached = over_spent(limits, sums(tokens=100))
    assert reached is not None
    assert (reached.limit, reached.reason) == ("spent", "100 of 100 tokens are spent")


def test_batches_and_space_have_their_borders() -> None:
    limits = Limits(batches=2, min_free_bytes=100)
    assert batches_done(limits, 1) is None
    assert batches_done(limits, 2) is not None
    assert too_little_free(limits, 100, "/d") is None
    reached = too_little_free(limits, 99, "/d")
    assert reached is not None
    assert reached.reason == "99 bytes are free in /d, fewer than 100"
    assert batches_done(Limits(), 9**9) is too_little_free(Limits(), 0, "/d") is None


def test_the_earlier_deadline_is_the_reason() -> None:
    limits = Limits(runtime_s=90, stop_at=NEW_YEAR)
    assert out_of_time(limits, is_runtime=True).reason == "its 1 min 30 s are over"
    assert "2027-01-01T00:00:00+00:00" in out_of_time(limits, is_runtime=False).reason


def count(limits: Limits, outcomes: str) -> int | None:
    """After how many outcomes (``x``: a failure) a limit on failures is reached."""
    counter = FailureCounter(limits)
    for number, outcome in enumerate(outcomes, 1):
        counter.add(is_failure=outcome == "x")
        if counter.reached("E: e") is not None:
            return number
    return None


def test_a_confirmed_batch_ends_a_row_of_failures() -> None:
    limits = Limits(consecutive_failures=3)
    assert count(limits, "xx.xx.xx.") is None
    assert count(limits, "xx.xxx") == 6


def test_a_share_is_that_of_the_newest_attempts() -> None:
    limits = Limits(failure_share=(0.2, 10))
    assert count(limits, "xx........" * 5) is None  # 2 of 10, never more
    assert count(limits, "..........xx.......xx") == 20  # old ones leave the window
    assert count(limits, "xxx") == 3  # already more than 2 of 10, whatever comes


@pytest.mark.parametrize("window", [1, 7, 50])
def test_the_ring_of_outcomes_counts_like_a_list(window: int) -> None:
    outcomes = [bool((n * n + n // 3) % 5 < 2) for n in range(300)]
    limits = Limits(failure_share=(0.5, window))
    counter = FailureCounter(limits)
    for end, outcome in enumerate(outcomes, 1):
        counter.add(is_failure=outcome)
        newest = outcomes[max(0, end - window) : end]
        assert (counter.reached("") is not None) is (sum(newest) > 0.5 * window)


def test_a_share_is_not_rounded_down() -> None:
    """0.29 * 100 is 28.999…"""
    counter = FailureCounter(Limits(failure_share=(0.29, 100)))
    for _ in range(29):
        counter.add(is_failure=True)
    assert counter.reached("x") is None
    counter.add(is_failure=True)
    assert counter.reached("x") is not None
