"""The store in memory: the verified fake, for tests and for work that need not survive.

Theory of operation.  Everything a store on disk would hold is in one `_Memory`; a
`MemoryStore` is a handle onto it.  Nothing here waits between its first and its last
change, so every save is atomic under trio without a lock.  It passes the same
`trio_ckpt.testing.check_store` as the store on disk, so what is tested with it holds there.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import attrs
import trio

from .._errors import (
    RunLockedError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from .._records import utc_now
from ..abc import (
    INLINE_LIMIT_BYTES,
    Checkpoint,
    Durability,
    Fold,
    HistoryPage,
    Owner,
    Pruned,
    RunKey,
    RunSummary,
    Store,
    StoredRecord,
    StoredRun,
    StoredStream,
)

_CURSOR = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})", re.ASCII)


@attrs.define
class _Stream:
    number: int  # makes cursors its own
    log: list[Checkpoint] = attrs.field(factory=list[Checkpoint])  # sequence n is log[n - 1]
    fold: Fold | None = None


@attrs.define
class _Run:
    owner: int
    generations: dict[int, dict[str, _Stream]]  # the greatest is the newest; none: it was pruned
    next_generation: int = 1

    @property
    def generation(self) -> int:
        return self.next_generation - 1

    def begin(self, generation: int) -> dict[str, _Stream]:
        """The streams of a generation, the newest or the next."""
        self.next_generation = generation + 1
        return self.generations.setdefault(generation, {})


@attrs.define
class _Memory:
    runs: dict[str, _Run] = attrs.field(factory=dict[str, _Run])
    blobs: dict[str, bytes] = attrs.field(factory=dict[str, bytes])
    locked_since: dict[str, str] = attrs.field(factory=dict[str, str])
    streams: int = 0
    was_pruned: bool = False  # so there may be blobs that nobody names any more

    def blobs_named(self) -> set[str]:
        """The digests that the records of all runs name."""
        return {
            checkpoint.blob
            for run in self.runs.values()
            for streams in run.generations.values()
            for stream in streams.values()
            for checkpoint in stream.log
            if checkpoint.blob is not None
        }

    def remove_orphans(self) -> None:
        """Remove blobs that nobody names, once nobody owns a run who may be about to."""
        if self.was_pruned and not self.locked_since:
            self.was_pruned = False
            for digest in self.blobs.keys() - self.blobs_named():
                del self.blobs[digest]


class MemoryStore(Store):
    """A store that ends with the process.  Several runs after each other may use one."""

    durability: Durability = "none"

    def __init__(
        self, *, mac_key: bytes | None = None, inline_limit_bytes: int = INLINE_LIMIT_BYTES
    ) -> None:
        self.url = "memory:"
        self.mac_key = mac_key
        self.inline_limit_bytes = inline_limit_bytes
        self._memory = _Memory()
        self._in_doubt: set[str] = set()
        self._is_closed = False

    def reopen(self) -> MemoryStore:
        """Another handle onto the same store."""
        other = MemoryStore(mac_key=self.mac_key, inline_limit_bytes=self.inline_limit_bytes)
        other._memory = self._memory
        return other

    def after_crash(self) -> MemoryStore:
        """What another process would find if this one were killed now: the data, no locks."""
        other = self.reopen()
        runs = {
            run_id: _Run(
                run.owner,
                {
                    generation: {
                        key: _Stream(stream.number, list(stream.log), stream.fold)
                        for key, stream in streams.items()
                    }
                    for generation, streams in run.generations.items()
                },
                run.next_generation,
            )
            for run_id, run in self._memory.runs.items()
        }
        other._memory = _Memory(runs, dict(self._memory.blobs), streams=self._memory.streams)
        other._memory.was_pruned = self._memory.was_pruned
        return other

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`."""
        await self._begin()
        memory = self._memory
        since = memory.locked_since.get(run_id)
        if since is not None:
            raise RunLockedError(run_id, host=socket.gethostname(), pid=os.getpid(), since=since)
        memory.remove_orphans()
        memory.locked_since[run_id] = utc_now().isoformat(timespec="seconds")
        run = memory.runs.setdefault(run_id, _Run(0, {0: {}}))
        run.owner += 1
        if not run.generations:  # it was pruned; from its first lock on a run exists
            run.begin(run.next_generation)
        try:
            yield run.owner
        finally:
            if run_id not in self._in_doubt:
                del memory.locked_since[run_id]
                memory.remove_orphans()

    async def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
    ) -> list[Exception | None]:
        """See `Store.save`."""
        try:
            await self._begin()
        except trio.Cancelled:
            self._in_doubt.add(run.run_id)  # it is not, but on disk it would be
            raise
        streams = self._fence(run)
        failed: dict[str, int] = {}
        outcomes = [self._append(streams, checkpoint, failed) for checkpoint in group]
        for fold in folds:
            stream = streams.get(fold.stream)
            if stream is not None and 1 <= fold.through <= len(stream.log):
                stream.fold = fold
        return outcomes

    def _fence(self, key: RunKey) -> dict[str, _Stream]:
        """The streams to save to, if the owner and the generation are right."""
        run = self._memory.runs.get(key.run_id)
        if run is None:
            run = _Run(key.owner, {key.generation: {}}, key.generation + 1)
            self._memory.runs[key.run_id] = run
        _compare_owner(run, key)
        allowed = {run.next_generation, *([run.generation] if run.generations else [])}
        if key.generation not in allowed:
            raise StoreConflictError(
                f"generation {key.generation} is neither the newest, {run.generation}, nor the "
                "next: nothing was saved",
                run_id=key.run_id,
            )
        return run.begin(key.generation)

    def _append(
        self, streams: dict[str, _Stream], checkpoint: Checkpoint, failed: dict[str, int]
    ) -> Exception | None:
        if checkpoint.stream in failed:
            return StoreError(
                f"checkpoint {checkpoint.sequence} was not saved because checkpoint "
                f"{failed[checkpoint.stream]} before it was not"
            )
        stream = streams.get(checkpoint.stream)
        newest = len(stream.log) if stream is not None else 0
        if checkpoint.sequence != newest + 1:
            failed[checkpoint.stream] = checkpoint.sequence
            return StoreConflictError(
                f"checkpoint {checkpoint.sequence} of {checkpoint.stream} was not saved: "
                f"the next one is {newest + 1}"
            )
        if checkpoint.blob is not None and checkpoint.blob not in self._memory.blobs:
            failed[checkpoint.stream] = checkpoint.sequence
            return StoreError(
                f"checkpoint {checkpoint.sequence} of {checkpoint.stream} was not saved: "
                f"blob {checkpoint.blob} was not put"
            )
        if stream is None:
            self._memory.streams += 1
            stream = streams[checkpoint.stream] = _Stream(self._memory.streams)
        stream.log.append(checkpoint)
        return None

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        await self._begin()
        run = self._memory.runs.get(run_id)
        if run is None:
            return None
        number = run.generation if generation is None else generation
        if number not in run.generations:
            return None
        streams = tuple(
            StoredStream(
                key,
                len(stream.log),
                stream.fold,
                tuple(map(self._resolve, stream.log[stream.fold.through if stream.fold else 0 :])),
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
        if limit < 1:
            raise ValueError(f"limit is {limit}, not positive")
        run = self._memory.runs.get(run_id)
        streams: dict[str, _Stream] = {}
        if run is not None:
            number = run.generation if generation is None else generation
            streams = run.generations.get(number, {})
        found = streams.get(stream, _Stream(0))
        stop = len(found.log) if cursor is None else _place(cursor, found)
        start = max(0, stop - limit)
        records = tuple(map(self._resolve, reversed(found.log[start:stop])))
        return HistoryPage(records, f"{found.number}.{start}" if start else None)

    async def list_runs(self) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        await self._begin()
        return tuple(
            RunSummary(
                run_id,
                run.generation,
                run.owner,
                len(run.generations[run.generation]),
                sum(len(stream.log) for stream in run.generations[run.generation].values()),
            )
            for run_id, run in sorted(self._memory.runs.items())
            if run.generations
        )

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        await self._begin()
        since = self._memory.locked_since.get(run_id)
        if since is None:
            return None
        return Owner(socket.gethostname(), os.getpid(), datetime.fromisoformat(since))

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, less than 0")
        await self._begin()
        stored = self._memory.runs.get(run.run_id, _Run(run.owner, {}, run.generation + 1))
        _compare_owner(stored, run)
        if run.generation != stored.generation:
            raise StoreConflictError(
                f"generation {run.generation} is not the newest, {stored.generation} is: nothing "
                "was removed",
                run_id=run.run_id,
            )
        doomed = [n for n in stored.generations if n <= stored.generation - keep]
        streams = [stream for n in doomed for stream in stored.generations.pop(n).values()]
        log = [checkpoint for stream in streams for checkpoint in stream.log]
        size = sum(len(checkpoint.payload) for checkpoint in log)
        size += sum(len(stream.fold.payload) for stream in streams if stream.fold is not None)
        orphans = {one.blob for one in log if one.blob} - self._memory.blobs_named()
        size += sum(len(self._memory.blobs.get(digest, b"")) for digest in orphans)
        self._memory.was_pruned = True
        return Pruned(len(doomed), len(log), size)

    async def put_blob(self, digest: str, payload: bytes) -> None:
        """See `Store.put_blob`."""
        await self._begin()
        self._memory.blobs[digest] = bytes(payload)

    async def aclose(self) -> None:
        """See `Store.aclose`.  The data stays for `reopen`."""
        self._is_closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _begin(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise StoreError("the store memory: is closed")

    def _resolve(self, checkpoint: Checkpoint) -> StoredRecord:
        payload = checkpoint.payload
        if checkpoint.blob is not None:
            payload = self._memory.blobs.get(checkpoint.blob, b"")
            if hashlib.sha256(payload).hexdigest() != checkpoint.blob:
                raise StoreDamagedError(f"blob {checkpoint.blob} is missing or was altered")
        return StoredRecord(checkpoint.sequence, payload)


def _compare_owner(run: _Run, key: RunKey) -> None:
    if run.owner != key.owner:
        raise StoreConflictError(
            f"owner {run.owner} has the run now, this is owner {key.owner}: nothing was changed",
            run_id=key.run_id,
        )


def _place(cursor: str, stream: _Stream) -> int:
    match = _CURSOR.fullmatch(cursor)
    number, place = map(int, match.groups()) if match else (0, 0)
    if number != stream.number or not 1 <= place <= len(stream.log):
        raise StoreError(f"{cursor!r} is not a cursor of this stream's history")
    return place
