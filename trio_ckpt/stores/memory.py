"""The store in memory: the verified fake, for tests and for work that need not survive.

Theory of operation.  Everything that a store on disk would hold is in one `_Memory`; a
`MemoryStore` is a handle onto it.  No operation awaits between its first and its last
change, so every save is atomic under trio without a lock.  The store passes the same
`trio_ckpt.testing.check_store` as the stores on disk, so what is tested with it holds there.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from itertools import islice

import attrs
import msgspec
import trio

from .._journal.record import utc_now
from .._journal.store import (
    INLINE_LIMIT_BYTES,
    MAX_INLINE_LIMIT_BYTES,
    BlobPayload,
    Checkpoint,
    Durability,
    Finding,
    Fold,
    HistoryPage,
    Owner,
    Pruned,
    RunKey,
    RunSummary,
    Severity,
    Store,
    StoredRecord,
    StoredRun,
    StoredStream,
)
from .._util.arguments import seconds, whole_number
from .._util.errors import (
    RunLockedError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from .._util.forks import need_process, this_process
from .._util.threads import run_blocking
from ._local.blobs import check_part, names_of, need_digest, need_positive, views_of
from ._local.fence import (
    compare_generation,
    compare_owner,
    refuse_generation,
    refuse_unlocked,
    save_each,
)

_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})", re.ASCII)


@attrs.define
class _MemoryStream:
    number: int  # makes cursors specific to the stream
    log: list[Checkpoint] = attrs.field(factory=list[Checkpoint])  # sequence n is log[n - 1]
    fold: Fold | None = None


@attrs.define
class _Run:
    owner: int
    generations: dict[
        int, dict[str, _MemoryStream]
    ]  # the greatest is the newest; empty: the run was pruned
    next_generation: int = 1
    updated_at: float | None = None  # of the newest generation, as the summary
    summary: bytes = b""
    blobs: dict[str, bytes] = attrs.field(factory=dict[str, bytes])
    pins: Counter[str] = attrs.field(factory=Counter[str])  # blobs put, and not named yet

    @property
    def generation(self) -> int:
        return self.next_generation - 1

    def begin(self, generation: int) -> dict[str, _MemoryStream]:
        """Return the streams of a generation, the newest or the next."""
        if generation == self.next_generation:
            self.updated_at, self.summary = None, b""
        self.next_generation = generation + 1
        return self.generations.setdefault(generation, {})

    def named(self) -> set[str]:
        """Return the digests that the records of all generations name."""
        return {
            digest
            for streams in self.generations.values()
            for stream in streams.values()
            for checkpoint in stream.log
            for digest in names_of(checkpoint)
        }

    def remove(self, digests: Iterable[str]) -> int:
        """Remove those of some blobs that no record names, and that are not about to be named.

        Returns:
            The size of all that no record names.
        """
        free = set(digests)
        if free:
            free -= self.named()
        size = sum(len(self.blobs.get(digest, b"")) for digest in free)
        for digest in free:
            if not self.pins[digest]:
                self.blobs.pop(digest, None)
        return size

    def remove_orphans(self) -> None:
        """Remove the blobs that no record names: no owner is about to name one."""
        self.pins.clear()
        self.remove(self.blobs)


@attrs.define
class _MemoryLock:
    """The lock of a run.

    Attributes:
        since: When it was taken, ISO 8601, UTC.
        ends_at: When its lease ends, on trio's clock; infinite: it has none.
    """

    since: str
    ends_at: float = math.inf

    @property
    def left_s(self) -> float | None:
        """How long its lease lasts, in seconds, at least 0; None: it has none."""
        return None if self.ends_at == math.inf else max(self.ends_at - trio.current_time(), 0)


@attrs.define
class _Memory:
    runs: dict[str, _Run] = attrs.field(factory=dict[str, _Run])
    locks: dict[str, _MemoryLock] = attrs.field(factory=dict[str, _MemoryLock])
    streams: int = 0

    def live_lock(self, run_id: str) -> _MemoryLock | None:
        """Return the lock of a run, if it has one whose lease has not ended."""
        lock = self.locks.get(run_id)
        return lock if lock is not None and lock.left_s != 0 else None


class MemoryStore(Store):
    """A store that ends with the process.  Several runs, one after another, may use it."""

    durability: Durability = "none"

    def __init__(
        self,
        *,
        mac_key: bytes | None = None,
        inline_limit_bytes: int = INLINE_LIMIT_BYTES,
        lease_s: float | None = None,
    ) -> None:
        """Make an empty store.

        Args:
            mac_key: See `Store`.
            inline_limit_bytes: See `Store`.
            lease_s: How long a lock holds after the last save, in seconds of trio's clock: for
                tests of what happens in a store that several machines reach.
        """
        self.address = "memory:"
        self.mac_key = mac_key
        self.lease_s = (
            None if lease_s is None else seconds("lease_s", lease_s, is_zero_allowed=False)
        )
        self.inline_limit_bytes = whole_number(
            "inline_limit_bytes", inline_limit_bytes, least=1, most=MAX_INLINE_LIMIT_BYTES
        )
        self._memory = _Memory()
        self._in_doubt: set[str] = set()
        self._is_closed = False
        self._process = this_process()

    def reopen(self) -> MemoryStore:
        """Open another handle onto this store's data."""
        other = MemoryStore(
            mac_key=self.mac_key,
            inline_limit_bytes=self.inline_limit_bytes,
            lease_s=self.lease_s,
        )
        other._memory = self._memory
        return other

    def after_crash(self) -> MemoryStore:
        """Return what another process would find after a crash now: the data, and leases."""
        other = self.reopen()
        runs = {
            run_id: _Run(
                run.owner,
                {
                    generation: {
                        key: _MemoryStream(stream.number, list(stream.log), stream.fold)
                        for key, stream in streams.items()
                    }
                    for generation, streams in run.generations.items()
                },
                run.next_generation,
                run.updated_at,
                run.summary,
                dict(run.blobs),
            )
            for run_id, run in self._memory.runs.items()
        }
        left = self._memory.locks if self.lease_s is not None else {}  # the kernel's are gone
        locks = {run_id: attrs.evolve(lock) for run_id, lock in left.items()}
        other._memory = _Memory(runs, locks, self._memory.streams)
        return other

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`."""
        await self._begin()
        memory = self._memory
        held = memory.live_lock(run_id)
        if held is not None:
            raise RunLockedError(
                run_id,
                host=socket.gethostname(),
                pid=os.getpid(),
                since=held.since,
                lease_left_s=held.left_s,
            )
        self._in_doubt.discard(run_id)  # of an earlier lock, whose lease has ended
        lock = memory.locks[run_id] = _MemoryLock(utc_now().isoformat(timespec="seconds"))
        self._renew(lock)
        run = memory.runs.setdefault(run_id, _Run(0, {0: {}}))
        run.owner += 1
        run.remove_orphans()
        if not run.generations:  # it was pruned; a run exists from its first lock on
            run.begin(run.next_generation)
        try:
            yield run.owner
        finally:
            is_own = memory.locks.get(run_id) is lock  # else it was taken over
            if is_own and run_id not in self._in_doubt:
                del memory.locks[run_id]
                if +run.pins:
                    run.remove_orphans()

    def _renew(self, lock: _MemoryLock) -> None:
        if self.lease_s is not None:
            lock.ends_at = trio.current_time() + self.lease_s

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`."""
        try:
            await self._begin()
        except trio.Cancelled:
            self._in_doubt.add(run.run_id)  # known here, but a store on disk would not know it
            raise
        streams = self._fence(run)
        outcomes = save_each(group, partial(self._append, self._memory.runs[run.run_id], streams))
        for fold in folds:
            stream = streams.get(fold.stream)
            if stream is not None and 1 <= fold.through <= len(stream.log):
                stream.fold = fold
        stored = self._memory.runs[run.run_id]
        if None in outcomes:
            stored.updated_at = time.time()
        if summary is not None:
            stored.summary = summary
        return outcomes

    def _fence(self, key: RunKey) -> dict[str, _MemoryStream]:
        """Check owner and generation, and return the streams to save to."""
        run = self._find_owned(key)
        allowed = {run.next_generation, *([run.generation] if run.generations else [])}
        if key.generation not in allowed:
            raise refuse_generation(run.generation, key)
        self._renew(self._memory.locks[key.run_id])
        return run.begin(key.generation)

    def _find_owned(self, key: RunKey) -> _Run:
        """Return a run that the caller owns."""
        run = self._memory.runs.get(key.run_id)
        if run is None or key.run_id not in self._memory.locks:
            raise refuse_unlocked(key)
        compare_owner(run.owner, key)
        return run

    def _append(self, run: _Run, streams: dict[str, _MemoryStream], checkpoint: Checkpoint) -> None:
        stream = streams.get(checkpoint.stream)
        newest = len(stream.log) if stream is not None else 0
        if checkpoint.sequence != newest + 1:
            raise StoreConflictError(f"the next one is {newest + 1}")
        for digest in names_of(checkpoint):
            if digest not in run.blobs:
                raise StoreError(f"blob {digest} was not put")
        for digest in names_of(checkpoint):
            if run.pins[digest]:
                run.pins[digest] -= 1
        if stream is None:
            self._memory.streams += 1
            stream = streams[checkpoint.stream] = _MemoryStream(self._memory.streams)
        stream.log.append(checkpoint)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        await self._begin()
        run = self._memory.runs.get(run_id)
        if run is None:
            return None
        number = run.generation if generation is None else generation
        if number not in run.generations:
            return None
        resolve = partial(self._resolve, run)
        streams = tuple(
            StoredStream(
                key,
                len(stream.log),
                stream.fold,
                tuple(map(resolve, stream.log[stream.fold.through if stream.fold else 0 :])),
            )
            for key, stream in run.generations[number].items()
        )
        return StoredRun(run_id, number, run.owner, streams)

    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        """See `Store.history`."""
        await self._begin()
        need_positive(limit)
        run = self._memory.runs.get(run_id, _Run(0, {}))
        number = run.generation if generation is None else generation
        found = run.generations.get(number, {}).get(stream, _MemoryStream(0))
        stop = len(found.log) if cursor is None else _place(cursor, found)
        start = max(0, stop - limit)
        records = tuple(map(partial(self._resolve, run), reversed(found.log[start:stop])))
        return HistoryPage(records, f"{found.number}.{start}" if start else None)

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        need_positive(limit)
        await self._begin()
        found = (
            RunSummary(
                run_id,
                run.generation,
                run.owner,
                len(run.generations[run.generation]),
                sum(len(stream.log) for stream in run.generations[run.generation].values()),
                self._memory.live_lock(run_id) is not None,
                run.updated_at,
                run.summary,
            )
            for run_id, run in sorted(self._memory.runs.items())
            if run.generations and run_id.startswith(prefix) and (after is None or run_id > after)
        )
        return tuple(islice(found, limit))

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        await self._begin()
        lock = self._memory.live_lock(run_id)
        if lock is None:
            return None
        since = datetime.fromisoformat(lock.since)
        return Owner(socket.gethostname(), os.getpid(), since, lock.left_s)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, less than 0")
        await self._begin()
        stored = self._find_owned(run)
        compare_generation(stored.generation, run, "removed")
        doomed = [n for n in stored.generations if n <= stored.generation - keep]
        streams = [stream for n in doomed for stream in stored.generations.pop(n).values()]
        log = [checkpoint for stream in streams for checkpoint in stream.log]
        size = sum(len(checkpoint.payload) for checkpoint in log)
        size += sum(len(stream.fold.payload) for stream in streams if stream.fold is not None)
        size += stored.remove(name for one in log for name in names_of(one))
        return Pruned(len(doomed), len(log), size)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        await self._begin()
        stored = self._find_owned(run)
        compare_generation(stored.generation, run, "dropped")
        log = stored.generations.get(run.generation, {}).get(stream, _MemoryStream(0)).log
        dropped: set[str] = set()
        for sequence in sequences:
            if 1 <= sequence <= len(log):
                checkpoint = log[sequence - 1]
                dropped.update(checkpoint.blobs)
                log[sequence - 1] = msgspec.structs.replace(checkpoint, blobs=())
        return stored.remove(dropped)

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`."""
        await self._begin()
        self._find_owned(run)
        content = await run_blocking(_join, payload)
        stored = self._find_owned(run)  # again: another owner may have it
        digest = hashlib.sha256(content).hexdigest()
        stored.blobs[digest] = content
        stored.pins[digest] += 1
        return digest

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        await self._begin()
        check_part(offset, size)
        need_digest(digest)
        run = self._memory.runs.get(run_id)
        content = None if run is None else run.blobs.get(digest)
        end = offset if size is None else offset + size
        if content is None or end > len(content):
            raise StoreDamagedError(f"blob {digest} of run {run_id!r} is missing or too short")
        return content[offset:] if size is None else content[offset:end]

    async def check(self) -> AsyncGenerator[Finding]:
        """See `Store.check`.  Only blobs can be wrong here."""
        await self._begin()
        for run_id, run in sorted(self._memory.runs.items()):
            found = partial(Finding, "memory", run_id=run_id)
            named = run.named()
            for digest, content in sorted(run.blobs.items()):
                if digest not in named:
                    yield found("no record names it", severity=Severity.NOTE, blob=digest)
                elif hashlib.sha256(content).hexdigest() != digest:
                    yield found("its content does not match its name", blob=digest)
            for digest in sorted(named.difference(run.blobs)):
                yield found("it is missing, and a record names it", blob=digest)

    async def aclose(self) -> None:
        """See `Store.aclose`.  The data stays for `reopen`."""
        self._is_closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _begin(self) -> None:
        need_process(self._process)  # a forked child's copy of the store is lost with the child
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise StoreError("the store memory: is closed")

    def _resolve(self, run: _Run, checkpoint: Checkpoint) -> StoredRecord:
        payload = checkpoint.payload
        if checkpoint.blob is not None:
            payload = run.blobs.get(checkpoint.blob, b"")
            if hashlib.sha256(payload).hexdigest() != checkpoint.blob:
                raise StoreDamagedError(f"blob {checkpoint.blob} is missing or was altered")
        return StoredRecord(checkpoint.sequence, payload, tuple(dict.fromkeys(checkpoint.blobs)))


def _place(cursor: str, stream: _MemoryStream) -> int:
    match = _CURSOR.fullmatch(cursor)
    number, place = map(int, match.groups()) if match else (0, 0)
    if number != stream.number or not 1 <= place <= len(stream.log):
        raise StoreError(f"{cursor!r} is not a cursor of this stream's history")
    return place


def _join(payload: BlobPayload) -> bytes:
    return b"".join(views_of(payload))
