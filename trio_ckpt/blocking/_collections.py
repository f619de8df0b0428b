"""Collections of synchronous programs: those of trio, with their methods."""

# What is held is in a private field, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from contextlib import AbstractContextManager

from .._runs.collection import Collection
from .._runs.partition import Partition
from .._runs.run import Run, open_run_of
from ._methods import Held, HeldField, Seen, passes
from ._objects import BlockingRun
from ._program import Block


class BlockingPartition(Held[Partition]):
    """A `Partition` of a synchronous program: its attributes and methods.

    It belongs to the thread that has claimed it; any thread may call its methods.
    """

    index = HeldField[int]()
    partitions = HeldField[int]()
    items = HeldField[int | None]()
    range = HeldField[range]()

    holds = passes(Partition.holds)

    @property
    def run(self) -> BlockingRun:
        """Its run: its streams, and all else that a run has."""
        return BlockingRun(self._program, self._held.run)


class BlockingCollection(Held[Collection]):
    """A `Collection` of a synchronous program: its attributes and methods, without ``await``.

    Any thread may claim partitions, one after another.
    """

    name = HeldField[str]()
    partitions = HeldField[int]()
    items = HeldField[int | None]()
    exit_code = Seen[int]()

    request_stop = passes(Collection.request_stop)

    def claim(self) -> AbstractContextManager[BlockingPartition | None]:
        """Own a partition for a block of this thread; see `Collection.claim`."""
        return Block(self._program, self._held.claim, self._partition)

    def _partition(self, partition: Partition | None) -> BlockingPartition | None:
        if partition is None:
            return None
        program = self._program.inside(open_run_of(partition.run))
        return BlockingPartition(program, partition)

    def finish(self) -> AbstractContextManager[BlockingRun | None]:
        """Do the last phase, once in all processes together; see `Collection.finish`."""
        return Block(self._program, self._held.finish, self._own_run)

    def _own_run(self, run: Run | None) -> BlockingRun | None:
        return None if run is None else BlockingRun(self._program.inside(open_run_of(run)), run)
