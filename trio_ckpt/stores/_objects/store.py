"""The store in a bucket of an object store: many machines, each owning other runs.

Theory of operation.  Changes of a run are made in a thread of its own, in the order of the calls:
the requests of two runs do not wait for each other.  Reads and uploads use the threads that all
blocking calls share.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Self, TypeVar, TypeVarTuple

import msgspec
import trio

from ..._buckets.address import ObjectsAddress, parse_address
from ..._buckets.bucket import RefusedError, open_bucket
from ..._buckets.clock import StoreClock, probe
from ..._buckets.requests import OPENING_S, Requests, retry_s_of
from ..._journal.store import (
    INLINE_LIMIT_BYTES,
    MAX_INBOX_BYTES,
    MAX_INLINE_LIMIT_BYTES,
    BlobPart,
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
    Store,
    StoredRun,
)
from ..._util.arguments import flag, whole_number
from ..._util.errors import (
    SaveOutcomeUnknownError,
    StoreError,
    StoreVersionError,
)
from ..._util.forks import need_process, this_process
from ..._util.log import get_logger
from ..._util.threads import NOT_BEGUN, WorkerThread, run_blocking
from ..._util.uninterrupted import shielded
from .._local.blobs import check_part, need_digest, need_positive
from . import blobs, prune, read, save
from .check import bucket_findings, findings
from .layout import FORMAT, StoreKeys, seal, unseal
from .merge import AT_RELEASE, merge_if_due, try_to_merge
from .owning import OwnedLog, compare, give_back, remove, take

logger = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _StoreMarker(msgspec.Struct, frozen=True):
    """What the object says that a store begins with."""

    format: int


class ObjectsStore(Store):
    """A store in a bucket; comes from `open_store`.

    Any number of processes on any machines may use one store at a time, each owning other runs.
    """

    inbox_every_s: float | None = 10.0  # each look is a request, which costs money

    def __init__(
        self,
        address: ObjectsAddress,
        requests: Requests,
        clock: StoreClock,
        *,
        mac_key: bytes | None,
        inline_limit_bytes: int,
    ) -> None:
        self.address = address.url
        self.lease_s = self._lease_s = address.lease_s
        self.mac_key = mac_key
        self.inline_limit_bytes = inline_limit_bytes
        # The library writes files without a sync.
        self.durability: Durability = "process" if address.scheme == "file" else "full"
        self._requests = requests
        self._layout = StoreKeys(address.prefix)
        self._clock = clock
        self._runs: dict[str, OwnedLog] = {}
        self._in_doubt: set[str] = set()  # runs with a save whose outcome is unknown
        self._is_closed = False
        self._process = this_process()

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        mac_key: bytes | None = None,
        inline_limit_bytes: int = INLINE_LIMIT_BYTES,
        create: bool = True,
        requests: Requests | None = None,
    ) -> Self:
        """Open the store of a URL; see `trio_ckpt.stores.open_store`.

        Args:
            url: ``s3://BUCKET/PREFIX``, ``gs://…``, ``az://…`` or ``file:///FOLDER``, with
                options.
            mac_key: Seals records with a key.
            inline_limit_bytes: A payload of this size or more is a blob.
            create: Whether to create a store that does not exist.
            requests: What is asked instead of the bucket of the URL, for tests.

        Raises:
            StoreError: it cannot be used; the message says why.

        Durability: a store that was created is durable on return, but for ``file:``.
        Cancellation: not once it has begun.
        """
        whole_number("inline_limit_bytes", inline_limit_bytes, least=1, most=MAX_INLINE_LIMIT_BYTES)
        flag("create", create)
        address = parse_address(url)
        await trio.lowlevel.checkpoint()
        if requests is None:
            requests = Requests(open_bucket(address), retry_s_of(address.lease_s))
        clock = StoreClock(trio.lowlevel.current_clock())
        clock.local_at = clock.local.current_time()
        opening = partial(
            _prepare, requests.within(OPENING_S), StoreKeys(address.prefix), clock, create=create
        )
        await shielded(run_blocking, opening)
        return cls(address, requests, clock, mac_key=mac_key, inline_limit_bytes=inline_limit_bytes)

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  It is an entry of the run's log, with a lease."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        thread = WorkerThread(f"trio_ckpt run {run_id[:40]}")
        try:
            owned = await shielded(thread.run, self._lock, run_id, thread)
        except BaseException:
            thread.stop()
            raise
        self._runs[run_id] = owned
        self._in_doubt.discard(run_id)  # the fence has ended what was in doubt
        has_failed = True
        try:
            yield owned.owner
            has_failed = False
        finally:
            await self._leave(owned, has_failed=has_failed)

    def _lock(self, run_id: str, thread: WorkerThread) -> OwnedLog:
        if not self._clock.is_measured:
            raise StoreError(
                f"{self.url}: this user may not write to it, so whether it keeps a run to one "
                "owner is unknown; runs can only be read"
            )
        owned = take(self._requests, self._layout, self._clock, run_id, self._lease_s, thread)
        try:
            blobs.remove_unnamed(self._requests, owned)
        except StoreError as error:
            logger.warning("blobs without a name are left: %s", error)
        return owned

    async def _leave(self, owned: OwnedLog, *, has_failed: bool) -> None:
        """Release a run; after a failure, which is raised instead, an error is logged."""
        run_id = owned.keys.run_id
        is_newest = self._runs.get(run_id) is owned  # else this handle has locked it again
        if is_newest:
            del self._runs[run_id]
        if is_newest and run_id in self._in_doubt:
            logger.error("run %r stays locked until its lease ends: a save may land", run_id)
            owned.thread.stop()
            return
        try:
            await shielded(owned.thread.run, self._give_back, owned)
        except StoreError as error:
            if not has_failed:
                raise
            logger.error("releasing run %r failed: %s", run_id, error)
        finally:
            owned.thread.stop()

    def _give_back(self, owned: OwnedLog) -> None:
        if owned.problem:  # another process has it
            return
        try:
            if owned.puts:
                blobs.remove_pinned(self._requests, owned)
        finally:
            give_back(self._requests, self._clock, owned)
        if len(owned.loaded.tail) >= AT_RELEASE and not owned.problem:
            try_to_merge(self._requests, owned)
        remove(self._requests.within(0), owned)

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`.  One PUT."""
        self._check_open()
        owned = self._find(run)
        try:
            outcomes = await owned.thread.run(self._save, owned, run, group, folds, summary)
        except NOT_BEGUN:
            raise
        except BaseException as error:
            if isinstance(error, SaveOutcomeUnknownError) or not isinstance(error, StoreError):
                self._in_doubt.add(run.run_id)
            raise
        owned.thread.run_late(merge_if_due, self._requests, owned)  # it may take many times as long
        return outcomes

    def _save(
        self,
        owned: OwnedLog,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        return save.save_group(self._requests, self._clock, owned, run, group, folds, summary)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        return await self._read(read.read_run, self._layout.run(run_id), generation)

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
        need_positive(limit)
        keys = self._layout.run(run_id)
        return await self._read(read.read_history, keys, stream, generation, cursor, limit)

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        need_positive(limit)
        return await self._read(read.list_runs, self._layout, self._clock, prefix, after, limit)

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        return await self._read(read.read_owner, self._layout.run(run_id), self._clock)

    async def write_inbox(self, run_id: str, payload: bytes) -> None:
        """See `Store.write_inbox`."""
        await self._read(_write_inbox, self._layout.run(run_id).inbox, payload)

    async def read_inbox(self, run_id: str) -> bytes:
        """See `Store.read_inbox`.  One GET."""
        return await self._read(_read_inbox, self._layout.run(run_id).inbox)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, less than 0")
        return await self._change(run, prune.prune, keep)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        return await self._change(run, prune.drop_blobs, stream, sequences)

    async def _change(
        self,
        run: RunKey,
        change: Callable[[Requests, StoreClock, OwnedLog, RunKey, *Ts], T],
        *args: *Ts,
    ) -> T:
        self._check_open()
        await trio.lowlevel.checkpoint()
        owned = self._find(run)
        call = partial(change, self._requests, self._clock, owned, run, *args)
        try:
            return await shielded(owned.thread.run, call)
        except SaveOutcomeUnknownError:
            self._in_doubt.add(run.run_id)
            raise

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`.

        Durability: the object is durable on return.
        Cancellation: not once it has begun.
        """
        self._check_open()
        await trio.lowlevel.checkpoint()
        owned, requests = self._find(run), self._requests
        spooled = await shielded(run_blocking, blobs.spool, requests, owned.keys, payload)
        if not await shielded(owned.thread.run, blobs.pin_known, requests, owned, spooled):
            name = await shielded(run_blocking, blobs.upload, requests, owned.keys, spooled)
            await shielded(owned.thread.run, blobs.pin_new, requests, owned, spooled, name)
        return spooled.digest

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        check_part(offset, size)
        need_digest(digest)
        return await self._read(blobs.read_blob, self._layout.run(run_id), digest, offset, size)

    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        """See `Store.read_blob_parts`."""
        left, keys = iter(parts), self._layout.run(run_id)
        while await self._read(blobs.read_next, keys, left):
            pass

    async def check(self) -> AsyncGenerator[Finding]:
        """See `Store.check`."""
        self._check_open()
        left = findings(self._requests, self._layout)
        while (found := await run_blocking(next, left, False)) is not False:
            if isinstance(found, Finding):
                yield found

    async def examine_bucket(self) -> list[Finding]:
        """What the bucket is good for, and what it costs to save in it.

        Raises:
            StoreError: it does not answer.

        Cancellation: a cancellation point; a request that has begun may be waited for.
        """
        began = trio.current_time()
        await self._read(Requests.get, self._layout.marker)
        trip_s = trio.current_time() - began
        return bucket_findings(self._clock, self.durability, trip_s)

    async def aclose(self) -> None:
        """See `Store.aclose`.

        Cancellation: a checkpoint; there is nothing to wait for.
        """
        self._is_closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _read(self, func: Callable[[Requests, *Ts], T], *args: *Ts) -> T:
        self._check_open()
        return await run_blocking(func, self._requests, *args)

    def _find(self, run: RunKey) -> OwnedLog:
        return compare(self._runs.get(run.run_id), run)

    def _check_open(self) -> None:
        need_process(self._process)
        if self._is_closed:
            raise StoreError(f"the store {self.url} is closed")


def _write_inbox(requests: Requests, key: str, payload: bytes) -> None:
    if payload:
        requests.put(key, payload)
    else:
        requests.delete([key])


def _read_inbox(requests: Requests, key: str) -> bytes:
    """Read an inbox; a server that does not answer is not asked again: the next look is soon."""
    return requests.within(0).peek(key, MAX_INBOX_BYTES) or b""


def _prepare(requests: Requests, layout: StoreKeys, clock: StoreClock, *, create: bool) -> None:
    """Check that there is a store of this format, or make one.

    Raises:
        StoreError: there is none, or it cannot be used.
    """
    shown, data = requests.bucket.shown, requests.get(layout.marker)
    if data is None and not create:
        requests.list_all(layout.names)  # it says so where there is not even a bucket
        raise StoreError(f"there is no store in {shown}; make one with: trio-ckpt init {shown}")
    may_write = False
    with suppress(RefusedError):
        probe(requests, layout.new_probe(), clock.set)
        may_write = True
    if data is None:
        requests.create(layout.marker, seal(_StoreMarker(FORMAT)))
        return
    marker = unseal(data, _StoreMarker, layout.marker)
    if marker.format != FORMAT:
        raise StoreVersionError(
            f"{shown}: the store has format {marker.format}, this version reads format {FORMAT}"
        )
    if not may_write:
        logger.info("%s: it can only be read", shown)
