"""Where a stream of a generation that is done again begins, and what is known of its items.

See `trio_ckpt._runs.again` for the generation as a whole.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from .._commit.open_stream import OpenStream
from .._commit.previous import KeyKind, PreviousItems, index_digest
from .._commit.saves import save_records
from .._journal.history import DONE_KINDS, LiveRecord, LiveRecords, read_pages
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind, SinkLines
from .._journal.store import RunView, Store
from .._util.errors import OutputsMissingError, describe_batch
from .._util.index_set import IndexSet
from .._util.log import get_logger
from .._util.plain import Plain, item_digest
from .._util.text import printable
from .._util.threads import run_blocking
from ..outputs import Outputs
from ..state._frontier import FrontierItems
from .lag import Lag, start_cursor
from .verify import MISSING, MISSING_MANY, MISSING_SHARE, Damage, Verify, find_damages

log = get_logger(__name__)

SAVED_AT_ONCE = 1_000  # records of batches that are carried over, in one group


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
    *,
    verify: Verify,
    redo_missing: bool,
) -> PreviousItems:
    """Load what the last generation knows of the items of a stream; see `PreviousItems`.

    Args:
        store: The store of the run.
        open_stream: The stream.
        base: The last generation.
        was: The progress of the stream in it.
        frontier: Names the items of a `Frontier`; None: the stream has none.
        verify: How its outputs are checked.
        redo_missing: Whether to go on even if very many of them are missing.

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
            damages = _Damages(open_stream, base, verify, redo_missing)
            await _fill(previous, store, open_stream, base, was, frontier, damages)
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
    damages: _Damages,
) -> None:
    kind, key = previous.kind, open_stream.stream_log.key
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
        self, open_stream: OpenStream, base: RunView, mode: Verify, redo_missing: bool
    ) -> None:
        self._open_stream = open_stream
        self._generation = base.generation
        self._label = archive_label(base)
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
        lost = list[Damage]()
        for damage in damages:
            is_missing = damage.reason == MISSING
            if is_missing and await run_blocking(is_archived, root, damage.path, self._label):
                continue  # this generation has moved it, and was killed before the new one came
            self._missing += is_missing
            lost.append(damage)
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
        for damage in lost:
            log.warning(
                "%s of generation %d is done again: %s is %s",
                describe_batch(
                    self._open_stream.run_id, self._open_stream.stream_log.key, damage.entry.index
                ),
                self._generation,
                damage.path,
                printable(damage.reason),
                extra=self._open_stream.place(),
            )
        return [damage.entry.index for damage in damages]


def archive_label(base: RunView) -> str:
    """The name of the folder of the archive that has the outputs of a generation."""
    return f"{base.run_id}-{base.generation}"


def is_archived(outputs: Outputs, path: str, label: str) -> bool:
    """Whether the archive has an output under a label.  Blocks."""
    return outputs.archived_head(path, label, 1) is not None
