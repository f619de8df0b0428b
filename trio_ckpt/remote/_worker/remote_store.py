"""The store of a worker: the foreman's store, over the connection, for one work item.

Theory of operation.  The foreman owns the item's run while the worker has the item, and the owner
number that its store issued is the lease.  `RemoteStore.lock_run` returns that number, and each
save carries the newest one, so the foreman's store itself refuses what a former worker still
sends.  A restarted foreman has a new number for a worker that continues; the worker's code does
not see the difference.

The foreman locks the run for each lease again.  So a blob that was put under one lease, and not
named before that ended, is gone under the next: a save that names it is refused.

Larger values go in parts: blobs on the way there, everything on the way back.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn, TypeVar

import msgspec
import trio

from ..._journal.store import (
    BlobPayload,
    Checkpoint,
    Durability,
    FarStore,
    Fold,
    HistoryPage,
    Owner,
    Pruned,
    RunKey,
    RunSummary,
    StoredRun,
)
from ..._util.errors import StoreConflictError, StoreError
from ..._util.threads import run_blocking
from ...stores._local.blobs import views_of
from .._wire.message import MAX_MESSAGE_BYTES, MAX_SEQUENCES, MIB
from .._wire.task_messages import (
    DropBlobs,
    PutBlob,
    ReadBlob,
    ReadHistory,
    ReadRun,
)
from .calls import RpcClient

PART_BYTES = MIB  # of a blob, in one message
GROUP_BYTES = MAX_MESSAGE_BYTES - MIB  # of checkpoints, in one message; the rest is names
PUTS = 3  # attempts at a blob, where the foreman was restarted in between
MAX_SEQUENCE = 2**63 - 1


class RemoteStore(FarStore):
    """The foreman's store, limited to one worker and one work item."""

    durability: Durability = "full"

    def __init__(self, rpc: RpcClient, *, is_new: bool = False) -> None:
        """Make the store of a work item; `is_new`: its run is new, so it is not asked for."""
        self.address = f"remote:{rpc.task_id}"
        self._rpc = rpc
        self._is_new = is_new
        self._given = 0  # the owner number that the worker's code knows
        self._is_closed = False

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  The foreman already owns the run, for this worker."""
        await self._begin(run_id)
        if self._given == 0:
            self._given = self._rpc.lease
        yield self._given

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`.  Uses several transactions above `GROUP_BYTES`.

        The summary is not sent: the foreman sums its items up in the run of their job.
        """
        await self._begin_owned(run, "saved")
        outcomes: list[Exception | None] = []
        parts = _cut(group)
        for number, part in enumerate(parts, 1):
            last = folds if number == len(parts) else ()
            outcomes += await self._rpc.save(run.generation, part, last)
        return outcomes

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        await self._begin(run_id)
        if self._is_new:
            self._is_new = False  # it has records soon
            return None
        return _decode(_RUN, await self._rpc.call(ReadRun(generation)))

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
        if limit < 1:
            raise ValueError(f"limit is {limit}, not positive")
        await self._begin(run_id)
        answer = await self._rpc.call(ReadHistory(stream, generation, cursor, limit))
        return _decode(_PAGE, answer)

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`.  Sent in parts of `PART_BYTES`; held until acknowledged."""
        await self._begin_owned(run, "stored")
        digest, attempt = "", 0
        with trio.CancelScope(shield=True):
            digest, views = await run_blocking(_named, payload)
            while True:
                attempt += 1
                try:
                    await self._put(digest, views)
                    break
                except _BeginAgainError as error:
                    if attempt == PUTS:
                        raise StoreError(f"blob {digest} cannot be written: {error}") from error
        return digest

    async def _put(self, digest: str, views: list[memoryview]) -> None:
        size, offset = sum(map(len, views)), 0
        for part in _parts(views):
            answer = await self._rpc.call(PutBlob(digest, size, offset, part))
            if answer != _NIL:
                raise _BeginAgainError("the foreman lost the earlier parts of the blob")
            offset += len(part)

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        if offset < 0 or (size is not None and size < 0):
            raise ValueError(f"{size} bytes from {offset} on are not a part of a blob")
        await self._begin(run_id)
        return await self._rpc.call(ReadBlob(digest, offset, size))

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        await self._begin_owned(run, "dropped")
        known = [sequence for sequence in sequences if 1 <= sequence <= MAX_SEQUENCE]
        size = 0
        for first in range(0, max(len(known), 1), MAX_SEQUENCES):
            part = tuple(known[first : first + MAX_SEQUENCES])
            drop = DropBlobs(run.generation, stream, part)
            size += _decode(_SIZE, await self._rpc.call(drop))
        return size

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """Always refused: a worker sees only the run of its item.

        Raises:
            StoreError: always.
        """
        self._refuse("list the runs")

    async def read_owner(self, run_id: str) -> Owner | None:
        """Always refused: a worker does not see the owners of runs.

        Raises:
            StoreError: always.
        """
        self._refuse("ask for owners")

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """Always refused: the foreman prunes the run when the item is done.

        Raises:
            StoreError: always.
        """
        self._refuse("prune")

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        self._is_closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(f"a worker cannot {what}: its store is for one work item")

    async def _begin(self, run_id: str | None = None) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise StoreError(f"the store {self.url} is closed")
        if run_id is not None and run_id != self._rpc.task_id:
            raise StoreError(f"this store is for run {self._rpc.task_id!r}, not {run_id!r}")

    async def _begin_owned(self, run: RunKey, what: str) -> None:
        await self._begin(run.run_id)
        if run.owner != self._given:
            raise StoreConflictError(
                f"owner {self._given} has the run now, this is owner {run.owner}: nothing was "
                f"{what}",
                run_id=run.run_id,
            )


class _BeginAgainError(Exception):
    """The foreman does not have the earlier parts of a blob."""


_NIL = msgspec.msgpack.encode(None)
_RUN: msgspec.msgpack.Decoder[StoredRun | None] = msgspec.msgpack.Decoder(StoredRun | None)
_PAGE = msgspec.msgpack.Decoder(HistoryPage)
_SIZE = msgspec.msgpack.Decoder(int)

T = TypeVar("T")


def _decode(decoder: msgspec.msgpack.Decoder[T], answer: bytes) -> T:
    try:
        return decoder.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"the foreman's answer cannot be read: {error}") from error


def _cut(group: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    """Split a group into parts that fit into a message; at least one, which may be empty."""
    parts: list[list[Checkpoint]] = [[]]
    size = 0
    for checkpoint in group:
        own = len(checkpoint.payload) + 100 * (1 + len(checkpoint.blobs)) + len(checkpoint.stream)
        if parts[-1] and size + own > GROUP_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(checkpoint)
        size += own
    return parts


def _named(payload: BlobPayload) -> tuple[str, list[memoryview]]:
    """Return the SHA-256 of a payload, in hexadecimal, and a view of its bytes.

    Raises:
        TypeError: a buffer is not contiguous.
    """
    hasher, views = hashlib.sha256(), list(views_of(payload))
    for view in views:
        hasher.update(view)
    return hasher.hexdigest(), views


def _parts(views: list[memoryview]) -> Iterator[bytes]:
    """Split a payload into parts of `PART_BYTES`; at least one, which may be empty."""
    gathered, is_empty = bytearray(), True
    for view in views:
        for first in range(0, len(view), PART_BYTES):
            gathered += view[first : first + PART_BYTES]
            while len(gathered) >= PART_BYTES:
                yield bytes(gathered[:PART_BYTES])
                del gathered[:PART_BYTES]
                is_empty = False
    if gathered or is_empty:
        yield bytes(gathered)
