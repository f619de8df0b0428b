"""The default store: a folder with an SQLite database.

Theory of operation.  The folder holds ``state.db`` (runs, streams and records), ``blobs/``
(a folder per run, of payloads that are too big for a database: write-once files named by their
SHA-256) and ``lock/`` (who owns which run, see `trio_ckpt.stores._local.locks`).

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

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .._local.kind import LocalKind
from .._local.store import LocalStore
from .reader import SqliteReader
from .writer import SqliteWriter

if TYPE_CHECKING:
    from .._local.check import Step


def _check_steps(folder: Path) -> Iterator[Step]:
    from .check import steps  # no run checks its store

    return steps(folder)


class SqliteStore(LocalStore):
    """A store in a local folder; comes from `SqliteStore.open` or `open_store`.

    Several processes may use one store at a time, each owning other runs.  Not for network
    file systems: their locks and their fsync guarantee too little.

    `prune` makes room in the database for later saves; the file itself does not shrink.
    Readers go on during a prune, the other writers of the store wait.
    """

    _kind = LocalKind(
        scheme="sqlite",
        make_writer=SqliteWriter,
        make_reader=SqliteReader,
        check_steps=_check_steps,
        reads_in_thread=True,
    )
