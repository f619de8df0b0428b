"""Owns a run without working on it: what commands do to a run that is not open."""

# The steps of a repair use private parts of `Maintenance`, which users see no more of.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial

import attrs
import msgspec

from .._commit.group_commit import GroupCommitter
from .._commit.lease import open_committer
from .._commit.redo import Redo, retry_record
from .._commit.saves import save_record, save_records
from .._commit.stream_log import StreamLog
from .._journal.changes import check_prunable
from .._journal.history import iter_records, read_known_run, read_pages, session_metadata_of
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind
from .._journal.store import Pruned, RunKey, RunView, Store
from .._journal.summary import in_order
from .._runs.manifest import MANIFEST, RunContents, set_manifest_aside, write_manifest
from .._runs.resume import up_to
from .._runs.run_lock import take_lock
from .._runs.session import ARCHIVING, archive_generations, archived_note, replaced_by_next
from .._util.arguments import (
    MAX_INDEX,
    instance,
    seconds,
    several,
    stream_key,
    text,
    whole_number,
    whole_numbers,
)
from .._util.errors import StoreDamagedError, UnknownRunError, UnknownStreamError
from .._util.index_set import IndexSet
from .._util.opening import opening
from .._util.plain import RUN_STREAM, StreamKey, encode_key
from .._util.text import stream_name
from .._util.threads import run_blocking
from ..outputs import AnyPath, AppendFile, Outputs, keep_tail, open_existing
from ..state._retention import Retention
from ..state._shared_capture import ArrayTools
from .compact import Compacted, Compaction, add_up
from .verify_states import is_whole


@attrs.define(eq=False)
class Maintenance:
    """A run that is owned for maintenance; from `open_maintenance`.

    Attributes:
        store: The run's store.
        view: The run as it was found.
        outputs: Its output folder; None: it has none, or the folder is gone.
    """

    store: Store
    view: RunView
    outputs: Outputs | None
    _committer: GroupCommitter
    _run_key: RunKey
    _stream_logs: dict[StreamKey, StreamLog] = attrs.field(
        factory=dict[StreamKey, StreamLog], init=False
    )

    async def retry(self, keys: Iterable[StreamKey] | None = None) -> int:
        """Re-queue what was skipped, has failed for good or is deferred.

        Args:
            keys: Only these streams; default: all.

        Returns:
            How many streams had something to re-queue.

        Raises:
            UnknownStreamError: there is no such stream.
            CannotRedoError: later batches build on what was skipped; nothing is changed.

        Durability: when this returns it is saved.
        Cancellation: as for `Stream.redo`.
        """
        parts = {key: entry.progress for key, entry in self.view.streams.items()}
        wanted = in_order(parts) if keys is None else self._known(keys)
        run_id = self.view.run_id
        records = [
            (self._stream_log(key), retry_record(run_id, key, parts[key], is_asked=True))
            for key in wanted
        ]
        found = [(stream_log, record) for stream_log, record in records if record is not None]
        if found:
            await self._begin_change()
        await save_records(self._committer, found)
        return len(found)

    async def redo(self, key: StreamKey, indexes: Iterable[int], reason: str) -> None:
        """Re-queue single batches; see `Stream.redo`.

        Durability: when this returns the record is durable, and their outputs are in the archive.
        Cancellation: as for `Stream.redo`.
        """
        redo = self._redo(key)
        wanted = whole_numbers("indexes", indexes)
        await redo.redo(wanted, text("reason", reason))

    async def rewind(self, key: StreamKey, *, to: int, reason: str) -> IndexSet:
        """Re-queue all batches after one; see `Run.rewind`.

        Durability: when this returns the record is durable, and their outputs are in the archive.
        Cancellation: as for `Stream.redo`.
        """
        redo = self._redo(key)
        to = whole_number("to", to, least=-MAX_INDEX)
        return await redo.rewind(to, text("reason", reason))

    async def compact(
        self, keys: Iterable[StreamKey] | None = None, *, retention: Retention | None = None
    ) -> Compacted:
        """Merge saved states, so that a start reads only one, and drop old arrays.

        Args:
            keys: Only these streams; default: all.
            retention: Which old states keep their arrays; default: the newest two.  Pinned
                states always keep theirs, and a complete stream keeps only the newest.

        Raises:
            UnknownStreamError: there is no such stream.
            StoreDamagedError: a state is damaged.

        Durability: when this returns it is saved.
        Cancellation: a cancellation point between parts; what is merged by then is saved.
        """
        parts = {key: entry.progress for key, entry in self.view.streams.items()}
        wanted = in_order(parts) if keys is None else self._known(keys)
        tools = ArrayTools()
        kept = Retention() if retention is None else retention
        instance("retention", kept, Retention, "a Retention")
        done: list[Compacted] = []
        try:
            for key in wanted:
                stream_log = self._stream_log(key)
                compaction = Compaction(
                    self.store, self._committer, stream_log, tools, kept, self._begin_change
                )
                done.append(await compaction.run())
            return add_up(done)
        finally:
            tools.close()

    async def reset(self, reason: str) -> int:
        """Archive the run and its outputs: the next start begins at the first batch.

        Args:
            reason: The reason, which the history keeps.

        Returns:
            The generation that begins.

        Durability: when this returns the reset is saved, and the outputs are in the archive.
            They are moved after the save; the next start finishes what a crash interrupts, and
            moves them if their folder was missing here.
        Cancellation: a cancellation point until the reset is being saved; the next start finishes
            what is left of it.
        """
        text("reason", reason)
        key = msgspec.structs.replace(self._run_key, generation=self._run_key.generation + 1)
        replaced = await replaced_by_next(self.store, self.view)
        metadata: dict[str, object] = {"reset": reason}
        if replaced:
            metadata[ARCHIVING] = replaced
        ownership = self._committer.ownership
        async with open_committer(self.store, key, known={}, ownership=ownership) as committer:
            stream_log = committer.add_stream_log(RUN_STREAM, Progress())
            await save_record(
                committer,
                stream_log,
                Record(kind=RecordKind.NOTE, at=time.time(), metadata=metadata),
            )
            await self._take_up(key)
            if self.outputs is not None:
                await archive_generations(self.store, key.run_id, replaced, self.outputs)
                if replaced:
                    await save_record(committer, stream_log, archived_note(time.time()))
                await set_manifest_aside(key, self.outputs)
        return key.generation

    async def _take_up(self, key: RunKey) -> None:
        """Continue with another generation of the run."""
        view = await self.store.load_run(key.run_id)
        if view is not None:
            self.view = view
        self._run_key = key
        self._stream_logs.clear()

    async def prune(self, *, keep: int) -> Pruned:
        """Remove all generations of the run but the newest `keep`; see `Store.prune`.

        Raises:
            CannotRunAgainError: the newest one began from one that would be removed, and is not
                complete.

        Durability: removed generations do not come back after power loss.
        Cancellation: as for `Store.prune`.
        """
        check_prunable(self.view, whole_number("keep", keep))
        return await self.store.prune(self._run_key, keep=keep)

    async def _begin_change(self) -> None:
        """Set the manifest aside: it may not match the run after this change."""
        if self.outputs is not None:
            await set_manifest_aside(self._run_key, self.outputs)

    def _redo(self, key: StreamKey) -> Redo:
        stream_log = self._stream_log(stream_key("key", key))
        return Redo(
            self.store, self._committer, stream_log, self.outputs, begin_change=self._begin_change
        )

    def _known(self, keys: Iterable[StreamKey]) -> list[StreamKey]:
        given = several("keys", keys, "stream keys")
        return [self._stream_log(stream_key("a key", key)).key for key in given]

    def _stream_log(self, key: StreamKey) -> StreamLog:
        if key not in self.view.streams or key == RUN_STREAM:
            raise UnknownStreamError(
                f"run {self.view.run_id!r} has no stream {'/'.join(key)!r}",
                run_id=self.view.run_id,
                stream=key,
            )
        if key not in self._stream_logs:
            self._stream_logs[key] = self._committer.add_stream_log(
                key, self.view.streams[key].progress
            )
        return self._stream_logs[key]


