"""The store in a PostgreSQL database: many machines, each owning other runs.

Theory of operation.  What an owner changes goes through one thread with one connection, in the
order of the calls.  Reads, and uploads of large blobs, have threads and connections of their own,
opened when they are needed, so that neither delays a save.

A run is owned by a lease in the database.  Owner numbers fence: what an older owner sends late
changes nothing, so it does not matter how long a process was paused.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, Self, TypeVar, TypeVarTuple

import trio

from ..._journal.store import (
    INLINE_LIMIT_BYTES,
    MAX_INLINE_LIMIT_BYTES,
    BlobPart,
    BlobPayload,
    Checkpoint,
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
from ..._util.arguments import flag, one_of, whole_number
from ..._util.errors import RunLockedError, SaveOutcomeUnknownError, StoreError
from ..._util.forks import need_process, this_process
from ..._util.log import get_logger
from ..._util.threads import NOT_BEGUN, WorkerThread
from ..._util.uninterrupted import shielded
from .._local.blobs import check_part, need_digest, need_positive
from . import blobs, live, prune, read, save
from .address import PostgresAddress, parse_address
from .check import steps
from .connection import PostgresConnection
from .owning import PAST_LEASE_S, OwnedRun, OwnedRuns, Suspect, grace_of, read_owner
from .schema import ServerFacts, prepare_store, read_server, server_findings

logger = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Line:
    """A thread with a connection of its own, both made when they are needed."""

    def __init__(self, connection: PostgresConnection, name: str) -> None:
        self.connection = connection
        self._thread = WorkerThread(f"trio_ckpt {name} {connection.address.schema}")

    async def run(self, func: Callable[[PostgresConnection, *Ts], T], *args: *Ts) -> T:
        """Call a function with the connection, in the thread."""
        return await self._thread.run(func, self.connection, *args)

    async def close(self, *, is_in_doubt: bool) -> None:
        """Close the connection, and end the thread; behind a call that hangs no caller waits."""
        if is_in_doubt:
            self._thread.stop(self.connection.close)
            return
        try:
            await shielded(self._thread.run, self.connection.close)
        finally:
            self._thread.stop()


class PostgresStore(Store):
    """A store in a schema of a PostgreSQL database; comes from `open_store`.

    Any number of processes on any machines may use one store at a time, each owning other runs.
    """

    has_live = True
    publish_every_s = 5.0
    inbox_every_s: float | None = 0.5

    def __init__(
        self,
        address: PostgresAddress,
        writing: _Line,
        facts: ServerFacts,
        *,
        mac_key: bytes | None,
        inline_limit_bytes: int,
    ) -> None:
        self.address = address.url
        self.lease_s = address.lease_s
        self.mac_key = mac_key
        self.inline_limit_bytes = inline_limit_bytes
        self.durability = facts.durability
        self._writing = writing
        asked = writing.connection.durability
        self._reading = _Line(PostgresConnection(address, asked), "reads")
        self._uploading = _Line(PostgresConnection(address, asked), "uploads to")
        self._runs = OwnedRuns()
        self._in_doubt: set[str] = set()  # runs with a save whose outcome is unknown
        self._is_upload_abandoned = False  # it may still hang
        self._is_closed = False
        self._process = this_process()

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        mac_key: bytes | None = None,
        durability: Literal["full", "process"] = "full",
        inline_limit_bytes: int = INLINE_LIMIT_BYTES,
        create: bool = True,
    ) -> Self:
        """Open the store of a URL; see `trio_ckpt.stores.open_store`.

        Args:
            url: ``postgresql://…``, with the options ``schema``, ``lease_s`` and ``pooler``.
            mac_key: Seals records with a key.
            durability: "full", or "process": faster, but a crash of the server may take the newest
                saves.
            inline_limit_bytes: A payload of this size or more is a blob.
            create: Whether to create a store that does not exist.

        Durability: the tables are durable on return.
        Cancellation: not once it has begun.
        """
        one_of("durability", durability, ("full", "process"))
        whole_number("inline_limit_bytes", inline_limit_bytes, least=1, most=MAX_INLINE_LIMIT_BYTES)
        flag("create", create)
        address = parse_address(url)
        await trio.lowlevel.checkpoint()
        writing = _Line(PostgresConnection(address, durability), "writes")
        try:
            facts = await shielded(writing.run, partial(_prepare, create=create))
        except BaseException:
            await writing.close(is_in_doubt=False)
            raise
        return cls(address, writing, facts, mac_key=mac_key, inline_limit_bytes=inline_limit_bytes)

    def spare_connections(self) -> None:
        """See `Store.spare_connections`.  Reads go over the connection that saves.

        Large blobs are uploaded over one of their own all the same: no lease would be renewed
        meanwhile.
        """
        self._reading = self._writing

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  It is a lease in the database, which ends by itself."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        owned = await self._lock_unless_alive(run_id)
        has_failed = True
        try:
            yield owned.owner
            has_failed = False
        finally:
            if run_id in self._in_doubt:
                logger.error("run %r stays locked until its lease ends: a save may land", run_id)
            else:
                await self._give_back_after(owned, run_id, has_failed=has_failed)

    async def _lock_unless_alive(self, run_id: str) -> OwnedRun:
        """Lock a run, also before the lease of an owner ends that shows no sign of life."""
        try:
            return await shielded(self._writing.run, self._lock, run_id, None)
        except RunLockedError:
            suspect = await shielded(self._writing.run, self._suspect, run_id)
            if suspect is None:
                raise
        grace_s = grace_of(self._writing.connection.address.lease_s, suspect)
        left_s = max(suspect.lease_left_s, 0.0)
        await trio.sleep(min(grace_s, left_s + PAST_LEASE_S))
        if left_s < grace_s or (
            await shielded(self._writing.run, self._suspect, run_id) != suspect
        ):
            suspect = None  # only the end of its lease counts
        return await shielded(self._writing.run, self._lock, run_id, suspect)

    def _suspect(self, connection: PostgresConnection, run_id: str) -> Suspect | None:
        with connection.explain(f"locking run {run_id!r}"):
            return self._runs.suspect(connection, run_id)

    def _lock(self, connection: PostgresConnection, run_id: str, dead: Suspect | None) -> OwnedRun:
        with connection.explain(f"locking run {run_id!r}"):
            owned = self._runs.take(connection, run_id, dead)
        self._in_doubt.discard(run_id)  # the fence has ended what was in doubt
        if owned.may_have_blobs:
            try:
                with connection.explain("removing what a crash left"):
                    blobs.remove_uploads(connection, owned)
                    blobs.remove_unnamed(connection, owned)
            except StoreError as error:
                logger.warning("blobs without a name are left: %s", error)
        return owned

    async def _give_back_after(self, owned: OwnedRun, run_id: str, *, has_failed: bool) -> None:
        """Release a run; after a failure, which is raised instead, an error is logged."""
        try:
            await shielded(self._writing.run, self._give_back, owned, run_id)
        except StoreError as error:
            if not has_failed:
                raise
            logger.error("releasing run %r failed: %s", run_id, error)

    def _give_back(self, connection: PostgresConnection, owned: OwnedRun, run_id: str) -> None:
        with connection.explain(f"releasing run {run_id!r}"):
            try:
                if owned.pins:
                    owned.pins.clear()
                    blobs.remove_unnamed(connection, owned)
            finally:
                self._runs.give_back(connection, run_id, owned.owner)

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`.  One statement, one flush of the server's log."""
        self._check_open()
        self._runs.find(run)
        try:
            return await self._writing.run(self._save, run, group, folds, summary)
        except NOT_BEGUN:
            raise
        except BaseException as error:
            is_unknown = isinstance(error, SaveOutcomeUnknownError)
            # Also a renewal that hangs: what gives the lock back would wait behind it.
            if is_unknown or not isinstance(error, StoreError):
                self._in_doubt.add(run.run_id)
            raise

    def _save(
        self,
        connection: PostgresConnection,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        with connection.explain("saving"):
            return save.save_group(connection, self._runs.find(run), run, group, folds, summary)

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        return await self._read(read.read_run, run_id, generation)

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
        return await self._read(read.read_history, run_id, stream, generation, cursor, limit)

    async def list_runs(
        self, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        need_positive(limit)
        return await self._read(read.list_runs, prefix, after, limit)

    async def read_owner(self, run_id: str) -> Owner | None:
        """See `Store.read_owner`."""
        return await self._read(read_owner, run_id)

    async def publish(self, run_id: str, payload: bytes) -> None:
        """See `Store.publish`."""
        await self._read(live.write_live, run_id, self._runs.number_of(run_id), payload)

    async def is_watched(self, run_id: str) -> bool:
        """See `Store.is_watched`."""
        return await self._read(live.is_watched, run_id, self._runs.number_of(run_id))

    async def read_live(self, run_id: str) -> bytes:
        """See `Store.read_live`."""
        return await self._read(live.read_live, run_id)

    async def write_inbox(self, run_id: str, payload: bytes) -> None:
        """See `Store.write_inbox`."""
        await self._read(live.write_inbox, run_id, payload)

    async def read_inbox(self, run_id: str) -> bytes:
        """See `Store.read_inbox`."""
        return await self._read(live.read_inbox, run_id)

    async def prune(self, run: RunKey, *, keep: int) -> Pruned:
        """See `Store.prune`.  The rows are removed in parts, once they are invisible."""
        if keep < 0:
            raise ValueError(f"keep is {keep}, less than 0")
        self._check_open()
        await trio.lowlevel.checkpoint()
        return await shielded(self._writing.run, self._prune, run, keep)

    def _prune(self, connection: PostgresConnection, run: RunKey, keep: int) -> Pruned:
        with connection.explain(f"pruning run {run.run_id!r}"):
            return prune.prune(connection, self._runs.find(run), run, keep)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        """See `Store.drop_blobs`."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        return await shielded(self._writing.run, self._drop, run, stream, sequences)

    def _drop(
        self, connection: PostgresConnection, run: RunKey, stream: str, sequences: Sequence[int]
    ) -> int:
        with connection.explain(f"dropping blobs of run {run.run_id!r}"):
            return prune.drop_blobs(connection, self._runs.find(run), run, stream, sequences)

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`.

        Durability: it is committed on return.
        Cancellation: it is abandoned, as when the lease of the run is lost: the upload ends with
            the part that is on its way, and its buffers may be read until then.
        """
        self._check_open()
        owned, is_abandoned = self._runs.find(run), threading.Event()
        try:
            uploaded = await self._uploading.run(_upload, owned.row, payload, is_abandoned)
        except trio.Cancelled:
            is_abandoned.set()
            self._is_upload_abandoned = True
            raise
        try:
            return await self._writing.run(self._name, run, uploaded)
        except trio.Cancelled:
            self._in_doubt.add(run.run_id)  # what gives the lock back would wait behind it
            raise

    def _name(self, connection: PostgresConnection, run: RunKey, uploaded: blobs.Upload) -> str:
        with connection.explain("putting a blob"):
            return blobs.name_blob(connection, self._runs.find(run), run, uploaded)

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        """See `Store.read_blob`."""
        check_part(offset, size)
        need_digest(digest)
        return await self._read(blobs.read_blob, run_id, digest, offset, size)

    async def read_blob_parts(self, run_id: str, parts: Iterable[BlobPart]) -> None:
        """See `Store.read_blob_parts`."""
        self._check_open()
        left = iter(parts)
        while await self._reading.run(_read_next, run_id, left):
            pass

    async def check(self) -> AsyncGenerator[Finding]:
        """See `Store.check`."""
        self._check_open()
        for step in steps(self._reading.connection):
            for finding in await self._read(_take_step, step):
                yield finding

    async def examine_server(self) -> list[Finding]:
        """What the database is good for: what its commits survive, and its standbys.

        Raises:
            StoreError: it cannot be read.

        Cancellation: a cancellation point; a read that has begun may be waited for.
        """
        return server_findings(await self._read(read_server))

    async def aclose(self) -> None:
        """See `Store.aclose`.

        Cancellation: shielded.  It waits for saves under way, but not for a save that was
            given up on: its connection is closed after that save has ended.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        try:
            if self._reading is not self._writing:
                await self._reading.close(is_in_doubt=bool(self._in_doubt))
        finally:
            try:
                is_in_doubt = bool(self._in_doubt) or self._is_upload_abandoned
                await self._uploading.close(is_in_doubt=is_in_doubt)
            finally:
                await self._writing.close(is_in_doubt=bool(self._in_doubt))

    async def _read(self, func: Callable[[PostgresConnection, *Ts], T], *args: *Ts) -> T:
        self._check_open()
        return await self._reading.run(_repeat, func, *args)

    def _check_open(self) -> None:
        need_process(self._process)
        if self._is_closed:
            raise StoreError(f"the store {self.url} is closed")


def _prepare(connection: PostgresConnection, *, create: bool) -> ServerFacts:
    with connection.explain("opening"):
        return prepare_store(connection, create=create)


def _repeat(
    connection: PostgresConnection, func: Callable[[PostgresConnection, *Ts], T], *args: *Ts
) -> T:
    """Call a function that only reads, again while the server does not answer."""
    with connection.explain("reading"):
        return connection.repeat(partial(func, connection, *args))


def _take_step(_: PostgresConnection, step: Callable[[], list[Finding]]) -> list[Finding]:
    return step()


def _upload(
    connection: PostgresConnection, row: int, payload: BlobPayload, is_abandoned: threading.Event
) -> blobs.Upload:
    with connection.explain("putting a blob"):
        return blobs.upload(connection, row, payload, is_abandoned.is_set)


def _read_next(connection: PostgresConnection, run_id: str, parts: Iterable[BlobPart]) -> bool:
    """Read the next part; False: there are no more."""
    for part in parts:
        _repeat(connection, blobs.read_part, run_id, part)
        return True
    return False
