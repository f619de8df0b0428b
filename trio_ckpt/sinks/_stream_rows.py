"""The rows of one open stream: which of its batches are in the database, and who may commit more.

Theory of operation
===================

Rows and records are in two databases, and no transaction spans both.  So the transaction of the
rows also has the record of their batch, as a *marker*; then the record is saved in the store.

    rows -> marker, with the record -> COMMIT -> record in the store -> token -> the loop wakes

A process may end anywhere between.  Before the COMMIT there is neither row nor record, and the
batch runs again.  After it, the next opening finds a marker whose batch is not done, and saves its
record: the one that would have been saved, with its cursor, sums, outputs and frontier items.
This ensures that the batch is not handed out again.

**A connection that breaks during the COMMIT** says nothing.  The marker says it, once no older
transaction can commit any more: each one holds the fence of its stream from its marker on, shared,
and who asks waits until it can hold the fence alone.

**A former owner** commits nothing.  Taking a stream writes the new owner into its fence, after it
has waited for the transactions that hold the fence.  The statement of the marker compares the
owner in the fence, and writes nothing where it is another one.

**Re-queued batches** lose their rows after the record of the re-queue is saved, in one transaction
with the sequence number up to which that was done.  An opening reads the records after that
number.  This ensures that a crash in between, and a re-queue by a command that knows no sink, are
followed by the next opening, before a batch can run again.  A new fence has followed none: its
database may have the rows, and have lost the markers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeVar

import attrs
import trio

from .._commit.open_stream import OpenStream
from .._commit.saves import save_record
from .._journal.history import ReadPages
from .._journal.record import Record, RecordKind, decode_record
from .._util.errors import (
    CannotRedoError,
    SaveOutcomeUnknownError,
    SinkError,
    SinkFencedError,
    StoreDamagedError,
    TrioCkptError,
)
from .._util.index_set import IndexSet
from .._util.log import get_logger
from .._util.text import batches_are, moment, plural
from .._util.uninterrupted import uninterrupted
from ._connection import SinkConnection, close_connection, end_connection
from ._driver import Driver
from ._marker import CLEAR, FENCE, FOLLOWED, TAKE, MarkedStream, MarkerRow, SinkMarker
from ._session import Session, read_rows

log = get_logger(__name__)

ASK_S = 60.0  # how long a database that does not answer is asked about a commit
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0

Undo = Callable[[SinkConnection, SinkMarker], Awaitable[object]]

_E = TypeVar("_E", bound=TrioCkptError)


@uninterrupted
@attrs.define(eq=False)
class StreamRows:
    """The rows of an open stream.

    Attributes:
        driver: The kind of the database.
        open_stream: The stream.
    """

    driver: Driver
    _lend: Callable[[], AbstractAsyncContextManager[Session]]
    _undo: Undo | None
    open_stream: OpenStream
    _pages: ReadPages
    _marked: MarkedStream | None = attrs.field(default=None, init=False)
    _followed: int = attrs.field(default=0, init=False)  # re-queues up to here have lost their rows
    _is_behind: bool = attrs.field(default=False, init=False)  # or later ones may not have yet
    _reverting: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    # -- opening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the stream, take rows of re-queued batches back, save the records of others.

        Raises:
            SinkError: the database cannot be used, or its markers are not those of the stream.
            SinkFencedError: it knows a newer owner.
            CannotRedoError: rows have to be taken back, and the sink has no `undo`.

        Durability: when this returns, batches that have rows are confirmed.
        """
        open_stream = self.open_stream
        progress = open_stream.stream_log.progress
        if progress.started_at is None:  # its first record tells it from other runs of its name
            await open_stream.save_plain(Record(kind=RecordKind.SAVE, at=time.time()))
        began, key = progress.started_at or 0.0, open_stream.committer.run_key
        text = open_stream.stream_log.text
        self._marked = marked = MarkedStream(key.run_id, text, key.owner, began)
        rows = await self._take(marked)
        self._followed = max((row.sequence for row in rows), default=0)
        landed = {
            row.batch: row
            for row in rows
            if row.batch is not None and not progress.is_done(row.batch)
        }
        redone, has_redo = await self._redone()
        if has_redo:  # what they built on may be gone
            await self._take_back(redone.union(IndexSet(landed)))
        else:
            await self._adopt(landed)

    async def _take(self, marked: MarkedStream) -> list[MarkerRow]:
        """Make this process the owner of the stream in the database; returns its markers."""
        async with self._lend() as session:
            await session.begin(is_asking=True)
            try:
                rows = await session.call(self._take_in_thread, marked)
                await session.commit()
            except self.driver.errors as error:
                raise self.driver.sink_error("reading the markers", error) from error
            finally:
                await session.rollback()
        return rows

    def _take_in_thread(self, raw: Any, marked: MarkedStream) -> list[MarkerRow]:
        values = marked.values()
        if not self.driver.has_table(raw):
            self._check_new()
            self.driver.make_table(raw)
        self.driver.lock_fence(raw, values)
        rows = read_rows(self.driver, raw, values)
        fence = next((row for row in rows if row.slot == FENCE), None)
        if fence is None:
            self._check_new()
        else:
            self._check_fence(fence, marked)
        if not raw.execute(self.driver.spell(TAKE), values).rowcount:
            return self._take_in_thread(raw, marked)  # another process has made the fence since
        return rows

    def _check_new(self) -> None:
        """Raise SinkError where batches are confirmed, whose rows the database should have."""
        confirmed = len(self.open_stream.stream_log.progress.confirmed)
        if confirmed:
            raise self._error(
                SinkError,
                f"{self.driver.name} has no markers of {self.open_stream.where()}, which has "
                f"{plural(confirmed, 'confirmed batch')}: it is another database, or has lost its "
                "table trio_ckpt_markers; name the right one, restore it from a copy, or rewind "
                "the stream to before its first batch, so that all rows are written again",
            )

    def _check_fence(self, fence: MarkerRow, marked: MarkedStream) -> None:
        """Raise where the markers are those of another run, or of a newer owner."""
        if fence.began != marked.began:
            raise self._error(
                SinkError,
                f"{self.driver.name} has markers of another {self.open_stream.where()}, begun at "
                f"{moment(fence.began)}; this one began at {moment(marked.began)}: name another "
                f"database or run, or remove those rows, and the markers of run {marked.run_id!r} "
                "from the table trio_ckpt_markers",
            )
        if fence.owner > marked.owner:
            raise self._fenced(fence.owner)

    async def _adopt(self, landed: Mapping[int, MarkerRow]) -> None:
        """Save the records of batches whose rows are committed."""
        open_stream = self.open_stream
        for index, row in landed.items():
            record, costs = self._record_in(row), open_stream.intents.costs_of(index)
            await save_record(open_stream.committer, open_stream.stream_log, record)
            if open_stream.limits is not None:
                open_stream.limits.end_reserved(costs)  # of notes: the record has it as spent
                open_stream.limits.add_cost(record)
            open_stream.files.release(index, record.outputs)
            open_stream.settled(index)
        if landed:
            log.info(
                "%s: %s confirmed by the rows in the database",
                open_stream.where(),
                batches_are(IndexSet(landed)),
                extra=open_stream.place(),
            )

    def _record_in(self, row: MarkerRow) -> Record:
        try:
            record = decode_record(row.record or b"")
        except StoreDamagedError as error:
            raise self._error(SinkError, self._bad_marker(row, str(error))) from error
        if record.kind is not RecordKind.BATCH or record.index != row.batch:
            raise self._error(SinkError, self._bad_marker(row, "it is of another batch"))
        return record

    def _bad_marker(self, row: MarkerRow, problem: str) -> str:
        return (
            f"{self.driver.name}: the marker of {self.open_stream.where(row.batch)} is damaged "
            f"({problem}); restore the table trio_ckpt_markers from a copy"
        )

    # -- committing -----------------------------------------------------------------------------

    async def commit(
        self, session: Session, index: int, payload: bytes, has_more: bool
    ) -> Exception | None:
        """Commit the rows of a batch, with its record as their marker.

        Args:
            session: The connection, in the transaction.
            index: The batch.
            payload: Its encoded record.
            has_more: Whether the record names blobs or lines, which the marker does not have.

        Returns:
            Why nothing was committed; None: all is.

        Raises:
            SinkFencedError: a newer owner has the stream; nothing was committed, and the run ends.
            SaveOutcomeUnknownError: the database does not say whether it was; the run ends.

        Durability: when this returns None, rows and marker are durable.
        """
        marked, committer = self._marked, self.open_stream.committer
        if committer.poison is not None:
            return committer.poison
        if has_more:
            return self._error(
                SinkError,
                f"{self.open_stream.where(index)} has rows in a database, and also lines of an "
                "append file or a state with large arrays, which their transaction cannot contain: "
                "put them into another stream",
                index,
            )
        if marked is None:
            return self._error(SinkError, f"{self.open_stream.where()} is not open", index)
        progress = self.open_stream.stream_log.progress
        sequence = self._followed if self._is_behind else progress.sequence
        marker = MarkerRow(session.number, marked.owner, marked.began, sequence, index, payload)
        values = marked.values(slot=marker.slot, sequence=sequence, batch=index, record=payload)
        try:
            if not await session.is_in_transaction():
                return self._error(SinkError, self._ended_inside(index), index)
            has_marked = await session.execute(self.driver.mark, values)
        except self.driver.errors as error:  # COMMIT was not sent: nothing is committed
            is_lost = self.driver.lacks_table(error)
            return self._error(SinkError, self._lost(), index) if is_lost else error
        if not has_marked:
            await session.rollback()
            return self._judge_fence(await session.read_markers(marked), marked)
        try:
            await session.commit()
        except Exception as error:  # of any kind: it may have landed
            return await self._find_out(session, marked, marker, error)
        return None

    def _ended_inside(self, index: int) -> str:
        return (
            f"the transaction of {self.open_stream.where(index)} was ended inside its block: leave "
            "COMMIT and ROLLBACK to the end of the block"
        )

    def _judge_fence(self, rows: Collection[MarkerRow], marked: MarkedStream) -> Exception:
        """Why the fence refused a marker.

        Raises:
            SinkFencedError: it has a newer owner; the run is poisoned.
        """
        fence = next((row for row in rows if row.slot == FENCE), None)
        if fence is None:
            return self._error(SinkError, self._lost())
        if fence.owner != marked.owner or fence.began != marked.began:
            raise self.open_stream.committer.set_poison(self._fenced(fence.owner))
        return self._error(SinkError, f"{self.driver.name} took no marker")

    async def _find_out(
        self, session: Session, marked: MarkedStream, marker: MarkerRow, problem: Exception
    ) -> Exception | None:
        """Ask the database whether a commit has landed that it gave no answer to.

        Returns:
            None: it has landed; else why it has not.

        Raises:
            SinkFencedError: a newer owner has the stream, and knows.
            SaveOutcomeUnknownError: it does not answer; the run is poisoned.
        """
        until, pause_s = trio.current_time() + ASK_S, _FIRST_PAUSE_S
        while True:
            await session.discard()
            try:
                rows = await session.read_markers(marked)
                break
            except Exception as error:
                if trio.current_time() >= until:
                    raise self._unknown(marker, error) from problem
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        has_landed = marker in rows
        log.warning(
            "%s: the commit of %s was not answered (%s): its rows are %s",
            self.driver.name,
            self.open_stream.where(marker.batch),
            self.driver.reason_of(problem),
            "there" if has_landed else "not there",
            extra=self.open_stream.place(marker.batch),
        )
        if has_landed:
            return None
        fence = next((row for row in rows if row.slot == FENCE), None)
        is_own = fence is not None and fence.owner == marked.owner
        return problem if is_own else self._judge_fence(rows, marked)

    def _unknown(self, marker: MarkerRow, error: Exception) -> Exception:
        where, index = self.open_stream.where(marker.batch), marker.batch
        return self.open_stream.committer.set_poison(
            self._error(
                SaveOutcomeUnknownError,
                f"{self.driver.name} does not say whether the rows of {where} are committed "
                f"({self.driver.reason_of(error)}); start the run again to find out",
                index,
            )
        )

    # -- re-queued batches ----------------------------------------------------------------------

    async def wait_reverted(self) -> None:
        """Wait until the rows of batches that are being re-queued are taken back."""
        if self._is_behind:
            async with self._reverting:
                if self._is_behind:  # taking them back has failed
                    await self._follow()

    @asynccontextmanager
    async def reverting(self, indexes: IndexSet) -> AsyncGenerator[None]:
        """Open a block in which the record of a re-queue is saved; then the rows are taken back.

        Raises:
            CannotRedoError: the sink has no `undo`; nothing was changed.
        """
        if self._marked is None:  # the opening follows
            yield
            return
        self._check_undo(indexes)
        async with self._reverting:
            self._is_behind = True
            yield
            await self._follow()

    async def _follow(self) -> None:
        """Take the rows of batches back that records have re-queued."""
        redone, _ = await self._redone()
        await self._take_back(redone)
        self._is_behind = False

    def _check_undo(self, indexes: IndexSet) -> None:
        if indexes and self._undo is None:
            raise CannotRedoError(
                None,
                f"{self.open_stream.where()}: the rows of {plural(len(indexes), 'batch')} "
                f"({indexes}) have to be taken back from {self.driver.name}, and the sink does not "
                "know how: give it undo=",
                run_id=self.open_stream.run_id,
                stream=self.open_stream.stream_log.key,
                batch_index=next(iter(indexes)),
            )

    async def _redone(self) -> tuple[IndexSet, bool]:
        """The batches that newer records have re-queued, and whether there is such a record."""
        redone, has_redo = IndexSet(), False
        async with aclosing(self._pages()) as pages:
            async for records in pages:
                for sequence, record in records:
                    if sequence > self._followed and record.kind is RecordKind.REDO:
                        has_redo = True
                        redone = redone.union(IndexSet.from_steps(record.steps))
                if not records or records[-1][0] <= self._followed:
                    break
        return redone, has_redo

    async def _take_back(self, indexes: IndexSet) -> None:
        """Take the rows of batches back, in one transaction with how far that has come."""
        marked, sequence = self._marked, self.open_stream.stream_log.progress.sequence
        if marked is None:
            return
        self._check_undo(indexes)
        async with self._lend() as session:
            await session.begin()
            connection = SinkConnection(session)
            try:
                for index in indexes:
                    marker = SinkMarker(marked.run_id, self.open_stream.stream_log.key, index)
                    if self._undo is not None:
                        await self._undo(connection, marker)
                end_connection(connection, f"undo of {self.open_stream.where()}")
                await self._note_followed(session, marked, indexes, sequence)
            finally:
                close_connection(connection)
                await session.rollback()
        self._followed = sequence
        if indexes:
            log.info(
                "%s: the rows of %s taken back",
                self.open_stream.where(),
                batches_are(indexes),
                extra=self.open_stream.place(),
            )

    async def _note_followed(
        self, session: Session, marked: MarkedStream, indexes: IndexSet, sequence: int
    ) -> None:
        values = marked.values(sequence=sequence)
        try:
            if not await session.execute(FOLLOWED, values):
                await session.rollback()
                raise self._judge_fence(await session.read_markers(marked), marked)
            for row in await session.read_rows(marked):
                if row.batch is not None and row.batch in indexes:
                    await session.execute(CLEAR, marked.values(slot=row.slot))
            await session.commit()
        except self.driver.errors as error:
            raise self.driver.sink_error("taking rows back", error) from error

    # -- errors ---------------------------------------------------------------------------------

    def _lost(self) -> str:
        return (
            f"{self.driver.name} has lost its markers of {self.open_stream.where()} while it was "
            "open: restore the table trio_ckpt_markers from a copy"
        )

    def _fenced(self, owner: int) -> SinkFencedError:
        return self._error(
            SinkFencedError,
            f"{self.driver.name}: {self.open_stream.where()} belongs to a newer owner, number "
            f"{owner}; this process commits nothing more there",
        )

    def _error(self, kind: type[_E], message: str, index: int | None = None) -> _E:
        return self.open_stream.error(kind, message, index)
