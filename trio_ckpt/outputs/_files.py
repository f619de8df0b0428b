"""One file below the root: written whole, read in pieces, hashed."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import attrs

from .._journal.record import Output
from .._util.errors import OutputError
from .._util.fsync import naming_unsynced
from ._names import above, below, temp_name
from ._system import NEW, System, output_errors, write_all
from ._tree import Sync, Tree

HASH_CHUNK_BYTES = 2**20  # the memory for hashing a file


@attrs.define(eq=False)
class NewFile:
    """A file that is written beside its goal and renamed over it, from `OutputDir.create`.

    Until `commit` the goal is unchanged.  One thread at a time.

    Attributes:
        path: Its final path, relative to the output folder.
        size: The number of bytes written so far.
    """

    path: str
    _tree: Tree
    _stack: ExitStack
    _folder: int
    _last: str
    _temp: str
    _fd: int
    size: int = attrs.field(default=0, init=False)
    _hasher: Any = attrs.field(factory=hashlib.sha256, init=False)

    @classmethod
    def open(cls, tree: Tree, name: str) -> NewFile:
        """Make the temporary file; the folders on the way are made and durable."""
        with output_errors(name), ExitStack() as stack:
            folder, last = stack.enter_context(tree.folder(name, Sync.MAKE))
            if not stat.S_ISREG(tree.mode(folder, last) or stat.S_IFREG):
                raise OutputError(name, "something that is not a regular file has its name")
            temp = temp_name(last)
            fd = tree.system.open(temp, NEW, dir_fd=folder)
            self = cls(name, tree, ExitStack(), folder, last, temp, fd)
            with suppress(OSError):  # some file systems have no locks
                tree.system.lock(fd)  # until it is closed, so that remove_orphans keeps it
            self._stack = stack.pop_all()
        return self

    def write(self, data: bytes) -> None:
        """Write `data` at the end.

        Durability: none yet; `commit` makes the whole file durable.

        Raises:
            OutputError: it cannot be written.
        """
        with output_errors(self.path):
            write_all(self._tree.system, self._fd, self.path, data, self.size)
        self._hasher.update(data)
        self.size += len(data)

    def commit(self) -> Output:
        """Give the file its name, in place of the one that has it.

        Durability: file and name survive a power cut once this has returned.  The file is
        synced before the rename, since a file system may keep a new name before the content;
        the folder is synced after it, since the name is in the folder.  An error before the
        rename leaves the old file whole; after it, the new one.

        Raises:
            OutputError: it could not be made durable, or was not renamed.
        """
        system = self._tree.system
        with output_errors(self.path):
            with naming_unsynced(below(self._tree.root, self.path)):
                system.fsync(self._fd)
            written = system.fstat(self._fd)
            system.rename(self._temp, self._last, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temp = ""
            self._close_file()
            self._tree.mark_new(self.path)  # the name denotes another file now
            self._tree.sync(self._folder, above(self.path))
        return Output(self.path, written.st_size, written.st_mtime_ns, self._hasher.hexdigest())

    def close(self) -> None:
        """Close the file and remove it unless it is committed; a second call does nothing."""
        with output_errors(self.path), self._stack:
            try:
                self._close_file()
            finally:
                temp, self._temp = self._temp, ""
                if temp:
                    with suppress(OSError):
                        self._tree.system.unlink(temp, dir_fd=self._folder)

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd != -1:
            self._tree.system.close(fd)


def write_pieces(tree: Tree, name: str, data: Iterable[bytes]) -> Output:
    """Write a file whole, in place of the one that has its name.

    Durability: as for `NewFile.commit`; the names of the folders on the way survive, too.

    Raises:
        OutputError: it cannot be written, or something that is not a file has its name.
    """
    with closing(NewFile.open(tree, name)) as file:
        for piece in data:
            file.write(piece)
        return file.commit()


@contextmanager
def open_regular(tree: Tree, name: str) -> Generator[tuple[int, os.stat_result]]:
    """Open a regular file for reading."""
    with tree.reading(name) as (fd, found):
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(name, "is not a regular file")
        yield fd, found


def pieces(system: System, fd: int, end: int | None = None, offset: int = 0) -> Iterator[bytes]:
    """Yield the content of a file from `offset` on, up to `end`."""
    size = HASH_CHUNK_BYTES
    while end is None or (size := min(end - offset, HASH_CHUNK_BYTES)) > 0:
        piece = system.pread(fd, size, offset)
        if not piece:
            return
        yield piece
        offset += len(piece)


def content_of(system: System, fd: int) -> tuple[int, str]:
    """Return size and SHA-256 of the content."""
    hasher, size = hashlib.sha256(), 0
    for piece in pieces(system, fd):
        hasher.update(piece)
        size += len(piece)
    return size, hasher.hexdigest()


def numbered(name: str) -> Iterator[str]:
    """Yield a name and those of its further copies: ``f``, ``f~2``, ``f~3`` …"""
    yield name
    yield from (f"{name}~{copy}" for copy in itertools.count(2))
