"""Which blobs are about to be named, so that nobody removes them meanwhile.

Theory of operation.  A blob is put, and later a record names it.  In between no record says
that it is needed, so who puts one *claims* it, until a checkpoint that names it is saved or
the handle owns no run any more.  Who removes a blob while runs are owned *dooms* it first;
what is claimed cannot be doomed, and to claim what is doomed waits until it is gone and can
be put again.  Only then it is seen whether a record names it: a claim is given up after the
record is saved, so one of the two is always there to be seen.

Both are locks of the kernel on one byte of ``lock/blobs``, the byte that the digest says: a
claim is shared, a doom exclusive (``F_OFD_SETLK`` of fcntl(2)).  They belong to the open file,
die with its process, and cost no descriptor each.  Within one handle the same rules are kept by
what is remembered here.  Should two digests ever share a byte, a save is refused, nothing lost:
a record is saved only if what it names is there, seen while it is claimed.

Where there are no such locks nothing can be doomed: blobs that nobody names stay until
nobody owns a run of the store.
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
from ..._util.forks import close_unshared, open_unshared
from .blobs import need_digest
from .files import explain, open_file
from .locks import flock_record

if sys.platform == "linux":
    import fcntl

_BYTE_DIGITS = 15  # of a digest: 60 bits, within what a file may have
_REFUSED = (errno.EAGAIN, errno.EACCES)


class BlobPins:
    """The claims of one handle.  Everything here may block, in any thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock" / "blobs"
        self._changed = threading.Condition()
        self._fd: int | None = None
        self._holders: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()  # those of `_holders` that wait for a save
        self._doomed: set[str] = set()
        self._naming: list[str] = []  # held by the save that is being made; in its thread

    def hold(self, digest: str) -> None:
        """See that nobody removes a blob until `release`; waits while somebody does.

        Raises:
            StoreError: this is no name of one, or the file system does not lock.
        """
        need_digest(digest)
        with self._changed:
            self._changed.wait_for(lambda: digest not in self._doomed)
            if not self._holders[digest]:
                self._lock(digest, "shared")
            self._holders[digest] += 1

    def release(self, digest: str) -> None:
        """Give up what `hold` gave."""
        with self._changed:
            self._release(digest)

    def keep(self, digest: str) -> None:
        """The blob is put: hold it until it is named.  It is held by the caller, too."""
        with self._changed:
            self._holders[digest] += 1
            self._kept[digest] += 1

    def release_kept(self) -> None:
        """Nobody is about to name anything."""
        with self._changed:
            for digest in list(self._kept.elements()):
                self._release(digest)
            self._kept.clear()

    # -- a save: what it names is held from before it looks until it has ended ------------

    def name(self, digest: str) -> None:
        """Hold a blob until the save has ended; see `hold`."""
        self.hold(digest)
        self._naming.append(digest)

    def end_save(
        self, group: Sequence[Checkpoint], outcomes: Sequence[Exception | None] = ()
    ) -> None:
        """The save has ended: what it named needs no claim any more.

        Args:
            group: Of the save.
            outcomes: What became of each; without them nothing was saved.
        """
        if not self._naming:
            return
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
        """Keep everybody from claiming blobs until `spare`; those that nobody has claimed."""
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
        """Let others claim them again, whether they were removed or not."""
        with self._changed:
            for digest in digests:
                self._doomed.discard(digest)
                self._lock(digest, "none")
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of everything."""
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
        """Change the lock of a blob; False: an exclusive one cannot be had."""
        if sys.platform != "linux":
            return kind != "exclusive"
        kinds = {"none": fcntl.F_UNLCK, "shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK}
        how = fcntl.F_OFD_SETLKW if kind == "shared" else fcntl.F_OFD_SETLK
        with explain(self._path, f"claiming blob {digest}"):
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
    """The blobs that a checkpoint names, its payload's included; each once."""
    blobs = checkpoint.blobs if checkpoint.blob is None else (checkpoint.blob, *checkpoint.blobs)
    return tuple(dict.fromkeys(blobs))
