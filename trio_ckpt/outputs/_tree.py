"""The folders below the root: opened without following links, their names made durable."""

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

MAX_SURE_FOLDERS = 100_000  # folders remembered as durable; a forgotten one costs an fsync


class Sync(enum.Enum):
    """How to treat the names of the folders on the way to a file."""

    NONE = enum.auto()  # only for reading
    MOVE = enum.auto()  # only for reading, of a file that is to be moved away
    MAKE = enum.auto()  # make missing folders, sync names that this session has not synced yet
    ALL = enum.auto()  # sync all names: the user made the folders, at an unknown time


def _no_names() -> set[str]:
    return set()


@attrs.define(eq=False)
class Tree:
    """The opened root, and the durability of the names below it in this session.

    Attributes:
        root: Its absolute path.
        system: Carries out its operations.
        kept_out: Device and inode of the store's folder, into which no output is written.
    """

    root: str
    system: System
    _fd: int
    kept_out: tuple[int, int] | None = attrs.field(default=None, init=False)
    _sure: set[str] = attrs.field(factory=_no_names, init=False)  # folders with durable names
    _lost: set[str] = attrs.field(factory=_no_names, init=False)  # names that failed to sync

    @classmethod
    def open(cls, system: System, root: str) -> Tree:
        """Open the folder `root`; make it, and those above it, if they are missing."""
        return cls(root, system, _open_root(system, root))

    def close(self) -> None:
        """Close the root; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            self.system.close(fd)

    @contextmanager
    def folder(self, name: str, sync: Sync) -> Generator[tuple[int, str]]:
        """Open the folder that a file is in; yields it and the last part of the file's name."""
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
        """Open a folder in the folder `at`; makes it and its name durable if `sync` says so."""
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
            # Also for an existing one: a process killed after mkdir has not synced its name.
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
        """Compare by inode: a link, a mount or another letter case may lead to the folder."""
        found = self.system.fstat(fd)
        if (found.st_dev, found.st_ino) == self.kept_out:
            raise OutputError(name, "is the folder of the store: outputs need another one")

    @contextmanager
    def opened(self, folder: int, name: str) -> Generator[tuple[int, os.stat_result]]:
        """Open a name for reading without waiting; it may not be a regular file."""
        fd = self.system.open(name, READ, dir_fd=folder)
        try:
            yield fd, self.system.fstat(fd)
        finally:
            self.system.close(fd)

    @contextmanager
    def reading(self, name: str) -> Generator[tuple[int, os.stat_result]]:
        """Open a file for reading as `opened` does, and the folders on the way to it."""
        with self.folder(name, Sync.NONE) as (folder, last), self.opened(folder, last) as found:
            yield found

    def mode_of(self, name: str) -> int:
        """Return the file mode of a file, see `mode`; its folder may be missing, too."""
        try:
            with self.folder(name, Sync.NONE) as (folder, last):
                return self.mode(folder, last)
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def mode(self, folder: int, name: str) -> int:
        """Return the file mode of a name, links not followed; 0: it does not exist."""
        try:
            return self.system.lstat(name, dir_fd=folder).st_mode
        except FileNotFoundError:
            return 0

    # -- syncing --------------------------------------------------------------------

    def sync(self, fd: int, name: str) -> None:
        """Sync a file or folder, unless an earlier sync of it has failed."""
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
        """Remember that the name denotes another file now."""
        self._lost.discard(name)

    def refuse_lost(self, name: str) -> None:
        """Raise if a sync of this file or folder has failed."""
        if name in self._lost:
            raise OutputError(
                name or self.root,
                "an earlier fsync of it failed, so the content of the disk is unknown and a later "
                "fsync proves nothing; check the disk, then start the program again",
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
    with suppress(OSError):  # it existed: the folder above it may be unreadable for this user
        folder = system.open(folder_path, ROOT)
        try:
            system.fsync(folder)
        finally:
            system.close(folder)
    return fd
