"""The blobs of a local store: write-once files named by their SHA-256.  Blocking functions.

Theory of operation.  A blob is written under a temporary name, made durable, and renamed; so
under its own name it is whole, and it is never changed there.  Its name is the SHA-256 of its
content, known when the last byte is written: no caller has to hash a payload first.

While a big blob is written, one thread hashes what is written and another starts syncing it:
an fsync(2) that finds everything still in the page cache at the end takes as long again as the
writing.  All three release the GIL for the whole of a buffer, so an event loop in the same
process keeps running.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import attrs

from ..._journal.store import BlobPart, BlobPayload
from ..._util.errors import StoreDamagedError, StoreError
from ..._util.log import get_logger
from .beside import Beside
from .files import explain, make_member, need_folder, open_file, sync_data, sync_folder

logger = get_logger(__name__)

OVERLAP_BYTES = 4 * 2**20  # from this size on, hashing takes longer than a thread to start
WRITE_BYTES = 2 * 2**20  # per write: longer calls of the kernel keep an event loop waiting
MAX_WAITING = 32  # writes that are not hashed yet: an iterator may produce them faster
MAX_BUFFERS = 512  # per writev(2) and preadv(2); Linux takes 1,024
MAX_READ_BYTES = 2**30  # per pread(2); Linux takes 2 GiB less a page
MAX_WHOLE_BYTES = 2**30  # for a sealed record, and for a read without a size

Update = Callable[[memoryview], object]  # the method of a hash object

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHARD = re.compile(r"[0-9a-f]{2}", re.ASCII)
_TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}\.tmp", re.ASCII)  # as tempfile names them


def is_digest(text: str) -> bool:
    """Return whether a text is a valid name of a blob."""
    return _DIGEST.fullmatch(text) is not None


def need_digest(digest: str) -> None:
    """Check that a text is a valid name of a blob.

    Raises:
        StoreError: it is not.
    """
    if not _DIGEST.fullmatch(digest):
        raise StoreError(f"{digest!r} is not the name of a blob")


def views_of(payload: BlobPayload) -> Generator[memoryview]:
    """Yield the bytes of a payload without copying them, empty buffers left out.

    Raises:
        TypeError: a buffer is not contiguous.
    """
    buffers = [payload] if isinstance(payload, (bytes, bytearray, memoryview)) else payload
    for buffer in buffers:
        view = memoryview(buffer)
        if view.nbytes:
            yield view.cast("B")


def check_part(offset: int, size: int | None) -> None:
    """Check that offset and size denote a part of a blob.

    Raises:
        ValueError: its offset or its size is negative.
    """
    if offset < 0 or (size is not None and size < 0):
        raise ValueError(f"offset {offset} and size {size} must not be negative")


def need_positive(limit: int) -> None:
    """Check that a page may have at least one entry.

    Raises:
        ValueError: it may not.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}, not positive")


