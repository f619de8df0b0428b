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
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

import msgspec
import trio

from .._commit.open_stream import OpenStream
from .._commit.path_owners import SINK, PathOwners
from .._commit.previous import KeyKind, PreviousItems, index_digest
from .._commit.saves import save_records
from .._journal.changes import (
    BeganFrom,
    Change,
    again_of,
    counts_text,
    is_complete,
    iter_changes,
)
from .._journal.history import (
    DONE_KINDS,
    LiveRecord,
    LiveRecords,
    read_pages,
    session_metadata_of,
)
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind, SinkLines
from .._journal.store import RunView, Store, StreamView
from .._util.arguments import flag
from .._util.errors import CannotRunAgainError, OutputsMissingError, TrioCkptError
from .._util.index_set import IndexSet
from .._util.log import at, get_logger
from .._util.plain import RUN_STREAM, Plain, encode_key, item_digest
from .._util.text import plural
from .._util.threads import run_blocking
from ..outputs import Outputs
from ..state._frontier import FrontierItems
from .lag import Lag, start_cursor
from .manifest import RunContents
from .open_run import OpenRun
from .verify import MISSING, MISSING_MANY, MISSING_SHARE, Verify, find_damages

log = get_logger(__name__)

SAVED_AT_ONCE = 1_000  # records of batches that are carried over, in one group


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


# -- where a stream begins ------------------------------------------------------------------------


def _kind_of(progress: Progress) -> KeyKind:
    """What names the items of a stream of the last generation."""
    if progress.has_frontier:
        return KeyKind.FRONTIER
    if len(progress.done) == len(progress.adopted):
        return KeyKind.NOTHING
    if progress.items:
        return KeyKind.ITEM
    return KeyKind.CURSOR if progress.has_cursor else KeyKind.INDEX


async def begin_from_base(
    store: Store, open_stream: OpenStream, base: RunView, lag: Lag | None
) -> Progress:
    """Save what a stream of a new generation begins with; returns the progress of the last one.

    Its append files go on growing, and its cursor is that of the last generation minus `lag`.  The
    batches of an open end with a cursor are carried over.

    Raises:
        TypeError: `lag` cannot be subtracted.

    Durability: when this returns what it begins with is durable.
    Cancellation: a cancellation point for each page of records.
    """
    key, progress = open_stream.stream_log.key, open_stream.stream_log.progress
    entry = base.streams.get(key)
    was = Progress() if entry is None else entry.progress
    cursor = start_cursor(was.cursor, lag) if was.has_cursor else msgspec.UNSET
    if _kind_of(was) is KeyKind.CURSOR:
        if not await _is_carried_over(store, open_stream):
            await _carry_over(store, open_stream, base, was)
            await open_stream.save_plain(_opening(cursor, {}))
    elif progress.opens == 0 and (was.sinks or was.has_cursor):
        await open_stream.save_plain(_opening(cursor, was.sinks))
    return was


async def _is_carried_over(store: Store, open_stream: OpenStream) -> bool:
    """Whether all is carried over: the cursor to go on from is saved behind it.

    What a rewind has re-queued since is not carried over once more.
    """
    run_key, key = open_stream.committer.run_key, open_stream.stream_log.key
    if open_stream.stream_log.progress.has_cursor:
        pages = read_pages(store, run_key.run_id, run_key.generation, key)
        async with aclosing(pages):
            async for page in pages:
                if any(_is_opening(record) for _, record in page):
                    return True
    return False


def _is_opening(record: Record) -> bool:
    return record.kind is RecordKind.SAVE and record.cursor is not msgspec.UNSET


def _opening(cursor: Plain, sinks: Mapping[str, int]) -> Record:
    lines = tuple(SinkLines(path, size, b"") for path, size in sinks.items() if size)
    return Record(kind=RecordKind.SAVE, at=time.time(), cursor=cursor, lines=lines)


async def _carry_over(store: Store, open_stream: OpenStream, base: RunView, was: Progress) -> None:
    """Carry over all batches of an open end; those that an interrupted start has saved are there.

    They come in the order of their old records, which is that of their lines in append files.
    """
    key, progress = open_stream.stream_log.key, open_stream.stream_log.progress
    live, sinks, records = LiveRecords(was), Counter(was.sinks), list[Record]()
    async with aclosing(read_pages(store, base.run_id, base.generation, key)) as pages:
        async for page in pages:
            for entry in live.of(page, DONE_KINDS):
                sinks.subtract({lines.path: lines.size for lines in entry.record.lines})
                if entry.index not in progress.done:
                    records.append(_carried(entry))
    if progress.opens == 0:
        await open_stream.save_plain(_opening(msgspec.UNSET, sinks))
    records.reverse()
    stream_log = open_stream.stream_log
    for begin in range(0, len(records), SAVED_AT_ONCE):
        group = records[begin : begin + SAVED_AT_ONCE]
        await save_records(open_stream.committer, ((stream_log, record) for record in group))
    stream_log.count_from_here()


def _carried(entry: LiveRecord) -> Record:
    was = entry.record
    return Record(
        kind=was.kind,
        at=time.time(),
        index=was.index,
        attempts=was.attempts,
        records=was.records,
        outputs=was.outputs,
        lines=was.lines,
        totals=was.totals,
        cursor=was.cursor,
        metadata=was.metadata,
        adopted=was.adopted,
        error=was.error,
        previous=was.index,
        unchanged=was.kind is RecordKind.BATCH,
    )


# -- what the last generation knows ---------------------------------------------------------------


