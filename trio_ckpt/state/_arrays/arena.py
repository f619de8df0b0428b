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
from collections.abc import Callable

import attrs

from ..._util.errors import TrioCkptError
from .memory import Bytes, map_pages

SLAB_BYTES = 2**20  # large enough that a copy of it releases the GIL for 100 us
DEFAULT_LIMIT_BYTES = 2**30


class ArenaClosedError(TrioCkptError, RuntimeError, is_internal=True):
    """The arena was closed before or while a thread waited for memory."""


@attrs.define(eq=False, repr=False)
class Slab:
    """A piece of the arena, `SLAB_BYTES` long, reserved for one caller.

    Attributes:
        offset: Its offset in the arena, in bytes.
    """

    offset: int
    _give_back: Callable[[int], None]
    _is_out: bool = True

    def release(self) -> None:
        """Release the slab.  A second call does nothing."""
        if self._is_out:
            self._is_out = False
            self._give_back(self.offset)


class Arena:
    """Memory for data that is being saved; several threads may use it.

    Args:
        limit_bytes: The maximum that it holds, rounded up to whole slabs.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit_bytes = -(-max(limit_bytes, 1) // SLAB_BYTES) * SLAB_BYTES
        self._memory: Bytes | None = map_pages(self._limit_bytes)
        self._free = list(range(0, self._limit_bytes, SLAB_BYTES))  # a heap of offsets
        self._returned = threading.Condition(threading.Lock())

    def reserve(self) -> Slab:
        """Reserve a slab; blocks until one is free.

        Raises:
            ArenaClosedError: the arena is closed.
        """
        with self._returned:
            self._returned.wait_for(lambda: self._free or self._memory is None)
            return self._take()

    def reserve_nowait(self) -> Slab | None:
        """Reserve a slab; None: none is free.

        Raises:
            ArenaClosedError: the arena is closed.
        """
        with self._returned:
            return self._take() if self._free or self._memory is None else None

    def memory(self, offset: int, nbytes: int) -> Bytes:
        """Return a part of the arena; it may be in several slabs that are neighbours.

        Raises:
            ArenaClosedError: the arena is closed.
        """
        if self._memory is None:
            raise ArenaClosedError("the staging arena is closed")
        return self._memory[offset : offset + nbytes]

    @property
    def used_bytes(self) -> int:
        """Return how many bytes are reserved."""
        return self._limit_bytes - len(self._free) * SLAB_BYTES

    def close(self) -> None:
        """Return the memory to the system, once the last part of it is not used any more.

        Waiting threads get `ArenaClosedError`.
        """
        with self._returned:
            self._memory = None
            self._free.clear()
            self._returned.notify_all()

    def _take(self) -> Slab:
        if self._memory is None:
            raise ArenaClosedError("the staging arena is closed")
        return Slab(heapq.heappop(self._free), self._give_back)

    def _give_back(self, offset: int) -> None:
        with self._returned:
            if self._memory is not None:
                heapq.heappush(self._free, offset)
                self._returned.notify()
