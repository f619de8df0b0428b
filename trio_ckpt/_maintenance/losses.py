"""What a start needs and is there no more: blobs of saved states, and the newest outputs.

Names are looked up and no content is read, so the cost does not grow with the bytes, and
`MAX_STREAMS` and `MAX_FILES` bound it.  Whether what is there is what was saved, `verify` says.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import aclosing, closing

import attrs

from .._journal.history import LiveRecords, StandingRecord, read_pages
from .._journal.record import Status
from .._journal.store import RunView, Store
from .._journal.summary import in_order
from .._runs.verify import MISSING
from .._util.errors import OutputError, StoreDamagedError
from .._util.plain import JOB_STREAM, RUN_STREAM, StreamKey
from .._util.threads import run_blocking
from ..outputs import OutputDir
from ..state._chain import read_chain
from .drift import DriftProblem
from .verify_states import see_end

MAX_STREAMS = 100  # of a run that are looked at
MAX_FILES = 1_000  # of a run that are looked for, of each stream the newest


@attrs.frozen
class LostState:
    """A stream whose saved state cannot be restored.

    Attributes:
        stream: The key of the stream.
        batch_index: The batch that it was saved with; None: that is not known, or it was none.
        reason: What is gone, in words.
    """

    stream: StreamKey
    batch_index: int | None
    reason: str


@attrs.frozen
class Losses:
    """What a start needs of a run, and does not find.

    Attributes:
        states: Streams that cannot go on.
        files: Outputs that are gone, as `find_drift` names them.
        folder: The output folder, where that itself is gone; empty: it is there, or not needed.
    """

    states: tuple[LostState, ...] = ()
    files: tuple[DriftProblem, ...] = ()
    folder: str = ""

    def __bool__(self) -> bool:
        return bool(self.states or self.files or self.folder)


async def find_losses(
    store: Store, view: RunView, folder: str | None, keys: Collection[StreamKey] | None = None
) -> Losses:
    """Look for what a start of a run needs.

    Args:
        store: Where the run is.
        view: The run, as `Store.load_run` gave it.
        folder: Of its outputs; None: it has none.
        keys: Only these streams; default: all.

    Raises:
        StoreDamagedError: a record is not what was saved.
    """
    found = await _look(store, view, folder, keys)
    if found and (now := await store.load_run(view.run_id)) is not None:
        return await _look(
            store, now, folder, keys
        )  # a run that goes on lets go of states and files
    return found


async def _look(
    store: Store, view: RunView, folder: str | None, wanted: Collection[StreamKey] | None
) -> Losses:
    parts = {
        key: entry.progress
        for key, entry in view.streams.items()
        if key not in (RUN_STREAM, JOB_STREAM) and (wanted is None or key in wanted)
    }
    keys = in_order(parts)[:MAX_STREAMS]
    states: list[LostState] = []
    for key in keys:
        if parts[key].has_state and parts[key].status is not Status.COMPLETE:
            states += await _lost_state(store, view, key)
    files: list[DriftProblem] = []
    with_files = [key for key in keys if parts[key].outputs or parts[key].sinks]
    if folder is None or not with_files:
        return Losses(tuple(states))
    if not await run_blocking(os.path.isdir, folder):  # opening it would make it
        return Losses(tuple(states), folder=folder)
    outputs = await run_blocking(OutputDir.open, folder)
    with closing(outputs):
        left = MAX_FILES
        for key in with_files:
            entries = await _newest(store, view, key, left)
            files += await run_blocking(_lost_files, outputs, key, entries)
            for path, size in parts[key].sinks.items():
                files += await run_blocking(_lost_lines, outputs, key, path, size)
            left -= sum(len(entry.record.outputs) for entry in entries)
            if left <= 0:
                break
    return Losses(tuple(states), tuple(files))


async def _lost_state(store: Store, view: RunView, key: StreamKey) -> list[LostState]:
    """See that every blob is there that the newest state of a stream is read from."""
    index = None
    try:
        chain, record = await read_chain(read_pages(store, view.run_id, view.generation, key))
        index = None if record is None else record.index
        for _, frame in chain:
            await see_end(store, frame)
    except StoreDamagedError as error:
        return [LostState(key, index, str(error))]
    return []


async def _newest(store: Store, view: RunView, key: StreamKey, left: int) -> list[StandingRecord]:
    """The newest confirmed batches of a stream with outputs, of one page of records."""
    limit = min(left, MAX_FILES)
    pages = read_pages(store, view.run_id, view.generation, key, limit=limit)
    async with aclosing(pages):
        async for records in pages:
            standing = LiveRecords(view.streams[key].progress).of(records)
            return [entry for entry in standing if entry.record.outputs]
    return []


def _lost_files(
    outputs: OutputDir, key: StreamKey, entries: Sequence[StandingRecord]
) -> list[DriftProblem]:
    return [
        DriftProblem(key, entry.index, output.path, MISSING)
        for entry in entries
        for output in entry.record.outputs
        if _size(outputs, output.path) is None
    ]


def _lost_lines(outputs: OutputDir, key: StreamKey, path: str, size: int) -> list[DriftProblem]:
    found = _size(outputs, path)
    if found is None and size:
        return [DriftProblem(key, None, path, MISSING)]
    if found is not None and 0 <= found < size:
        reason = f"{size - found} of its {size} confirmed bytes are missing"
        return [DriftProblem(key, None, path, reason)]
    return []


def _size(outputs: OutputDir, path: str) -> int | None:
    """How large a file is; None: it is not there; -1: it may not be looked at."""
    try:
        return outputs.length(path)
    except OutputError:
        return -1
