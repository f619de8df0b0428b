"""Finds what a start needs and is missing: blobs of saved states, and the newest outputs.

It looks names up, and reads a byte of each blob at most, so the cost does not grow with the bytes
of states and outputs; `MAX_STREAMS` and `MAX_FILES` bound it.  `verify` compares the content.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import aclosing, closing

from .._journal.history import LiveRecord, LiveRecords, read_pages
from .._journal.record import Status
from .._journal.store import Finding, RunView, Store
from .._journal.summary import in_order
from .._runs.verify import MISSING
from .._util.errors import OutputError, StoreDamagedError
from .._util.plain import JOB_STREAM, RUN_STREAM, StreamKey
from .._util.threads import run_blocking
from ..outputs import Outputs, open_existing
from ..state._chain import read_chain
from .drift import output_finding
from .explain_losses import Losses
from .verify_states import see_end, state_finding

MAX_STREAMS = 100  # checked, of a run
MAX_FILES = 1_000  # checked, of a run; the newest of each stream, and parts of append files


async def find_losses(
    store: Store, view: RunView, folder: str | None, keys: Collection[StreamKey] | None = None
) -> Losses:
    """Find what a start of a run needs and is missing.

    Args:
        store: The run's store.
        view: The run, from `Store.load_run`.
        folder: The output folder; None: the run has none.
        keys: Only these streams; default: all.

    Raises:
        StoreDamagedError: a record is damaged.
    """
    found = await _look(store, view, folder, keys)
    if found and (now := await store.load_run(view.run_id)) is not None:
        return await _look(store, now, folder, keys)  # a running program drops states and files
    return found


async def _look(
    store: Store, view: RunView, folder: str | None, wanted: Collection[StreamKey] | None
) -> Losses:
    chosen = view.streams.keys() if wanted is None else set(wanted)
    parts = {
        key: entry.progress
        for key, entry in view.streams.items()
        if key not in (RUN_STREAM, JOB_STREAM) and key in chosen
    }
    keys = in_order(parts)[:MAX_STREAMS]
    states: list[Finding] = []
    for key in keys:
        if parts[key].has_state and parts[key].status is not Status.COMPLETE:
            states += await _lost_state(store, view, key)
    files: list[Finding] = []
    with_files = [key for key in keys if parts[key].outputs or parts[key].sinks]
    if folder is None or not with_files:
        return Losses(tuple(states))
    outputs = await run_blocking(open_existing, folder)
    if outputs is None:
        return Losses(tuple(states), folder=folder)
    with closing(outputs):
        left = MAX_FILES
        for key in with_files:
            entries = await _newest(store, view, key, left)
            files += await run_blocking(_lost_files, outputs, view, key, entries)
            left -= sum(len(entry.record.outputs) for entry in entries)
            sinks = sorted(parts[key].sinks.items(), reverse=True)[: max(left, 0)]
            files += await run_blocking(_lost_lines, outputs, view, key, sinks)
            left -= len(sinks)
            if left <= 0:
                break
    return Losses(tuple(states), tuple(files))


async def _lost_state(store: Store, view: RunView, key: StreamKey) -> list[Finding]:
    """Check that every blob exists that the newest state of a stream needs."""
    index = None
    try:
        chain, record = await read_chain(read_pages(store, view.run_id, view.generation, key))
        index = None if record is None else record.index
        for _, frame in chain:
            await see_end(store, view.run_id, frame)
    except StoreDamagedError as error:
        return [state_finding(view, key, str(error), batch_index=index)]
    return []


async def _newest(store: Store, view: RunView, key: StreamKey, left: int) -> list[LiveRecord]:
    """The newest confirmed batches of a stream with outputs, of one page of records."""
    limit = min(left, MAX_FILES)
    async with aclosing(read_pages(store, view.run_id, view.generation, key, limit=limit)) as pages:
        standing = LiveRecords(view.streams[key].progress).of(await anext(pages))
    return [entry for entry in standing if entry.record.outputs]


def _lost_files(
    outputs: Outputs, view: RunView, key: StreamKey, entries: Sequence[LiveRecord]
) -> list[Finding]:
    return [
        output_finding(view, key, entry.index, output.path, MISSING)
        for entry in entries
        for output in entry.record.outputs
        if _size(outputs, output.path) is None
    ]


def _lost_lines(
    outputs: Outputs, view: RunView, key: StreamKey, sinks: Sequence[tuple[str, int]]
) -> list[Finding]:
    """Check append files, of which so many bytes are confirmed each."""
    lost: list[Finding] = []
    for path, size in sinks:
        found = _size(outputs, path)
        if found is None and size:
            lost.append(output_finding(view, key, None, path, MISSING))
        elif found is not None and 0 <= found < size:
            reason = f"{size - found} of its {size} confirmed bytes are missing"
            lost.append(output_finding(view, key, None, path, reason))
    return lost


def _size(outputs: Outputs, path: str) -> int | None:
    """Return the size of a file; None: it is missing; -1: it may not be read."""
    try:
        return outputs.length(path)
    except OutputError:
        return -1
