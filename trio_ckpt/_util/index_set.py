"""Sets of batch indexes, kept as intervals.

A stream that confirms in order is one interval, however long it is; the size of any other
is that of its gaps.  Lookups are bisections, so a stream of a million batches costs as
much as one of ten.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from sys import maxsize

_BEYOND = maxsize  # every batch index is less, so that `len` can count them
MAX_LISTED = 10_000_000  # indexes in a list, which takes some 400 MB
MAX_SPANS = 8  # intervals in one line


def spans(intervals: Iterable[tuple[int, int]]) -> str:
    """Intervals as text, ``17, 203-210``; of very many the first, and how many more there are."""
    texts = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in intervals]
    if len(texts) > MAX_SPANS:
        texts[MAX_SPANS:] = [f"… ({len(texts) - MAX_SPANS:,} more)"]
    return ", ".join(texts)


class IndexSet:
    """A set of ints >= 0 as sorted, disjoint, non-adjacent half-open intervals.

    Iterating gives the indexes in ascending order; `intervals` gives the intervals.
    """

    __slots__ = ("_count", "_starts", "_stops")

    def __init__(self, indexes: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._count = 0
        for index in indexes:
            self.add(index)

    # -- reading --------------------------------------------------------------------

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._starts, index) - 1
        return at >= 0 and index < self._stops[at]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.intervals():
            yield from range(start, stop)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IndexSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]  # mutable, as set is

    def __repr__(self) -> str:
        return f"IndexSet({self})"

    def __str__(self) -> str:
        return spans(self.intervals())

    def intervals(self) -> Iterator[tuple[int, int]]:
        """The ``(start, stop)`` pairs, ascending, stop exclusive."""
        return zip(self._starts, self._stops, strict=True)

    @property
    def stop(self) -> int:
        """One more than the greatest index; 0 for an empty set."""
        return self._stops[-1] if self._stops else 0

    def first_missing(self, start: int) -> int:
        """The least index >= `start` that is not in the set."""
        at = bisect_right(self._starts, start) - 1
        return self._stops[at] if at >= 0 and start < self._stops[at] else start

    def count(self, start: int, stop: int | None = None) -> int:
        """How many indexes >= `start`, and < `stop` if that is given, are in the set."""
        end = _BEYOND if stop is None else stop
        spans = ((max(a, start), min(b, end)) for a, b in self.intervals())
        return sum(b - a for a, b in spans if a < b)

    def missing(self, start: int, stop: int) -> Iterator[int]:
        """The indexes of ``range(start, stop)`` that are not in the set, ascending."""
        index = self.first_missing(start)
        while index < stop:
            yield index
            index = self.first_missing(index + 1)

    def list_missing(self, start: int, stop: int) -> list[int]:
        """The indexes of ``range(start, stop)`` that are not in the set, ascending.

        Raises:
            ValueError: there are more than `MAX_LISTED`.
        """
        missing = max(0, stop - start) - self.count(start, stop)
        if missing > MAX_LISTED:
            raise ValueError(
                f"{missing:,} batches are too many for a list: give a start and an end"
            )
        return list(self.missing(start, stop))

    def covers(self, start: int, stop: int) -> bool:
        """Whether the whole of ``range(start, stop)`` is in the set."""
        return self.first_missing(start) >= stop

    # -- changing -------------------------------------------------------------------

    def add(self, index: int) -> bool:
        """Add `index` to the set.

        Returns:
            False if the set had it already.

        Raises:
            ValueError: it is negative, or greater than the greatest index.
        """
        stops = self._stops
        if stops and stops[-1] == index < _BEYOND:  # the usual case: after all others
            stops[-1] = index + 1
            self._count += 1
            return True
        return self._add_between(index)

    def _add_between(self, index: int) -> bool:
        if not 0 <= index < _BEYOND:
            raise ValueError(f"a batch index is >= 0 and below 2**63 - 1, not {index}")
        starts, stops = self._starts, self._stops
        at = bisect_right(starts, index) - 1  # the interval that starts at or before
        if at >= 0 and index < stops[at]:
            return False
        joins_left = at >= 0 and stops[at] == index
        joins_right = at + 1 < len(starts) and starts[at + 1] == index + 1
        if joins_left and joins_right:
            stops[at] = stops.pop(at + 1)
            starts.pop(at + 1)
        elif joins_left:
            stops[at] = index + 1
        elif joins_right:
            starts[at + 1] = index
        else:
            starts.insert(at + 1, index)
            stops.insert(at + 1, index + 1)
        self._count += 1
        return True

    def discard(self, index: int) -> bool:
        """Remove `index` from the set; returns False if the set does not have it."""
        starts, stops = self._starts, self._stops
        at = bisect_right(starts, index) - 1
        if at < 0 or index >= stops[at]:
            return False
        start, stop = starts[at], stops[at]
        replacement = [(a, b) for a, b in ((start, index), (index + 1, stop)) if a < b]
        starts[at : at + 1] = [a for a, _ in replacement]
        stops[at : at + 1] = [b for _, b in replacement]
        self._count -= 1
        return True

    def union(self, other: IndexSet) -> IndexSet:
        """A new set with the indexes of both."""
        if not other:  # as of a stream without skipped batches, of which a run may have many
            return self.copy()
        both = IndexSet()
        for start, stop in sorted([*self.intervals(), *other.intervals()]):
            if both._stops and start <= both._stops[-1]:
                both._stops[-1] = max(stop, both._stops[-1])
            else:
                both._starts.append(start)
                both._stops.append(stop)
        both._count = sum(both._stops) - sum(both._starts)
        return both

    def after(self, index: int) -> IndexSet:
        """A new set with the indexes that are greater than `index`."""
        later = self.copy()
        later.subtract(IndexSet.from_steps([0, index + 1]) if index >= 0 else IndexSet())
        return later

    def subtract(self, other: IndexSet) -> None:
        """Remove all indexes of `other` from the set."""
        kept = IndexSet()
        gone = iter([*other.intervals(), (_BEYOND, _BEYOND)])
        start_gone, stop_gone = next(gone)
        for start, stop in self.intervals():
            while start < stop:
                while stop_gone <= start:
                    start_gone, stop_gone = next(gone)
                if start_gone > start:
                    kept._starts.append(start)
                    kept._stops.append(min(stop, start_gone))
                start = min(stop, stop_gone) if start_gone < stop else stop
        kept._count = sum(kept._stops) - sum(kept._starts)
        self._starts, self._stops, self._count = kept._starts, kept._stops, kept._count

    def copy(self) -> IndexSet:
        """A new set with the same indexes."""
        twin = IndexSet()
        twin._starts, twin._stops = self._starts.copy(), self._stops.copy()
        twin._count = self._count
        return twin

    # -- storing --------------------------------------------------------------------

    def to_steps(self) -> list[int]:
        """The interval borders as differences: small numbers, so few bytes."""
        borders = [0, *(border for pair in self.intervals() for border in pair)]
        return [after - before for before, after in pairwise(borders)]

    @classmethod
    def from_steps(cls, steps: Iterable[int]) -> IndexSet:
        """Make a set from its steps, the inverse of `to_steps`.

        Raises:
            ValueError: the steps do not describe a set (odd in number, not ascending, or
                beyond the greatest index).
        """
        self = cls()
        border = 0
        for position, step in enumerate(steps):
            if step < 0 or (step == 0 and position > 0):
                raise ValueError("interval borders must ascend")
            border += step
            (self._stops if position % 2 else self._starts).append(border)
        if border > _BEYOND:
            raise ValueError("an interval is beyond the greatest index")
        if len(self._starts) != len(self._stops):
            raise ValueError("an interval has no end")
        self._count = sum(self._stops) - sum(self._starts)
        return self
