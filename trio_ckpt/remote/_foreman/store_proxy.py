"""The foreman's end of a worker's store: calls of the worker go to the foreman's store.

Theory of operation.  A proxy is for one lease: it serves one run, under one owner number, and shows
its worker nothing else.  A store gives the blobs of a run by the run's id alone.

A worker that does not know whether a save was acknowledged sends it again.  A record that is stored
with the same bytes is then acknowledged; the store's order of sequences refuses all others.

Workers seal records without a key.  Where the foreman's store has one, the proxy seals records
again on their way in and out, so that the key never leaves the foreman.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import IO

import attrs
import msgspec
import trio

from ..._journal.history import stored_pages
from ..._journal.record import Seal
from ..._journal.store import Checkpoint, Fold, HistoryPage, RunKey, Store, StoredRecord, StoredRun
from ..._util.errors import SaveOutcomeUnknownError, StoreError
from ..._util.patience import end_awake
from ..._util.plain import decode_key
from ..._util.threads import run_blocking
from .._wire.message import MAX_TEXT_CHARS, MIB
from .._wire.task_messages import (
    BEGIN_AGAIN,
    CheckpointAck,
    DropBlobs,
    PutBlob,
    ReadBlob,
    ReadHistory,
    ReadRun,
    StoreCall,
    StoreReply,
    TaskCheckpoint,
    fault_of,
)

REPLY_BYTES = MIB  # of an answer, in one message
MAX_PAGE_BYTES = 64 * MIB  # of one page of a history, if it has more than one record
MAX_BLOB_BYTES = 16 * 1024 * MIB  # of one; it goes through a temporary file
FAULT_CHARS = MIB  # of all faults of one group: they are in one message
SAVE_TIMEOUT_S = 60.0  # as in the group committer of a run: then the outcome is unknown

_NIL = msgspec.msgpack.encode(None)


@attrs.define(eq=False)
class _IncomingBlob:
    """A blob that arrives in parts."""

    digest: str
    size: int
    file: IO[bytes]
    have: int = 0


@attrs.define(eq=False)
class StoreProxy:
    """The foreman's store, limited to one worker and one lease.

    Attributes:
        store: The foreman's store.
        run_id: The item's run.
        owner: The owner number that the store issued for it.
        owned_at: When the store was last asked who owns the run, and answered; trio's clock.
    """

    store: Store
    run_id: str
    owner: int
    owned_at: float = attrs.field(factory=trio.current_time)
    _generation: int | None = attrs.field(default=None, init=False)  # that is saved; not known yet
    _saving: trio.Lock = attrs.field(factory=trio.Lock, init=False)  # also a renewal
    _incoming: _IncomingBlob | None = attrs.field(default=None, init=False)
    _finished: str = attrs.field(default="", init=False)  # the blob that was completed last

    async def save(self, message: TaskCheckpoint) -> CheckpointAck:
        """Make checkpoints durable; return the outcome of each, and never raise an error.

        Durability: a checkpoint without a fault survives whatever the store promises.
        Cancellation: shielded; the time is bounded.
        """
        head = (message.task_id, message.lease, message.call)
        unknown = SaveOutcomeUnknownError(f"the store did not answer for {SAVE_TIMEOUT_S:g} s")
        ack = CheckpointAck(*head, fault=fault_of(unknown))

        async def save() -> None:
            nonlocal ack
            try:
                async with self._saving:
                    run, asked_at = self._run_of(message), trio.current_time()
                    outcomes = await self._save(run, message.checkpoints, message.folds)
                    self._generation, self.owned_at = message.generation, asked_at
                chars = min(MAX_TEXT_CHARS, FAULT_CHARS // max(1, len(outcomes)))
                faults = tuple(
                    None if one is None else fault_of(one, chars=chars) for one in outcomes
                )
                ack = CheckpointAck(*head, faults)
            except Exception as error:  # the worker handles it
                ack = CheckpointAck(*head, fault=fault_of(error))

        await end_awake(save, SAVE_TIMEOUT_S)
        return ack

    def _run_of(self, message: TaskCheckpoint) -> RunKey:
        return RunKey(self.run_id, message.generation, self.owner)

    async def renew(self) -> None:
        """Renew the lease of the run by a save of nothing.

        Raises:
            StoreConflictError: another foreman has taken the run over.
            StoreError: the store does not answer.

        Cancellation: a cancellation point; the lease may be renewed or not.
        """
        async with self._saving:
            if self._generation is None:
                stored = await self.store.read_run(self.run_id)
                self._generation = 0 if stored is None else stored.generation
            asked_at = trio.current_time()
            await self.store.save(RunKey(self.run_id, self._generation, self.owner), [])
            self.owned_at = asked_at

    async def answer(self, message: StoreCall) -> list[StoreReply]:
        """Answer a call, in as many parts as it takes.

        Cancellation: a cancellation point; a read leaves nothing behind.
        """
        head = (message.task_id, message.lease, message.call)
        try:
            data = await self._answer(message)
        except Exception as error:  # as above
            return [StoreReply(*head, fault=fault_of(error))]
        parts = range(0, max(len(data), 1), REPLY_BYTES)
        return [
            StoreReply(*head, data[first : first + REPLY_BYTES], first == parts[-1])
            for first in parts
        ]

    async def _answer(self, message: StoreCall) -> bytes:
        store = self.store
        match message.verb:
            case ReadRun(generation):
                found = await store.read_run(self.run_id, generation)
                return msgspec.msgpack.encode(None if found is None else self._run_out(found))
            case ReadHistory() as verb:
                return await self._history(verb)
            case PutBlob() as verb:
                return await self._put(verb)
            case ReadBlob(digest, offset, size):
                return await store.read_blob(self.run_id, digest, offset, size)
            case DropBlobs(generation, stream, sequences):
                run = RunKey(self.run_id, generation, self.owner)
                return msgspec.msgpack.encode(await store.drop_blobs(run, stream, sequences))

    # -- saves --------------------------------------------------------------------------------

    async def _save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold]
    ) -> list[Exception | None]:
        if self.store.mac_key is None:
            return await self._save_sealed(run, group, folds)
        kept, refused = await self._seal_group(run, group)
        folds = [self._fold_in(run.generation, fold) for fold in folds]
        saved = iter(await self._save_sealed(run, kept, folds))
        return [refused[n] if n in refused else next(saved) for n in range(len(group))]

    async def _save_sealed(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold]
    ) -> list[Exception | None]:
        outcomes = await self.store.save(run, group, folds)
        if all(outcome is None for outcome in outcomes):
            return outcomes
        there = await self._already_there(run, group)
        rest = [one for place, one in enumerate(group) if place not in there]
        again = iter(await self.store.save(run, rest, folds) if there else ())
        if not there:
            return outcomes
        return [None if place in there else next(again) for place in range(len(group))]

    async def _already_there(self, run: RunKey, group: Sequence[Checkpoint]) -> set[int]:
        """Positions of those checkpoints that the store has with the same bytes."""
        there: set[int] = set()
        for stream in {one.stream for one in group}:
            wanted = {one.sequence: n for n, one in enumerate(group) if one.stream == stream}
            for record in await self._newest(run, stream, min(wanted)):
                place = wanted.get(record.sequence)
                if place is not None and _is_same(group[place], record):
                    there.add(place)
        return there

    async def _newest(self, run: RunKey, stream: str, first: int) -> list[StoredRecord]:
        """The records of a stream from a sequence on, newest first."""
        found: list[StoredRecord] = []
        async with aclosing(
            stored_pages(self.store, self.run_id, run.generation, stream, limit=100)
        ) as pages:
            async for page in pages:
                found += [record for record in page if record.sequence >= first]
                if page and page[-1].sequence <= first:
                    break
        return found

    # -- reads --------------------------------------------------------------------------------

    async def _history(self, verb: ReadHistory) -> bytes:
        limit = verb.limit
        while True:
            page = await self.store.history(
                self.run_id,
                verb.stream,
                generation=verb.generation,
                cursor=verb.cursor,
                limit=limit,
            )
            size = sum(len(record.payload) for record in page.records)
            if size <= MAX_PAGE_BYTES or len(page.records) <= 1:
                break
            limit = len(page.records) // 2  # the cursor must fit, so the page is read again
        generation = verb.generation
        if generation is None and self.store.mac_key is not None:
            stored = await self.store.read_run(self.run_id)
            generation = 0 if stored is None else stored.generation
        records = self._records_out(generation or 0, verb.stream, page.records)
        return msgspec.msgpack.encode(HistoryPage(records, page.cursor))

    def _run_out(self, run: StoredRun) -> StoredRun:
        """Return a run as its worker may see it."""
        streams = [
            msgspec.structs.replace(
                entry,
                tail=self._records_out(run.generation, entry.stream, entry.tail),
                fold=None if entry.fold is None else self._fold_out(run.generation, entry.fold),
            )
            for entry in run.streams
        ]
        return msgspec.structs.replace(run, streams=tuple(streams))

    def _records_out(
        self, generation: int, stream: str, records: Iterable[StoredRecord]
    ) -> tuple[StoredRecord, ...]:
        if self.store.mac_key is None:
            return tuple(records)
        inner, outer = self._seals(generation, stream)
        return tuple(
            msgspec.structs.replace(
                one, payload=outer.close(one.sequence, inner.open(one.sequence, one.payload))
            )
            for one in records
        )

    # -- seals --------------------------------------------------------------------------------

    def _seals(self, generation: int, stream: str) -> tuple[Seal, Seal]:
        """Return the seals of the foreman's store, and of its worker."""
        key = decode_key(stream)
        return self.store.seal(self.run_id, generation, key), Seal(
            self.run_id, generation, key, None
        )

    async def _seal_group(
        self, run: RunKey, group: Sequence[Checkpoint]
    ) -> tuple[list[Checkpoint], dict[int, Exception]]:
        """Seal checkpoints with the store's key; return those, and the faults of the others.

        A checkpoint that cannot be sealed also fails the later ones of its stream.
        """
        kept: list[Checkpoint] = []
        refused: dict[int, Exception] = {}
        failed: dict[str, Exception] = {}
        for place, one in enumerate(group):
            try:
                if one.stream not in failed:
                    kept.append(await self._sealed_in(run, one))
                    continue
            except StoreError as error:
                failed[one.stream] = error
            refused[place] = failed[one.stream]
        return kept, refused

    async def _sealed_in(self, run: RunKey, one: Checkpoint) -> Checkpoint:
        """Seal a checkpoint with the store's key; a large one becomes another blob."""
        inner, outer = self._seals(run.generation, one.stream)
        payload = one.payload
        if one.blob is not None:
            payload = await self.store.read_blob(run.run_id, one.blob)
        sealed = inner.close(one.sequence, outer.open(one.sequence, payload))
        if one.blob is None and len(sealed) < self.store.inline_limit_bytes:
            return msgspec.structs.replace(one, payload=sealed)
        digest = await self.store.put_blob(run, sealed)
        return msgspec.structs.replace(one, payload=b"", blob=digest)

    def _fold_in(self, generation: int, fold: Fold) -> Fold:
        inner, outer = self._seals(generation, fold.stream)
        return msgspec.structs.replace(
            fold, payload=inner.close(-fold.through, outer.open(-fold.through, fold.payload))
        )

    def _fold_out(self, generation: int, fold: Fold) -> Fold:
        if self.store.mac_key is None:
            return fold
        inner, outer = self._seals(generation, fold.stream)
        return msgspec.structs.replace(
            fold, payload=outer.close(-fold.through, inner.open(-fold.through, fold.payload))
        )

    # -- blobs --------------------------------------------------------------------------------

    async def _put(self, part: PutBlob) -> bytes:
        if part.size > MAX_BLOB_BYTES:
            raise StoreError(f"a blob of {part.size:,} bytes is over {MAX_BLOB_BYTES:,}")
        end = part.offset + len(part.data)
        if end > part.size:
            raise StoreError("a part of a blob goes beyond its end")
        if part.offset == 0 and end == part.size:
            await self._put_whole(part.digest, part.data)
            return _NIL
        if part.offset == 0:
            self.close()
            self._incoming = _IncomingBlob(part.digest, part.size, tempfile.TemporaryFile())  # noqa: SIM115  # closed by `close`
        incoming = self._incoming
        if incoming is None or (incoming.digest, incoming.size) != (part.digest, part.size):
            return _NIL if self._finished == part.digest else BEGIN_AGAIN
        if end <= incoming.have:
            return _NIL  # it arrives again because its answer was lost
        if part.offset != incoming.have:
            return BEGIN_AGAIN
        await run_blocking(incoming.file.write, part.data)
        incoming.have = end
        if end == incoming.size:
            await self._put_file(incoming)
        return _NIL

    async def _put_file(self, incoming: _IncomingBlob) -> None:
        try:
            incoming.file.flush()
            fd = incoming.file.fileno()
            with (
                mmap.mmap(fd, incoming.size, access=mmap.ACCESS_READ) as whole,
                memoryview(whole) as view,
            ):
                await self._put_whole(incoming.digest, view)
        finally:
            self.close()

    async def _put_whole(self, digest: str, payload: bytes | memoryview) -> None:
        run = RunKey(self.run_id, 0, self.owner)  # of whichever generation
        found = await self.store.put_blob(run, payload)
        if found != digest:
            raise StoreError(f"the SHA-256 of the received blob is {found}, not {digest}")
        self._finished = digest

    def close(self) -> None:
        """Drop a blob that is incomplete."""
        if self._incoming is not None:
            self._incoming.file.close()
            self._incoming = None


def _is_same(checkpoint: Checkpoint, record: StoredRecord) -> bool:
    if checkpoint.blob is not None:
        return hashlib.sha256(record.payload).hexdigest() == checkpoint.blob
    return checkpoint.payload == record.payload
