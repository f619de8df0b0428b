"""The readable store: a folder with a ``checkpoint.json`` per run that a person can open.

Theory of operation.  The folder holds ``runs/`` (a folder per run, under its id if that is
a safe name), ``blobs/`` (big payloads, write-once files named by their SHA-256), ``lock/``
(ownership of runs, see `trio_ckpt.stores._local.locks`) and ``store.json`` (the store's marker).

A run is two files: ``checkpoint.json``, whole at every moment, and a journal of what was saved
since (`format.py` describes their checks, `files.py` how they are replaced, `writer.py` when).
A save is one append and one fdatasync.

A payload is written in readable form and comes back byte for byte (`records.py`).

One long-lived thread saves (`_local`); reads, which take no lock, use trio's threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar, TypeVarTuple

from ..._journal.store import INLINE_LIMIT_BYTES
from ..._util.threads import WorkerThread, run_blocking
from .._local.store import LocalStore, absolute_folder, check_options, open_writer
from . import check
from .files import MAX_RUN_BYTES as MAX_RUN_BYTES
from .reader import JsonReader
from .writer import JsonWriter

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class JsonStore(LocalStore):
    """A store of readable files; comes from `JsonStore.open` or ``open_store("json:FOLDER")``.

    For runs that a person wants to read: a run is always read whole, and from time to time written
    whole, so its two files have at most `MAX_RUN_BYTES` (64 MiB) together; beyond that
    saving raises `StoreError`.  Listing runs reads all of them.  The SQLite store has none of
    these limits.

    Several processes may use one store at a time, each owning other runs.  A reader of a
    running run may see a group of checkpoints a moment before it survives power loss.  Not for
    network file systems: their locks and their fsync guarantee too little.
    """

    def __init__(
        self,
        folder: Path,
        writer: JsonWriter,
        thread: WorkerThread,
        *,
        mac_key: bytes | None,
        durability: Literal["full", "process"],
        inline_limit_bytes: int,
    ) -> None:
        super().__init__(
            "json",
            folder,
            writer,
            JsonReader(folder),
            thread,
            check.steps,
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
        )

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mac_key: bytes | None = None,
        durability: Literal["full", "process"] = "full",
        inline_limit_bytes: int = INLINE_LIMIT_BYTES,
        create: bool = True,
    ) -> JsonStore:
        """Open the store in a folder; see `trio_ckpt.stores.open_store`.

        Args:
            path: The folder.  Parents that are missing are made.
            mac_key: Seals records with a key.
            durability: "full", or "process": faster, but power loss may take the newest saves.
            inline_limit_bytes: A payload of this size or more is a file of its own.
            create: Whether to create a store that does not exist.

        Durability: the names of the folder and of what is in it are durable on return.
        Cancellation: not once it has begun.
        """
        check_options(durability, inline_limit_bytes, create)
        folder = absolute_folder(path)
        writer, thread = await open_writer(
            folder, lambda: JsonWriter(folder, durability=durability, create=create)
        )
        return cls(
            folder,
            writer,
            thread,
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
        )

    async def _run_reader(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        return await run_blocking(func, *args)

    async def _stop_reading(self) -> None:
        """Do nothing: no file is kept open for reading."""
