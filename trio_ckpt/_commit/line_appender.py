"""Appending the lines of a group to their files, before the group is saved."""

from __future__ import annotations

import attrs

from .._util.patience import give_up_after
from .._util.threads import NOT_BEGUN, WorkerThread
from .._util.uninterrupted import uninterrupted
from ..outputs import AppendFile
from .stream_log import PendingCommit, StreamLog


@uninterrupted
@attrs.define(eq=False, repr=False)
class LineAppender:
    """Appends lines in a thread of its own.

    Attributes:
        timeout_s: How long the lines of a group may take, in seconds.
        is_busy: Whether its thread appends lines, also those whose time is over.
    """

    timeout_s: float
    is_busy: bool = attrs.field(default=False, init=False)
    _thread: WorkerThread = attrs.field(
        factory=lambda: WorkerThread("trio_ckpt appender"), init=False
    )

    async def append(self, group: list[PendingCommit]) -> dict[StreamLog, Exception] | None:
        """Append all lines of a group.

        Returns:
            The streams of which lines were not appended, and why; None: it took too long.

        Durability: one fsync for each file.
        Cancellation: none.
        """
        chunks: dict[AppendFile, list[bytes]] = {}
        for pending in group:
            for sink, lines in pending.lines:
                chunks.setdefault(sink, []).append(lines)
        with give_up_after(self.timeout_s):
            self.is_busy = True
            try:
                failures = await self._thread.run(_append_all, chunks)
            except NOT_BEGUN as error:
                failures = dict.fromkeys(chunks, error)
            self.is_busy = False
            return {
                pending.stream_log: failures[sink]
                for pending in group
                for sink, _ in pending.lines
                if sink in failures
            }
        return None

    def stop(self) -> None:
        """End the thread when it has done what it does."""
        self._thread.stop()


def _append_all(chunks: dict[AppendFile, list[bytes]]) -> dict[AppendFile, Exception]:
    """Append to files; returns those that failed, each with its error.  Blocks."""
    failures: dict[AppendFile, Exception] = {}
    for sink, lines in chunks.items():
        try:
            sink.append(lines)
        except Exception as error:  # fails the batches of this file only
            failures[sink] = error
    return failures
