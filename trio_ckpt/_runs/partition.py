"""A partition of a collection, as the program that has claimed it holds it."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from .._journal.collection import hashed_partition, items_of
from .._util.arguments import whole_number
from .._util.plain import Plain
from .._util.shown import Shown
from .._util.text import number
from .run import Run


def partition_of(key: Plain, partitions: int) -> int:
    """The partition that an item belongs to by its key: the same in every process and version.

    Args:
        key: Any JSON-like value: a str, a number, a list of them.  ``1`` and ``1.0`` are two keys.
        partitions: How many partitions there are.

    Returns:
        The index of the partition, from 0: BLAKE2b of the canonical JSON text of the key, 8 bytes
        big-endian, modulo `partitions`.

    Raises:
        NotEncodableError: the key is not JSON-like.
    """
    return hashed_partition(key, whole_number("partitions", partitions, least=1))


@attrs.frozen(eq=False, repr=False)
class Partition(Shown):
    """A partition that this process owns; made by `Collection.claim`.

    Attributes:
        run: Its run: its streams, and all else that a run has.
        index: Which it is, from 0.
        partitions: How many partitions the collection has.
        items: How many items the collection has; None: it was opened without.
    """

    run: Run
    index: int
    partitions: int
    items: int | None

    def _shown(self) -> Iterable[tuple[str, str]]:
        items = "" if self.items is None else number(self.items)
        return [("", self.run.run_id), ("of", number(self.partitions)), ("items in all", items)]

    @property
    def range(self) -> range:
        """Its items, by index: partitions are contiguous and differ by at most one item.

        Raises:
            ValueError: the collection was opened without `items`.
        """
        if self.items is None:
            raise ValueError(
                "a partition has a range only if open_collection is given items=; "
                "choose items by holds(key)"
            )
        return items_of(self.items, self.partitions, self.index)

    def holds(self, key: Plain) -> bool:
        """Whether an item belongs to this partition by its key; see `partition_of`.

        Raises:
            NotEncodableError: the key is not JSON-like.
        """
        return hashed_partition(key, self.partitions) == self.index
