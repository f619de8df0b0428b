"""Every contract that users can plug into.

A store takes bytes and gives bytes back.  It knows runs, streams and sequences, but
nothing of batches: what a checkpoint means is decided in `trio_ckpt._journal.record`, in one
place for all stores.  `trio_ckpt.testing.check_store` is this whole contract as one
function.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal

import attrs
import trio

from .._util.errors import StoreError
from .._util.plain import StreamKey, decode_key
from .folds import decode_progress
from .progress import Progress, apply
from .record import Seal, decode_record
from .stored import (
    Checkpoint as Checkpoint,
    Finding as Finding,
    Fold as Fold,
    HistoryPage as HistoryPage,
    Owner as Owner,
    Pruned as Pruned,
    Repaired as Repaired,
    RunKey as RunKey,
    RunSummary as RunSummary,
    RunView as RunView,
    StoredRecord as StoredRecord,
    StoredRun as StoredRun,
    StoredStream as StoredStream,
    StreamView as StreamView,
)

Durability = Literal["full", "process", "none"]

MAX_INLINE_LIMIT_BYTES = 2**26  # a readable store holds so much of a run; SQLite's rows more
INLINE_LIMIT_BYTES = 2**20  # from here on a payload is a blob: a write-once file, or its like

BlobPayload = bytes | memoryview | Iterable[bytes | memoryview]  # several are one, in this order


# ---------------------------------------------------------------------------------------
# Observers
# ---------------------------------------------------------------------------------------


@attrs.frozen
class Attempt:
    """One go at one batch, as observers are told of it.

    Attributes:
        run_id: The run.
        stream: The key of its stream.
        batch_index: The batch.
        number: 1 for the first try, over all sessions.
    """

    run_id: str
    stream: StreamKey
    batch_index: int
    number: int


class AttemptEnd(enum.Enum):
    """What became of an attempt."""

    CONFIRMED = "confirmed"
    SKIPPED = "skipped"
    RETRIED = "retried"  # it failed, and the retry table has the batch run again
    FAILED = "failed"  # for good, or the checkpoint was not saved
    WITHDRAWN = "withdrawn"
    INTERRUPTED = "interrupted"  # cancelled before it was settled: it runs again on resume


class Observer:
    """Is told what a run does, as it does it: metrics and traces are made of this.

    Derive from it and override what is of interest; give it to ``open_run(observe=...)`` or
    `Run.observing`.  Everything is called synchronously in the run's own trio thread, so it
    must be quick and must not wait.  What it raises, also SystemExit, is logged, and changes
    nothing.
    """

    def attempt_began(self, attempt: Attempt) -> None:
        """A batch is handed out.  Called in the task that works on it."""

    def attempt_settled(self, attempt: Attempt) -> None:
        """The body is done with it: its record is on its way to the store."""

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        """It is over, and what it led to is durable where that is promised.

        Args:
            attempt: Which.
            end: What became of it.
            error: What went wrong, in words.
        """

    def attempt_left(self, attempt: Attempt) -> None:
        """The task that worked on it goes on; called in that task, after `attempt_ended`."""

    def bytes_saved(self, run_id: str, size: int) -> None:
        """The store has taken checkpoints, folds or a blob of so many bytes."""


class Store(ABC):
    """Where checkpoints are durable.

    Attributes:
        url: How to open it again, for messages.
        mac_key: Seals records with a key, so that altered ones are noticed even if
            somebody altered them on purpose.
        inline_limit_bytes: Payloads of this size and more are put as blobs first.
        durability: What an acknowledged save survives: "full" is power loss, "process"
            kill -9 only, "none" neither.
        has_live: Whether it keeps what `publish` is given, for other processes.
    """

    url: str
    has_live: bool = False
    durability: Durability = "full"
    mac_key: bytes | None = None
    inline_limit_bytes: int = INLINE_LIMIT_BYTES

    @abstractmethod
    def lock_run(self, run_id: str) -> AbstractAsyncContextManager[int]:
        """Own a run while the block runs; yields the owner number, greater than any before.

        The number is durable when the block begins.  On one host the lock is the kernel's
        and dies with the process.  A run exists from its first lock on.

        Leaving the block gives the run back, with one exception: when a save of it was
        given up on (cancelled, or `SaveOutcomeUnknownError`), the lock is kept until the
        process ends, because that save may still land.

        Cancellation: nothing is held when it is cancelled on the way in; leaving is shielded.

        Raises:
            RunLockedError: another live owner has it; naming its host, pid and start.
            StoreError: the store cannot be used.
        """

    @abstractmethod
    async def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
    ) -> list[Exception | None]:
        """Make checkpoints durable, in one transaction where the store can.

        Each checkpoint is saved whole or not at all.  One that fails (its sequence does not
        follow, a blob that it names is not there) takes with it the
        later ones of its own stream in the group; other streams are untouched.  A run or
        a stream that is not known yet is created.  A `generation` one above the stored one
        begins the run afresh: the older generation stays readable by number, until `prune`.

        Args:
            run: Compared in the same transaction.
            group: In the order of their streams' sequences; an empty one asks who owns the run.
            folds: Replace the folds of their streams, in the same transaction; one that is
                ahead of its stream's records (because those failed) is left out.

        Returns:
            For each checkpoint of the group None, or why it was not saved.

        Raises:
            StoreConflictError: `run.owner` is not the newest owner, or `run.generation`
                neither the newest nor the next; nothing was saved.
            SaveOutcomeUnknownError: it may have been saved or not.
            StoreError: nothing was saved.

        Durability: what came back as None survives kill -9 and power loss.
        Cancellation: the caller shields it, and cancels only to give up on it: then the
            outcome is unknown.
        """

    @abstractmethod
    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """What resuming needs, of the newest generation or the one named; None: no such run.

        Raises:
            StoreError: it cannot be read.
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

        A stream that does not exist has no records.  A page may hold fewer records than
        `limit`, so that it fits into memory; only a cursor of None says that it was the last.

        Raises:
            StoreDamagedError: a record or a blob is missing.
            StoreError: the cursor was not given for this stream.
            ValueError: `limit` is not positive.
        """

    @abstractmethod
    async def list_runs(self) -> tuple[RunSummary, ...]:
        """All runs, sorted by id; never touches payloads."""

    @abstractmethod
    async def put_blob(self, payload: BlobPayload) -> str:
        """Make a payload durable, write-once, and name it by its SHA-256 (hexadecimal).

        Several buffers are one payload, written one after another without being joined in
        memory.  Whoever makes them may do so as they are asked for: they are taken in a
        thread, one by one, while the ones before are hashed and written.  None may change
        until this returns.  Of equal payloads one is kept.

        Put it, and save what names it, under one lock of the run: meanwhile nobody removes
        it.  One that no record names by then may be removed once nobody owns a run of the
        store.  A payload that was altered or is gone is told by `StoreDamagedError` where
        it is read.

        Args:
            payload: One buffer, or several; contiguous.

        Returns:
            The digest of all buffers together.

        Raises:
            StoreError: it cannot be written; nothing was put.
            TypeError: a buffer is not contiguous.
            Exception: whatever the iterator of buffers raises; nothing was put.

        Durability: it survives kill -9 and power loss when this returns.
        Cancellation: not once it has begun.
        """

    @abstractmethod
    async def read_blob(self, digest: str, offset: int = 0, size: int | None = None) -> bytes:
        """A part of a blob; it needs no lock, and works while the run is running.

        The store does not hash what it gives back: a part has no digest that it would know.
        Who asks for a part knows what it must be, and sees to it.  It never gives back fewer
        bytes than were asked for.  Of a blob that is removed meanwhile either the right
        bytes come or `StoreDamagedError`.  Parts of some MiB keep an event loop responsive:
        giving back the memory of 256 MiB holds the GIL for some 20 ms.

        Args:
            digest: As it was put.
            offset: Of the first byte.
            size: In bytes; None: all that follows, which a store may refuse above 1 GiB.

        Raises:
            StoreDamagedError: it is gone, or too short.
            StoreError: it cannot be read, or `digest` is no name of a blob.
            ValueError: `offset` or `size` is negative.
        """

    @abstractmethod
    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """Let checkpoints of the newest generation name their attached blobs no longer.

        Their records stay, and are read as before, but for `StoredRecord.blobs`.  A sequence
        that is not there, or names none, is passed over; so dropping twice is fine.

        The caller owns the run's lock.  A blob that nobody names any more is removed: at once
        unless somebody put it and has not named it yet, else when a run is locked or given
        back while nobody else owns one.  Who is reading it gets the right bytes or
        `StoreDamagedError`.

        Args:
            run: Compared in the same transaction.
            stream: Its key as text.
            sequences: Of the checkpoints, in any order.

        Returns:
            The size in bytes of the blobs that nobody names any more.

        Raises:
            StoreConflictError: `run.owner` is not the newest owner, or `run.generation` not
                the newest; nothing was dropped.
            SaveOutcomeUnknownError: they may have been dropped or not.
            StoreError: nothing was dropped.

        Durability: what is dropped is not named again after power loss.
        Cancellation: not once it has begun.
        """

    @abstractmethod
    async def read_owner(self, run_id: str) -> Owner | None:
        """Who owns a run now; None: nobody does.

        It only looks: it never takes the lock, so nobody who wants to own the run at the same
        moment is refused for it, and it writes nothing.  It works from another process while
        the run is running.  Where the owner's own words cannot be read, only that it is there
        is sure: the host is ``an unknown host`` then and the process id 0.

        Raises:
            StoreError: it cannot be told.
        """

    async def publish(self, run_id: str, payload: bytes) -> None:
        """Let other processes see what the owner of a run is at; replaces what was there.

        It is a window, no record: not durable, bound to nothing, and left behind by an owner
        that was killed.  Empty bytes take it away.  A store may do nothing here; then
        `has_live` is False.

        Raises:
            StoreError: it cannot be written.

        Cancellation: not once it has begun.
        """
        await trio.lowlevel.checkpoint()

    async def read_live(self, run_id: str) -> bytes:
        """What `publish` was given last; empty if nothing is there.

        Raises:
            StoreError: it cannot be read.
        """
        await trio.lowlevel.checkpoint()
        return b""

    @abstractmethod
    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """Remove all generations of a run but the newest `keep`, in one transaction.

        With 0 the run itself goes: it is in `list_runs` and `read_run` no more until it is
        locked or saved again.  Its owner number stays, so the fence only grows.  So does the
        number of its generation: a run begun later under this id has the next one, so no
        sealed record of the old one, wherever a copy of it is left, can pass for a new one.

        The caller owns the run's lock.  Blobs that no record names any more go with the
        generations, but for those that other owners of the store may be about to name:
        these go when a run is locked or given back while nobody else owns one.

        Args:
            run: Compared in the same transaction.
            keep: How many generations, the newest one counted, are left.

        Raises:
            StoreConflictError: `run.owner` is not the newest owner, or `run.generation` not
                the newest; nothing was removed.
            SaveOutcomeUnknownError: they may have been removed or not.
            StoreError: nothing was removed.
            ValueError: `keep` is negative.

        Durability: what is removed does not come back after power loss.
        Cancellation: not once it has begun.
        """

    def check(self) -> AsyncGenerator[Finding]:
        """Look at all that the store itself can judge, and change nothing.

        It looks at what lies beneath the other methods: files and rows, what they say of each
        other, every blob by its name, blobs that nobody names, what is not the store's.  What a
        payload says is not its affair: whoever wants to know reads all records, too.

        It needs no lock.  Of a run that is running, what is being saved at this moment may be
        found as unfinished, never as damaged.

        Raises:
            StoreError: this kind of store cannot be checked, or it cannot be read at all.

        Cancellation: between steps, of some seconds where the store is large.
        """
        raise StoreError(f"the store {self.url} cannot be checked from here: check it where it is")

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of everything; twice is fine."""

    def seal(self, run_id: str, generation: int, stream: StreamKey) -> Seal:
        """What binds the records of a stream to their places."""
        return Seal(run_id, generation, stream, self.mac_key)

    async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
        """The progress of every stream of a run, without outputs or state.

        Raises:
            StoreDamagedError: a record is not what was saved.
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


def _fold_up(entry: StoredStream, seal: Seal) -> Progress:
    progress = Progress()
    if entry.fold is not None:
        progress = decode_progress(seal.open(-entry.fold.through, entry.fold.payload))
    for stored in entry.tail:
        apply(progress, stored.sequence, decode_record(seal.open(stored.sequence, stored.payload)))
    return progress
