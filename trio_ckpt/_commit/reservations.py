"""What one attempt has reserved: the arithmetic of reservations, without I/O.

Theory of operation
===================

A reservation is the most that something may cost, on record before it begins.  What the records of
a stream reserve is one exact sum for each name, to which a record adds by its field `reserved`.
An attempt keeps its part of it at

    what it has spent + its reservations that are not settled

with every reservation, so that settled ones shrink to what they have cost.  Its last record takes
its spending out of the sum, because that record has it as `spent`.  This ensures that what the
records have, spent and reserved together, is at no moment less than what the attempt may have
cost, and that a kill leaves only so much reserved.

`spend` does not say which reservation it settles.  It takes the smallest that is open: what stays
open is then at least as much as the others have reserved, whichever of them was meant.  The order
only matters while a body has several open at once; when all are settled the sums are exact.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

import attrs

from .._util.exact_sum import ZERO, Amount, ExactSum, Number, add_sums, as_amount, sum_of


@attrs.define(eq=False, repr=False)
class Reservations:
    """What one attempt has reserved.

    Attributes:
        submitted: What its records that are submitted reserve, by name.
        saved: What of that is durable.
        open: The reservations that are not settled, by name, the smallest first.
        of_notes: What the notes of its batch cost, if it is confirmed; its record has it as spent.
    """

    submitted: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    saved: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    open: dict[str, list[Number]] = attrs.field(factory=dict[str, list[Number]])
    of_notes: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])

    def change(
        self, spent: Mapping[str, Amount], amounts: Mapping[str, Number]
    ) -> dict[str, ExactSum]:
        """By how much the records have to change, so that they also cover more reservations.

        Args:
            spent: What the attempt has spent.
            amounts: The reservations, which are not in `open` yet.
        """
        return {
            name: self._unsettled(name)
            .plus(amounts.get(name, 0))
            .with_sum(sum_of(spent.get(name, 0)))
            .with_sum(self.submitted.get(name, ZERO), -1)
            for name in self.submitted.keys() | amounts.keys()
        }

    def add(self, amounts: Mapping[str, Number], change: Mapping[str, ExactSum]) -> None:
        """Add reservations that are on their way to the store, with their `change`."""
        for name, amount in amounts.items():
            insort(self.open.setdefault(name, []), amount)
        add_sums(self.submitted, change)

    def take_back(self, amounts: Mapping[str, Number], change: Mapping[str, ExactSum]) -> None:
        """Take out reservations that could not be saved.

        A spend of another call may have settled one of them, as the smallest.  Then it settles
        another one, since that call had reserved something, too.
        """
        for name, amount in amounts.items():
            if amount in self.open[name]:
                self.open[name].remove(amount)
            else:
                self.settle(name)
        add_sums(self.submitted, change, sign=-1)

    def settle(self, name: str) -> None:
        """Settle the smallest reservation of a name, if one is open."""
        if amounts := self.open.get(name):
            del amounts[0]

    def at_end(self) -> dict[str, Amount]:
        """What the last record of the attempt changes: only what is not settled stays reserved."""
        return {
            name: as_amount(self._unsettled(name).with_sum(submitted, -1))
            for name, submitted in self.submitted.items()
        }

    def _unsettled(self, name: str) -> ExactSum:
        total = ZERO
        for amount in self.open.get(name, ()):
            total = total.plus(amount)
        return total
