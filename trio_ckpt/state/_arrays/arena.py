"""A bounded staging arena: holds the bytes of a save until they are on the disk.

Capturing copies what changed, so that the live arrays may change again while the copy is
compressed and written.  A copy into fresh memory takes three times as long as one into memory
that was touched before (page faults), so the arena is one mapping, which is reused.  It is
divided into slabs of one size, and the lowest free slab is reserved first: so only a small part
of the arena is ever touched, and successive slabs are mostly neighbours, which one large copy
fills in half the time of many small ones.

When all slabs are reserved, saves are faster than the disk: `Arena.reserve` waits for a slab to
be released, and `Arena.reserve_nowait` returns None.
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
    """No slab was released in time: the earlier saves are not written yet."""


class ArenaClosedError(TrioCkptError, RuntimeError):
    """The arena was closed before or while a thread waited for memory."""


@attrs.frozen
class ArenaStatistics:
    """The size and use of an arena.

    Attributes:
        limit_bytes: The maximum that it holds.
        used_bytes: The part that is reserved.
        peak_bytes: The most that was ever reserved.
        waits: How often a thread had to wait for a slab.
        waited_s: The total time of these waits.
    """

    limit_bytes: int
    used_bytes: int
    peak_bytes: int
    waits: int
    waited_s: float


@attrs.define(eq=False)
class Slab:
    """A piece of the arena, `SLAB_BYTES` long, reserved for one caller.

    Attributes:
        memory: Its bytes.
        index: Its position in the arena.
    """

    memory: Bytes
    index: int
    _give_back: Callable[[int], None]
    _is_out: bool = True

    def release(self) -> None:
        """Release the slab.  A second call does nothing."""
        if self._is_out:
            self._is_out = False
            self._give_back(self.index)


class Arena:
    """Memory for data that is being saved; several threads may use it.

    Args:
        limit_bytes: The maximum that it holds, rounded up to whole slabs.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        slabs = -(-max(limit_bytes, 1) // SLAB_BYTES)
        self._memory: Bytes | None = map_pages(slabs * SLAB_BYTES)
        self._free = list(range(slabs))  # a heap
        self._slabs = slabs
        self._returned = threading.Condition(threading.Lock())
        self._peak = 0
        self._waits = 0
        self._waited_s = 0.0

    @property
    def limit_bytes(self) -> int:
        """The maximum that it holds, in whole slabs."""
        return self._slabs * SLAB_BYTES

    def reserve(self, *, timeout_s: float | None = None) -> Slab:
        """Reserve a slab; blocks until one is free.

        Raises:
            ArenaFullError: none was released within `timeout_s`.
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
        """Reserve a slab; None: none is free.

        Raises:
            ArenaClosedError: the arena is closed.
        """
        with self._returned:
            return self._take()

    def join(self, slabs: Sequence[Slab]) -> Bytes:
        """Return the memory of slabs that are neighbours in this order, as one array."""
        memory = self._memory
        if memory is None:
            raise ArenaClosedError("the staging arena is closed")
        first = slabs[0].index
        return memory[first * SLAB_BYTES : (first + len(slabs)) * SLAB_BYTES]

    @property
    def free_bytes(self) -> int:
        """Return how many bytes can be reserved now."""
        return len(self._free) * SLAB_BYTES

    def statistics(self) -> ArenaStatistics:
        """Return the current size and use."""
        with self._returned:
            return ArenaStatistics(
                limit_bytes=self.limit_bytes,
                used_bytes=(self._slabs - len(self._free)) * SLAB_BYTES,
                peak_bytes=self._peak * SLAB_BYTES,
                waits=self._waits,
                waited_s=self._waited_s,
            )

    def close(self) -> None:
        """Return the memory to the system, once the last reserved slab is released.

        Waiting threads get `ArenaClosedError`.
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
        memory = self._memory[index * SLAB_BYTES : (index + 1) * SLAB_BYTES]
        return Slab(memory, index, self._give_back)

    def _give_back(self, index: int) -> None:
        with self._returned:
            if self._memory is not None:
                heapq.heappush(self._free, index)
                self._returned.notify()
