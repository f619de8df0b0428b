"""Exact sums.

Totals must equal those of a run that was never interrupted, whatever the order in which
batches were confirmed, so sums are exact: every finite float is an integer over a power
of two (IEEE 754), and integers add without rounding.  They are rounded when shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

Number = int | float


@attrs.frozen
class ExactSum:
    """``numerator / 2**shift``, always in lowest terms, so that equal sums are equal."""

    numerator: int = 0
    shift: int = 0

    def plus(self, amount: Number, sign: int = 1) -> ExactSum:
        """This sum with `amount` added (``sign=-1``: taken away).

        Raises:
            ValueError: `amount` is not finite.
        """
        if isinstance(amount, float) and not math.isfinite(amount):
            raise ValueError(f"only finite numbers can be summed, not {amount!r}")
        top, bottom = amount.as_integer_ratio()
        shift = max(self.shift, bottom.bit_length() - 1)
        top = (self.numerator << (shift - self.shift)) + sign * (
            top << (shift - bottom.bit_length() + 1)
        )
        spare = min(shift, (top & -top).bit_length() - 1) if top else shift
        return ExactSum(top >> spare, shift - spare)

    @property
    def value(self) -> Number:
        """An int where the sum is whole or no float reaches it, else the nearest float."""
        if self.shift == 0:
            return self.numerator
        try:
            return self.numerator / (1 << self.shift)
        except OverflowError:  # beyond 1.8e308 the fraction is no loss
            return self.numerator >> self.shift


MAX_SHIFT = 1_074  # of the smallest float, 2**-1074 (IEEE 754)
ZERO = ExactSum()


def add_amounts(sums: dict[str, ExactSum], amounts: Mapping[str, Number], sign: int = 1) -> None:
    """Add each of `amounts` to the sum of its name, in place."""
    for name, amount in amounts.items():
        sums[name] = sums.get(name, ZERO).plus(amount, sign)


def shown(sums: Mapping[str, ExactSum]) -> dict[str, Number]:
    """The sums as plain numbers."""
    return {name: total.value for name, total in sums.items()}
