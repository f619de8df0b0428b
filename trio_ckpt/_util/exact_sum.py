"""Exact sums.

Totals must equal those of a run that was never interrupted, whatever the order in which
batches were confirmed, so sums are exact: every finite float is an integer over a power
of two (IEEE 754), and integers add without rounding.  They are rounded when shown.

Every accepted amount can be added: an amount is at most `MAX_AMOUNT`, and the greatest number of
batches, each with the greatest amount, adds up to less than the greatest float.  A stored sum
above that was not written by this library; it is refused before it takes memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

Number = int | float
StoredSum = tuple[str, int]  # the numerator in hexadecimal, of any length; the shift
Amount = Number | StoredSum  # in a record: a number, or the sum where no number equals it exactly


class ExactSum(msgspec.Struct, frozen=True):
    """``numerator / 2**shift``, always in lowest terms, so that equal sums are equal."""

    numerator: int = 0
    shift: int = 0

    def plus(self, amount: Number, sign: int = 1) -> ExactSum:
        """This sum with `amount` added (``sign=-1``: subtracted).

        Raises:
            ValueError: `amount` is not finite.
        """
        if isinstance(amount, float) and not math.isfinite(amount):
            raise ValueError(f"only finite numbers can be summed, not {amount!r}")
        top, bottom = amount.as_integer_ratio()
        return self.with_sum(ExactSum(top, bottom.bit_length() - 1), sign)

    def with_sum(self, other: ExactSum, sign: int = 1) -> ExactSum:
        """This sum with another one added (``sign=-1``: subtracted).

        Raises:
            ValueError: the sum is greater than amounts can add up to.
        """
        shift = max(self.shift, other.shift)
        top = (self.numerator << (shift - self.shift)) + sign * (
            other.numerator << (shift - other.shift)
        )
        if top.bit_length() > shift + MAX_BITS:
            raise ValueError(f"a sum is beyond 2**{MAX_BITS}, more than amounts add up to")
        spare = min(shift, (top & -top).bit_length() - 1) if top else shift
        return ExactSum(top >> spare, shift - spare)

    @property
    def value(self) -> Number:
        """An int where the sum is integral and fits into 64 bits, else the nearest float."""
        if self.shift == 0 and self.numerator in _INT_RANGE:
            return self.numerator
        return self.numerator / (1 << self.shift)


_INT_RANGE = range(-(2**63), 2**64)  # the ints of MessagePack
MAX_AMOUNT = 2.0**900  # of a batch, positive or negative: some 8e270
MAX_BITS = 1_023  # before the point, fewer than a float has: 2**63 batches add up to less
MAX_SHIFT = 1_074  # of the smallest float, 2**-1074 (IEEE 754)
MAX_DIGITS = (MAX_BITS + MAX_SHIFT) // 4 + 2  # of a numerator in hexadecimal, with its sign
ZERO = ExactSum()


def sum_of(amount: Amount) -> ExactSum:
    """An amount as a sum.

    Raises:
        ValueError: it is not finite, or not a sum of finite floats.
    """
    return _decode(amount) if isinstance(amount, tuple) else ZERO.plus(amount)


def add_to_amount(amount: Amount, more: Number) -> Amount:
    """An amount with another one added, exactly; a number wherever one equals the sum."""
    return as_amount(sum_of(amount).plus(more))


def as_amount(total: ExactSum) -> Amount:
    """A sum as an amount of a record: a number wherever one equals it."""
    value = total.value
    return value if ZERO.plus(value) == total else _encode(total)


def check_amounts(amounts: Mapping[str, Amount]) -> None:
    """Check that amounts can be added.

    Raises:
        ValueError: one is not finite, or not a sum of finite floats.
    """
    for amount in amounts.values():
        sum_of(amount)


def numbers(amounts: Mapping[str, Amount]) -> dict[str, Number]:
    """The amounts of a record as plain numbers."""
    return {
        name: _decode(amount).value if isinstance(amount, tuple) else amount
        for name, amount in amounts.items()
    }


def add_amounts(sums: dict[str, ExactSum], amounts: Mapping[str, Amount], sign: int = 1) -> None:
    """Add each of `amounts` to the sum of its name, in place.

    Raises:
        ValueError: one is not finite, or not a sum of finite floats.
    """
    for name, amount in amounts.items():
        total = sums.get(name, ZERO)
        if isinstance(amount, tuple):
            sums[name] = total.with_sum(_decode(amount), sign)
        else:
            sums[name] = total.plus(amount, sign)


def add_sums(sums: dict[str, ExactSum], others: Mapping[str, ExactSum], sign: int = 1) -> None:
    """Add each of `others` to the sum of its name, in place."""
    for name, other in others.items():
        sums[name] = sums.get(name, ZERO).with_sum(other, sign)


def shown(sums: Mapping[str, ExactSum]) -> dict[str, Number]:
    """The sums as plain numbers."""
    return {name: total.value for name, total in sums.items()}


def without_zeros(sums: Mapping[str, ExactSum]) -> dict[str, ExactSum]:
    """The sums that are not 0."""
    return {name: total for name, total in sums.items() if total != ZERO}


def encode_sums(sums: Mapping[str, ExactSum]) -> dict[str, StoredSum]:
    """The sums as they are stored, exactly."""
    return {name: _encode(total) for name, total in sums.items()}


def decode_sums(stored: Mapping[str, StoredSum]) -> dict[str, ExactSum]:
    """Decode stored sums, the inverse of `encode_sums`.

    Raises:
        ValueError: one is not a sum of finite floats.
    """
    return {name: _decode(one) for name, one in stored.items()}


def _encode(total: ExactSum) -> StoredSum:
    return f"{total.numerator:x}", total.shift


def _decode(stored: StoredSum) -> ExactSum:
    top, shift = stored
    if not 0 <= shift <= MAX_SHIFT:
        raise ValueError(f"a sum over 2**{shift} is not a sum of finite floats")
    if len(top) > MAX_DIGITS:
        raise ValueError(f"a sum has {len(top):,} digits, more than amounts add up to")
    return ZERO.with_sum(ExactSum(int(top, 16), shift))
