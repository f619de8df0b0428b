"""Sums are exact, whatever the order, and rounded only when they are shown."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from trio_ckpt._totals import MAX_SHIFT, ZERO, ExactSum, Number, add_amounts, shown

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), FLOATS)
AMOUNTS = st.lists(NUMBERS, max_size=20)


def add_up(amounts: list[Number]) -> ExactSum:
    total = ZERO
    for amount in amounts:
        total = total.plus(amount)
    return total


def exact(total: ExactSum) -> Fraction:
    return Fraction(total.numerator, 2**total.shift)


@given(AMOUNTS)
def test_a_sum_is_exactly_that_of_fractions(amounts: list[Number]) -> None:
    total = add_up(amounts)
    assert exact(total) == sum(map(Fraction, amounts), Fraction())
    assert total.shift == 0 or total.numerator % 2  # lowest terms: equal sums are equal
    assert 0 <= total.shift <= MAX_SHIFT


@given(AMOUNTS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(amounts: list[Number], random: object) -> None:
    mixed = sorted(amounts, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert add_up(mixed) == add_up(amounts)


@given(AMOUNTS, AMOUNTS)
def test_what_is_taken_away_was_never_there(kept: list[Number], redone: list[Number]) -> None:
    total = add_up(kept + redone)
    for amount in redone:
        total = total.plus(amount, sign=-1)
    assert total == add_up(kept)


@given(AMOUNTS)
def test_a_value_is_the_nearest_number(amounts: list[Number]) -> None:
    total = add_up(amounts)
    if total.shift == 0:
        assert (type(total.value), total.value) == (int, total.numerator)
    elif isinstance(total.value, float):
        assert total.value == exact(total).numerator / exact(total).denominator
    else:
        assert abs(exact(total)) > Fraction(math.nextafter(math.inf, 0))


def test_a_sum_beyond_all_floats_can_still_be_shown() -> None:
    huge = 2 * int(1.7e308)
    assert add_up([1.7e308, 1.7e308, 0.5]).value == huge
    assert add_up([5e-324]).value == 5e-324


@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_summed(amount: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ZERO.plus(amount)


def test_amounts_are_added_by_name() -> None:
    sums: dict[str, ExactSum] = {}
    add_amounts(sums, {"usd": 0.1, "pages": 3})
    add_amounts(sums, {"usd": 0.2})
    add_amounts(sums, {"usd": 0.1, "pages": 1}, sign=-1)
    assert shown(sums) == {"usd": 0.2, "pages": 2}
