"""Leaving a stream: what is open passes the gate, and how it was left is recorded."""

from __future__ import annotations

import time

import trio

from .._commit.exits import Exit, decisive, exit_of
from .._commit.open_stream import OpenStream
from .._journal.record import Record, RecordKind, Status, describe_end
from .._tokens.registry import touch
from .._util.errors import (
    BatchFailedError,
    RunStoppedError,
    SourceChangedError,
    StreamFailedError,
    TrioCkptError,
    leaves_of,
    text_of,
)
from .._util.log import get_logger
from .._util.plain import StreamKey
from .._util.text import one_line
from .loop import LoopCursor
from .stream_records import save_failure

log = get_logger(__name__)


async def leave_stream(loop_cursor: LoopCursor, error: BaseException | None) -> None:
    """Pass the gate for what is open, record a failure, leave no token pending.

    Args:
        loop_cursor: The position of its owner.
        error: The exception that leaves its block; None: the block ends normally.

    Raises:
        NeverAwaitedError: a method of the stream was called without await.
    """
    open_stream, batch = loop_cursor.open_stream, loop_cursor.batch
    if error is None and (forgotten := loop_cursor.calls.problem(open_stream.where())) is not None:
        await leave_stream(loop_cursor, forgotten)
        raise forgotten
    loop_cursor.batch = None
    index = batch.index if batch is not None and batch.index in open_stream.open else None
    try:
        if batch is not None:
            left_by = loop_cursor.way_out(Exit.EXIT) if error is None else exit_of(error)
            await loop_cursor.gate.pass_gate(batch, left_by, error)
        if open_stream.failure is not None and loop_cursor.progress.status is not Status.FAILED:
            # A later record had opened it again.
            await save_failure(open_stream, open_stream.failure)
        elif error is None and open_stream.failure is None:
            if loop_cursor.progress.left == 0:  # the verification may re-queue batches
                await loop_cursor.wait_verified()
            await loop_cursor.complete_if_last()
    except BaseException as problem:
        await _record_exit(loop_cursor, problem, index)
        raise
    else:
        await _record_exit(loop_cursor, error, index)
    finally:
        loop_cursor.is_closed = True
        open_stream.close()
        touch(open_stream.coordinator.registry)


def is_own_failure(error: BaseException, key: StreamKey) -> bool:
    """Whether an exception, or a group of them, reports only that the stream has failed."""
    return all(
        isinstance(leaf, StreamFailedError) and leaf.stream == key for leaf in leaves_of(error)
    )


def is_only_stopped(error: BaseException, poison: Exception | None) -> bool:
    """Whether an exception, or a group of them, reports only that the run was stopped."""
    return all(leaf is poison or isinstance(leaf, RunStoppedError) for leaf in leaves_of(error))


async def _record_exit(
    loop_cursor: LoopCursor, error: BaseException | None, index: int | None
) -> None:
    open_stream = loop_cursor.open_stream
    where, is_complete = open_stream.where(), loop_cursor.progress.status is Status.COMPLETE
    if error is None or exit_of(error) is Exit.CANCEL:
        if not (is_complete or open_stream.has_failed):
            log.info("%s was left before its end: INTERRUPTED", where, extra=open_stream.place())
            await _record_beginning(loop_cursor)
    elif is_complete and not isinstance(error, SourceChangedError):
        log.info(
            "%s is complete; the exception after that does not change it",
            where,
            extra=open_stream.place(),
        )
    elif open_stream.committer.poison is None and open_stream.failure is None:
        info = describe_end(_what_ended(open_stream, error), open_stream.stream_log.key, index)
        with trio.CancelScope(shield=True):
            try:
                await save_failure(open_stream, info)
            except Exception as problem:
                text = one_line(text_of(problem))
                log.error(
                    "%s failed, and saving that failed: %s", where, text, extra=open_stream.place()
                )


def _what_ended(open_stream: OpenStream, error: BaseException) -> BaseException:
    """The verdict in a group that decides what a resume may do; else the whole group."""
    first = decisive(open_stream.verdicts_in(error))
    return first if isinstance(first, BatchFailedError | StreamFailedError) else error


async def _record_beginning(loop_cursor: LoopCursor) -> None:
    """Save that the stream has begun, where a loop was left before it saved anything."""
    if (
        loop_cursor.progress.sequence
        or loop_cursor.source is None
        or loop_cursor.open_stream.committer.poison
    ):
        return
    with trio.CancelScope(shield=True):
        try:
            await loop_cursor.open_stream.save_plain(Record(kind=RecordKind.SAVE, at=time.time()))
        except TrioCkptError as error:
            log.error(
                "the beginning of %s is not saved: %s",
                loop_cursor.open_stream.where(),
                error,
                extra=loop_cursor.open_stream.place(),
            )
