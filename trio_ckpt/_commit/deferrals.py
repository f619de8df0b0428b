"""The deferred batches of an open stream: which of them are due, and whether nothing else is left.

Theory of operation
===================

A deferral is a record: an attempt ended, and its batch is not handed out before a time (`due` of
`trio_ckpt._journal.record.Record`).  `Progress.deferred` has the deferrals of the batches that have
not ended since.  Nothing is recorded when a batch becomes due.  This ensures that a batch is
deferred, or is handed out, and nothing in between, wherever a kill comes.

Times are those of the system in the records, because a start may come on another machine.  The time
that is left is taken once: when the record is durable, or when the stream is opened.  From then on
it passes on trio's clock, which no one sets.  So a clock that is set changes nothing in a session,
and a test with a mock clock need not wait.

A stream waits alone when it has batches, all of them are deferred, and its loop is parked until one
is due.  When all open streams of a run do, the run ends: see `trio_ckpt._runs.deferred`.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from datetime import datetime

import attrs
import trio

from .._journal.progress import Progress
from .._util.arguments import moment, seconds
from .._util.index_set import IndexSet

WAITS_FOR = "all that is left is deferred"
MAX_DEFER_S = 366 * 86_400.0  # quotas are of minutes to months; more than a year is a mistake


def due_time(until: object) -> float:
    """Check the argument ``until`` of `Batch.defer`; returns Unix time, s.

    Raises:
        TypeError: it is neither a datetime nor a number.
        ValueError: the datetime has no time zone; the number is negative or not finite; it is
            more than `MAX_DEFER_S` from now.
    """
    now = time.time()
    if isinstance(until, datetime):
        due = max(now, moment("until", until).timestamp())
    else:
        due = now + seconds("until", until)
    if due - now > MAX_DEFER_S:
        raise ValueError("until must be at most 366 days from now")
    return due


@attrs.define(eq=False, repr=False)
class Deferrals:
    """The deferred batches of an open stream, by trio's clock.

    Attributes:
        progress: The progress of the stream.
        waits_until: Until when its loop is parked, because all that is left is deferred, on trio's
            clock; None: it is not.
        leave: Leaves the stream, so that the next one can run; None: its loop waits.
    """

    progress: Progress
    waits_until: float | None = attrs.field(default=None, init=False)
    leave: Callable[[], None] | None = attrs.field(default=None, init=False)
    _began_waiting: Callable[[], None] = attrs.field(default=lambda: None, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _due: dict[int, float] = attrs.field(factory=dict[int, float], init=False)
    _heap: list[tuple[float, int]] = attrs.field(factory=list[tuple[float, int]], init=False)
    _held: IndexSet = attrs.field(factory=IndexSet, init=False)  # those that are not due
    _start: int = attrs.field(default=0, init=False)  # that of the newest `first_free`
    _next: int = attrs.field(default=0, init=False)  # before it all is done, held or freed
    _freed: list[int] = attrs.field(factory=list[int], init=False)  # a heap

    def __attrs_post_init__(self) -> None:
        for index in self.progress.deferred:
            self.add(index)

    def add(self, index: int) -> None:
        """Hold back a batch whose deferral is in progress, until it is due."""
        left_s = self.progress.deferred[index].left_s(time.time())
        self._due[index] = due = trio.current_time() + left_s
        self._held.add(index)
        heapq.heappush(self._heap, (due, index))

    def _release(self) -> None:
        """Drop what is due from what is held back, and what is not deferred any more."""
        now = trio.current_time()
        while self._heap:
            due, index = self._heap[0]
            is_newest = self._due.get(index) == due  # else it was deferred again
            if is_newest and due > now and index in self.progress.deferred:
                return
            heapq.heappop(self._heap)
            if is_newest:
                del self._due[index]
                self._held.discard(index)
                self._free(index)

    def _free(self, index: int) -> None:
        if self._start <= index < self._next:  # else `first_free` has not come to it yet
            heapq.heappush(self._freed, index)

    def due_at(self, index: int) -> float | None:
        """When a batch is due, on trio's clock; None: it is not held back."""
        if not self._heap:
            return None
        self._release()
        return self._due.get(index)

    def first_free(self, start: int) -> int:
        """The least index >= `start` that is neither done nor held back.

        It goes on where it was the last time, so that a step does not cost what is done already.
        """
        if start != self._start:
            self._start, self._next, self._freed = start, start, []
        self._release()
        while self._freed:
            index = self._freed[0]
            if not (self.progress.is_done(index) or index in self._held):
                return index
            heapq.heappop(self._freed)
        index = self.progress.first_left(max(start, self._next))
        while index in self._held:
            index = self.progress.first_left(self._held.first_missing(index))
        self._next = index
        return index

    @property
    def next_due(self) -> float | None:
        """When the next batch is due, on trio's clock; None: none is held back."""
        self._release()
        return self._heap[0][0] if self._heap else None

    @property
    def waits(self) -> tuple[float, str] | None:
        """Until when its loop is parked, on trio's clock, and why; None: it is not."""
        return None if self.waits_until is None else (self.waits_until, WAITS_FOR)

    def set_leave(self, leave: Callable[[], None]) -> None:
        """Leave the stream by this call, instead of a long wait."""
        self.leave = leave

    def set_waiting(self, began: Callable[[], None]) -> None:
        """Call this when a wait begins, or becomes another."""
        self._began_waiting = began

    async def wait(self, until: float) -> None:
        """Wait until a time on trio's clock, with nothing else to do, or until `reconsider`.

        Cancellation: a cancellation point.
        """
        self._changed = trio.Event()
        self.begin_waiting(until)
        try:
            with trio.move_on_at(until):
                await self._changed.wait()
        finally:
            self.end_waiting()

    def reconsider(self, index: int) -> None:
        """End a wait: a batch is left again, or was given up."""
        if index not in self.progress.deferred:
            self._due.pop(index, None)
            self._held.discard(index)
        self._free(index)
        self._changed.set()

    def begin_waiting(self, until: float) -> None:
        """Mark that the loop is parked until a time on trio's clock, with nothing else to do."""
        if self.waits_until != until:  # else another worker of the loop has said so
            self.waits_until = until
            self._began_waiting()

    def end_waiting(self) -> None:
        """Mark that the loop has something to do again."""
        self.waits_until = None
