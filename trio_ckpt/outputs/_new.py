"""A file that is written under a temporary name."""

from __future__ import annotations

import hashlib
import stat
from contextlib import ExitStack, suppress
from typing import Any

import attrs

from .._journal.record import Output
from .._util.errors import OutputError
from .._util.fsync import naming_unsynced
from ._names import above, below, temp_name
from ._system import NEW, output_errors, write_all
from ._tree import Sync, Tree


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

        Durability: file and name survive a power cut once this has returned.  An error
        before the rename leaves the old file whole; after it, the new one.

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
