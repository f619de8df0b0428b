"""A checkpoint on its way to the store."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from .._journal.record import Record, RecordKind
from .._journal.store import Checkpoint
from .._util.uninterrupted import uninterrupted
from ..outputs import AppendFile
from .stream_log import StreamLog


@uninterrupted
@attrs.define(eq=False)
class PendingCommit:
    """One checkpoint on its way to the store, and who waits for it.

    Attributes:
        stream_log: Its stream.
        record: What it says.
        checkpoint: The same as bytes.
        lines: What to append first: a file of the stream log, and bytes.
        on_outcome: Called with None or the error, before any waiter wakes.
    """

    stream_log: StreamLog
    record: Record
    checkpoint: Checkpoint
    lines: tuple[tuple[AppendFile, bytes], ...]
    on_outcome: Callable[[Exception | None], None]
    is_over: bool = False
    error: Exception | None = None
    _tasks: list[trio.lowlevel.Task] = attrs.field(factory=list[trio.lowlevel.Task], init=False)

    @property
    def produced(self) -> int:
        """How many records a batch produced."""
        return self.record.records if self.record.kind is RecordKind.BATCH else 0

    async def wait(self) -> None:
        """Wait for the outcome.

        Raises:
            Exception: whatever kept it from being saved.

        Cancellation: none; a submitted save is never abandoned.  It ends in bounded time,
            see `Saver`.
        """
        if not self.is_over:
            self._tasks.append(trio.lowlevel.current_task())
            await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)
        if self.error is not None:
            raise self.error

    def end(self, error: Exception | None) -> None:
        """State the outcome, tell the owner, wake who waits."""
        try:
            self.is_over, self.error = True, error
            self.stream_log.records_ahead -= self.produced
            self.on_outcome(error)
        finally:
            self.wake()

    def wake(self) -> None:
        """Wake who still waits, where something came between in `end`."""
        while self._tasks:
            trio.lowlevel.reschedule(self._tasks.pop(0))


def refuse_to_abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
