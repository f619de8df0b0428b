"""The journal of a run while it is owned: locked, appended to, and checked before each append.

Theory of operation.  Only the owner of a run writes its files, and the kernel ensures that there is
one owner.  The journal is locked, too, so that there is no second owner even if the lock file of
the run was removed; and before each append it is checked whether it still is what was written last.

When a write fails, the journal is cut back to where it ended: nothing was saved, and saving can
go on when there is room.  When an fsync fails, the content of the disk is unknown, and a second
fsync may falsely succeed (https://wiki.postgresql.org/wiki/Fsync_Errors): the outcome is
unknown, and nothing more is written to the run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import attrs

from ..._util.errors import SaveOutcomeUnknownError, StoreConflictError, StoreError
from ..._util.forks import open_unshared
from ..._util.log import at, get_logger
from ..._util.text import plural
from .._local.fence import identity_of, out_of_place
from .._local.files import open_file, sync_data, write_all
from .._local.locks import FileLock, locked_by_stranger
from .files import journal_path, remove_leftovers
from .format import JournalEnd

logger = get_logger(__name__)


@attrs.define(eq=False, repr=False)
class OwnedJournal:
    """The open journal of an owned run.

    Attributes:
        run_id: The run.
        folder: The folder of the run.
        number: The number of the journal.
        size: The number of bytes up to the end of its last line.
        check: The check of that line.
        broken: Why nothing more is written to the run; None: it can be written.
    """

    run_id: str
    folder: Path
    number: int
    size: int
    check: bytes
    _lock: FileLock
    broken: str | None = attrs.field(default=None, init=False)

    @classmethod
    def open(cls, run_id: str, folder: Path, number: int, size: int, check: bytes) -> OwnedJournal:
        """Open and lock a journal.

        Raises:
            RunLockedError: another process has locked it.
            OSError: it cannot be opened.
        """
        path = journal_path(folder, number)
        lock = FileLock(path, open_unshared(open_file, path, os.O_WRONLY | os.O_APPEND))
        try:
            if not lock.take(wait=False):
                raise locked_by_stranger(run_id)
        except BaseException:
            lock.close()
            raise
        return cls(run_id, folder, number, size, check, lock)

    def mend_end(self, end: JournalEnd) -> None:
        """Cut off what a crash left after the last whole line.

        Raises:
            RunLockedError: the journal is not what was read: another process has owned the run.
            OSError: it cannot be written.
        """
        status = os.fstat(self._lock.fd)
        if status.st_nlink == 0 or status.st_size != end.size + end.torn:
            raise locked_by_stranger(self.run_id)  # its owner has ended since the read
        remove_leftovers(self.folder, self.number)
        if end.torn:
            torn = plural(end.torn, "byte")
            where = at(self.run_id)
            logger.info("%s: cutting off %s that a crash left", self.folder, torn, extra=where)
            os.ftruncate(self._lock.fd, end.size)
        if end.lacks_newline:
            write_all(self._lock.fd, b"\n")
            self.size += 1

    def give_up(self, reason: str) -> None:
        """Let nothing more be written to the run."""
        self.broken = reason

    def release(self) -> None:
        """Unlock and close it."""
        self._lock.release()

    def close(self) -> None:
        """Close it without unlocking it first."""
        self._lock.close()

    def append(self, content: bytes, check: bytes, *, is_synced: bool) -> None:
        """Append a line with this check, durably if it `is_synced`.

        Raises:
            StoreConflictError: see `need_untouched`.
            SaveOutcomeUnknownError: it may be on the disk or not.
            StoreError: nothing was written.
        """
        self.need_untouched()
        try:
            write_all(self._lock.fd, content)
        except OSError as error:
            self._cut_back(error)
        if is_synced:
            try:
                sync_data(self._lock.fd)
            except OSError as error:
                self.give_up(str(error))
                raise SaveOutcomeUnknownError(
                    f"{self._lock.path}: fsync failed with {error}, so it is unknown whether the "
                    "save is on the disk; nothing more is written to it: check the disk and start "
                    "again"
                ) from error
        self.size += len(content)
        self.check = check
        self._need_in_place()

    def _cut_back(self, error: OSError) -> NoReturn:
        """Undo a write that failed half way; the line is not whole, so it never counts."""
        try:
            os.ftruncate(self._lock.fd, self.size)
        except OSError as second:
            self.give_up(str(second))
        raise StoreError(
            f"{self._lock.path}: saving failed: {error.strerror}; nothing was saved"
        ) from error

    def need_untouched(self) -> None:
        """Check that the journal still is what its owner has written last.

        Raises:
            StoreConflictError: it is not; the run is not written any more.
        """
        if self._need_in_place() != self.size:
            self.give_up("files that another process changed")
            raise StoreConflictError(
                f"{self._lock.path} was written by a process that does not own the run: nothing "
                "was saved",
                run_id=self.run_id,
            )

    def _need_in_place(self) -> int:
        """Check that a process that opens the run by its name finds this file; return its size."""
        status = os.fstat(self._lock.fd)
        if identity_of(self._lock.path) != (status.st_dev, status.st_ino):
            self.give_up("the removal of its files")
            raise out_of_place(self._lock.path, self.run_id)
        return status.st_size
