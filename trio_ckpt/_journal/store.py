"""The contract of stores, which users can implement.

A store takes bytes and gives bytes back.  It knows runs, streams and sequence numbers, but
not batches: what a checkpoint means is decided in `trio_ckpt._journal.record`, in one place
for all stores.  `trio_ckpt.testing.check_store` is this whole contract as one function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal

import trio

from .._util.errors import StoreError
from .._util.plain import StreamKey, decode_key
from .._util.text import redacted_url
from .._util.threads import run_blocking
from .apply import apply
from .folds import decode_progress
from .progress import Progress
from .record import Seal, decode_record
from .stored import (
    BlobPart as BlobPart,
    Checkpoint as Checkpoint,
    Finding as Finding,
    FindingKind as FindingKind,
    Fold as Fold,
    HistoryPage as HistoryPage,
    Owner as Owner,
    Pruned as Pruned,
    Repaired as Repaired,
    RunKey as RunKey,
    RunSummary as RunSummary,
    RunView as RunView,
    Severity as Severity,
    StoredRecord as StoredRecord,
    StoredRun as StoredRun,
    StoredStream as StoredStream,
    StreamView as StreamView,
    scatter as scatter,
)

Durability = Literal["full", "process", "none"]

MAX_INBOX_BYTES = 2**21  # of what is read of an inbox: the longest answer to an act, and its seal
MAX_INLINE_LIMIT_BYTES = 2**26  # what a JSON store can hold of a run; rows of SQLite hold more
FIRST_OWNER = 1  # a run whose owner has this number had none before, so nothing is in it
WATCHED_FOR_S = 60.0  # after it was read a live view is published for so long
INLINE_LIMIT_BYTES = 2**20  # from this size on a payload is a blob, for example a write-once file

BlobPayload = bytes | memoryview | Iterable[bytes | memoryview]  # several are joined in order


class Store(ABC):
    """A place where checkpoints are durable.

    Attributes:
        address: The URL that opens it again, with a password where it needs one: never shown,
            logged or sent.
        mac_key: The key that seals records, so that records altered on purpose are noticed, too.
        inline_limit_bytes: Payloads of this size and more are written as blobs first.
        durability: What an acknowledged save survives: "full" is power loss, "process"
            kill -9 only, "none" neither.
        has_live: Whether it keeps what `publish` is given, for other processes.
        publish_every_s: How often an owner asks `is_watched`, and publishes at most; seconds.
        inbox_every_s: How often an owner looks into the inbox of its run, in seconds; None: the
            store has no inboxes.
        lease_s: How long a lock holds after the last save, in seconds by the store's own clock;
            None: a lock has no such limit, and ends with its process.
    """

    address: str
    lease_s: float | None = None
    has_live: bool = False
    publish_every_s: float = 1.0
    inbox_every_s: float | None = None
    durability: Durability = "full"
    mac_key: bytes | None = None
    inline_limit_bytes: int = INLINE_LIMIT_BYTES

    @property
    def url(self) -> str:
        """The address without its secrets, for messages, logs and answers."""
        return redacted_url(self.address)

    @abstractmethod
    def lock_run(self, run_id: str) -> AbstractAsyncContextManager[int]:
        """Own a run while the block runs; yields the owner number.

        It is positive, and greater than any before: so the owner 1 of a run finds nothing in it.

        A run exists from its first lock on.  On one host the lock is the kernel's and ends with
        the process.

        Where the store has a lease, the lock holds for `lease_s` from when the store took it, and
        again from each save of this owner on.  After that any process may take the run over: it
        gets a greater owner number, and the former owner changes nothing more.  As long as no
        process has taken it over, a save of an owner whose lease has ended is accepted, and renews
        the lease.  The store compares the owner and renews in one step, by its own clock.

        Leaving the block releases the run, unless another process has taken it over.  When a save
        of it was abandoned (cancelled, or `SaveOutcomeUnknownError`), the lock is kept until the
        process, or the lease, ends, because that save may still become durable.

        A store that loses the answer to its question sends it again, and finds out whether it has
        the lock: it does not take a lock of its own for that of another owner.

        Raises:
            RunLockedError: another live owner has it; the error names its host, pid and start,
                and says when its lease ends.
            StoreError: the store cannot be used.

        Durability: the owner number is durable when the block begins.
        Cancellation: no lock is held when entering is cancelled; leaving is shielded.
        """

    @abstractmethod
    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """Make checkpoints durable, in one transaction where the store can.

        Each checkpoint is saved whole or not at all.  One that fails (its sequence number does
        not follow, a blob that it names does not exist) also fails the later ones of its own
        stream in the group; other streams are not affected.  A stream that is not known yet is
        created; a run is made by `lock_run` alone.  A `generation` one above the stored one starts
        the run from the beginning: the older generation stays readable by number, until `prune`.

        Where the store has a lease, each save renews it, also one of nothing.  Such a save does
        not wait until a blob is written.

        Args:
            run: The run and its owner, compared in the same transaction.
            group: The checkpoints, in the order of their streams' sequence numbers; an empty
                group only checks who owns the run, and renews the lease.
            folds: Folds that replace those of their streams, in the same transaction; one that
                is ahead of its stream's records (because those failed) is left out.
            summary: The summary of the run, in the same transaction: `list_runs` returns it with
                the newest generation, which it is of, until the next one replaces it.  Its head
                tells how many records it counts.  None: the one before stays.

        Returns:
            For each checkpoint of the group None, or the reason why it was not saved.

        Raises:
            StoreConflictError: `run.owner` is not the newest owner or has not locked the run
                now, or `run.generation` is neither the newest nor the next; nothing was saved.
            SaveOutcomeUnknownError: it may have been saved or not.
            StoreError: nothing was saved.

        Durability: a checkpoint whose outcome is None survives kill -9 and power loss.
        Cancellation: the caller shields it, and cancels only to abandon it: then the outcome
            is unknown.
        """

    @abstractmethod
    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """What resuming needs, of the newest or the given generation; None: no such run.

        Raises:
            StoreError: it cannot be read.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """

    @abstractmethod
    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        """The records of a stream, newest first, a page at a time; blobs are resolved.

        A stream that does not exist has no records.  A page may have fewer records than
        `limit`, so that it fits into memory; only a cursor of None marks the last page.

        Raises:
            StoreDamagedError: a record or a blob is missing.
            StoreError: the cursor was not given for this stream.
            ValueError: `limit` is not positive.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """

    @abstractmethod
    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """A page of the runs, sorted by id, with their summaries; never touches records.

        A page that has fewer runs than `limit` is the last.  Ids are compared by their code points.

        Args:
            prefix: Only runs whose ids begin with it; the run of that id itself comes first.
            after: Only runs whose ids come after it; there need not be such a run.
            limit: How many at most.

        Raises:
            StoreError: they cannot be read.
            ValueError: `limit` is not positive.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """

    @abstractmethod
    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """Make a payload of a run durable, write-once, named by its SHA-256 (hexadecimal).

        A blob belongs to its run: only records of that run name it, and it is read by that run's
        id.  Equal payloads of one run are stored once.

        Several buffers are one payload, written one after another without being joined in
        memory.  The caller may produce them lazily: they are taken in a thread, one by one, while
        the ones before are hashed and written.  None may change until this returns.

        Write it, and save the record that names it, under one lock of the run: each put keeps the
        blob until the lock is released, or a record that names it is saved.  So put it once for
        each record: one that names it without a put of its own uses up that of another.  A blob
        that no record of the run names is removed when the run is released or locked again, also
        while other runs of the store are owned.  A read of a blob that was altered or is missing
        raises `StoreDamagedError`.

        Args:
            run: The run and its owner, compared before the blob gets its name: in a store with a
                lease with the newest owner, else at least with the lock of this handle.  The
                generation does not matter.
            payload: One contiguous buffer, or several.

        Returns:
            The digest of all buffers together.

        Raises:
            StoreConflictError: `run.owner` has not locked the run now; nothing was stored.  A
                former owner whose lock files were removed may still store a blob, which no record
                names: its saves are refused, and the next lock of the run removes the blob.
            StoreError: it cannot be written; nothing was stored.
            TypeError: a buffer is not contiguous.
            Exception: the exception of the iterator of buffers; nothing was stored.

        Durability: it survives kill -9 and power loss when this returns.
        Cancellation: not once it has begun.  A store with a lease lets it be abandoned, or ends it
            by itself in bounded time: a run whose lease is lost ends only after it.
        """

    @abstractmethod
    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """Read a part of a blob of a run; it needs no lock, and works while the run is running.

        The store does not hash the part, whose digest it does not know: the caller has to verify
        it.  It never returns fewer bytes than were asked for.  If the blob is removed during the
        read, either the right bytes come or `StoreDamagedError`.  Parts of some MiB keep an event
        loop responsive: freeing the memory of 256 MiB holds the GIL for some 20 ms.

        Args:
            run_id: The run that the blob was put for.
            digest: The name that `put_blob` returned.
            offset: The offset of the first byte.
            size: How many bytes; None: all that follow, which a store may refuse above 1 GiB.

        Raises:
            StoreDamagedError: the run has no such blob, or it is too short.
            StoreError: it cannot be read, or `digest` is not the name of a blob.
            ValueError: `offset` or `size` is negative.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """

    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        """Read parts of blobs of a run into memory of the caller, each as `read_blob` does.

        The caller may produce them lazily: they are taken in a thread, one by one, each when the
        one before it has been read.  This one copies what `read_blob` returns; a store that can
        read right into the memory overrides it.

        Args:
            run_id: The run that the blobs were put for.
            parts: The parts, and where they go.

        Raises:
            StoreDamagedError, StoreError, ValueError: as for `read_blob`; some targets may have
                been written.
            Exception: the exception of the iterator of parts.

        Cancellation: as that of `read_blob`; no target is written once this has ended.
        """
        left = iter(parts)
        while (part := await run_blocking(next, left, None)) is not None:
            content = await self.read_blob(run_id, part.digest, part.offset, part.nbytes)
            scatter(content, part.targets)

    @abstractmethod
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """Drop the attached blobs of checkpoints of the newest generation.

        Their records stay, and are read as before, except for `StoredRecord.blobs`.  A sequence
        number that does not exist, or whose record names no blob, is passed over; so a second
        call has no effect.

        The caller owns the run's lock.  A blob that no record of the run names any more is
        removed: at once, unless it was put again under this lock and is not named yet; then when
        the run is released.  A reader of it gets the right bytes or `StoreDamagedError`.

        Args:
            run: The run and its owner, compared in the same transaction.
            stream: The key of the stream as text.
            sequences: The sequence numbers of the checkpoints, in any order.

        Returns:
            The size in bytes of the blobs that no record of the run names any more.  What a store
            of format 2 shared among its runs stays, and does not count.

        Raises:
            StoreConflictError: `run.owner` is not the newest owner, or `run.generation` not
                the newest; nothing was dropped.
            SaveOutcomeUnknownError: they may have been dropped or not.
            StoreError: nothing was dropped.

        Durability: dropped blobs are not named again after power loss.  With the `durability`
            "process" they may be: then the records are as before, and their blobs are gone.
        Cancellation: not once it has begun.
        """

    @abstractmethod
    async def read_owner(self, run_id: str) -> Owner | None:
        """The process that owns a run now; None: no process does, or its lease has ended.

        It never takes the lock, so that no process that wants to own the run at the same moment
        is refused, and it writes nothing.  It works from another process while the run is
        running.  Where there is an owner whose description cannot be read, the host is
        ``an unknown host`` and the process id 0.

        Raises:
            StoreError: the owner cannot be determined.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """

    async def publish(self, run_id: str, payload: bytes) -> None:
        """Publish the live view of a run for other processes; it replaces the last one.

        It is not a record: it is not durable or sealed, and an owner that was killed leaves it
        behind.  Empty bytes remove it.  A store may do nothing here; then `has_live` is False.

        Raises:
            StoreError: it cannot be written.

        Durability: none; the view is no longer valid when its owner has ended.
        Cancellation: not once it has begun.
        """
        await trio.lowlevel.checkpoint()

    async def is_watched(self, run_id: str) -> bool:
        """Whether a process has read the live view of a run within the last `WATCHED_FOR_S`.

        Its owner asks, often, and publishes only then.  A store that cannot tell says True.

        Raises:
            StoreError: the store cannot be asked.

        Cancellation: as for `read_live`.
        """
        await trio.lowlevel.checkpoint()
        return self.has_live

    async def read_live(self, run_id: str) -> bytes:
        """The live view that `publish` was last given; empty if there is none.

        The owner learns of it by `is_watched`, unless the reader may not write to the store.

        Raises:
            StoreError: it cannot be read.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """
        await trio.lowlevel.checkpoint()
        return b""

    async def write_inbox(self, run_id: str, payload: bytes) -> None:
        """Put a message into the inbox of a run; it replaces what is there.

        Any process may, and it needs no lock: the inbox is how a process that does not own a run
        asks its owner, and gets an answer.  It is not a record, and not durable.  Empty bytes
        remove it.  A store without inboxes does nothing here; then `inbox_every_s` is None.

        Raises:
            StoreError: it cannot be written.

        Durability: none.
        Cancellation: not once it has begun.
        """
        await trio.lowlevel.checkpoint()

    async def read_inbox(self, run_id: str) -> bytes:
        """What is in the inbox of a run, at most `MAX_INBOX_BYTES` of it; empty: nothing.

        Raises:
            StoreError: it cannot be read.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """
        await trio.lowlevel.checkpoint()
        return b""

    @abstractmethod
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """Remove all generations of a run but the newest `keep`, in one transaction.

        With 0 the run itself is removed: `list_runs` and `read_run` do not return it until it is
        locked again, or saved under the lock that removed it.  Its owner number is kept, so that
        the fence only grows.  So is the number of its generation: a run begun later under this id
        has the next one, which ensures that a copy of an old sealed record cannot pass for a new
        one.

        The caller owns the run's lock.  Blobs that no record of the run names any more are removed
        as by `drop_blobs`.

        Args:
            run: The run and its owner, compared in the same transaction.
            keep: How many generations are kept, the newest included.

        Raises:
            StoreConflictError: `run.owner` is not the newest owner, or `run.generation` not
                the newest; nothing was removed.
            SaveOutcomeUnknownError: they may have been removed or not.
            StoreError: nothing was removed.
            ValueError: `keep` is negative.

        Durability: removed generations do not come back after power loss.  With the `durability`
            "process" they may, without their blobs.
        Cancellation: not once it has begun.
        """

    def check(self) -> AsyncGenerator[Finding]:
        """Check all that the store itself can judge, and change nothing.

        It checks what lies beneath the other methods: files and rows, their references to each
        other, every blob by its name, blobs that no record names, and files that do not belong
        to the store.  It does not decode payloads: to check those, read all records, too.

        It needs no lock.  In a run that is running, a save at this moment may be reported as
        unfinished, never as damaged.

        Raises:
            StoreError: this kind of store cannot be checked, or it cannot be read at all.

        Cancellation: between steps, which take some seconds where the store is large.
        """
        raise StoreError(f"the store {self.url} cannot be checked from here: check it where it is")

    def spare_connections(self) -> None:  # noqa: B027  # most stores have none
        """Use as few connections to a server as it can, from now on; calls then wait for others.

        The many processes of an engine call it: a server has room for few connections.  A store
        that has none does nothing.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the store; a second call has no effect.

        Cancellation: shielded; it ends in bounded time.
        """

    def seal(self, run_id: str, generation: int, stream: StreamKey) -> Seal:
        """The seal that binds the records of a stream to their places."""
        return Seal(run_id, generation, stream, self.mac_key)

    async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
        """The progress of every stream of a run, without outputs or state.

        Raises:
            StoreDamagedError: a record is not what was saved.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """
        stored = await self.read_run(run_id, generation)
        if stored is None:
            return None
        streams: dict[StreamKey, StreamView] = {}
        for entry in stored.streams:
            key = decode_key(entry.stream)
            seal = self.seal(run_id, stored.generation, key)
            streams[key] = StreamView(key, _fold_up(entry, seal))
        return RunView(run_id, stored.generation, stored.owner, streams)


class FarStore(Store):
    """The store of a worker, where a save is a round trip to the foreman.

    Its runs are work items, which only the library opens.  So it may put off what no batch depends
    on: records of the start of a session or the end of a stream wait for the next group, and a run
    that has ended is not folded.  Until then its streams may look unfinished: nothing in a work
    item may ask for their status, write outputs or end a phase.
    """


def _fold_up(entry: StoredStream, seal: Seal) -> Progress:
    if entry.fold is None:
        progress = Progress()
    else:
        progress = decode_progress(seal.open(-entry.fold.through, entry.fold.payload))
    for stored in entry.tail:
        apply(progress, stored.sequence, decode_record(seal.open(stored.sequence, stored.payload)))
    return progress
