"""The default store: a folder with an SQLite database.

Theory of operation.  The folder holds ``state.db`` (runs, streams and records), ``blobs/``
(payloads that are too big for a database, write-once files named by their SHA-256) and
``lock/`` (who owns which run, see `trio_ckpt.stores._local.locks`).

Durable means: SQLite's write-ahead log with ``synchronous = FULL``, one fsync per group of
checkpoints.  With the rollback journal, and with ``synchronous = NORMAL``, acknowledged
saves were lost in real power cuts; that is why the mode is read back.  A blob and its name
are durable before the row that names it.  https://www.sqlite.org/wal.html,
https://www.sqlite.org/howtocorrupt.html

There are two long-lived threads, each with a connection of its own: one that writes
(`writer.py`), in the order of the calls, and, from the first read on, one that reads
(`reader.py`), so that a long read never delays a save.  Ownership of runs and locking
are common to all local stores: `_local`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar, TypeVarTuple

from ..._journal.store import INLINE_LIMIT_BYTES
from ..._util.threads import WorkerThread
from ..._util.uninterrupted import shielded
from .._local.store import LocalStore, absolute_folder, check_options, open_writer
from . import check
from .reader import SqliteReader
from .writer import SqliteWriter

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SqliteStore(LocalStore):
    """A store in a local folder; comes from `SqliteStore.open` or `open_store`.

    Several processes may use one store at a time, each owning other runs.  Not for network
    file systems: their locks and their fsync guarantee too little.

    `prune` makes room in the database for later saves; the file itself does not shrink.
    Readers go on during a prune, the other writers of the store wait.
    """

    def __init__(
        self,
        folder: Path,
        writer: SqliteWriter,
        thread: WorkerThread,
        *,
        mac_key: bytes | None,
        durability: Literal["full", "process"],
        inline_limit_bytes: int,
    ) -> None:
        super().__init__(
            "sqlite",
            folder,
            writer,
            reader := SqliteReader(folder),
            thread,
            check.steps,
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
        )
        self._writer: SqliteWriter = writer
        self._reader: SqliteReader = reader
        self._reading = WorkerThread(f"trio_ckpt reads {folder.name}")

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
            durability: "full", or "process": faster, but power loss may take the newest saves.
            inline_limit_bytes: A payload of this size or more is a file of its own.
            create: Whether to create a store that does not exist.

        Durability: the names of the folder and the database are durable on return.
        Cancellation: not once it has begun.
        """
        check_options(durability, inline_limit_bytes, create)
        folder = absolute_folder(path)
        writer, thread = await open_writer(
            folder, lambda: SqliteWriter(folder, durability=durability, create=create)
        )
        return cls(
            folder,
            writer,
            thread,
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
        )

    async def _stop_reading(self) -> None:
        if self._in_doubt:  # the disk may hang
            self._reading.stop(self._reader.close)
            return
        try:
            await shielded(self._reading.run, self._reader.close)
        finally:
            self._reading.stop()

    async def _run_reader(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        return await self._reading.run(func, *args)
