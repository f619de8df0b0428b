"""Checks a whole store against its seals and sums.  Changes nothing.

Theory of operation
===================

The store checks its own files (`Store.check`).  The rest is the same for all stores, and is done
here: every record of every generation is opened (its seal binds it to its place), and added up
from the oldest one; a fold must be what the records add up to; every saved state is read; and the
outputs of the newest generation are compared, by content.

Records come newest first and are added up oldest first.  So a stream is read twice, a page at a
time, and memory use does not grow with it.  The sums start from nothing, not from a fold or a head:
these two are compared with what the records say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import attrs

from .._journal.apply import apply
from .._journal.folds import decode_progress, encode_progress
from .._journal.history import list_all_runs
from .._journal.progress import Pin, Progress
from .._journal.record import Record, Seal, decode_record
from .._journal.store import (
    Finding,
    HistoryPage,
    RunView,
    Severity,
    Store,
    StoredRecord,
    StoredStream,
    StreamView,
)
from .._util.errors import StoreDamagedError, StoreError, TrioCkptError
from .._util.extras import MissingExtraError, pip_command
from .._util.plain import RUN_STREAM, StreamKey, decode_key, encode_key
from ..outputs import AnyPath
from ..state import decode_frame
from .verify_outputs import check_outputs_of
from .verify_states import check_states

PAGE = 500  # records held at a time
REWIND = "--repair mends the stream; with --accept-loss also if that gives up later batches"
REFOLD = "--repair adds it up again from the records"
RESTORE = "restore the store from a copy"


async def check_all(
    store: Store, run_id: str | None = None, *, output_dir: AnyPath | None = None
) -> AsyncGenerator[Finding]:
    """Check a whole store, or all that concerns one run.

    Args:
        store: The store.
        run_id: The run; None: all of them.
        output_dir: The run's output folder; default: that of its last session.

    Yields:
        What is wrong, as it is found.

    Raises:
        StoreError: this kind of store cannot be checked.
    """
    async with aclosing(store.check()) as findings:
        async for finding in findings:
            if run_id is None or finding.run_id in (None, run_id):
                yield finding
    try:
        runs = await list_all_runs(store)
    except StoreError as error:
        yield Finding(store.url, f"its runs cannot be listed: {error}", RESTORE)
        return
    for run in runs:
        if run_id in (None, run.run_id):
            for generation in range(run.generation, -1, -1):
                folder = output_dir if run_id is not None else None
                is_newest = generation == run.generation
                looking = _check_generation(store, run.run_id, generation, folder, is_newest)
                async with aclosing(looking) as findings:
                    async for finding in findings:
                        yield finding


async def _check_generation(
    store: Store, run_id: str, generation: int, folder: AnyPath | None, is_newest: bool
) -> AsyncGenerator[Finding]:
    where = f"run {run_id!r}" + ("" if is_newest else f", generation {generation}")
    try:
        stored = await store.read_run(run_id, generation)
    except StoreError as error:
        yield Finding(where, str(error), REWIND, run_id=run_id, generation=generation)
        return
    if stored is None:
        return
    views: dict[StreamKey, StreamView] = {}
    is_whole = True
    for entry in stored.streams:
        try:
            key = decode_key(entry.stream)
        except StoreDamagedError as error:
            yield Finding(where, str(error), RESTORE, run_id=run_id, stream=entry.stream)
            is_whole = False
            continue
        looked = _Looked(store, run_id, generation, key, where)
        for finding in await looked.look_at(entry):
            yield finding
        if looked.progress is not None:
            views[key] = StreamView(key, looked.progress)
        else:
            is_whole = False
    view = RunView(run_id, generation, stored.owner, views)
    for finding in await _check_states(store, view, where):
        yield finding
    if is_newest:
        async with aclosing(
            check_outputs_of(store, view, folder, where, is_whole=is_whole)
        ) as findings:
            async for finding in findings:
                yield finding


@attrs.define(eq=False)
class _Looked:
    """Checks the records of one stream.

    Attributes:
        progress: What the records add up to; None: they do not add up.
    """

    store: Store
    run_id: str
    generation: int
    key: StreamKey
    where: str
    progress: Progress | None = None
    _findings: list[Finding] = attrs.field(factory=list[Finding], init=False)
    _cursors: list[tuple[str | None, int]] = attrs.field(
        factory=list[tuple[str | None, int]], init=False
    )  # of each page, and the oldest record on it
    _lineages: dict[bytes, bool] = attrs.field(factory=dict[bytes, bool], init=False)

    async def look_at(self, entry: StoredStream) -> list[Finding]:
        """Find what is wrong with the stream."""
        seal = self.store.seal(self.run_id, self.generation, self.key)
        try:
            newest = await self._open_all(seal)
            if not self._findings:
                if newest < entry.sequence:
                    self._add(entry.sequence, "it is missing", REWIND)
                    return self._findings
                self.progress = await self._add_up(seal, entry)
        except StoreDamagedError as error:
            self._add(None, str(error), REWIND)
        except StoreError as error:
            self._add(None, str(error), RESTORE)
        if self.progress is not None:
            self._check_pins(self.progress.pins)
        return self._findings

    def _add(self, sequence: int | None, what: str, advice: str) -> None:
        name = encode_key(self.key)
        where = f"{self.where}, stream {name}"
        if sequence is not None:
            where += f", checkpoint {sequence}"
        self._findings.append(
            Finding(
                where,
                what,
                advice,
                run_id=self.run_id,
                generation=self.generation,
                stream=name,
                sequence=sequence,
            )
        )

    async def _open_all(self, seal: Seal) -> int:
        """Open every record, newest first; return the sequence of the newest."""
        newest = expected = 0
        cursor: str | None = None
        while True:
            page = await self._page(cursor)
            self._cursors.append((cursor, page.records[-1].sequence if page.records else 0))
            for stored in page.records:
                if newest and stored.sequence != expected:
                    self._add(expected, f"it is missing: {stored.sequence} is there", REWIND)
                newest, expected = newest or stored.sequence, stored.sequence - 1
                self._open(seal, stored)
            cursor = page.cursor
            if cursor is None:
                break
        if expected:
            self._add(expected, "it is missing", REWIND)
        return newest

    async def _page(self, cursor: str | None) -> HistoryPage:
        text, generation = encode_key(self.key), self.generation
        return await self.store.history(
            self.run_id, text, generation=generation, cursor=cursor, limit=PAGE
        )

    async def _page_again(self, cursor: str | None, oldest: int) -> list[StoredRecord]:
        """Read the records of a page, oldest first; a running program may add newer ones."""
        records: list[StoredRecord] = []
        while True:
            page = await self._page(cursor)
            records += page.records
            cursor = page.cursor
            if cursor is None or not records or records[-1].sequence <= oldest:
                return [stored for stored in reversed(records) if stored.sequence >= oldest]

    def _open(self, seal: Seal, stored: StoredRecord) -> None:
        try:
            record = decode_record(seal.open(stored.sequence, stored.payload))
        except StoreDamagedError as error:
            self._add(stored.sequence, str(error), REWIND)
            return
        if record.state:
            try:
                frame = decode_frame(record.state)
            except StoreDamagedError:
                return  # the check of the states reports it
            is_whole = not frame.blob or frame.blob in stored.blobs
            self._lineages[frame.lineage] = is_whole and self._lineages.get(frame.lineage, True)

    async def _add_up(self, seal: Seal, entry: StoredStream) -> Progress:
        """Add up all records, oldest first, and compare the fold on the way."""
        progress, fold = Progress(), entry.fold
        for cursor, oldest in reversed(self._cursors):
            for stored in await self._page_again(cursor, oldest):
                if stored.sequence > entry.sequence:
                    break  # it was saved during the check
                apply(progress, stored.sequence, _record(seal, stored))
                if fold is not None and stored.sequence == fold.through:
                    self._compare(progress, seal, fold.payload)
        return progress

    def _compare(self, progress: Progress, seal: Seal, payload: bytes) -> None:
        try:
            said = decode_progress(seal.open(-progress.sequence, payload))
        except StoreDamagedError:
            self._add(None, f"its fold through {progress.sequence} is damaged", REFOLD)
            return
        # NaN is not equal to NaN, but its bytes are.
        if said != progress and encode_progress(said) != encode_progress(progress):
            what = f"its fold through {progress.sequence} is not what the records add up to"
            self._add(None, what, REFOLD)

    def _check_pins(self, pins: Mapping[str, Pin]) -> None:
        for label, pin in pins.items():
            if pin.lineage and not self._lineages.get(pin.lineage, False):
                self._add(None, f"the state that is pinned as {label!r} is not whole", RESTORE)


def _record(seal: Seal, stored: StoredRecord) -> Record:
    return decode_record(seal.open(stored.sequence, stored.payload))


async def _check_states(store: Store, view: RunView, where: str) -> list[Finding]:
    keys = [key for key in view.streams if key != RUN_STREAM]
    try:
        found = await check_states(store, view, keys)
    except MissingExtraError as error:
        what = f"its states were not looked at: {error.name} is not installed"
        advice = pip_command(error.extra)
        return [Finding(where, what, advice, Severity.NOTE, run_id=view.run_id)]
    except TrioCkptError as error:
        return [Finding(where, str(error), RESTORE, run_id=view.run_id)]
    return [attrs.evolve(one, where=f"{where}, {one.where}") for one in found.problems]
