"""Drift: where the files differ from what the records say.  Reads, and changes nothing.

A resume would re-queue such batches; this shows them before that.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from functools import partial
from typing import Literal

import attrs

from .._journal.history import LiveRecords, iter_records, read_pages
from .._journal.record import RecordKind
from .._journal.store import Finding, FindingKind, RunView, Store
from .._journal.summary import in_order
from .._runs.verify import find_damages, find_lines_damages
from .._util.index_set import IndexSet
from .._util.plain import StreamKey, encode_key
from .._util.threads import run_blocking
from ..outputs import Outputs

REDO = "a start re-queues the batch, and so does --repair"


@attrs.frozen
class Drift:
    """The result of comparing the outputs of a run.

    Attributes:
        files: How many files were compared.
        bytes: Their confirmed size together, in bytes.
        problems: The differences, stream by stream, the newest batch first.
    """

    files: int
    bytes: int
    problems: tuple[Finding, ...]


def output_finding(
    view: RunView, key: StreamKey, index: int | None, path: str, what: str
) -> Finding:
    """An output that differs from what was confirmed; without an index a whole append file."""
    return Finding(
        f"output {path}",
        what,
        REDO,
        kind=FindingKind.OUTPUT,
        run_id=view.run_id,
        generation=view.generation,
        stream=encode_key(key),
        batch_index=index,
        path=path,
    )


async def find_drift(
    store: Store,
    view: RunView,
    outputs: Outputs,
    *,
    mode: Literal["size", "sha256"] = "size",
    keys: Collection[StreamKey] | None = None,
) -> Drift:
    """Compare every confirmed output of a run with the file that is there.

    The run may continue: a batch that it re-queues is not a problem.

    Args:
        store: The run's store.
        view: The run, from `Store.load_run`.
        outputs: Its output folder.
        mode: By size and time (by hash where the time differs), or by hash.
        keys: Only these streams; default: all.

    Raises:
        StoreDamagedError: a record is damaged.

    Cancellation: waits for work that threads have begun.
    """
    parts = {key: entry.progress for key, entry in view.streams.items()}
    problems: list[Finding] = []
    files = size = 0
    for key in in_order(parts):
        progress = parts[key]
        if (keys is not None and key not in keys) or not (progress.outputs or progress.sinks):
            continue
        ends, found = dict(progress.sinks), list[Finding]()
        standing = LiveRecords(progress)
        async with aclosing(read_pages(store, view.run_id, view.generation, key)) as pages:
            async for records in pages:
                entries = standing.of(records)  # without records that a running program has added
                files += sum(len(entry.record.outputs) for entry in entries)
                size += sum(o.size for entry in entries for o in entry.record.outputs)
                damages = await find_damages(outputs, entries, mode)
                damages += await run_blocking(
                    partial(find_lines_damages, by_digest=mode == "sha256"), outputs, entries, ends
                )
                found += [
                    output_finding(view, key, damage.entry.index, damage.path, damage.reason)
                    for damage in damages
                ]
        if found:
            back = await taken_back_since(store, view, key)
            problems += [p for p in found if p.batch_index is None or p.batch_index not in back]
        files += len(progress.sinks)
        size += sum(progress.sinks.values())
    return Drift(files, size, tuple(problems))


async def taken_back_since(store: Store, view: RunView, key: StreamKey) -> IndexSet:
    """Batches whose records were live in a view and are not live any more: the run continued.

    The store re-queues a batch first, and its files are moved after that.  So a file that is
    missing, and was confirmed when it was checked, is not in such a record.
    """
    progress, back = view.streams[key].progress, IndexSet()
    now = await store.read_run(view.run_id)
    if now is None or now.generation != view.generation:
        return progress.done  # the stream started again, and its outputs are in the archive
    async with aclosing(iter_records(store, view.run_id, view.generation, key)) as records:
        async for sequence, record in records:
            if sequence <= progress.sequence:
                break
            if record.kind in (RecordKind.REDO, RecordKind.RETRY):
                back = back.union(IndexSet.from_steps(record.steps))
    return back
