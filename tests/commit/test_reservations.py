"""Reservations: never less on record than may have been spent, and exact sums at the end."""

from __future__ import annotations

from hypothesis import given, strategies as st

from trio_ckpt._commit.reservations import Reservations
from trio_ckpt._util.exact_sum import (
    ZERO,
    Amount,
    ExactSum,
    add_amounts,
    add_sums,
    add_to_amount,
    without_zeros,
)

NAMES = st.sampled_from(["usd", "tokens"])
COSTS = st.tuples(st.floats(0, 8), st.floats(0, 1)).map(lambda pair: (pair[0], pair[0] * pair[1]))
CALLS = st.lists(st.tuples(NAMES, COSTS, st.integers(0, 9)), max_size=12)


class Attempt:
    """An attempt whose calls end in any order, and its records."""

    def __init__(self) -> None:
        self.reservations = Reservations()
        self.spent: dict[str, Amount] = {}
        self.recorded: dict[str, ExactSum] = {}  # what the records reserve

    def reserve(self, name: str, amount: float) -> None:
        change = self.reservations.change(self.spent, {name: amount})
        self.reservations.add({name: amount}, change)
        add_sums(self.recorded, change)

    def spend(self, name: str, amount: float) -> None:
        self.spent[name] = add_to_amount(self.spent.get(name, 0), amount)
        self.reservations.settle(name)

    def end(self) -> None:
        add_amounts(self.recorded, self.reservations.at_end())


@given(CALLS)
def test_the_records_have_at_no_moment_less_than_was_paid(
    calls: list[tuple[str, tuple[float, float], int]],
) -> None:
    """Calls of one body are paid as soon as they are reserved, and end in any order."""
    attempt, paid = Attempt(), dict[str, ExactSum]()
    left = list[tuple[str, float]]()
    for name, (most, cost), place in calls:
        attempt.reserve(name, most)
        add_amounts(paid, {name: cost})
        left.append((name, cost))
        for known, total in paid.items():
            assert attempt.recorded[known].with_sum(total, -1).numerator >= 0
        if place < len(left):
            attempt.spend(*left.pop(place))
    while left:
        attempt.spend(*left.pop())
    attempt.end()
    assert without_zeros(attempt.recorded) == {}
    spent = dict[str, ExactSum]()
    add_amounts(spent, attempt.spent)
    assert without_zeros(spent) == without_zeros(paid)


def test_what_is_not_settled_stays_reserved() -> None:
    attempt = Attempt()
    for amount in (0.5, 0.25):
        attempt.reserve("usd", amount)
    attempt.spend("usd", 0.125)  # whichever it was: the larger stays
    attempt.end()
    assert attempt.recorded == {"usd": ZERO.plus(0.5)}


def test_a_call_that_costs_more_than_it_reserved_counts_in_full() -> None:
    attempt = Attempt()
    attempt.reserve("usd", 0.25)
    attempt.spend("usd", 1.0)
    attempt.reserve("usd", 0.25)
    assert attempt.recorded == {"usd": ZERO.plus(1.25)}


def test_what_could_not_be_saved_is_taken_back() -> None:
    reservations = Reservations()
    change = reservations.change({}, {"usd": 0.5})
    reservations.add({"usd": 0.5}, change)
    reservations.take_back({"usd": 0.5}, change)
    assert reservations.open == {"usd": []}
    assert without_zeros(reservations.submitted) == {}


def test_spending_that_was_not_reserved_settles_nothing() -> None:
    attempt = Attempt()
    attempt.reserve("usd", 0.25)
    attempt.spend("tokens", 9)
    attempt.end()
    assert attempt.recorded == {"usd": ZERO.plus(0.25)}


def test_a_spend_settles_no_reservation_that_could_not_be_saved() -> None:
    attempt = Attempt()
    attempt.reserve("usd", 2)
    mine = attempt.reservations
    change = mine.change(attempt.spent, {"usd": 1})
    mine.add({"usd": 1}, change)  # on its way to the store
    attempt.spend("usd", 1.5)  # of the first
    mine.take_back({"usd": 1}, change)
    assert mine.open == {"usd": []}
    attempt.end()
    assert without_zeros(attempt.recorded) == {}
