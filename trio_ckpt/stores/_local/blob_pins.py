"""Pins on blobs between `put_blob` and the record that names them, against removal.

Theory of operation.  A blob is put first, and a record names it later.  In between no record says
that the blob is needed, so it is *pinned*: from the moment when it gets its name until a checkpoint
that names it is saved, or the run is released.

Only the owner of a run puts, names and removes its blobs, so this is between the threads of one
handle.  Saves and removals are made in the one thread that writes: no record is saved between the
search for names of a blob and its removal.  Blobs are put in other threads.  The lock here is held
while a blob gets or loses its name, so a put comes before a removal, and is seen by it, or after
it, and writes the blob again.  A blob that is still being written when its run is released does not
get its name: another process may own the run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from ..._journal.store import Checkpoint, RunKey
from .blobs import names_of
from .fence import need_lock


class BlobPins:
    """The pins of one handle.  Any thread may call it.

    Args:
        owners: The owner numbers of the runs that the handle has locked.
    """

    def __init__(self, owners: Mapping[str, int]) -> None:
        self._owners = owners
        self._lock = threading.Lock()
        self._pinned: dict[str, Counter[str]] = {}  # by run

    @contextmanager
    def pinning(self, run: RunKey, digest: str) -> Generator[None]:
        """Hold the lock while a blob gets its name, and pin it.

        Raises:
            StoreConflictError: the run is not owned, or not by this owner.
        """
        with self._lock:
            need_lock(self._owners, run)
            yield
            self._pinned.setdefault(run.run_id, Counter())[digest] += 1

    def release_named(self, run_id: str, saved: Iterable[Checkpoint]) -> None:
        """Release the pins of blobs that saved checkpoints name, one for each checkpoint."""
        with self._lock:
            pinned = self._pinned.get(run_id)
            if pinned:
                pinned.subtract(d for one in saved for d in names_of(one) if pinned[d] > 0)
                self._pinned[run_id] = +pinned

    @contextmanager
    def removing(self, run_id: str, digests: Iterable[str]) -> Generator[list[str]]:
        """Hold the lock while blobs lose their names; yields those that are not pinned."""
        with self._lock:
            pinned = self._pinned.get(run_id, Counter[str]())
            yield [digest for digest in digests if not pinned[digest]]

    def release(self, run_id: str) -> bool:
        """Release the pins of a run that is not owned any more; return whether there were any."""
        with self._lock:
            return bool(self._pinned.pop(run_id, None))
