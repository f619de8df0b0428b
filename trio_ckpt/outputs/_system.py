"""The calls of outputs to the operating system, and the messages of its errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import attrs

from .._util.errors import OutputError
from .._util.forks import close_unshared, open_unshared
from ._mounts import options_of

if sys.platform != "win32":
    import fcntl

READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # never waits
APPEND = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
FOLDER = READ | getattr(os, "O_DIRECTORY", 0)
ROOT = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL

TROUBLE = {
    errno.ELOOP: "is a symbolic link, which is not followed",
    errno.ENOTDIR: "a part of its path is not a folder, or is a symbolic link (not followed)",
    errno.EISDIR: "is a folder",
    errno.ENXIO: "is not a regular file",
}


class System:
    """The calls to the operating system, one method per call; see `os` for each."""

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        return open_unshared(os.open, path, flags, 0o666, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        close_unshared(fd)

    def mkdir(self, name: str, *, dir_fd: int) -> None:
        os.mkdir(name, dir_fd=dir_fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def lstat(self, name: str, *, dir_fd: int) -> os.stat_result:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    def scan(self, fd: int) -> Iterator[tuple[str, bool]]:
        """Yield the names in a folder, each with whether it is a folder (a link is not)."""
        with os.scandir(fd) as entries:
            yield from ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def lock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self, fd: int) -> None:
        """Unlock a file for all who share it: a close would leave the lock to a forked child."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync there leaves data in the drive's cache
        else:
            os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """Sync content and size: only times may be lost, see fdatasync(2)."""
        if sys.platform == "linux":
            os.fdatasync(fd)
        else:
            self.fsync(fd)

    def rename(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.rename(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def link(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.link(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)

    def mount_options(self, fd: int) -> frozenset[str]:
        """What the file system of a file is mounted with; empty: the system does not say."""
        return options_of(os.fstat(fd).st_dev)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)


@attrs.frozen
class SystemPath(os.PathLike[str]):
    """A path outside of the operating system's files, with the system that carries out its calls.

    Attributes:
        path: The absolute path.
        system: Carries out the calls.
    """

    path: str
    system: System

    def __fspath__(self) -> str:
        return self.path

    def __truediv__(self, name: str) -> SystemPath:
        return SystemPath(f"{self.path}/{name}", self.system)

    def __str__(self) -> str:
        return self.path


def words(error: OSError) -> str:
    """Return the system's error text, or its meaning for an output."""
    return TROUBLE.get(error.errno or 0) or error.strerror or str(error)


@contextmanager
def output_errors(path: str) -> Generator[None]:
    """Turn the system's errors into `OutputError` with the path of the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(path, words(error)) from error


def write_all(system: System, fd: int, name: str, data: bytes, offset: int) -> None:
    """Write `data` at `offset`, in as many calls as the system needs."""
    left = memoryview(data)
    while left:
        written = system.pwrite(fd, left, offset)
        if not written:
            raise OutputError(name, f"a write took none of {len(left)} bytes")
        left, offset = left[written:], offset + written
