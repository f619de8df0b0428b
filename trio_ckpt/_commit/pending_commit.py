"""A checkpoint that was submitted to the group committer, and its outcome."""

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
    """One checkpoint that is queued or being saved, and the tasks that wait for it.

    Attributes:
        stream_log: The log of its stream.
        record: The record.
        checkpoint: The record as sealed bytes.
        lines: What is appended before the save: append files of the stream, and bytes for each.
        on_outcome: Called with None or the error, before any waiting task wakes.
        is_over: Whether the outcome is known.
        error: Why it was not saved.
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
        """How many records the batch produced; 0 where the record is not about a batch."""
        return self.record.records if self.record.kind is RecordKind.BATCH else 0

    async def wait(self) -> None:
        """Wait for the outcome.

        Raises:
            Exception: the reason why it was not saved.

        Cancellation: none; a submitted save is never abandoned.  It ends in bounded time,
            see `GroupCommitter`.
        """
        if not self.is_over:
            self._tasks.append(trio.lowlevel.current_task())
            await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)
        if self.error is not None:
            raise self.error

    def end(self, error: Exception | None) -> None:
        """Set the outcome, call `on_outcome`, wake the waiting tasks."""
        try:
            self.is_over, self.error = True, error
            self.stream_log.records_ahead -= self.produced
            self.on_outcome(error)
        finally:
            self.wake()

    def wake(self) -> None:
        """Wake the tasks that wait; called again where `end` was interrupted."""
        while self._tasks:
            trio.lowlevel.reschedule(self._tasks.pop(0))


def refuse_to_abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
