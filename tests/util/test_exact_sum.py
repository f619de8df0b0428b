"""Sums are exact, whatever the order, and rounded only when they are shown."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, strategies as st

from tests.opening import begin
from trio_ckpt import NotEncodableError, read_history
from trio_ckpt._maintenance.verify_store import check_all
from trio_ckpt._util.exact_sum import (
    MAX_AMOUNT,
    MAX_SHIFT,
    ZERO,
    Amount,
    ExactSum,
    Number,
    add_amounts,
    add_to_amount,
    decode_sums,
    encode_sums,
    shown,
    sum_of,
)
from trio_ckpt.stores import MemoryStore

FLOATS = st.floats(-MAX_AMOUNT, MAX_AMOUNT)
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


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_an_amount_that_was_added_to_is_exact(amounts: list[Number]) -> None:
    total: Amount = amounts[0]
    for amount in amounts[1:]:
        total = add_to_amount(total, amount)
        stored = msgspec.msgpack.encode(total)
        assert msgspec.msgpack.decode(stored, type=Amount) == total
    assert exact(sum_of(total)) == sum(map(Fraction, amounts), Fraction())


def test_an_amount_stays_a_number_where_one_holds_it() -> None:
    assert add_to_amount(1, 2) == 3
    assert add_to_amount(0.5, 0.25) == 0.75
    assert add_to_amount(1e16, 1.0) == 10**16 + 1
    assert add_to_amount(add_to_amount(0.1, 0.1), 0.1) == ("26666666666667", 55)
    assert add_to_amount(("26666666666667", 55), -0.1) == 0.2
    assert add_to_amount(2**63, 2**63) == 2.0**64
    assert add_to_amount(2**64, 1) == (f"{2**64 + 1:x}", 0)


@pytest.mark.parametrize("amounts", [[0.1] * 10, [1e16, 1.0, 1.0], [2**60, 0.1, 0.2, 1e-300]])
async def test_spending_in_one_batch_counts_as_in_many(amounts: list[float]) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("one") as stream:
            async for batch in stream.batches(range(1)):
                for amount in amounts:
                    batch.spend(usd=amount)
                batch.complete()
        async with run.open_stream("many") as stream:
            async for batch in stream.batches(range(len(amounts))):
                batch.spend(usd=amounts[batch.index])
                batch.complete()
        wanted = exact(add_up(amounts)).numerator / exact(add_up(amounts)).denominator
        for name in ("one", "many"):
            assert run.group(name).spent == {"usd": wanted}
    (entry,) = [e async for e in read_history(store, "r", ("one",)) if e.kind == "batch"]
    assert entry.spent == {"usd": wanted}
    async with begin(store.after_crash()) as run:
        assert run.found.spent == {"usd": 2 * wanted}
        async with run.open_stream("one") as stream:
            await stream.redo([0], reason="once more")
            assert stream.statistics().saved == {"usd": 0}
    assert [finding async for finding in check_all(store)] == []


async def test_amounts_of_decimal_count_as_the_numbers_that_they_are_worth() -> None:
    store = MemoryStore()
    async with (
        begin(store) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(4)):
            batch.spend(usd=Decimal("0.25"), tokens=Decimal(3))
            for wrong in ("NaN", "sNaN", "Infinity", "-1", "-0.1", "1E+400"):
                with pytest.raises(NotEncodableError, match=r"^spend\.usd cannot be stored"):
                    batch.spend(usd=Decimal(wrong))
            batch.complete(totals={"weight": Decimal("-0.5")})
    async with begin(store.after_crash()) as run:
        assert run.found.spent == {"usd": 1.0, "tokens": 12}
        assert type(run.found.spent["tokens"]) is int
        assert run.group("s").totals == {"weight": -2.0}


@given(AMOUNTS)
def test_a_value_is_the_nearest_number(amounts: list[Number]) -> None:
    total = add_up(amounts)
    is_int = total.shift == 0 and -(2**63) <= total.numerator < 2**64
    assert type(total.value) is (int if is_int else float)
    assert total.value == exact(total).numerator / exact(total).denominator or is_int
    msgspec.msgpack.encode(total.value)
    assert add_up([5e-324]).value == 5e-324


def test_a_sum_is_shown_as_a_number_that_can_be_stored() -> None:
    assert add_up([2**63, 2**63 - 1]).value == 2**64 - 1
    assert add_up([2**63, 2**63]).value == 2.0**64
    assert add_up([-(2**63), -1]).value == -(2.0**63)


def test_the_greatest_amounts_of_all_batches_add_up() -> None:
    """So no batch that was accepted can keep the next start from reading the stream."""
    most = ExactSum(int(MAX_AMOUNT) * 2**63, 0)
    total = most.with_sum(most).with_sum(ExactSum(1, MAX_SHIFT))
    assert decode_sums(encode_sums({"usd": total})) == {"usd": total}
    assert math.isfinite(total.value)


@pytest.mark.parametrize(
    "stored",
    [("1", -1), ("1", 1_075), ("f" * 4_300, 0), ("-" + "f" * 4_300, 1_074), ("1" + 256 * "0", 0)],
)
def test_a_sum_that_no_amounts_add_up_to_is_refused(stored: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match="a sum"):
        sum_of(stored)
    with pytest.raises(ValueError, match="a sum"):
        decode_sums({"usd": stored})


def test_sums_that_grow_without_end_are_refused() -> None:
    """As many records of a hostile store make one, each of which is good for itself."""
    total = ExactSum(2**1_022, 0)
    with pytest.raises(ValueError, match="beyond"):
        total.with_sum(total)
    with pytest.raises(ValueError, match="beyond"):
        total.plus(1.7e308)


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
