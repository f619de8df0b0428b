"""Phases: named parts of a run that are done once, such as discovery before collection.

A phase is an internal stream, ``("@phase", name)``, whose records say that the phase was
begun, has failed or is complete.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec
import trio

from .._commit.exits import Exit, exit_of
from .._commit.group_commit import GroupCommitter
from .._commit.saves import save_record
from .._commit.stream_log import StreamLog
from .._journal.progress import Progress
from .._journal.record import ErrorInfo, Opened, Record, RecordKind, Status, describe_error
from .._journal.summary import left_in_phase
from .._util.exceptions import text_of
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.text import one_line, plural, printable, stream_name

log = get_logger(__name__)


MAX_NAMED = 5  # streams in one line of the log


class Phase(msgspec.Struct, frozen=True):
    """One phase of a run, as its block gets it.

    Attributes:
        name: Its name.
        complete: Whether nothing is left to do: an earlier block of it ended without an
            exception, and the streams that were opened in it are done.
        error: The error with which its last block failed; None: it did not fail.
    """

    name: str
    complete: bool
    error: ErrorInfo | None


async def begin_phase(committer: GroupCommitter, stream_log: StreamLog) -> None:
    """Begin a phase whose block comes later: the run is not complete before that one has ended.

    Durability: when this returns the phase is durable.
    """
    if stream_log.progress.sequence == 0:
        now = time.time()
        await save_record(
            committer, stream_log, Record(kind=RecordKind.SAVE, at=now, opened=Opened(now, 0))
        )


@asynccontextmanager
async def open_phase(
    committer: GroupCommitter,
    stream_log: StreamLog,
    parts: Mapping[StreamKey, Progress],
    *,
    retry_failed: bool,
) -> AsyncGenerator[Phase]:
    """Begin a phase, and complete it when the block ends without an exception.

    Args:
        committer: Saves the records.
        stream_log: The stream log of the phase.
        parts: The progress of every stream of the run.
        retry_failed: Whether batches that were skipped or failed for good are re-queued.

    Durability: when the block has ended, how it ended is durable.
    """
    progress = stream_log.progress
    was_complete = progress.status is Status.COMPLETE
    name = stream_log.key[1]
    left = left_in_phase(parts, name, retry_failed=retry_failed)
    phase = Phase(name, was_complete and not left, progress.error)
    if phase.complete:
        await trio.lowlevel.checkpoint()
        yield phase
        return
    now, kind = time.time(), RecordKind.RETRY if was_complete else RecordKind.SAVE
    await save_record(committer, stream_log, Record(kind=kind, at=now, opened=Opened(now, 0)))
    try:
        yield phase
    except BaseException as error:
        if exit_of(error) is Exit.ERROR and committer.poison is None:
            await _save_failure(committer, stream_log, error)
        raise
    if keys := left_in_phase(parts, name):
        names = ", ".join(map(stream_name, keys[:MAX_NAMED]))
        count = plural(len(keys), "stream")
        log.info(
            "phase %r is left with work in %s: %s",
            name,
            count,
            printable(names),
            extra=at(committer.run_key.run_id),
        )
        return
    await save_record(committer, stream_log, Record(kind=RecordKind.FINISH, at=time.time()))


async def _save_failure(
    committer: GroupCommitter, stream_log: StreamLog, error: BaseException
) -> None:
    failure = Record(kind=RecordKind.FAIL, at=time.time(), error=describe_error(error))
    with trio.CancelScope(shield=True):
        try:
            await save_record(committer, stream_log, failure)
        except Exception as problem:
            log.error(
                "phase %r failed, and saving that failed: %s",
                stream_log.key[1],
                one_line(text_of(problem)),
                extra=at(committer.run_key.run_id),
            )
