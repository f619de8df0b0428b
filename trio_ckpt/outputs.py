"""Durable files: what batches leave behind.

Theory of operation
===================

A checkpoint may only say that a file is there when the file survives a power cut, so
every function here returns after the fsyncs that make it so: of the file, of the folder
that has its name, and of each folder whose own name may be new.

* A whole file is written beside its goal and renamed over it: at any instant the name
  leads to the old content or to the new one.
* An append file has a confirmed length.  What lies behind it is of no account: it is cut
  off when the file is opened, and before the next append.
* After a failed fsync the kernel may call the lost pages clean and let the next fsync
  succeed (Rebello et al., "Can Applications Recover from fsync Failures?", 2020), so
  nothing is synced a second time: that file or folder is refused until the next session.
* Links below the root are never followed: every folder on the way is opened by its own
  name in the folder before, `openat(2)` with ``O_NOFOLLOW``.

All of it blocks: call it through the seam for blocking calls.  Whatever the operating
system is asked for goes through `System`, so that a test can put faults behind it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import attrs
import msgspec

from ._errors import CannotRedoError, NotEncodableError, OutputError, SinkClosedError
from ._records import Output as Output, check_plain

if sys.platform != "win32":
    import fcntl

Path = str | os.PathLike[str]
Verify = Literal["size", "sha256"]

ARCHIVE = ".archive"  # the folder below the root that `fresh=True` moves old outputs to
MAX_PATH_CHARS = 4_096  # Linux's PATH_MAX: longer ones could be opened by nobody else
HASH_CHUNK_BYTES = 2**20  # what hashing a file holds in memory
LINES_DIGEST_BYTES = 16
MAX_SURE_FOLDERS = 100_000  # folders remembered as durable; forgetting costs an fsync each

_TEMP_STEM_BYTES = 100  # of the goal's name in a temporary one: in all well below NAME_MAX, 255
_TEMP_NAME = re.compile(r"\..*\.ckpt-tmp-[0-9a-f]{16}", re.DOTALL)
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FOLDER = _READ | getattr(os, "O_DIRECTORY", 0)
_TROUBLE = {
    errno.ELOOP: "is a symbolic link, which is not followed",
    errno.ENOTDIR: "a part of its path is no folder, or a symbolic link, which is not followed",
    errno.EISDIR: "is a folder",
    errno.ENXIO: "is not a regular file",
}
_log = logging.getLogger(__name__)


class OutputPathError(OutputError, ValueError):
    """The path of an output is not one that outputs can have."""


class SinkTooShortError(CannotRedoError):
    """An append file has lost bytes that were confirmed.

    Attributes:
        missing_bytes: How many.
    """

    def __init__(self, path: str, size: int, confirmed: int) -> None:
        self.missing_bytes = confirmed - size
        super().__init__(
            path, f"{self.missing_bytes} of its {confirmed} confirmed bytes are missing"
        )


class System:
    """What is asked of the operating system, one method per call; see `os` for each."""

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        return os.open(path, flags, 0o666, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def mkdir(self, name: str, *, dir_fd: int) -> None:
        os.mkdir(name, dir_fd=dir_fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def lstat(self, name: str, *, dir_fd: int) -> os.stat_result:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    def scan(self, fd: int) -> list[tuple[str, bool]]:
        """The names in a folder, each with whether it is a folder (a link is not)."""
        with os.scandir(fd) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def lock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # there, fsync leaves data in the drive's cache
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

    def unlink(self, name: str, *, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)


# ---------------------------------------------------------------------------------------
# Names and lines: pure
# ---------------------------------------------------------------------------------------


def relative_path(root: str, path: Path) -> str:
    """The one name of an output: relative to `root`, with ``/``, without empty parts.

    Args:
        root: The output folder, absolute.
        path: Relative to it, or absolute and below it.

    Raises:
        OutputPathError: it is empty, too long, not below `root`, or has ``..``, a
            backslash, a control character, or a name that this module keeps for itself.
    """
    text = os.fspath(path)
    if text.startswith("/"):
        prefix = root.rstrip("/") + "/"
        if not text.startswith(prefix):
            raise OutputPathError(text, f"is not below the output folder {root!r}")
        text = text[len(prefix) :]
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts:
        raise OutputPathError(text, "is no file's name")
    if len(text) > MAX_PATH_CHARS:
        raise OutputPathError(text, f"has {len(text)} characters, over {MAX_PATH_CHARS}")
    if ".." in parts:
        raise OutputPathError(text, "has '..' in it")
    if "\\" in text or any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text):
        raise OutputPathError(text, "has a backslash or a control character in it")
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        raise OutputPathError(text, "is not Unicode text")
    if parts[0] == ARCHIVE or any(map(_TEMP_NAME.fullmatch, parts)):
        raise OutputPathError(text, "is a name that the library keeps for itself")
    return "/".join(parts)
