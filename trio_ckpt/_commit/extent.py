"""How far a stream goes, and how much of it is left.

The records contain how many batches a list had, or which one was the last of an open end.
The owner knows more: the list of its loop, the part that it works on, and an estimate for
an open end.  All of it feeds the count of batches left, the percentage and the ETA; only
what is certain decides whether a stream is complete.
"""

from __future__ import annotations

from collections.abc import Sized

import attrs

from .._journal.progress import Progress
from .._journal.record import Status
from .._util.arguments import whole_number


@attrs.define(eq=False, repr=False)
class Extent:
    """How far a stream goes, as far as its owner knows.

    Attributes:
        progress: What is durable of it.
        first_index: The index of its first batch.
        expected: How many batches there are in all, as a list or a total says; None: unknown.
        estimate: About how many batches an open end has; None: no estimate was given.
        is_open_ended: Only the loop can know where it ends.
        start, end: The first and the last batch of the part that the newest loop works on.
        items: The items of its `Frontier`, whose number says how many there are; None: none.
    """

    progress: Progress
    first_index: int = 0
    expected: int | None = None
    estimate: int | None = None
    is_open_ended: bool = False
    start: int | None = None
    end: int | None = None
    items: Sized | None = None

    def begin_source(self, expected: int | None, *, is_open_ended: bool) -> None:
        """Take over what the source of a loop says.

        Args:
            expected: How many batches it has; None: it does not say, so what is known stays.
            is_open_ended: Only the loop can know where it ends.
        """
        if expected is not None:
            self.expected = expected
        self.is_open_ended = is_open_ended

    def narrow(self, start: int | None, end: int | None) -> None:
        """Set the part that the newest loop works on; None: there is no limit."""
        self.start, self.end = start, end

    def set_expected(self, count: int) -> None:
        """Set how many batches there are in all."""
        self.expected = count

    def set_items(self, items: Sized) -> None:
        """Let the number of items of a `Frontier` say how many batches there are."""
        self.items = items

    def set_estimate(self, count: int | None) -> None:
        """Set about how many batches an open end has; None: no estimate.

        Raises:
            TypeError: the end is not open.
        """
        if self.known is not None:
            raise TypeError(
                "expected_batches is only for an open end: the length of this source is known"
            )
        self.estimate = None if count is None else whole_number("expected_batches", count)

    @property
    def known(self) -> int | None:
        """How many batches the `Frontier`, the list or a total says there are; None: unknown."""
        return self.expected if self.items is None else len(self.items)

    @property
    def total(self) -> int | None:
        """How many batches there are in all; None where that is not certain."""
        if self.items is None and (self.expected is None or self.has_ended):
            return self.progress.total
        return self.known

    @property
    def expected_batches(self) -> int | None:
        """How many batches there are in all, else the estimate; None: neither is known."""
        estimate = self.progress.estimate if self.estimate is None else self.estimate
        return estimate if self.total is None else self.total

    @property
    def left(self) -> int | None:
        """How many batches are known to be left; None where that is not known."""
        if self.progress.has_failed_for_good:
            return 0
        if self.total is not None:
            return max(0, self.total - len(self.progress.done))
        if self.end is None and self.progress.status is Status.COMPLETE:
            return 0
        # An estimate may be too low.
        return self.ahead if self.end is not None else self.ahead or None

    @property
    def ahead(self) -> int | None:
        """How many batches are left for the newest loop, which may work on a part only."""
        expected = self.expected_batches
        stops = [] if self.end is None else [self.end + 1]
        stops += [] if expected is None else [self.first_index + expected]
        if not stops:
            return None
        first, stop = max(self.first_index, self.start or 0), min(stops)
        return max(0, stop - first - self.progress.done.count(first, stop))

    def stop(self, total: int | None, end: int | None) -> int:
        """One more than the last batch, up to the index `end`, inclusive.

        Args:
            total: How many batches there are in all; None: as far as it is known.
            end: The index; None: there is no limit.

        Raises:
            ValueError: it is not known where the stream ends.
        """
        total = self.total if total is None else total
        stops = [] if end is None else [end + 1]
        if total is not None:
            stops.append(self.first_index + total)
        elif self.progress.status is Status.COMPLETE:
            stops.append(self.progress.done.stop)
        if not stops:
            raise ValueError("the end of the stream is not known: give total= or end=")
        return min(stops)

    @property
    def has_ended(self) -> bool:
        """Whether the end was open, and the records have the last batch."""
        return self.is_open_ended and self.progress.last_index is not None
