"""The end of a run that has nothing but deferred work left.

Theory of operation
===================

A loop whose batches are all done or deferred has not ended, so it is parked until the next one is
due (`trio_ckpt._commit.deferrals`).  When every open stream of the run waits so, and the next due
time is too far away to wait for it, the run stops as it does at a limit: with exit code 75, a
reason, and the time at which a start has something to do.  The decision is taken a moment later: a
task that has left a stream may be about to open the next one.

A stream with ``on_fail="record"`` says that others may run without it.  It is left at once instead,
so that a program which works on one stream after the other reaches the next, and the run stops when
its block ends.
"""

from __future__ import annotations

from functools import partial

import attrs
import trio

from .._commit.open_stream import OpenStream
from .._commit.shutdown import Stop
from .._journal.deferral import first_due
from .._journal.summary import deferred
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.text import deferred_text
from .._util.uninterrupted import uninterrupted
from .stream_table import StreamTable

log = get_logger(__name__)

SETTLE_S = 5.0  # between two streams a program may ask a server what there is


@uninterrupted
@attrs.define(eq=False, repr=False)
class DeferredWatch:
    """Stops a run when all that its open streams have left is deferred.

    Attributes:
        run_id: The run.
        stop: Its stop.
        nursery: Its nursery.
        table: Its streams.
        wait_s: For how long the run waits for the next batch that is due, in seconds.
        next_due: When a start has something to do, if the run has stopped so; Unix time, s.
    """

    run_id: str
    stop: Stop
    nursery: trio.Nursery
    table: StreamTable
    wait_s: float
    next_due: float | None = attrs.field(default=None, init=False)
    _left: set[StreamKey] = attrs.field(factory=set[StreamKey], init=False)
    _is_watching: bool = attrs.field(default=False, init=False)

    def follow(self, open_stream: OpenStream) -> None:
        """Notice when all that a stream has left is deferred."""
        open_stream.deferrals.set_waiting(partial(self._begin_waiting, open_stream))

    def _begin_waiting(self, open_stream: OpenStream) -> None:
        deferrals = open_stream.deferrals
        until = deferrals.waits_until or 0.0
        if deferrals.leave is not None and until - trio.current_time() > self.wait_s:
            self._left.add(open_stream.stream_log.key)
            deferrals.leave()
        else:
            self.consider()

    def consider(self) -> None:
        """Decide soon whether the run has anything else to do."""
        if not self._is_watching and self._idle_until() is not None:
            self._is_watching = True
            self.nursery.start_soon(self._watch)

    def _idle_until(self) -> float | None:
        """When the next batch is due, on trio's clock; None: there is other work."""
        times = [open_stream.deferrals.waits_until for open_stream in self.table.opened.values()]
        known = [time for time in times if time is not None]
        return min(known) if known and len(known) == len(times) else None

    async def _watch(self) -> None:
        """Stop the run, unless it has something to do in time.

        Cancellation: a cancellation point.
        """
        await trio.sleep(min(SETTLE_S, self.wait_s))
        while (until := self._idle_until()) is not None:
            if until - trio.current_time() > self.wait_s:
                self._stop(set(self.table.opened))
                break
            await trio.sleep_until(until)
        self._is_watching = False

    def has_left(self, key: StreamKey) -> bool:
        """Whether a stream was left because all that it has to do is deferred."""
        return key in self._left

    def stop_for_left(self) -> None:
        """Stop a run whose block ends, where a stream was left and has something deferred."""
        if any(deferred(self.table.progress[key]) for key in self._left):
            self._stop(set())

    def _stop(self, waiting: set[StreamKey]) -> None:
        keys = waiting | self._left
        every = [one for key in keys for one in deferred(self.table.progress[key])]
        if not every or self.stop.is_requested:
            return
        self.next_due = first_due(every) or 0.0
        reason = f"deferred work: {deferred_text(len(every), self.next_due)}"
        log.info("run %r: %s: stopping in good order", self.run_id, reason, extra=at(self.run_id))
        self.stop.request(reason=reason)
