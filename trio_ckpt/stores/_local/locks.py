"""Ownership of runs on this host: locks of the kernel that die with their process.

Theory of operation.  ``lock/`` holds one file per run, named by a hash of the run's id, and
two for the store as a whole.  A process owns a run while it holds flock(2) on the run's file; the
file's content (host, pid, since) serves only the message to a process that is refused.
The lock belongs to the open file, so a second `open_run` in one process is
refused like one in another process.  Lock files are never deleted: a process that waits on
a deleted file would own a lock that no other process can see.

A process that checks whether a run is owned must not take that lock, not even shared and briefly:
an owner that starts at that moment would be refused.  flock(2) has no query without an
attempt, and /proc/locks hides the owners in other containers.  So an owner also *marks* the
file, with a lock of the other kind (``F_OFD_SETLK`` of fcntl(2)), which belongs to the same
open file and dies with it; ``F_OFD_GETLK`` queries it and takes nothing.  The mark comes
after flock and the note, so a process that sees the mark finds the note written.  The mark
decides nothing: flock alone says which process owns the run.

``lock/store`` is held shared by every owner of a run, and exclusively by a repair;
``lock/open`` is held exclusively while the database is made.

A child made by fork without exec would share the open file, and so keep the lock when its parent
is killed.  `trio_ckpt._util.forks` closes the file in the child, so that room opens and closes it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ..._journal.record import utc_now
from ..._journal.store import Owner
from ..._util.errors import RunLockedError, StoreError
from ..._util.forks import close_unshared, open_unshared
from ..._util.text import message_of
from .files import explain, hashed_name, open_file

if sys.platform != "win32":
    import fcntl

HAS_FLOCK = sys.platform != "win32"
MAX_NOTE_BYTES = 4096  # the part of a lock file that is read
NOTE_READS = 5
NOTE_PAUSE_S = 0.01  # longer than writing a note takes
UNKNOWN_HOST = "an unknown host"
_REFUSED = (errno.EWOULDBLOCK, errno.EACCES)
_FLOCK = "hhqqi0q"  # struct flock of fcntl(2): type, whence, start, length (0: all of it), pid


class FileLock(msgspec.Struct, frozen=True):
    """flock(2) on an open file."""

    path: Path
    fd: int

    @classmethod
    def open(cls, path: Path) -> FileLock:
        """Open or make the file; it is not locked yet."""
        return cls(path, open_unshared(open_file, path, os.O_RDWR | os.O_CREAT))

    def take(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Lock it, or change the kind of the lock; False: another process holds it.

        Raises:
            StoreError: the file system does not lock.
        """
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.flock(self.fd, how)
        except OSError as error:
            if error.errno in _REFUSED and not wait:
                return False
            raise StoreError(
                f"{self.path}: the file system refuses locks ({error.strerror}); put the store "
                "on a local one"
            ) from error
        return True

    def mark(self) -> None:
        """Show processes that only query that it is locked; does nothing without such queries.

        Raises:
            StoreError: the file system does not lock.
        """
        if sys.platform == "linux":
            with explain(self.path, "marking the lock"):
                fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _flock_record(fcntl.F_WRLCK))

    def unmark(self) -> None:
        """Take back what `mark` shows."""
        if sys.platform == "linux":
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _flock_record(fcntl.F_UNLCK))

    def is_marked(self) -> bool:
        """Return whether another process marked it; takes no lock.

        Raises:
            StoreError: this platform has no such query.
        """
        if sys.platform == "linux":
            with explain(self.path, "querying the lock"):
                found = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, _flock_record(fcntl.F_RDLCK))
            return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)
        raise StoreError(f"{self.path}: this platform does not report the holder of a lock")

    def release(self) -> None:
        """Unlock it (also for a child that shares the open file) and close it."""
        try:
            self.unmark()
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file."""
        close_unshared(self.fd)


class RunLock(msgspec.Struct, frozen=True):
    """Ownership of a run, until it is released."""

    run: FileLock
    store: FileLock

    def release(self) -> None:
        """Release the run."""
        try:
            with suppress(OSError):  # the note is for people; without the mark it is not read
                self.run.unmark()  # first: a run that is marked has a note
                os.ftruncate(self.run.fd, 0)
        finally:
            self.run.release()
            self.store.release()


def need_flock(folder: Path) -> None:
    """Check that this platform has locks.

    Raises:
        StoreError: it has none.
    """
    if not HAS_FLOCK:
        raise StoreError(
            f"{folder}: this platform has no flock(2), so nothing would keep two processes "
            "from working at one run; use a store that is made for many machines"
        )


def lock_opening(folder: Path) -> FileLock:
    """Hold the store while its database is made or checked; waits for others.

    Raises:
        StoreError: the file system does not lock.
    """
    with explain(folder, "opening its lock"):
        lock = FileLock.open(folder / "lock" / "open")
    try:
        lock.take()
    except BaseException:
        lock.close()
        raise
    return lock


def lock_run(folder: Path, run_id: str) -> RunLock:
    """Take ownership of a run.

    Raises:
        RunLockedError: another process owns it.
        StoreError: the file cannot be locked.
    """
    with explain(folder, f"locking run {run_id!r}"):
        run = FileLock.open(_lock_path(folder, run_id))
        try:
            if not run.take(wait=False):
                raise _locked_error(run, run_id)
            _write_note(run.fd, run_id)
            run.mark()
            store = FileLock.open(folder / "lock" / "store")
        except BaseException:
            run.close()
            raise
    try:
        store.take(shared=True)
    except BaseException:
        run.close()
        store.close()
        raise
    return RunLock(run, store)


def read_owner(folder: Path, run_id: str) -> Owner | None:
    """Return the owner of a run, without taking a lock.

    Raises:
        StoreError: the platform or the file system cannot report it.
    """
    path = _lock_path(folder, run_id)
    with explain(path, f"reading the owner of run {run_id!r}"):
        try:
            lock = FileLock(path, open_unshared(open_file, path, os.O_RDONLY))
        except FileNotFoundError:
            return None  # no process ever locked it
        try:
            for _ in range(NOTE_READS):
                if not lock.is_marked():
                    return None
                owner = _read_note(lock)
                if owner is not None:
                    return owner  # else it was released while the note was read, or taken again
            written_at = os.fstat(lock.fd).st_mtime
        finally:
            lock.close()
    return Owner(UNKNOWN_HOST, 0, datetime.fromtimestamp(written_at, UTC))


def owned_among(folder: Path, run_ids: Iterable[str]) -> set[str]:
    """Return those of some runs that a process owns, without taking a lock.

    An owner writes its note before it marks the file, and empties the file only after it has taken
    the mark back: so an empty one, of a run that was released, is not opened.  Where it cannot be
    told a run counts as owned: who asks for its owner then learns why.

    Raises:
        StoreError: the folder cannot be read.
    """
    owned: set[str] = set()
    with explain(folder, "reading the owners of runs"):
        parent = os.open(folder / "lock", os.O_RDONLY)
        try:
            for run_id in run_ids:
                try:
                    status = os.lstat(hashed_name(run_id), dir_fd=parent)
                except FileNotFoundError:
                    continue
                if status.st_size and _may_be_owned(_lock_path(folder, run_id)):
                    owned.add(run_id)
        finally:
            os.close(parent)
    return owned


def _may_be_owned(path: Path) -> bool:
    try:
        lock = FileLock(path, open_unshared(open_file, path, os.O_RDONLY))
        try:
            return lock.is_marked()
        finally:
            lock.close()
    except (OSError, StoreError):
        return True


def _lock_path(folder: Path, run_id: str) -> Path:
    return folder / "lock" / hashed_name(run_id)


def _flock_record(kind: int) -> bytes:
    """Encode the struct flock of a lock on a whole file."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _write_note(fd: int, run_id: str) -> None:
    note = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": utc_now().isoformat(timespec="seconds"),
        "run_id": run_id,
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(note).encode() + b"\n", 0)


def _read_note(lock: FileLock) -> Owner | None:
    """Read what the holder wrote; tries again if the holder may be writing it."""
    for _ in range(NOTE_READS):
        try:
            note = json.loads(os.pread(lock.fd, MAX_NOTE_BYTES, 0))
            since = datetime.fromisoformat(note["since"])
            return Owner(message_of(str(note["host"])), int(note["pid"]), since.astimezone(UTC))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            time.sleep(NOTE_PAUSE_S)
    return None


def _locked_error(lock: FileLock, run_id: str) -> RunLockedError:
    owner = _read_note(lock)
    if owner is None:
        return locked_by_stranger(run_id)
    since = owner.since.isoformat(timespec="seconds")
    return RunLockedError(run_id, host=owner.host, pid=owner.pid, since=since)


def locked_by_stranger(run_id: str) -> RunLockedError:
    """Return the error for a run whose owner left no note."""
    return RunLockedError(run_id, host=UNKNOWN_HOST, pid=0, since="an unknown time")
