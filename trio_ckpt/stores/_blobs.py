"""The blobs of a local store: write-once files named by their SHA-256.  Blocking functions.

Theory of operation.  A blob is written under another name, made durable, and renamed; so
under its own name it is whole, and it is never changed there.  That it is there with the
right size is therefore enough to know that it need not be written again.

A big one is hashed in a thread of its own while this one writes it and waits for the disk.
Both let go of the GIL for the whole of a buffer, so an event loop beside them goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from .._errors import StoreDamagedError, StoreError
from ..abc import BlobPayload
from ._files import explain, make_folder, open_file, sync_file, sync_folder

OVERLAP_BYTES = 4 * 2**20  # from here on hashing takes longer than a thread to start
WRITE_BYTES = 32 * 2**20  # at a time, and hashed at a time: how soon the one notices the other
MAX_BUFFERS = 512  # of one writev(2); Linux takes 1,024
MAX_READ_BYTES = 2**30  # of one pread(2); Linux takes 2 GiB less a page

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEMPORARY = ".tmp"


def need_digest(digest: str) -> None:
    """See that a name is one of a blob.

    Raises:
        StoreError: it is not.
    """
    if not _DIGEST.fullmatch(digest):
        raise StoreError(f"{digest!r} is not the name of a blob")


def views_of(payload: BlobPayload) -> list[memoryview]:
    """The bytes of a payload where they lie, empty buffers left out.

    Raises:
        TypeError: a buffer is not contiguous.
    """
    buffers = [payload] if isinstance(payload, (bytes, bytearray, memoryview)) else payload
    views = [memoryview(buffer) for buffer in buffers]
    return [view.cast("B") for view in views if view.nbytes]


def check_part(offset: int, size: int | None) -> None:
    """See that a part of a blob is one.

    Raises:
        ValueError: its offset or its size is negative.
    """
    if offset < 0 or (size is not None and size < 0):
        raise ValueError(f"{size} bytes from {offset} on are no part of a blob")


class Blobs:
    """Payloads as write-once files, ``ab/abcd…``, named by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, digest: str) -> Path:
        need_digest(digest)
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

    def names(self) -> list[str]:
        """The digests of all that are there."""
        return [path.name for path in self._folder.glob("??/*") if _DIGEST.fullmatch(path.name)]

    def put(self, digest: str, payload: BlobPayload) -> None:
        """Write a blob: a temporary file, fsync, rename, fsync of the folder.

        Raises:
            StoreError: it cannot be written, or is not what its digest says.
        """
        path, views = self._path(digest), views_of(payload)
        with explain(path, "writing the blob"):
            make_folder(path.parent)
            if not _has_size(path, sum(map(len, views))):
                _write_whole(path, views)
            sync_folder(path.parent)  # also what was there: a crash may have come before this
            sync_folder(self._folder)

    def get(self, digest: str) -> bytes:
        """Read a blob.

        Raises:
            StoreDamagedError: it is missing, or not what was put.
        """
        payload = self.read(digest, 0, None)
        if hashlib.sha256(payload).hexdigest() != digest:
            raise StoreDamagedError(f"blob {self._path(digest)} is not what was saved")
        return payload

    def read(self, digest: str, offset: int, size: int | None) -> bytes:
        """Read a part of a blob, unhashed; None: all that follows.

        Raises:
            StoreDamagedError: it is missing, or too short.
        """
        path = self._path(digest)
        try:
            fd = open_file(path, os.O_RDONLY)
            try:
                there = os.fstat(fd).st_size - offset
                wanted = there if size is None else size
                if not 0 <= wanted <= there:
                    raise StoreDamagedError(f"blob {path} is too short: it was cut")
                return _read_part(fd, offset, wanted)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreDamagedError(f"blob {path} is missing") from error
        except OSError as error:
            raise StoreError(f"{path}: reading the blob failed: {error.strerror}") from error

    def remove(self, digests: Iterable[str]) -> None:
        """Remove blobs that nobody names or is about to name.

        Raises:
            StoreError: one cannot be removed.
        """
        for digest in digests:
            path = self._path(digest)
            with explain(path, "removing the blob"):
                path.unlink(missing_ok=True)

    def remove_orphans(self, is_named: Callable[[str], bool], logger: logging.Logger) -> None:
        """Remove what crashes left: temporary files, and blobs that no record names.

        Only while nobody owns a run of the store: a blob is put before it is named.
        """
        for path in sorted(self._folder.glob("??/*")):
            if path.name.endswith(_TEMPORARY) or (
                _DIGEST.fullmatch(path.name) and not is_named(path.name)
            ):
                logger.info("removing %s, which nobody names", path)
                path.unlink(missing_ok=True)


def _has_size(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _read_part(fd: int, offset: int, size: int) -> bytes:
    parts: list[bytes] = []
    while True:
        part = os.pread(fd, min(size, MAX_READ_BYTES), offset)
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
        if size == 0:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if not part:
            raise StoreDamagedError("a blob was cut while it was read")


# ---------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------


def _write_whole(path: Path, views: Sequence[memoryview]) -> None:
    fd, temporary = tempfile.mkstemp(dir=path.parent, suffix=_TEMPORARY)
    try:
        try:
            with _hashing(views) as hexdigest:
                _write_all(fd, views)
                sync_file(fd)
                found = hexdigest()
        finally:
            os.close(fd)
        if found != path.name:
            raise StoreError(f"the payload's SHA-256 is {found}, not {path.name}: it was not put")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def _hashing(views: Sequence[memoryview]) -> Generator[Callable[[], str]]:
    """Hash buffers while the block runs; yields what waits for the digest."""
    hasher = hashlib.sha256()
    is_over = threading.Event()

    def work() -> None:
        for chunk in _chunks(views):
            if is_over.is_set():  # what is written beside it failed
                return
            hasher.update(chunk)

    thread = threading.Thread(target=work, name="trio_ckpt hashes a blob", daemon=True)

    def hexdigest() -> str:
        if is_big:
            thread.join()
        return hasher.hexdigest()

    is_big = sum(map(len, views)) >= OVERLAP_BYTES
    thread.start() if is_big else work()
    try:
        yield hexdigest
    finally:
        is_over.set()
        if is_big:
            thread.join()  # it reads the caller's buffers


def _chunks(views: Sequence[memoryview]) -> Generator[memoryview]:
    for view in views:
        for start in range(0, len(view), WRITE_BYTES):
            yield view[start : start + WRITE_BYTES]


def _write_all(fd: int, views: Sequence[memoryview]) -> None:
    """Write all of it without joining it; a full disk takes a part and refuses the rest."""
    left = deque(_chunks(views))
    while left:
        done = os.writev(fd, list(islice(left, MAX_BUFFERS)))
        while left and done >= len(left[0]):
            done -= len(left.popleft())
        if done:
            left[0] = left[0][done:]
