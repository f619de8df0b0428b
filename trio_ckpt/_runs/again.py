"""A run that is done again: a new generation that begins from the last complete one.

Theory of operation
===================

The first record of the new generation names the one that it began from.  From then on every start
goes on with it, until it is complete.  Then what is new, changed, unchanged and gone is counted,
what no record names any more is archived, and the end of the session says so, with the number of
checkpoints that were counted.  Until that is saved the generation is not complete, and the next
start counts and archives again; an output that was moved before is not there any more.

Outputs of the last generation stay in place.  A name that is written once more is archived first,
see `StreamFiles`.  Its records stay in the store.  So all of it can be read until it is pruned.
Where each stream begins is in `trio_ckpt._runs.again_stream`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

import trio

from .._commit.path_owners import SINK, PathOwners
from .._journal.changes import (
    BeganFrom,
    Change,
    again_of,
    counts_text,
    is_complete,
    iter_changes,
)
from .._journal.history import LiveRecords, read_pages, session_metadata_of
from .._journal.store import RunView, Store, StreamView
from .._util.arguments import flag
from .._util.errors import CannotRunAgainError, TrioCkptError
from .._util.log import at, get_logger
from .._util.plain import RUN_STREAM, Plain, encode_key
from .._util.text import plural
from .._util.threads import run_blocking
from ..outputs import Outputs
from .again_stream import archive_label, is_archived
from .manifest import RunContents
from .open_run import OpenRun

log = get_logger(__name__)

# -- which generation -----------------------------------------------------------------------------


def begin_again(view: RunView | None, run_id: str) -> BeganFrom | None:
    """What the next generation begins from; None: the newest one has begun so, and is not complete.

    Raises:
        CannotRunAgainError: there is no complete generation to begin from.
    """
    metadata = {} if view is None else session_metadata_of(view)
    if view is None or not metadata:
        raise CannotRunAgainError(
            f"run {run_id!r} cannot be done again: it has no generation yet; start it once without "
            "again=True",
            run_id=run_id,
        )
    if is_complete(view):
        return BeganFrom(view.generation)
    if again_of(metadata, view.generation) is not None:
        return None
    raise CannotRunAgainError(
        f"run {run_id!r} cannot be done again: generation {view.generation} is not complete; start "
        "it without again=True until it is",
        run_id=run_id,
    )


def checked_again(again: bool, *, is_fresh: bool) -> bool:
    """Check the argument ``again``.

    Raises:
        TypeError: it is not a bool.
        ValueError: the run is to start from the beginning.
    """
    if flag("again", again) and is_fresh:
        raise ValueError(
            "fresh=True starts from the beginning, and again=True begins from the last generation: "
            "give one of them"
        )
    return again


async def load_base(store: Store, again: BeganFrom | None, run_id: str) -> RunView | None:
    """The generation that one begins from; None: it began from none, or that was pruned.

    A generation that was complete once needs the one before it no more: where that was pruned, its
    batches that are re-queued do their work again.

    Args:
        store: The store of the run.
        again: What it began from.
        run_id: The run.

    Raises:
        CannotRunAgainError: it was never complete, and the store does not have the other one.
    """
    if again is None:
        return None
    base = await store.load_run(run_id, again.base)
    if base is None and again.checkpoints is None:
        raise CannotRunAgainError(
            f"run {run_id!r} cannot go on: generation {again.base}, which its newest one began "
            "from, was pruned; begin from the start with fresh=True",
            run_id=run_id,
        )
    return base


# -- the end --------------------------------------------------------------------------------------


async def end_again(run: OpenRun, contents: RunContents, again: BeganFrom) -> dict[str, Plain]:
    """Find out whether a generation is complete now, best effort; returns what is saved of it.

    Durability: when this returns outputs that no record names are in the archive.
    Cancellation: shielded.
    """
    is_settled = again.checkpoints == contents.checkpoints
    if contents.is_complete and not is_settled and run.committer.poison is None:
        with trio.CancelScope(shield=True):
            try:
                await run.committer.check_owner(0)
                again = await settle_again(run.store, contents, again, run.outputs)
            except TrioCkptError as problem:
                log.warning(
                    "generation %d of run %r is not complete yet: %s; the next start finishes it",
                    contents.run_key.generation,
                    run.run_id,
                    problem,
                    extra=at(run.run_id),
                )
    return again.plain()


async def settle_again(
    store: Store, contents: RunContents, again: BeganFrom, outputs: Outputs | None
) -> BeganFrom:
    """Count what has changed, and archive the outputs that no record names any more.

    Args:
        store: The store of the run.
        contents: The generation, which is complete.
        again: What it began from.
        outputs: The folder of its outputs; None: it has none.

    Raises:
        StoreError: records cannot be read.
        OutputError: an output cannot be moved.

    Durability: when this returns the moves are durable.
    """
    run_key = contents.run_key
    base = await store.load_run(run_key.run_id, again.base)
    if base is None:  # pruned, after the generation was complete for the first time
        return BeganFrom(again.base, contents.checkpoints, again.counts)
    streams = {key: StreamView(key, part) for key, part in contents.parts.items()}
    now = RunView(run_key.run_id, run_key.generation, run_key.owner, streams)
    counts, names = dict.fromkeys((change.value for change in Change), 0), PathOwners()
    async with aclosing(iter_changes(store, now, base, is_complete=True)) as pages:
        async for page in pages:
            for item in page:
                counts[item.change.value] += 1
                if item.change is not Change.GONE:
                    owner = encode_key(item.stream), item.batch or 0
                    for output in item.outputs:
                        names.confirm(output.path, owner)
    for key, part in contents.parts.items():
        for path in part.sinks:
            names.confirm(path, (encode_key(key), SINK))
    if outputs is not None:
        moved = await _archive_unnamed(store, base, names, outputs)
        log.info(
            "generation %d from generation %d: %s; %s moved into the archive",
            run_key.generation,
            again.base,
            counts_text(counts),
            plural(moved, "output"),
            extra=at(run_key.run_id),
        )
    return BeganFrom(again.base, contents.checkpoints, counts)


async def _archive_unnamed(store: Store, base: RunView, names: PathOwners, outputs: Outputs) -> int:
    """Archive the outputs of the last generation that the new one does not have."""
    moved = 0
    for key, entry in base.streams.items():
        if key == RUN_STREAM:
            continue
        left = [path for path in entry.progress.sinks if names.get(path) is None]
        moved += await run_blocking(_archive, outputs, left, base)
        if not entry.progress.outputs:
            continue
        live = LiveRecords(entry.progress)
        async with aclosing(read_pages(store, base.run_id, base.generation, key)) as pages:
            async for page in pages:
                paths = (output.path for e in live.of(page) for output in e.record.outputs)
                left = [path for path in paths if names.get(path) is None]
                moved += await run_blocking(_archive, outputs, left, base)
    return moved


def _archive(outputs: Outputs, paths: Iterable[str], base: RunView) -> int:
    """Archive outputs; what took the name of one that was archived before is not of its run."""
    label = archive_label(base)
    by_label: dict[str, list[str]] = {label: [], f"{base.run_id}-unconfirmed": []}
    for path in dict.fromkeys(paths):
        is_there = is_archived(outputs, path, label)
        by_label[f"{base.run_id}-unconfirmed" if is_there else label].append(path)
    return sum(len(outputs.archive(found, name).moved) for name, found in by_label.items() if found)
