"""How fast requests may go, without a clock: buckets, cuts and growth."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._commit.pace import LEAST_SHARE, Pace, TokenBucket

ONE = {"requests": 1.0, "tokens": 0.0}


def pace(
    requests: float | None = None, tokens: float | None = None, *, adaptive: bool = True
) -> Pace:
    rates = {"requests": requests, "tokens": tokens}
    return Pace(
        {unit: TokenBucket(rate) for unit, rate in rates.items() if rate is not None}, adaptive
    )


def send(one: Pace, units: Mapping[str, float], now: float) -> float:
    """Wait and take; returns when the request goes."""
    for _ in range(3):  # a wait may end a little early, as clocks are
        wait_s = one.wait_s(units, now)
        if wait_s == 0.0:
            one.take(units)
            return now
        now += wait_s
    raise AssertionError("it waits again and again")


def test_what_one_second_brings_goes_at_once() -> None:
    one = pace(requests=120)
    assert [send(one, ONE, 5.0) for _ in range(2)] == [5.0, 5.0]
    assert send(one, ONE, 5.0) == pytest.approx(5.5)


def test_less_than_one_a_second_goes_one_by_one() -> None:
    one, now, sent = pace(requests=6), 0.0, []
    for _ in range(4):
        now = send(one, ONE, now)
        sent.append(now)
    assert sent == pytest.approx([0, 10, 20, 30])


def test_a_request_larger_than_the_bucket_leaves_a_debt() -> None:
    one = pace(tokens=600)  # 10 a second
    large = {"requests": 1.0, "tokens": 100.0}
    assert send(one, large, 0.0) == 0.0  # the bucket is full
    assert send(one, {"requests": 1.0, "tokens": 1.0}, 0.0) == pytest.approx(9.1)


@given(
    rate=st.floats(1, 10_000),
    now=st.sampled_from([0.0, 1e6, 1e8]),
    asked=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), min_size=2, max_size=60),
)
def test_no_more_is_sent_than_the_rate_allows(
    rate: float, now: float, asked: list[tuple[float, int]]
) -> None:
    """Between any two requests: of what goes after the first one, the last may be early."""
    one, sent = pace(tokens=rate), list[tuple[float, int]]()
    for pause_s, tokens in asked:
        now = send(one, {"tokens": float(tokens)}, now + pause_s)
        sent.append((now, tokens))
    capacity = max(1.0, rate / 60)
    for first in range(len(sent)):
        for last in range(first + 1, len(sent)):
            units = sum(tokens for _, tokens in sent[first:last])
            allowed = (sent[last][0] - sent[first][0]) * rate / 60 + capacity
            assert units <= allowed + 1e-3 * capacity


def test_what_was_not_used_is_given_back() -> None:
    one = pace(tokens=60)
    send(one, {"tokens": 60.0}, 0.0)
    assert one.wait_s({"tokens": 1.0}, 0.0) == pytest.approx(60)
    one.take({"tokens": -59.0})
    assert one.wait_s({"tokens": 1.0}, 0.0) == pytest.approx(1)


def test_a_refusal_cuts_once_for_all_that_was_on_its_way() -> None:
    one = pace(requests=60)
    for _ in range(8):
        one.refused(began=0.0, now=1.0, asked_s=None)
    assert one.share == 0.5
    one.refused(began=1.5, now=2.0, asked_s=None)
    assert one.share == 0.25


def test_a_cut_rate_waits_longer_and_grows_back() -> None:
    one = pace(requests=60)
    one.refused(began=0.0, now=0.0, asked_s=None)
    send(one, ONE, 0.0)
    assert one.wait_s(ONE, 0.0) == pytest.approx(2)
    for now in range(1, 26):
        one.succeeded(float(now))
    assert one.share == pytest.approx(0.75)
    for now in range(26, 60):
        one.succeeded(float(now))
    assert one.share == 1.0


def test_a_long_silence_is_no_success() -> None:
    one = pace(requests=60)
    one.refused(began=0.0, now=0.0, asked_s=None)
    one.succeeded(3_600.0)
    assert one.share == pytest.approx(0.6)


def test_a_rate_is_never_cut_to_nothing() -> None:
    one = pace(requests=60)
    for now in range(100):
        one.refused(began=float(now), now=float(now), asked_s=None)
    assert one.share == LEAST_SHARE


def test_what_the_server_asks_holds_for_all_and_is_bounded() -> None:
    one = pace(requests=6_000, adaptive=False)
    one.refused(began=0.0, now=10.0, asked_s=30.0)
    one.refused(began=0.0, now=11.0, asked_s=5.0)  # the longer one holds
    assert one.wait_s(ONE, 12.0) == pytest.approx(28)
    assert one.share == 1.0
    one.refused(began=0.0, now=11.0, asked_s=1e12)
    assert one.wait_s(ONE, 11.0) == 3_900
