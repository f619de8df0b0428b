"""The folders below the root: walked without following links, their names made durable."""

from __future__ import annotations

import enum
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress

import attrs

from .._util.errors import OutputError
from .._util.fsync import naming_unsynced
from ._names import below
from ._system import FOLDER, READ, ROOT, System

MAX_SURE_FOLDERS = 100_000  # folders remembered as durable; forgetting costs an fsync each


class Sync(enum.Enum):
    """What to do about the names of the folders on the way to a file."""

    NONE = enum.auto()  # only looking
    MOVE = enum.auto()  # the same, for a file that is to be moved away
    MAKE = enum.auto()  # make what is missing, sync what this session has not synced yet
    ALL = enum.auto()  # the user made them, who knows when


def _no_names() -> set[str]:
    return set()


@attrs.define(eq=False)
class Tree:
    """The opened root, and what this session knows of the names below it.

    Attributes:
        root: Its absolute path.
        system: What carries out its operations.
        kept_out: Device and inode of a folder in which nothing is written: the store's.
    """

    root: str
    system: System
    _fd: int
    kept_out: tuple[int, int] | None = attrs.field(default=None, init=False)
    _sure: set[str] = attrs.field(factory=_no_names, init=False)  # folders: names are durable
    _lost: set[str] = attrs.field(factory=_no_names, init=False)  # what failed to sync

    @classmethod
    def open(cls, system: System, root: str) -> Tree:
        """Open the folder `root`; make it, and those above it, if need be."""
        return cls(root, system, _open_root(system, root))

    def close(self) -> None:
        """Give the root back; twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            self.system.close(fd)

    @contextmanager
    def folder(self, name: str, sync: Sync) -> Generator[tuple[int, str]]:
        """The opened folder that a file is in, and the last part of the file's name."""
        *parts, last = name.split("/")
        fd, at = self._fd, ""
        try:
            for part in parts:
                inner = self._step(fd, at, part, sync)
                outer, fd, at = fd, inner, below(at, part)
                if outer != self._fd:
                    self.system.close(outer)
            if sync in (Sync.MAKE, Sync.ALL):
                self.refuse_lost(at)
            yield fd, last
        finally:
            if fd != self._fd:
                self.system.close(fd)

    def _step(self, folder: int, at: str, part: str, sync: Sync) -> int:
        """Open a folder in the folder `at`; that it is there is then durable, if asked."""
        name = below(at, part)
        try:
            fd = self.system.open(part, FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if sync is not Sync.MAKE:
                raise
            with suppress(FileExistsError):
                self.system.mkdir(part, dir_fd=folder)
            self._sure.discard(name)
            fd = self.system.open(part, FOLDER, dir_fd=folder)
        try:
            if sync is not Sync.NONE and self.kept_out is not None:
                self._refuse_kept_out(fd, name)
            # Also if it was there: a process killed after mkdir has not synced its name.
            if sync is Sync.ALL or (sync is Sync.MAKE and name not in self._sure):
                self.sync(folder, at)
                if len(self._sure) >= MAX_SURE_FOLDERS:
                    self._sure.clear()
                self._sure.add(name)
        except BaseException:
            self.system.close(fd)
            raise
        return fd

    def _refuse_kept_out(self, fd: int, name: str) -> None:
        """By its inode: a name may lead there by a link, a mount or another case of letters."""
        found = self.system.fstat(fd)
        if (found.st_dev, found.st_ino) == self.kept_out:
            raise OutputError(name, "is the folder of the store: outputs need another one")

    @contextmanager
    def opened(self, folder: int, name: str) -> Generator[tuple[int, os.stat_result]]:
        """What has a name, opened for reading without waiting; it may be no regular file."""
        fd = self.system.open(name, READ, dir_fd=folder)
        try:
            yield fd, self.system.fstat(fd)
        finally:
            self.system.close(fd)

    def mode(self, folder: int, name: str) -> int:
        """The file mode of what has a name, links not followed; 0 if nothing has it."""
        try:
            return self.system.lstat(name, dir_fd=folder).st_mode
        except FileNotFoundError:
            return 0

    # -- syncing --------------------------------------------------------------------

    def sync(self, fd: int, name: str) -> None:
        """Sync a file or folder, unless that has failed before."""
        self.refuse_lost(name)
        try:
            with naming_unsynced(below(self.root, name) if name else self.root):
                self.system.fsync(fd)
        except BaseException:
            self.mark_lost(name)
            raise

    def mark_lost(self, name: str) -> None:
        """Remember that a sync of this file or folder has failed."""
        self._lost.add(name)

    def mark_new(self, name: str) -> None:
        """Remember that the name leads to another file now."""
        self._lost.discard(name)

    def refuse_lost(self, name: str) -> None:
        """Raise if a sync of this file or folder has failed."""
        if name in self._lost:
            raise OutputError(
                name or self.root,
                "an earlier fsync of it failed, so what the disk holds is not known and a later "
                "fsync proves nothing; see to the disk, then start the program again",
            )


def _open_root(system: System, root: str) -> int:
    folder_path, name = os.path.split(root)
    try:
        fd = system.open(root, ROOT)
    except FileNotFoundError:
        folder = _open_root(system, folder_path)
        try:
            with suppress(FileExistsError):
                system.mkdir(name, dir_fd=folder)
            with naming_unsynced(folder_path):
                system.fsync(folder)
            return system.open(name, ROOT, dir_fd=folder)
        finally:
            system.close(folder)
    with suppress(OSError):  # it was there: we may not even be allowed to read what it is in
        folder = system.open(folder_path, ROOT)
        try:
            system.fsync(folder)
        finally:
            system.close(folder)
    return fd
