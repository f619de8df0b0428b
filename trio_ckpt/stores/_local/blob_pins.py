"""Pins on blobs between `put_blob` and the record that references them, against removal.

Theory of operation.  A blob is put first, and a record references it later.  In between no record
says that the blob is needed, so the handle that puts it *pins* it, until a checkpoint that
references it is saved or the handle owns no run any more.  A handle that removes a blob while
runs are owned *dooms* it first; a pinned blob cannot be doomed, and a pin on a doomed blob waits
until the blob is gone and can be put again.  Only a doomed blob is checked for references: a pin
is released after the record is saved, so either the pin or the record is visible.

Both are locks of the kernel on one byte of ``lock/blobs``, at an offset that the digest gives: a
pin is shared, a doom exclusive (``F_OFD_SETLK`` of fcntl(2)).  They belong to the open file,
die with its process, and cost no descriptor each.  Within one handle the fields of `BlobPins` keep
the same rules.  If two digests ever share a byte, a save is refused and nothing is lost: a record
is saved only if the blobs that it references exist while they are pinned.

On a platform without such locks no blob can be doomed: blobs without a reference stay until
no process owns a run of the store.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..._journal.store import Checkpoint
from ..._util.errors import StoreError
from ..._util.forks import close_unshared, open_unshared
from .blobs import Blobs, need_digest
from .files import explain, open_file
from .locks import flock_record

if sys.platform == "linux":
    import fcntl

_BYTE_DIGITS = 15  # of a digest: 60 bits, within the largest offset of a file
_REFUSED = (errno.EAGAIN, errno.EACCES)


class BlobPins:
    """The pins of one handle.  Every method may block; any thread may call it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock" / "blobs"
        self._blobs = Blobs(folder / "blobs")
        self._changed = threading.Condition()
        self._fd: int | None = None
        self._holders: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()  # the part of `_holders` that waits for a save
        self._doomed: set[str] = set()
        self._naming: list[str] = []  # pinned by the save in progress, in its thread

    def hold(self, digest: str) -> None:
        """Keep a blob from being removed until `release`; waits while a removal is under way.

        Raises:
            StoreError: `digest` is not one of a blob, or the file system does not lock.
        """
        need_digest(digest)
        with self._changed:
            self._changed.wait_for(lambda: digest not in self._doomed)
            if not self._holders[digest]:
                self._lock(digest, "shared")
            self._holders[digest] += 1

    def release(self, digest: str) -> None:
        """Release a pin that `hold` took."""
        with self._changed:
            self._release(digest)

    def keep(self, digest: str) -> None:
        """Pin a blob that is put until it is referenced; the caller still holds its own pin."""
        with self._changed:
            self._holders[digest] += 1
            self._kept[digest] += 1

    def release_kept(self) -> None:
        """Release the pins that wait for a save, because no save will follow."""
        with self._changed:
            for digest in list(self._kept.elements()):
                self._release(digest)
            self._kept.clear()

    # -- a save: its blobs are pinned from before they are checked until it has ended ------

    def hold_named(self, checkpoint: Checkpoint) -> None:
        """Pin the blobs that a checkpoint references until the save has ended.

        Raises:
            StoreError: one of them does not exist; or see `hold`.
        """
        for digest in names_of(checkpoint):
            self.hold(digest)
            self._naming.append(digest)
            if not self._blobs.has(digest):
                raise StoreError(f"blob {digest} was not put")

    def end_save(
        self, group: Sequence[Checkpoint], outcomes: Sequence[Exception | None] = ()
    ) -> None:
        """Release the pins of a save that has ended, and those that waited for it.

        Args:
            group: The checkpoints of the save.
            outcomes: The outcome of each checkpoint; without them nothing was saved.
        """
        if self._naming:
            self._end_save(group, outcomes)

    def _end_save(self, group: Sequence[Checkpoint], outcomes: Sequence[Exception | None]) -> None:
        saved = [c for c, outcome in zip(group, outcomes, strict=False) if outcome is None]
        with self._changed:
            for digest in self._naming:
                self._release(digest)
            self._naming.clear()
            for digest in [digest for checkpoint in saved for digest in names_of(checkpoint)]:
                if self._kept[digest]:
                    self._kept[digest] -= 1
                    self._release(digest)

    # -- removing -------------------------------------------------------------------------

    def doom(self, digests: Iterable[str]) -> list[str]:
        """Refuse new pins on blobs until `spare`; return the blobs that were not pinned."""
        doomed: list[str] = []
        with self._changed:
            for digest in digests:
                if self._holders[digest] or digest in self._doomed:
                    continue
                if self._lock(digest, "exclusive"):
                    self._doomed.add(digest)
                    doomed.append(digest)
        return doomed

    def spare(self, digests: Iterable[str]) -> None:
        """Allow pins on blobs again, whether the blobs were removed or not."""
        with self._changed:
            for digest in digests:
                self._doomed.discard(digest)
                self._lock(digest, "none")
            self._changed.notify_all()

    def close(self) -> None:
        """Release all locks and close the file."""
        with self._changed:
            if self._fd is not None:
                close_unshared(self._fd)
                self._fd = None

    def _release(self, digest: str) -> None:
        self._holders[digest] -= 1
        if not self._holders[digest]:
            del self._holders[digest]
            self._lock(digest, "none")

    def _lock(self, digest: str, kind: str) -> bool:
        """Change the lock of a blob; False: another process holds it."""
        if sys.platform != "linux":
            return kind != "exclusive"
        kinds = {"none": fcntl.F_UNLCK, "shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK}
        how = fcntl.F_OFD_SETLKW if kind == "shared" else fcntl.F_OFD_SETLK
        with explain(self._path, f"pinning blob {digest}"):
            if self._fd is None:
                self._fd = open_unshared(open_file, self._path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.fcntl(
                    self._fd, how, flock_record(kinds[kind], int(digest[:_BYTE_DIGITS], 16), 1)
                )
            except OSError as error:
                if kind == "exclusive" and error.errno in _REFUSED:
                    return False
                raise
        return True


def names_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the blobs that a checkpoint references, its payload's included; each once."""
    blobs = checkpoint.blobs if checkpoint.blob is None else (checkpoint.blob, *checkpoint.blobs)
    return tuple(dict.fromkeys(blobs))