@opening("maintenance")
async def open_maintenance(
    store: Store,
    run_id: str,
    *,
    output_dir: AnyPath | None = None,
    wait_for_lock_s: float = 0.0,
) -> AsyncGenerator[Maintenance]:
    """Own a run for a block, without working on it.

    Args:
        store: The run's store.
        run_id: The run.
        output_dir: The run's output folder; default: that of its last session.
        wait_for_lock_s: How long to wait for another owner of the run to end, in seconds.

    Raises:
        UnknownRunError: there is no such run.
        RunLockedError: another live process owns it, still after `wait_for_lock_s`.
        StoreError: the store cannot be used.

    Durability: see the methods.
    Cancellation: waits for a save in progress.
    """
    wait_s = seconds("wait_for_lock_s", wait_for_lock_s, is_endless_allowed=True)
    await read_known_run(store, run_id)  # before the lock, which would create the run
    async with AsyncExitStack() as stack:
        owner, _ = await take_lock(stack, store, run_id, wait_s)
        view = await store.load_run(run_id)
        if view is None:
            raise UnknownRunError(f"there is no run {run_id!r} in {store.url}", run_id=run_id)
        folder = session_metadata_of(view).get("output_dir") if output_dir is None else output_dir
        outputs = None if folder is None else await run_blocking(open_existing, folder)
        if outputs is not None:
            stack.callback(outputs.close)
            outputs.belong_to(run_id, owner, is_shared=store.lease_s is not None)
        run_key = RunKey(run_id, view.generation, owner)
        known = {key: entry.progress for key, entry in view.streams.items()}
        committer = await stack.enter_async_context(open_committer(store, run_key, known=known))
        yield Maintenance(store, view, outputs, committer, run_key)


