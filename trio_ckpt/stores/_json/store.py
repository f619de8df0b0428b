"""The readable store: a folder with a ``checkpoint.json`` per run that a person can open.

Theory of operation.  The folder holds ``runs/`` (a folder per run, under its id if that is
a safe name), ``blobs/`` (a folder per run, of big payloads: write-once files named by their
SHA-256), ``lock/`` (ownership of runs, see `trio_ckpt.stores._local.locks`) and ``store.json`` (the
store's marker).

A run is two files: ``checkpoint.json``, whole at every moment, and a journal of what was saved
since (`format.py` describes their checks, `files.py` how they are replaced, `writer.py` when).
A save is one append and one fdatasync.

A payload is written in readable form and comes back byte for byte (`records.py`).

One long-lived thread saves (`_local`); reads, which take no lock, use trio's threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .._local.kind import LocalKind
from .._local.store import LocalStore
from .files import MAX_RUN_BYTES as MAX_RUN_BYTES
from .reader import JsonReader
from .writer import JsonWriter

if TYPE_CHECKING:
    from .._local.check import Step


def _check_steps(folder: Path) -> Iterator[Step]:
    from .check import steps  # no run checks its store

    return steps(folder)


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

    _kind = LocalKind(
        scheme="json",
        make_writer=JsonWriter,
        make_reader=JsonReader,
        check_steps=_check_steps,
        reads_in_thread=False,
    )
