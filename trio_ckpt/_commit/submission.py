"""What an attempt submits: the checks of what it says it has done, and its record.

`trio_ckpt._commit.gate` says when, and in which order.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from .._journal.observer import AttemptEnd
from .._journal.record import Record, RecordKind, SinkLines, describe_error
from .._util.errors import NotEncodableError, OutputError, TrioCkptError
from .._util.exceptions import failures_in
from .._util.uninterrupted import uninterrupted
from ..outputs import lines_digest
from .awaits import NeverAwaitedError, check_awaited
from .batch import AnyBatch, calls_of, staged_of
from .carried import carry_outputs
from .exits import Ending
from .open_stream import OpenStream
from .staged import settlement_of
from .stream_log import Lines

if TYPE_CHECKING:
    from .stored_state import EncodedState

NO_LINES: Lines = ()
REFUSALS = (OutputError, NotEncodableError, NeverAwaitedError, MemoryError)  # of the checks


@uninterrupted
async def check_batch(stream: OpenStream, batch: AnyBatch) -> Lines:
    """Check what a batch says it has done; returns the lines that it appends.

    Raises:
        OutputError, NotEncodableError, NeverAwaitedError: it did not do so.
    """
    staged, files, validator = staged_of(batch), stream.files, stream.policy.validator
    if (calls := calls_of(batch)) is not None:
        check_awaited(calls, batch.token, is_left=True)
    if staged.adopted:
        await files.adopt(staged.adopted, batch.index, staged.outputs)
        staged.adopted.clear()
    if staged.carried:
        staged.outputs |= await carry_outputs(files, staged.carried, batch.index)
    if validator is not None:
        await files.check(staged.outputs, validator)
    return await files.open_sinks(staged.lines) if staged.lines else NO_LINES


def confirmed_record(
    stream: OpenStream, batch: AnyBatch, state: EncodedState | None, lines: Lines
) -> Record:
    """The record of a batch that is done.

    Args:
        stream: Its stream.
        batch: The attempt that is to be confirmed.
        state: The state that is saved with it; None: there is none, or it has not changed.
        lines: What it appends.
    """
    staged, notes = staged_of(batch), stream.stream_log.progress.notes
    record = Record(
        at=time.time(),
        index=batch.index,
        item=staged.digest,
        attempts=batch.attempt,
        records=staged.records,
        outputs=tuple(staged.outputs.values()),
        lines=tuple([SinkLines(s.path, len(b), lines_digest(b)) for s, b in lines]),
        totals=staged.totals,
        spent=staged.spent,
        reserved=settlement_of(staged),
        cursor=staged.cursor,
        metadata=staged.metadata,
        state=b"" if state is None else state.payload,
        adds=stream.encode_adds(staged.adds) if staged.adds else b"",
        last_index=batch.index if staged.is_last else None,
    )
    if staged.previous is not None:
        record = replace(record, previous=staged.previous[0], unchanged=staged.carried is not None)
    return record if notes is None else stream.intents.with_costs(batch, record)


def record_of_end(batch: AnyBatch, ending: Ending) -> Record:
    """The record of an attempt that is not confirmed."""
    staged, now, error = staged_of(batch), time.time(), ending.error
    reserved = settlement_of(staged)
    if ending.end is AttemptEnd.WITHDRAWN:
        last, kind = batch.index - 1, RecordKind.SAVE
        return Record(kind=kind, at=now, spent=staged.spent, reserved=reserved, last_index=last)
    return Record(
        kind=RecordKind.SKIP if ending.end is AttemptEnd.SKIPPED else RecordKind.ATTEMPT,
        at=now,
        index=batch.index,
        item=staged.digest,
        attempts=batch.attempt - (error is None),  # one that is only deferred does not count
        spent=staged.spent,
        reserved=reserved,
        error=None
        if error is None
        else describe_error(error, retryable=ending.retryable, batch_index=batch.index),
        metadata={} if error is None else _details_of(error),
        due=ending.due,
        previous=None if staged.previous is None else staged.previous[0],
    )


def _details_of(error: BaseException | str) -> dict[str, Any]:
    """The details stored beside the text of an error; for a group those of its first error."""
    for part in () if isinstance(error, str) else failures_in(error):
        if isinstance(part, TrioCkptError) and part.details:
            return dict(part.details)
    return {}
