"""What the owner of a stream does beside its loops.

One batch without a loop, snapshots inside the body of a batch, the batches that were skipped,
and leaving: what is open passes the gate, and how the stream was left is recorded.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import trio

from .._commit.batch import Batch, task_of
from .._commit.exits import Exit, decisive, exit_of, verdicts_in
from .._commit.open_stream import OpenStream
from .._commit.snapshots import Snapshots, check_snapshots_awaited
from .._journal.history import live_records
from .._journal.progress import FailedAttempt
from .._journal.record import ErrorInfo, Record, RecordKind, Status, describe_end
from .._tokens.token import touch
from .._util.errors import (
    BatchFailedError,
    RunStoppedError,
    SourceChangedError,
    StreamEndedError,
    StreamFailedError,
    TrioCkptError,
)
from .._util.exceptions import leaves_of, text_of
from .._util.log import get_logger
from .._util.opening import opening
from .._util.plain import Plain, StreamKey, copy_plain
from .._util.text import one_line
from .._util.uninterrupted import uninterrupted
from .loop import LoopCursor
from .loop_bounds import check_finished, complete_if_last, prune_at_end

if TYPE_CHECKING:
    from ..outputs._validate import Validate, Validator

log = get_logger(__name__)


# -- records ------------------------------------------------------------------------------------


async def save_failure(open_stream: OpenStream, info: ErrorInfo) -> None:
    """Record that a stream has failed.

    Durability: when this returns the failure is durable.
    """
    await open_stream.save_plain(Record(kind=RecordKind.FAIL, at=time.time(), error=info))


async def finish_stream(loop_cursor: LoopCursor, metadata: dict[str, Plain]) -> None:
    """Mark a stream as complete; see `Stream.finish`.

    Durability: when this returns the mark is durable.
    Cancellation: a cancellation point until the record is being saved; none after that.
    """
    open_stream = loop_cursor.open_stream
    await loop_cursor.settle_open(Exit.EXIT)
    await loop_cursor.wait_verified()
    check_finished(open_stream, loop_cursor.source, is_cut=loop_cursor.is_cut)
    stop = open_stream.stream_log.progress.done.stop
    await open_stream.save_finish(
        Record(
            kind=RecordKind.FINISH,
            at=time.time(),
            metadata=metadata,
            last_index=stop - 1 if stop > 0 else None,
        ),
        is_due=True,
    )
    await prune_at_end(open_stream)


async def pin_state(open_stream: OpenStream, label: str) -> None:
    """Keep the arrays of the newest state; see `Stream.pin`."""
    from .._commit import archive_states  # only a stream with a state needs it

    await archive_states.pin_state(open_stream, label)


async def unpin_state(open_stream: OpenStream, label: str) -> None:
    """Remove a pin; see `Stream.unpin`."""
    from .._commit import archive_states  # as above

    await archive_states.unpin_state(open_stream, label)


async def save_reopening(open_stream: OpenStream, reason: str) -> None:
    """Record that a complete stream goes on behind its last batch.

    Durability: when this returns the record is durable.
    """
    last = open_stream.stream_log.progress.done.stop - 1
    what, metadata = RecordKind.RETRY, {"reason": reason}
    await open_stream.save_plain(Record(kind=what, at=time.time(), index=last, metadata=metadata))


@uninterrupted
async def skipped_batches(
    loop_cursor: LoopCursor,
) -> AsyncGenerator[tuple[int, Plain, FailedAttempt]]:
    """Read the skipped batches, newest first; see `Stream.skipped`."""
    open_stream, progress = loop_cursor.open_stream, loop_cursor.progress
    frontier, first = open_stream.frontier, open_stream.first_index
    async with aclosing(live_records(progress, loop_cursor.read, (RecordKind.SKIP,))) as records:
        async for entry in records:
            item = None if frontier is None else frontier.item(entry.index - first)
            failed = FailedAttempt(entry.record.attempts, entry.record.error)
            yield entry.index, copy_plain(item), failed


# -- blocks -------------------------------------------------------------------------------------


@opening("batch", call="open_batch")
@uninterrupted
async def one_batch(loop_cursor: LoopCursor) -> AsyncGenerator[Batch[None]]:
    """Open the first batch that is left for a block; see `Stream.open_batch`."""
    open_stream = loop_cursor.open_stream
    loop_cursor.check_owner()
    loop_cursor.check_failed()
    loop_cursor.check_no_frontier()
    await trio.lowlevel.checkpoint()
    await loop_cursor.settle_open(Exit.NEXT)
    if loop_cursor.code is not None:
        loop_cursor.code.note(open_stream, None)
    await loop_cursor.wait_verified()
    index = await loop_cursor.first_free(open_stream.first_index, None)
    while not await loop_cursor.wait_for_turn(index):
        index = await loop_cursor.first_free(open_stream.first_index, None)
    if loop_cursor.is_past_end(index):
        raise StreamEndedError(
            f"{open_stream.where()} is complete: there is no batch {index}",
            run_id=open_stream.run_id,
            stream=open_stream.stream_log.key,
        )
    open_stream.extent.begin_source(None, is_open_ended=True)
    batch: Batch[None] = loop_cursor.gate.hand_out(index, None, b"")
    loop_cursor.hold(batch)  # so that finish(), save() and fail() pass the gate for it
    try:
        yield batch
    except BaseException as error:
        await loop_cursor.gate.pass_gate(batch, exit_of(error), error)
        raise
    finally:
        loop_cursor.batch = None
    await loop_cursor.gate.pass_gate(batch, Exit.EXIT)
    await complete_if_last(loop_cursor.open_stream)


@opening("snapshots", call="snapshots")
@uninterrupted
async def snapshots_in_batch(
    loop_cursor: LoopCursor, nursery: trio.Nursery, every_s: float
) -> AsyncGenerator[Snapshots]:
    """Save the state inside a batch whose body is long; see `Stream.snapshots`."""
    open_stream, batch = loop_cursor.open_stream, _batch_of_caller(loop_cursor)
    state_manager = open_stream.state_manager
    if state_manager is None:
        raise TypeError("open the stream with state=... to have a state to take snapshots of")
    if batch is None or batch.index not in open_stream.open:
        raise RuntimeError("snapshots() is for the body of a batch, and none is open")
    snapshots = Snapshots(every_s, open_stream, state_manager, batch, nursery)
    loop_cursor.snapshots.add(snapshots)
    try:
        yield snapshots
    finally:
        loop_cursor.snapshots.discard(snapshots)
        await snapshots.wait()
    check_snapshots_awaited(snapshots)


def _batch_of_caller(loop_cursor: LoopCursor) -> Batch[Any] | None:
    """The batch that the calling task works on; None: the owner calls, and holds none.

    Raises:
        StreamBusyError: the caller is neither the owner nor a worker of `run_batches`.
    """
    task = trio.lowlevel.current_task()
    if not loop_cursor.is_closed and task is not loop_cursor.task:
        for batch in loop_cursor.open_stream.open.values():
            if task_of(batch) is task:
                return batch
    loop_cursor.check_owner()
    return loop_cursor.batch


# -- leaving ------------------------------------------------------------------------------------


async def leave_stream(loop_cursor: LoopCursor, error: BaseException | None) -> None:
    """Pass the gate for what is open, record a failure, leave no token pending.

    Args:
        loop_cursor: The position of its owner.
        error: The exception that leaves its block; None: the block ends normally.

    Raises:
        NeverAwaitedError: a method of the stream was called without await.

    Cancellation: as for the block that is left: a batch that is being saved is waited for.
    """
    open_stream, batch = loop_cursor.open_stream, loop_cursor.batch
    if error is None and (forgotten := loop_cursor.calls.problem(open_stream.where())) is not None:
        await leave_stream(loop_cursor, forgotten)
        raise forgotten
    loop_cursor.batch = None
    index = batch.index if batch is not None and batch.index in open_stream.open else None
    try:
        if batch is not None:
            left_by = loop_cursor.exit_taken(Exit.EXIT) if error is None else exit_of(error)
            await loop_cursor.gate.pass_gate(batch, left_by, error)
        if open_stream.failure is not None and loop_cursor.progress.status is not Status.FAILED:
            # A later record had opened it again.
            await save_failure(open_stream, open_stream.failure)
        elif error is None and open_stream.failure is None:
            if loop_cursor.progress.left == 0:  # the verification may re-queue batches
                await loop_cursor.wait_verified()
            await complete_if_last(loop_cursor.open_stream)
    except BaseException as problem:
        await _record_exit(loop_cursor, problem, index)
        raise
    else:
        await _record_exit(loop_cursor, error, index)
    finally:
        loop_cursor.is_closed = True
        open_stream.close()
        open_stream.stream_log.leave(trio.current_time() - loop_cursor.opened)
        touch(open_stream.registry)


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
    where, is_complete = open_stream.where(), open_stream.is_complete
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
    first = decisive(verdicts_in(error, open_stream.verdicts))
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


def validator_of(validate: Validate | None) -> Validator | None:
    """The validator that an argument ``validate`` describes; None: there is none."""
    if validate is None:
        return None
    from ..outputs._validate import Validator  # few programs validate

    return Validator.of(validate)