class Blobs:
    """Payloads as write-once files, ``ab/abcd…``, named by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, digest: str) -> Path:
        need_digest(digest)
        return self._folder / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Return whether there is a blob of this name."""
        path = self._path(digest)
        need_folder(path.parent)
        try:
            return stat.S_ISREG(path.lstat().st_mode)
        except OSError:
            return False

    def size(self, digest: str) -> int:
        """Return the size of a blob in bytes; 0 if it is missing."""
        try:
            return self._path(digest).lstat().st_size
        except OSError:
            return 0

    def names(self) -> Generator[str]:
        """Yield the digests of all blobs; skips foreign files, and folders behind a link."""
        for shard in _entries(self._folder):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                for entry in _entries(Path(shard.path)):
                    if _DIGEST.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        yield entry.name

    def _temporaries(self) -> Generator[Path]:
        """Yield temporary files, which have no final name yet."""
        for entry in _entries(self._folder):
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield Path(entry.path)

    def put(self, payload: BlobPayload, pin: Callable[[str], AbstractContextManager[None]]) -> str:
        """Write a blob (a temporary file, fsync, rename, fsync of the folders); return its name.

        Args:
            payload: Its buffers; this thread takes them one by one.
            pin: Pins the blob while it gets its name.

        Raises:
            StoreError: the blob cannot be written.
        """
        with explain(self._folder, "writing a blob"):
            make_member(self._folder)
            fd, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            try:
                try:
                    digest, size = _write_whole(fd, payload)
                finally:
                    os.close(fd)
                with pin(digest):
                    self._name(Path(temporary), digest, size)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return digest

    def _name(self, temporary: Path, digest: str, size: int) -> None:
        """Rename a durable file to the name of a blob, durably."""
        path = self._path(digest)
        make_member(path.parent)
        if _has_size(path, size):
            temporary.unlink()
        else:
            os.replace(temporary, path)
        sync_folder(path.parent)  # for an existing blob, too: a crash may have come before this
        sync_folder(self._folder)

    def get(self, digest: str) -> bytes:
        """Read a blob.

        Raises:
            StoreDamagedError: the blob is missing, or differs from what was put.
        """
        if self.size(digest) > MAX_WHOLE_BYTES:
            raise StoreDamagedError(f"blob {self._path(digest)} is larger than any record: refused")
        payload = self.read(digest, 0, None)
        if hashlib.sha256(payload).hexdigest() != digest:
            raise StoreDamagedError(f"blob {self._path(digest)} is not what was saved")
        return payload

    def read(self, digest: str, offset: int, size: int | None) -> bytes:
        """Read a part of a blob without hashing it; size None: the rest.

        Raises:
            StoreDamagedError: the blob is missing, or too short.
            StoreError: the blob is too large to be read without a size.
        """
        with self._opened(digest) as blob:
            there = blob.bytes_after(offset, size or 0)
            if size is None and there > MAX_WHOLE_BYTES:
                raise StoreError(f"blob {blob.path} has {there:,} bytes: read it in parts")
            with explain(blob.path, "reading the blob"):
                return _read_part(blob.fd, offset, there if size is None else size)

    def read_parts(self, parts: Iterable[BlobPart]) -> None:
        """Read parts of blobs into their targets without hashing them.

        Raises:
            StoreDamagedError: a blob is missing, or too short.
        """
        for digest, parts_of_blob in groupby(parts, attrgetter("digest")):
            with self._opened(digest) as blob:
                for part in parts_of_blob:
                    check_part(part.offset, None)
                    blob.bytes_after(part.offset, part.nbytes)
                    with explain(blob.path, "reading the blob"):
                        _read_into(blob.fd, part.offset, part.targets)

    @contextmanager
    def _opened(self, digest: str) -> Generator[_OpenBlob]:
        """Open a blob.

        Raises:
            StoreDamagedError: it is missing.
            StoreError: it cannot be read.
        """
        path = self._path(digest)
        need_folder(path.parent)
        try:
            with explain(path, "reading the blob"):
                fd = open_file(path, os.O_RDONLY)
        except StoreError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                raise StoreDamagedError(f"blob {path} is missing") from error.__cause__
            raise
        try:
            yield _OpenBlob(path, fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def remove(self, digests: Iterable[str]) -> None:
        """Remove blobs that no record references and no handle pins.

        Raises:
            StoreError: a blob cannot be removed.
        """
        for digest in digests:
            path = self._path(digest)
            need_folder(path.parent)
            with explain(path, "removing the blob"):
                path.unlink(missing_ok=True)

    def remove_orphans(self, unnamed: Iterable[str]) -> None:
        """Remove what crashes left: temporary files, and blobs that no record references.

        Only valid while no process owns a run of the store: a blob is put before its record.
        """
        for path in sorted([*map(self._path, unnamed), *self._temporaries()]):
            logger.info("removing %s, which no record names", path)
            path.unlink(missing_ok=True)


@attrs.frozen
class _OpenBlob:
    path: Path
    fd: int
    nbytes: int

    def bytes_after(self, offset: int, wanted: int) -> int:
        """Return how many bytes there are after an offset; raises if they are fewer than wanted."""
        there = self.nbytes - offset
        if wanted > there:
            raise StoreDamagedError(f"blob {self.path} is too short: it was truncated")
        return there


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


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
            raise StoreDamagedError("a blob was truncated while it was read")


def _read_into(fd: int, offset: int, targets: Iterable[memoryview]) -> None:
    """Fill all targets; a read may end before the last of them."""
    left = deque(target for target in targets if target)
    while left:
        done = os.preadv(fd, list(islice(left, MAX_BUFFERS)), offset)
        if not done:
            raise StoreDamagedError("a blob was truncated while it was read")
        offset += done
        _advance(left, done)


# ---------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------


def _write_whole(fd: int, payload: BlobPayload) -> tuple[str, int]:
    """Write a payload and make it durable; return its SHA-256 in hexadecimal, and its size."""
    hasher, size = hashlib.sha256(), 0
    helpers: list[Beside[list[memoryview]]] = []
    try:
        for views in _batches(payload):
            _write_all(fd, views)
            size += sum(map(len, views))
            if size < OVERLAP_BYTES:
                _hash(hasher.update, [views])
                continue
            if not helpers:
                helpers.extend(_begin_helpers(fd, hasher.update))
            for helper in helpers:
                helper.add(views)
        for helper in helpers:
            helper.close()
        sync_data(fd)  # not reached after a failed sync: that error was raised
    finally:
        for helper in helpers:
            helper.stop()  # the helpers use the caller's buffers and the file
    return hasher.hexdigest(), size


def _begin_helpers(fd: int, update: Update) -> Generator[Beside[list[memoryview]]]:
    yield Beside("trio_ckpt hashes a blob", partial(_hash, update), MAX_WAITING)
    if sys.platform == "linux":  # elsewhere a sync waits for much more than this file
        yield Beside("trio_ckpt syncs a blob", lambda _written: sync_data(fd))


def _hash(update: Update, written: Iterable[list[memoryview]]) -> None:
    for views in written:
        for view in views:
            update(view)


def _batches(payload: BlobPayload) -> Generator[list[memoryview]]:
    """Group the buffers of a payload into writes; long buffers are split."""
    batch: list[memoryview] = []
    room = WRITE_BYTES
    for view in views_of(payload):
        at = 0
        while at < len(view):
            part = view[at : at + room]
            batch.append(part)
            at, room = at + len(part), room - len(part)
            if not room:
                yield batch
                batch, room = [], WRITE_BYTES
    if batch:
        yield batch


def _write_all(fd: int, views: Iterable[memoryview]) -> None:
    """Write all buffers without joining them; a full disk takes a part and refuses the rest."""
    left = deque(views)
    while left:
        done = os.writev(fd, list(islice(left, MAX_BUFFERS)))
        _advance(left, done)


def _advance(left: deque[memoryview], done: int) -> None:
    """Leave out the first bytes of some buffers."""
    while left and done >= len(left[0]):
        done -= len(left.popleft())
    if done:
        left[0] = left[0][done:]