async def save_act(
    maintenance: Maintenance, note: Record, key: StreamKey = (), caused: Iterable[Record] = ()
) -> None:
    """Save the record of an act, with those that it causes in a stream, in one group.

    Durability: when this returns all of them are durable.
    Cancellation: none once they are submitted.
    """
    records = [(maintenance._stream_log(key), record) for record in caused]
    if records:
        await maintenance._begin_change()
    await save_records(maintenance._committer, [*records, (_own_log(maintenance), note)])


def progress_in(maintenance: Maintenance, key: StreamKey) -> Progress:
    """The progress of a stream of an owned run.

    Raises:
        UnknownStreamError: there is no such stream.
    """
    return maintenance._stream_log(key).progress


async def redo_by_act(
    maintenance: Maintenance, key: StreamKey, indexes: IndexSet, note: Record, reason: str
) -> None:
    """Re-queue batches as an act asks; see `Stream.redo`.

    Durability: when this returns both records are durable, and the outputs are in the archive.
    Cancellation: as for `Stream.redo`.
    """
    redo = attrs.evolve(maintenance._redo(key), beside=(_own_log(maintenance), note))
    await redo.redo(list(indexes), reason)


def _own_log(maintenance: Maintenance) -> StreamLog:
    """The log of the run's own stream, for one record."""
    own = maintenance.view.streams.get(RUN_STREAM)
    return maintenance._committer.add_stream_log(RUN_STREAM, own.progress if own else Progress())


# ---------------------------------------------------------------------------------------
# Steps of a repair
# ---------------------------------------------------------------------------------------


async def recover_state(maintenance: Maintenance, key: StreamKey) -> IndexSet | None:
    """Go back to the newest confirmed state that is whole; return the re-queued batches.

    A start with ``recover=True`` does the same.

    Returns:
        The indexes; None: the newest state is whole.

    Raises:
        StoreDamagedError: none is; `verify --repair --accept-loss` starts the stream again.

    Durability: as for `Stream.redo`.
    Cancellation: as for `Stream.redo`.
    """
    redo, store = maintenance._redo(key), maintenance.store
    place = (store, maintenance.view.run_id, maintenance._run_key.generation, key)
    pages = partial(read_pages, *place)
    if await is_whole(store, maintenance.view.run_id, pages()):
        return None
    async with aclosing(iter_records(*place)) as newest_first:
        async for sequence, record in newest_first:
            if not record.state or record.kind is RecordKind.SNAPSHOT:
                continue
            if await is_whole(store, maintenance.view.run_id, up_to(pages, sequence)):
                reason = f"the states after sequence {sequence} are damaged"
                return await redo.rewind_before(sequence + 1, reason)
    raise StoreDamagedError(
        f"no saved state of stream {stream_name(key)!r} is whole: --accept-loss starts it again"
    )


async def requeue_all(maintenance: Maintenance, key: StreamKey, reason: str) -> IndexSet:
    """Re-queue all batches of a stream, from its first state on; return their indexes.

    Durability: as for `Stream.redo`.
    Cancellation: as for `Stream.redo`.
    """
    return await maintenance._redo(key).rewind_before(1, reason)


async def drop_states(maintenance: Maintenance, key: StreamKey, sequences: Sequence[int]) -> None:
    """Drop the arrays of old states, because they are damaged.

    Durability: dropped arrays are not named again after power loss.
    Cancellation: as for `Store.drop_blobs`.
    """
    maintenance._stream_log(key)
    await maintenance.store.drop_blobs(maintenance._run_key, encode_key(key), sequences)


async def cut_tail(maintenance: Maintenance, key: StreamKey, path: str) -> None:
    """Cut an append file at its confirmed end; a copy of the rest stays in the archive.

    Durability: when this returns the copy and the length of the file survive power loss.
    Cancellation: a cancellation point before each step; a step that has begun is waited for.
    """
    size = maintenance._stream_log(key).progress.sinks[path]
    if maintenance.outputs is not None:
        label = f"{maintenance.view.run_id}-{maintenance._run_key.generation}-tail"
        await run_blocking(keep_tail, maintenance.outputs, path, size, label)
        sink = await run_blocking(AppendFile.open, maintenance.outputs, path, size)
        await run_blocking(sink.close)


async def rewrite_manifest(maintenance: Maintenance) -> bool:
    """Write the manifest from the records; a file of that name is moved into the archive.

    Returns:
        False if the run is not complete, or its folder is gone.

    Durability: when this returns the manifest survives power loss.
    Cancellation: a cancellation point before each step; the old manifest may be in the
        archive already, and the next call writes the new one.
    """
    contents = RunContents.of(maintenance.view)
    if maintenance.outputs is None or not contents.is_complete:
        return False
    label = f"{maintenance.view.run_id}-{maintenance._run_key.generation}-damaged"
    await run_blocking(maintenance.outputs.archive, [MANIFEST], label)
    return await write_manifest(maintenance.store, contents, maintenance.outputs)
