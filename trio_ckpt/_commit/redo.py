"""Re-queueing confirmed batches: single ones, or all after one of them.

Theory of operation
===================

Records are never removed from a store.  A REDO record names the batches that are re-queued and
subtracts, exactly, what they had added; their outputs are moved into the archive of the output
folder once it is saved, or before it where they are damaged.  This ensures that progress is never
ahead of the outputs.

An independent batch can be redone alone.  Where later ones build on it (a state, a cursor, an
append file), all batches after it in the *sequence* are re-queued, and state and cursor are
restored to their values before it, which older records still contain.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from types import MappingProxyType
from typing import Any

import attrs
import msgspec
import trio

from .._journal.history import DONE_KINDS, LiveRecord, LiveRecords, live_records, read_pages
from .._journal.item_marks import add_marks, encode_marks, item_mark
from .._journal.progress import Progress
from .._journal.record import (
    Output,
    Record,
    RecordKind,
    SinkLines,
    Status,
    Taken,
    encode_record,
)
from .._journal.store import Store
from .._util.errors import (
    CannotRedoError,
    OutputsMissingError,
    StoreDamagedError,
    describe_batch,
)
from .._util.exact_sum import ExactSum, add_amounts, encode_sums
from .._util.index_set import IndexSet
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.text import batches_are, one_line, plural
from .._util.threads import run_blocking
from ..outputs import Outputs, keep_tail
from .group_commit import GroupCommitter
from .path_owners import PathOwners
from .stream_log import StreamLog

log = get_logger(__name__)

Reverting = Callable[[IndexSet], AbstractAsyncContextManager[None]]


@attrs.define(eq=False, repr=False)
class Reversal:
    """What re-queued batches had added, which a REDO record subtracts.

    Attributes:
        indexes: The batches.
        confirmed: Those of them that were not skipped.
        records, totals, spent: What they added, exactly.
        lines: How many bytes they appended, by append file.
        items, skipped_items: Marks of their items, as in `Progress`.
    """

    indexes: IndexSet = attrs.field(factory=IndexSet)
    confirmed: IndexSet = attrs.field(factory=IndexSet)
    records: int = 0
    totals: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    spent: dict[str, ExactSum] = attrs.field(factory=dict[str, ExactSum])
    lines: dict[str, int] = attrs.field(factory=dict[str, int])
    items: int = 0
    skipped_items: int = 0

    def add(self, index: int, record: Record) -> None:
        """Add a batch with its record."""
        self.indexes.add(index)
        mark = item_mark(index, record.item) if record.item else 0
        self.items = add_marks(self.items, mark)
        if record.kind is RecordKind.SKIP:
            self.skipped_items = add_marks(self.skipped_items, mark)
        self.records += record.records
        add_amounts(self.totals, record.totals)
        if record.kind is RecordKind.BATCH:
            self.confirmed.add(index)
            add_amounts(self.spent, record.spent)
        for lines in record.lines:
            self.lines[lines.path] = self.lines.get(lines.path, 0) + lines.size


@attrs.define(eq=False, repr=False)
class Redo:
    """Re-queues batches of one stream, none of which has an open attempt.

    Attributes:
        store: The store with the records.
        committer: Saves the records.
        stream_log: The log of the stream.
        outputs: The folder of its outputs; None: outputs are not moved.
        path_owners: The batch that owns each output name, where the run is open.
        on_requeued: Called with the index of each batch as soon as progress says that it is
            re-queued: the batch may be handed out from then on.
        begin_change: Called after all checks have passed, before anything is saved.
        reverting: A block, for the batches, in which the record is saved.  Entering it refuses by
            `CannotRedoError`; leaving it takes their rows in a database of the user back.
        beside: A record of another stream that is saved in one group with the one that re-queues.
    """

    store: Store
    committer: GroupCommitter
    stream_log: StreamLog
    outputs: Outputs | None
    path_owners: PathOwners = attrs.field(factory=PathOwners)
    on_requeued: Callable[[int], None] = lambda _index: None
    begin_change: Callable[[], Awaitable[None]] = trio.lowlevel.cancel_shielded_checkpoint
    reverting: Reverting = lambda _indexes: nullcontext()
    beside: tuple[StreamLog, Record] | None = None

    async def redo(self, indexes: Collection[int], reason: str) -> None:
        """Re-queue single batches that are confirmed or skipped.

        One that a verification re-queues at the same time is re-queued once.

        Raises:
            ValueError: a batch is neither confirmed nor skipped.
            CannotRedoError: later batches build on them.

        Durability: when this returns the record is durable, and their outputs are in the archive.
        """
        progress, wanted = self.stream_log.progress, IndexSet(indexes)
        if strangers := [index for index in wanted if not progress.is_done(index)]:
            raise ValueError(
                "only confirmed or skipped batches can be redone; these are neither confirmed nor "
                f"skipped: {strangers[:10]}"
            )
        async with self.stream_log.tools.redo_lock:
            left = IndexSet(index for index in wanted if progress.is_done(index))
            if left and progress.is_ordered:
                first = next(iter(left))
                raise self._cannot_redo(
                    first,
                    f"batch {first} cannot be redone alone, because later ones build on it; rewind "
                    "the stream to before it",
                )
            if left:
                reversal, _ = await self._reversal_of(left)
                await self._revert(reversal, reason)

    def _cannot_redo(self, index: int, reason: str) -> CannotRedoError:
        run_id, key = self.committer.run_key.run_id, self.stream_log.key
        return CannotRedoError(None, reason, run_id=run_id, stream=key, batch_index=index)

    async def _reversal_of(self, wanted: IndexSet) -> tuple[Reversal, int]:
        """What batches have added, and the sequence number of the oldest of their records."""
        reversal, oldest = Reversal(), 0
        async with aclosing(self._live_records()) as entries:
            async for entry in entries:
                if entry.index in wanted:
                    reversal.add(entry.index, entry.record)
                    oldest = entry.sequence
                if len(reversal.indexes) == len(wanted):
                    break
        return reversal, oldest

    async def rewind(self, to: int, reason: str) -> IndexSet:
        """Re-queue all batches after `to`; returns which.

        Where batches build on each other, those that were saved after the first of them
        are re-queued, too.

        Durability: when this returns the record is durable, and their outputs are in the archive.
        """
        async with self.stream_log.tools.redo_lock:
            return await self._rewind(to, reason)

    async def _rewind(self, to: int, reason: str) -> IndexSet:
        progress = self.stream_log.progress
        if to < progress.first_index and progress.started_at is not None:
            return await self._rewind_before(1, reason, to=to)
        wanted = progress.done.after(to)
        if not wanted:
            return wanted
        reversal, oldest = await self._reversal_of(wanted)
        if progress.is_ordered:
            return await self._rewind_before(oldest, reason, to=to)
        await self._revert(reversal, reason, index=to)
        return reversal.indexes

    async def rewind_before(self, cut: int, reason: str) -> IndexSet:
        """Re-queue the batches that were saved from sequence `cut` on; returns which.

        Durability: when this returns the record is durable, and their outputs are in the archive.
        """
        async with self.stream_log.tools.redo_lock:
            return await self._rewind_before(cut, reason)

    async def _rewind_before(
        self,
        cut: int,
        reason: str,
        *,
        to: int | None = None,
        lost: Mapping[str, int] = MappingProxyType({}),
    ) -> IndexSet:
        progress = self.stream_log.progress
        reversal, state, cursor = Reversal(lines=dict(lost)), b"", None
        is_found = {"state": not progress.has_state, "cursor": not progress.has_cursor}
        resets = progress.has_state
        live = LiveRecords(progress)
        async with aclosing(self._pages()) as pages:
            async for records in pages:
                for entry in live.of(records, DONE_KINDS):
                    if entry.sequence >= cut:
                        reversal.add(entry.index, entry.record)
                for sequence, record in records:
                    if sequence >= cut:
                        continue
                    if not is_found["state"] and _says_state(record):
                        is_found["state"], state = True, record.state
                        resets = not record.state
                    if not is_found["cursor"] and record.cursor is not msgspec.UNSET:
                        is_found["cursor"], cursor = True, record.cursor
                if records and records[-1][0] < cut and all(is_found.values()):
                    break
        first = next(iter(reversal.indexes), 0)
        if state:
            await self._check_restorable(cut, first)
        await self._keep_tails(reversal.lines)
        await self._revert(
            reversal,
            reason,
            index=first - 1 if to is None else to,
            cursor=cursor if progress.has_cursor else msgspec.UNSET,
            state=state,
            resets_state=resets,
        )
        return reversal.indexes

    async def _check_restorable(self, cut: int, first: int) -> None:
        """Raise CannotRedoError unless the store still has the whole state before a sequence."""

        async def older() -> AsyncGenerator[list[tuple[int, Record]]]:
            async with aclosing(self._pages()) as pages:
                async for records in pages:
                    yield [entry for entry in records if entry[0] < cut]

        from ..state._chain import read_chain  # only a stream with a state has chains

        try:
            chain, _ = await read_chain(older(), with_snapshots=False)
            for _, frame in chain:
                if frame.blob:
                    await self.store.read_blob(self.committer.run_key.run_id, frame.blob, 0, 1)
        except StoreDamagedError as error:
            raise self._cannot_redo(
                first,
                f"the state before batch {first} is not kept any more ({error}): retention= limits "
                "how many states are; start from the beginning with fresh=True",
            ) from error

    async def rewind_shortened(self, path: str, size: int, *, may_lose: bool) -> IndexSet:
        """Re-queue the batches that appended beyond the first `size` bytes of a file.

        What was in it when the generation began is of no batch.  Where some of that is missing, the
        file begins from nothing, and what is left of it is in the archive.

        Args:
            path: The file.
            size: How many bytes of it are there.
            may_lose: Whether it may begin from nothing.

        Raises:
            OutputsMissingError: it would have to, and may not.

        Durability: when this returns the record is durable, and their outputs are in the archive.
        """
        end, cut = self.stream_log.progress.sinks[path], 0
        async with aclosing(self._live_records()) as entries:
            async for entry in entries:
                for lines in entry.record.lines:
                    if lines.path == path and end > size:
                        cut, end = entry.sequence, end - lines.size
                if end <= size:
                    break
        reason = f"{path} was shortened to {plural(size, 'byte')}"
        where = describe_batch(self.committer.run_key.run_id, self.stream_log.key, None)
        log.warning(
            "%s: %s", where, reason, extra=at(self.committer.run_key.run_id, self.stream_log.key)
        )
        if end <= size:
            return await self.rewind_before(cut, reason)
        if not may_lose:
            raise OutputsMissingError(
                path,
                f"{end - size} of the {plural(end, 'byte')} that it had from the last generation "
                "are missing; redo_missing=True begins the file from nothing, and what is left of "
                "it goes to .archive/",
                run_id=self.committer.run_key.run_id,
                stream=self.stream_log.key,
            )
        async with self.stream_log.tools.redo_lock:
            if not cut:
                await self._keep_tails({path: end})
                await self._save(Reversal(lines={path: end}), {"reason": reason})
                return IndexSet()
            return await self._rewind_before(cut, reason, lost={path: end})

    async def take_damaged(self, entry: LiveRecord, path: str, reason: str) -> None:
        """Re-queue one batch whose outputs are damaged, unless it is re-queued already.

        The outputs are moved first: another task may be waiting to write them.
        """
        async with self.stream_log.tools.redo_lock:
            index = entry.index
            if (
                index in self.stream_log.tools.redone
                or index not in self.stream_log.progress.confirmed
            ):
                return
            reversal = Reversal()
            reversal.add(index, entry.record)
            async with self.reverting(reversal.indexes):
                await self._set_aside(index, entry.record.outputs)
                await self._save(reversal, {"path": path, "reason": reason})

    # -- how ----------------------------------------------------------------------------------

    def _pages(self) -> AsyncGenerator[list[tuple[int, Record]]]:
        """Read the records of the stream, newest first."""
        key = self.committer.run_key
        return read_pages(self.store, key.run_id, key.generation, self.stream_log.key)

    def _live_records(self) -> AsyncGenerator[LiveRecord]:
        return live_records(self.stream_log.progress, self._pages)

    async def _revert(self, reversal: Reversal, reason: str, **fields: Any) -> None:
        where = describe_batch(self.committer.run_key.run_id, self.stream_log.key, None)
        log.info(
            "%s: %s re-queued: %s",
            where,
            batches_are(reversal.indexes),
            one_line(reason),
            extra=at(self.committer.run_key.run_id, self.stream_log.key),
        )
        async with self.reverting(reversal.indexes):
            await self._save(reversal, {"reason": reason}, **fields)
        with trio.CancelScope(shield=True):
            await self._archive(reversal.confirmed)

    async def _save(
        self,
        reversal: Reversal,
        metadata: dict[str, Any],
        *,
        index: int | None = None,
        cursor: Any = msgspec.UNSET,
        state: bytes = b"",
        resets_state: bool = False,
    ) -> None:
        stream_log = self.stream_log
        await self.begin_change()
        record = Record(
            kind=RecordKind.REDO,
            at=time.time(),
            index=index,
            steps=tuple(reversal.indexes.to_steps()),
            records=reversal.records,
            lines=tuple(SinkLines(path, size, b"") for path, size in reversal.lines.items()),
            taken=Taken(encode_sums(reversal.totals), encode_sums(reversal.spent), resets_state),
            items=encode_marks(reversal.items),
            skipped_items=encode_marks(reversal.skipped_items),
            cursor=cursor,
            state=state,
            metadata=metadata,
        )

        blobs: tuple[str, ...] = ()
        if state:
            from ..state._chain import blobs_of  # as above

            blobs = blobs_of(state)

        def on_durable() -> None:
            for index in reversal.indexes:
                stream_log.tools.redone.add(index)
                self.on_requeued(index)
            stream_log.tools.cut_back.update(reversal.lines)

        pending = await self.committer.submit(
            stream_log,
            record,
            encode_record(record),
            lambda error: on_durable() if error is None else None,
            blobs=blobs,
        )
        if self.beside is not None:  # submitted in one step of the scheduler: one group has both
            own, note = self.beside
            await self.committer.submit(own, note, encode_record(note), lambda _error: None)
        await pending.wait()
        for path in reversal.lines:  # shorter now: the next append opens it again at its end
            if path in stream_log.sinks:
                stream_log.sinks.pop(path).close()

    async def _archive(self, taken: IndexSet) -> None:
        """Move the outputs of re-queued batches into the archive."""
        if self.outputs is None or self.stream_log.progress.outputs == 0:
            return
        progress, left = attrs.evolve(self.stream_log.progress, confirmed=taken), len(taken)
        records = live_records(progress, self._pages, (RecordKind.BATCH,))
        async with aclosing(records):
            async for entry in records:
                await self._set_aside(entry.index, entry.record.outputs)
                left -= 1
                if left <= 0:
                    break

    @property
    def _label(self) -> str:
        key = self.committer.run_key
        return f"{key.run_id}-{key.generation}-redo"

    async def _set_aside(self, index: int, outputs: tuple[Output, ...]) -> None:
        """Move the outputs of a batch, except names that another batch owns already."""
        owner = (self.stream_log.text, index)
        paths = [o.path for o in outputs if self.path_owners.get(o.path) in (None, owner)]
        if self.outputs is not None and paths:
            await run_blocking(self.outputs.archive, paths, self._label)
            for path in paths:
                self.path_owners.drop(path, owner)

    async def _keep_tails(self, lines: dict[str, int]) -> None:
        """Copy the lines that are about to be cut off into the archive."""
        if self.outputs is None:
            return
        for path, size in lines.items():
            end = self.stream_log.progress.sinks[path]
            if path in self.stream_log.sinks:
                self.stream_log.sinks.pop(path).close()
            await run_blocking(keep_tail, self.outputs, path, end - size, self._label)


def retry_record(
    run_id: str, key: StreamKey, progress: Progress, *, is_asked: bool = False
) -> Record | None:
    """The record that re-queues the skipped and failed batches of a stream; None: there are none.

    Args:
        run_id: The run.
        key: The key of the stream.
        progress: Its progress.
        is_asked: Whether deferred batches are re-queued, too, because the user asks for it now.

    Raises:
        CannotRedoError: later batches build on one that was skipped.
    """
    lifted = IndexSet(progress.deferred if is_asked else ())
    if not (progress.skipped or lifted) and progress.status is not Status.FAILED:
        return None
    if (first := progress.built_over) is not None:
        raise CannotRedoError(
            None,
            f"batch {first} was skipped and cannot be tried again alone, because later ones build "
            f"on the state or cursor after it; rewind the stream to batch {first - 1}, or open it "
            "with retry_failed=False",
            run_id=run_id,
            stream=key,
            batch_index=first,
        )
    failed = IndexSet(index for index in progress.failures if index not in progress.deferred)
    indexes = progress.skipped.union(failed).union(lifted)
    return Record(kind=RecordKind.RETRY, at=time.time(), steps=tuple(indexes.to_steps()))


def _says_state(record: Record) -> bool:
    """Whether a record contains the confirmed state of its time; a snapshot never does."""
    if record.kind is RecordKind.SNAPSHOT:
        return False
    return bool(record.state) or (record.taken is not None and record.taken.resets_state)
