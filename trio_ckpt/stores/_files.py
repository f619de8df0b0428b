"""The folder of a local store: names made durable, write-once blobs.  Blocking functions."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from .._errors import StoreDamagedError, StoreError

if sys.platform == "darwin":
    import fcntl

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEMPORARY = ".tmp"


@contextmanager
def explain(path: Path, doing: str) -> Generator[None, None, None]:
    """Turn the system's errors into `StoreError`, naming the path and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{path}: {doing} failed: {reason}") from error


def open_file(path: Path, flags: int) -> int:
    """Open a member of the store, private to its user, never through a link."""
    return os.open(path, flags | _NO_FOLLOW, 0o600)


def sync_file(fd: int) -> None:
    """Make a file's content durable."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there stops at the drive's cache
    else:
        os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make a file's content and length durable, its times not: less work for each append."""
    if sys.platform == "linux":
        os.fdatasync(fd)
    else:
        sync_file(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each name durable."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    except FileNotFoundError:
        if folder.parent.is_dir():
            raise  # /proc is such a place
        make_folder(folder.parent)
        make_folder(folder)
        return
    sync_folder(folder.parent)


def refuse_links(folder: Path, names: tuple[str, ...]) -> None:
    """See that none of the store's own members is a symbolic link.

    Raises:
        StoreError: one is.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise StoreError(f"{folder / name} is a symbolic link: refused")


class Blobs:
    """Payloads as write-once files, ``ab/abcd…``, named by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{digest!r} is not the name of a blob")
        return self._folder / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether there is a blob of this name."""
        return self._path(digest).is_file()

    def size(self, digest: str) -> int:
        """How many bytes it has; 0 if it is missing."""
        try:
            return self._path(digest).lstat().st_size
        except OSError:
            return 0

    def put(self, digest: str, payload: bytes) -> None:
        """Write a blob: a temporary file, fsync, rename, fsync of the folder."""
        path = self._path(digest)
        with explain(path, "writing the blob"):
            make_folder(path.parent)
            if not _has_size(path, len(payload)):
                _write_whole(path, payload)
            sync_folder(path.parent)  # also what was there: a crash may have come before this
            sync_folder(self._folder)

    def get(self, digest: str) -> bytes:
        """Read a blob.

        Raises:
            StoreDamagedError: it is missing, or not what was put.
        """
        path = self._path(digest)
        try:
            with open(open_file(path, os.O_RDONLY), "rb") as file:
                payload = file.read()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreDamagedError(f"blob {path} is missing") from error
        except OSError as error:
            raise StoreError(f"{path}: reading the blob failed: {error.strerror}") from error
        if hashlib.sha256(payload).hexdigest() != digest:
            raise StoreDamagedError(f"blob {path} is not what was saved")
        return payload

    def remove_orphans(self, is_named: Callable[[str], bool], logger: logging.Logger) -> None:
        """Remove what crashes left: temporary files, and blobs that no record names.

        Only while nobody owns a run of the store: a blob is put before it is named.
        """
        for path in sorted(self._folder.glob("??/*")):
            if path.name.endswith(_TEMPORARY) or (
                _DIGEST.fullmatch(path.name) and not is_named(path.name)
            ):
                logger.info("removing %s, left by a crash", path)
                path.unlink(missing_ok=True)


def _has_size(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _write_whole(path: Path, payload: bytes) -> None:
    fd, temporary = tempfile.mkstemp(dir=path.parent, suffix=_TEMPORARY)
    try:
        with open(fd, "wb", buffering=0) as file:
            left = memoryview(payload)
            while left:
                left = left[file.write(left) :]
            sync_file(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
