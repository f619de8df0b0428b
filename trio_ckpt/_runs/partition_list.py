"""Which partitions of a collection are left, as a process that claims them knows it.

Partitions are read from the list of the store a window at a time, and only windows in which some
are left.  A partition that is over stays so: it is not read again.  This ensures that all claims of
a process together read each partition once, and again only while other processes own it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import attrs

from .._journal.collection import (
    PartitionState,
    partition_id,
    partition_index,
    partition_state,
)
from .._journal.history import list_all_runs
from .._journal.store import Store
from .._util.errors import EXIT_COMPLETE, EXIT_DRAINED, EXIT_FAILED, EXIT_SKIPPED

WINDOW = 100  # the partitions whose names differ in the last two digits: one prefix lists them

_random = secrets.SystemRandom()  # what the program does with its own seed stays as it is


@attrs.frozen
class Window:
    """What a list has just said of some partitions.

    Attributes:
        free: Those that may be claimed, in random order.
        is_any_owned: Whether another owner works on any.
    """

    free: list[int]
    is_any_owned: bool


class PartitionList:
    """The partitions of a collection, and what is known of each.

    Attributes:
        over: The exit codes of those for which nothing is left to do, by index.
    """

    def __init__(self, store: Store, name: str, partitions: int, *, retry_failed: bool) -> None:
        """Make one that knows nothing yet.

        Args:
            store: The store of the collection.
            name: The collection.
            partitions: How many there are.
            retry_failed: Whether those that failed for good, or skipped batches, are claimed
                once more.
        """
        self._store = store
        self._name = name
        self._partitions = partitions
        self._retry_failed = retry_failed
        self._claimed: set[int] = set()
        self._left = dict[int, int]()  # how many of each window are not over, as far as is known
        for first in range(0, partitions, WINDOW):
            self._left[first // WINDOW] = min(WINDOW, partitions - first)
        self.over: dict[int, int] = {}

    def run_id(self, index: int) -> str:
        """The run of a partition."""
        return partition_id(self._name, index, self._partitions)

    def windows(self) -> Iterator[int]:
        """The windows in which partitions are left, from a random one on."""
        left = list(self._left)
        start = _random.randrange(len(left)) if left else 0
        yield from left[start:]
        yield from left[:start]

    async def read(self, window: int) -> Window:
        """Read the partitions of a window.

        Raises:
            StoreError: they cannot be read.

        Cancellation: a cancellation point.
        """
        first = window * WINDOW
        prefix = self.run_id(first)[: -len(str(WINDOW - 1))]
        states = dict[int, PartitionState]()
        for line in await list_all_runs(self._store, prefix):
            index = partition_index(self._name, self._partitions, line.run_id)
            if index is not None and index not in self.over:
                states[index] = partition_state(self._store, line, self._name, self._partitions)
        free: list[int] = []
        is_any_owned = False
        for index in range(first, min(first + WINDOW, self._partitions)):
            state = states.get(index, PartitionState())
            if index in self.over:
                continue
            if state.is_owned:
                is_any_owned = True
            elif self._is_over(index, state.exit_code):
                self.end(index, state.exit_code)
            elif index not in self._claimed:
                free.append(index)
        _random.shuffle(free)
        return Window(free, is_any_owned)

    def _is_over(self, index: int, exit_code: int) -> bool:
        if exit_code in (EXIT_FAILED, EXIT_SKIPPED) and self._retry_failed:
            return index in self._claimed
        return exit_code != EXIT_DRAINED

    def claim(self, index: int) -> None:
        """Note that this process has got a partition: it does not get it a second time."""
        self._claimed.add(index)

    def end(self, index: int, exit_code: int) -> None:
        """Note that nothing is left to do for a partition."""
        if index in self.over:
            return  # another task of this process has seen it, too
        self.over[index] = exit_code
        window = index // WINDOW
        self._left[window] -= 1
        if self._left[window] == 0:
            del self._left[window]

    @property
    def exit_code(self) -> int:
        """The exit code of all partitions together, as far as is known."""
        codes = set(self.over.values())
        if self._left:
            return EXIT_DRAINED
        worst = (EXIT_FAILED, EXIT_SKIPPED)
        return next((code for code in worst if code in codes), EXIT_COMPLETE)

    def left_over(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The runs of partitions that failed for good, and of those with work left."""
        failed = [index for index, code in self.over.items() if code == EXIT_FAILED]
        left = [index for index in range(self._partitions) if index not in self.over]
        return tuple(map(self.run_id, sorted(failed))), tuple(map(self.run_id, left))