async def load_previous(
    store: Store,
    open_stream: OpenStream,
    base: RunView,
    was: Progress,
    frontier: FrontierItems[Any] | None,
    verify: tuple[Verify, bool],
) -> PreviousItems:
    """Load what the last generation knows of the items of a stream; see `PreviousItems`.

    Args:
        store: The store of the run.
        open_stream: The stream.
        base: The last generation.
        was: The progress of the stream in it.
        frontier: Names the items of a `Frontier`; None: the stream has none.
        verify: How its outputs are checked, and whether to go on if very many are missing.

    Raises:
        CannotRunAgainError: two items have one key.
        OutputsMissingError: so many outputs are missing that the folder may be the wrong one.

    Cancellation: a cancellation point for each page of records.
    """
    kind = _kind_of(was)
    previous = PreviousItems(kind, len(was.confirmed), base.generation, open_stream.where())
    try:
        if kind is KeyKind.FRONTIER and frontier is None:
            previous.check_kind(has_key=False, is_frontier=False)
        if kind not in (KeyKind.NOTHING, KeyKind.CURSOR):
            await _fill(previous, store, open_stream, base, was, frontier, verify)
    except BaseException:
        previous.close()
        raise
    return previous


async def _fill(
    previous: PreviousItems,
    store: Store,
    open_stream: OpenStream,
    base: RunView,
    was: Progress,
    frontier: FrontierItems[Any] | None,
    verify: tuple[Verify, bool],
) -> None:
    kind, key = previous.kind, open_stream.stream_log.key
    damages = _Damages(open_stream, f"{base.run_id}-{base.generation}", *verify)
    previous.damaged = await damages.begin(store)
    live, adds = LiveRecords(was), list[bytes]()
    indexes, places = array("Q"), array("Q")
    async with aclosing(read_pages(store, base.run_id, base.generation, key)) as pages:
        async for page in pages:
            adds += [record.adds for _, record in page if record.adds]
            entries = live.of(page)
            for index in await damages.find(entries):
                previous.damaged.add(index)
            for entry in entries:
                place = previous.keep(entry.record)
                if kind is KeyKind.FRONTIER:
                    indexes.append(entry.index)
                    places.append(place)
                elif kind is KeyKind.INDEX:
                    previous.add(index_digest(entry.index), entry.index, place)
                elif entry.record.item:  # an adopted batch has none
                    previous.add(entry.record.item, entry.index, place)
    if frontier is not None:
        keys = _keys_of(adds, frontier)
        for index, place in zip(indexes, places, strict=True):
            previous.add(item_digest(keys[index - was.first_index]), index, place)


def _keys_of(adds: list[bytes], frontier: FrontierItems[Any]) -> list[str]:
    """The keys of all items of a `Frontier`, from its records, newest first."""
    items = FrontierItems[Any]({}, frontier.key)
    for payload in reversed(adds):
        items.fold(payload)
    return items.all_keys()


class _Damages:
    """Finds batches of the last generation whose outputs are not what was confirmed.

    Batches that this generation has done already are passed over: they may have replaced theirs, or
    were re-queued, which has moved them.
    """

    def __init__(
        self, open_stream: OpenStream, label: str, mode: Verify, redo_missing: bool
    ) -> None:
        self._open_stream = open_stream
        self._label = label
        # What is carried over is checked in any case, and would be refused by each start.
        self._mode: Literal["size", "sha256"] = "size" if mode == "off" else mode
        self._redo_missing = redo_missing
        self._done = IndexSet()
        self._checked = self._missing = 0

    async def begin(self, store: Store) -> IndexSet:
        """Read which batches have been done again; returns those that were re-queued since."""
        stream_log, run_key = self._open_stream.stream_log, self._open_stream.committer.run_key
        confirmed = IndexSet()
        if stream_log.progress.sequence == 0:
            return confirmed
        live = LiveRecords(stream_log.progress)
        pages = read_pages(store, run_key.run_id, run_key.generation, stream_log.key)
        async with aclosing(pages):
            async for page in pages:
                for entry in live.of(page, DONE_KINDS):
                    if entry.record.previous is not None:
                        self._done.add(entry.record.previous)
                for _, record in page:
                    if record.kind is RecordKind.BATCH and record.previous is not None:
                        confirmed.add(record.previous)
        requeued = confirmed.copy()
        requeued.subtract(self._done)
        self._done = self._done.union(confirmed)
        return requeued

    async def find(self, entries: Sequence[LiveRecord]) -> list[int]:
        """The batches of a page with an output that is missing or altered."""
        root = self._open_stream.files.root
        wanted = [e for e in entries if e.record.outputs and e.index not in self._done]
        if root is None or not wanted:
            return []
        damages = await find_damages(root, wanted, self._mode)
        self._checked += len(wanted)
        for damage in damages:
            if damage.reason == MISSING and not await run_blocking(
                _is_archived, root, damage.path, self._label
            ):
                self._missing += 1
        is_mass = self._missing > max(MISSING_MANY, self._checked * MISSING_SHARE)
        if is_mass and not self._redo_missing:
            raise OutputsMissingError(
                damages[0].path,
                f"and {self._missing - 1} more of {self._checked} of the last generation are "
                "missing: is this the right output folder? redo_missing=True does their batches "
                "again",
                run_id=self._open_stream.run_id,
                stream=self._open_stream.stream_log.key,
            )
        return [damage.entry.index for damage in damages]


def _is_archived(outputs: Outputs, path: str, label: str) -> bool:
    return outputs.archived_head(path, label, 1) is not None


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
    label = f"{base.run_id}-{base.generation}"
    by_label: dict[str, list[str]] = {label: [], f"{base.run_id}-unconfirmed": []}
    for path in dict.fromkeys(paths):
        is_archived = _is_archived(outputs, path, label)
        by_label[f"{base.run_id}-unconfirmed" if is_archived else label].append(path)
    return sum(len(outputs.archive(found, name).moved) for name, found in by_label.items() if found)
