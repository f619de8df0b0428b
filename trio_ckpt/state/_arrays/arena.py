"""A bounded staging arena: where the bytes of a save wait until they are on the disk.

Capturing copies what changed, so that the live arrays may change again while the copy is
compressed and written.  Copying into fresh memory takes three times as long as into memory
that is there already (page faults), so the arena is one mapping, touched before it is
needed and used again and again.  It is cut into slabs of one size, and the lowest free one is
handed out: so little of the arena is ever touched, and slabs that are reserved one after the
other are mostly neighbours, which one large copy fills in half the time of many small ones.

When all slabs are out, saves are faster than the disk: `Arena.reserve` waits for one to
come back and `Arena.reserve_nowait` says no.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence

import attrs

from ..._util.errors import TrioCkptError
from .memory import Bytes, map_pages

SLAB_BYTES = 2**20  # large enough that a copy of it releases the GIL for 100 us
DEFAULT_LIMIT_BYTES = 2**30


class ArenaFullError(TrioCkptError, RuntimeError):
    """No slab came back in time: what was staged before is not written yet."""


class ArenaClosedError(TrioCkptError, RuntimeError):
    """The arena was closed while somebody waited for memory, or before."""


@attrs.frozen
class ArenaStatistics:
    """What an arena holds.

    Attributes:
        limit_bytes: It never holds more.
        touched_bytes: How much of it is in memory.
        used_bytes: How much is out.
        peak_bytes: The most that was ever out.
        waits: How often somebody had to wait for a slab.
        waited_s: For how long, all together.
    """

    limit_bytes: int
    touched_bytes: int
    used_bytes: int
    peak_bytes: int
    waits: int
    waited_s: float


@attrs.define(eq=False)
class Slab:
    """A piece of the arena, `SLAB_BYTES` long, that somebody fills.

    Attributes:
        memory: All of it, as bytes.
        index: Its place in the arena.
    """

    memory: Bytes
    index: int
    _give_back: Callable[[int], None]
    _is_out: bool = True

    def release(self) -> None:
        """Give it back.  Again: nothing happens."""
        if self._is_out:
            self._is_out = False
            self._give_back(self.index)


class Arena:
    """Memory for what is being saved; safe to use from several threads.

    Args:
        limit_bytes: It never holds more, rounded up to whole slabs.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        slabs = -(-max(limit_bytes, 1) // SLAB_BYTES)
        self._memory: Bytes | None = map_pages(slabs * SLAB_BYTES)
        self._free = list(range(slabs))  # a heap
        self._slabs = slabs
        self._warm = 0  # slabs below this were touched
        self._returned = threading.Condition(threading.Lock())
        self._peak = 0
        self._waits = 0
        self._waited_s = 0.0

    @property
    def limit_bytes(self) -> int:
        """The most it holds, in whole slabs."""
        return self._slabs * SLAB_BYTES

    def warm(self, nbytes: int) -> None:
        """Touch the first `nbytes` (the limit if that is less), slab by slab.

        For a thread: a GiB takes some 200 ms.  The GIL is released meanwhile.
        """
        wanted = min(-(-nbytes // SLAB_BYTES), self._slabs)
        while True:
            with self._returned:
                if self._memory is None or self._warm >= wanted:
                    return
                index = self._warm
                if index not in self._free:  # it is out, so it is touched by whoever has it
                    self._warm += 1
                    continue
                self._free.remove(index)
                heapq.heapify(self._free)
                slab = self._slab(index)
            slab.memory.fill(0)
            slab.release()

    def reserve(self, *, timeout_s: float | None = None) -> Slab:
        """A slab; waits until one is free.  For threads: it blocks.

        Raises:
            ArenaFullError: none came back within `timeout_s`.
            ArenaClosedError: the arena is closed.
        """
        with self._returned:
            if not self._free and self._memory is not None:
                began = time.perf_counter()
                self._waits += 1
                self._returned.wait_for(lambda: self._free or self._memory is None, timeout_s)
                self._waited_s += time.perf_counter() - began
            slab = self._take()
        if slab is None:
            raise ArenaFullError(
                f"all {self.limit_bytes} bytes of the staging arena are waiting to be written, "
                f"and none were within {timeout_s:g} s"
            )
        return slab

    def reserve_nowait(self) -> Slab | None:
        """A slab, or None: not now.

        Raises:
            ArenaClosedError: the arena is closed.
        """
        with self._returned:
            return self._take()

    def join(self, slabs: Sequence[Slab]) -> Bytes:
        """The memory of slabs that are neighbours in this order, as one piece."""
        memory = self._memory
        if memory is None:
            raise ArenaClosedError("the staging arena is closed")
        first = slabs[0].index
        return memory[first * SLAB_BYTES : (first + len(slabs)) * SLAB_BYTES]

    @property
    def free_bytes(self) -> int:
        """How much can be reserved at this moment."""
        return len(self._free) * SLAB_BYTES

    def statistics(self) -> ArenaStatistics:
        """What it holds now."""
        with self._returned:
            return ArenaStatistics(
                limit_bytes=self.limit_bytes,
                touched_bytes=self._warm * SLAB_BYTES,
                used_bytes=(self._slabs - len(self._free)) * SLAB_BYTES,
                peak_bytes=self._peak * SLAB_BYTES,
                waits=self._waits,
                waited_s=self._waited_s,
            )

    def close(self) -> None:
        """Give the memory back to the system, as soon as the last slab that is out is gone.

        Whoever waits gets `ArenaClosedError`.
        """
        with self._returned:
            self._memory = None
            self._free.clear()
            self._returned.notify_all()

    def _take(self) -> Slab | None:
        if self._memory is None:
            raise ArenaClosedError("the staging arena is closed")
        if not self._free:
            return None
        index = heapq.heappop(self._free)
        self._peak = max(self._peak, self._slabs - len(self._free))
        return self._slab(index)

    def _slab(self, index: int) -> Slab:
        assert self._memory is not None
        self._warm = max(self._warm, index + 1)
        memory = self._memory[index * SLAB_BYTES : (index + 1) * SLAB_BYTES]
        return Slab(memory, index, self._give_back)

    def _give_back(self, index: int) -> None:
        with self._returned:
            if self._memory is not None:
                heapq.heappush(self._free, index)
                self._returned.notify()
