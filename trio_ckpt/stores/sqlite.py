"""The default store: a folder with an SQLite database.

Theory of operation.  The folder holds ``state.db`` (runs, streams and records), ``blobs/``
(payloads that are too big for a database, write-once files named by their SHA-256) and
``lock/`` (who owns which run, see `trio_ckpt.stores._locks`).

Durable means: SQLite's write-ahead log with ``synchronous = FULL``, one fsync per group of
checkpoints.  With the rollback journal, and with ``synchronous = NORMAL``, acknowledged
saves were lost in real power cuts; that is why the mode is read back.  A blob and its name
are durable before the row that names it.  https://www.sqlite.org/wal.html,
https://www.sqlite.org/howtocorrupt.html

There are two long-lived threads, each with a connection of its own: one that writes
(`_sqlite_writer`), in the order it is asked, and, from the first read on, one that reads
(`_sqlite_reader`), so that a long read never delays a save.  Blobs go through trio's threads.

A save that was given up on may still land.  So its run stays locked until the process ends,
and nothing here waits for the writing thread after it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypeVar, TypeVarTuple

import trio

from .._errors import SaveOutcomeUnknownError, StoreError
from .._threads import WorkerThread, run_blocking
from ..abc import (
    INLINE_LIMIT_BYTES,
    Checkpoint,
    Fold,
    HistoryPage,
    RunKey,
    RunSummary,
    Store,
    StoredRun,
)
from ._files import Blobs
from ._locks import RunLock, lock_run
from ._sqlite_reader import Reader
from ._sqlite_writer import Writer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

logger = logging.getLogger("trio_ckpt.stores.sqlite")


class SqliteStore(Store):
    """A store in a local folder; comes from `SqliteStore.open` or `open_store`.

    Several processes may use one store at a time, each owning other runs.  Not for network
    file systems: their locks and their fsync promise too little.
    """

    def __init__(
        self,
        folder: Path,
        writer: Writer,
        thread: WorkerThread,
        *,
        mac_key: bytes | None,
        durability: Literal["full", "process"],
        inline_limit_bytes: int,
    ) -> None:
        self.url = f"sqlite:{folder}"
        self.mac_key = mac_key
        self.durability = durability
        self.inline_limit_bytes = inline_limit_bytes
        self._folder = folder
        self._blobs = Blobs(folder / "blobs")
        self._writer = writer
        self._writing = thread
        self._reader = Reader(folder)
        self._reading = WorkerThread(f"trio_ckpt reads {folder.name}")
        self._in_doubt: set[str] = set()  # runs with a save whose outcome is unknown
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mac_key: bytes | None = None,
        durability: Literal["full", "process"] = "full",
        inline_limit_bytes: int = INLINE_LIMIT_BYTES,
        create: bool = True,
    ) -> SqliteStore:
        """Open the store in a folder; see `trio_ckpt.stores.open_store`.

        Args:
            path: The folder.  Parents that are missing are made.
            mac_key: Seals records with a key.
            durability: "full", or "process": faster, and power loss may take the newest.
            inline_limit_bytes: From this size on a payload is a file.
            create: Whether to make a store that is not there.

        Durability: the names of the folder and the database are durable on return.
        Cancellation: not once it has begun.
        """
        await trio.lowlevel.checkpoint()
        folder = _absolute(path)

        def open_writer() -> Writer:
            return Writer(folder, durability=durability, create=create)

        thread = WorkerThread(f"trio_ckpt writes {folder.name}")
        try:
            # Shielded, or nobody would close the connection.
            writer = await _shielded(thread.run, open_writer)
        except BaseException:
            thread.stop()
            raise
        return cls(
            folder,
            writer,
            thread,
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
        )

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`.  The kernel's lock: it goes with this process."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        lock = await _shielded(run_blocking, lock_run, self._folder, run_id)
        try:
            if lock.is_alone:
                await _shielded(self._clean, lock)
            # Shielded: raised late, the number would lock out whoever owns the run by then.
            owner = await _shielded(self._writing.run, self._writer.raise_owner, run_id)
            yield owner
        finally:
            if run_id in self._in_doubt:
                logger.error("run %r stays locked: a save may still land", run_id)
            else:
                await _shielded(run_blocking, lock.release)

    async def _clean(self, lock: RunLock) -> None:
        """Remove what crashes left, then let others own runs."""
        await self._writing.run(self._writer.remove_orphans)
        await run_blocking(lock.share)

    async def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
    ) -> list[Exception | None]:
        """See `Store.save`.  One transaction, one fsync."""
        self._check_open()
        try:
            return await self._writing.run(self._writer.save, run, group, folds)
        except BaseException as error:
            if not isinstance(error, StoreError) or isinstance(error, SaveOutcomeUnknownError):
                self._in_doubt.add(run.run_id)
            raise

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        """See `Store.read_run`."""
        return await self._read(self._reader.read_run, run_id, generation)

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
        return await self._read(self._reader.history, run_id, stream, generation, cursor, limit)

    async def list_runs(self) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`."""
        return await self._read(self._reader.list_runs)

    async def put_blob(self, digest: str, payload: bytes) -> None:
        """See `Store.put_blob`.

        Durability: the file and its name are durable on return.
        Cancellation: not while it is written.
        """
        self._check_open()
        await run_blocking(self._blobs.put, digest, payload)

    async def aclose(self) -> None:
        """See `Store.aclose`.

        Cancellation: shielded.  It waits for saves under way, but not for one that was
            given up on.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        if not self._in_doubt:
            await _shielded(self._reading.run, self._reader.close)
            await _shielded(self._writing.run, self._writer.close)
        self._reading.stop()
        self._writing.stop()

    async def _read(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        self._check_open()
        return await self._reading.run(func, *args)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"the store {self.url} is closed")


async def _shielded(func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    results: list[T] = []  # a type checker must think that the scope may swallow something
    with trio.CancelScope(shield=True):
        results.append(await func(*args))
    return results[0]


def _absolute(path: str | os.PathLike[str]) -> Path:
    if "\0" in os.fspath(path):
        raise StoreError(f"{path!r} cannot be the name of a folder")
    return Path(os.path.abspath(path))
