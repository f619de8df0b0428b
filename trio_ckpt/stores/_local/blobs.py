"""The blobs of a run in a local store: write-once files named by their SHA-256.  Blocking.

Theory of operation.  A run has a folder for its blobs, which only its owner changes.  A blob is
written under a temporary name, made durable, and renamed; so under its own name it is whole, and it
is never changed there.  Its name is the SHA-256 of its content, known when the last byte is
written: no caller has to hash a payload first.  It loses its name before it is unlinked, which
takes long where it is large.

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
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import msgspec

from ..._journal.store import BlobPart, BlobPayload, Checkpoint
from ..._util.errors import StoreDamagedError, StoreError
from ..._util.log import get_logger
from .beside import Beside
from .files import (
    explain,
    hashed_name,
    make_member,
    need_folder,
    open_file,
    sync_data,
    sync_folder,
)

logger = get_logger(__name__)

OVERLAP_BYTES = 4 * 2**20  # from this size on, hashing takes longer than a thread to start
WRITE_BYTES = 2 * 2**20  # per write: longer calls of the kernel keep an event loop waiting
MAX_WAITING = 32  # writes that are not hashed yet: an iterator may produce them faster
MAX_BUFFERS = 512  # per writev(2) and preadv(2); Linux takes 1,024
MAX_READ_BYTES = 2**30  # per pread(2); Linux takes 2 GiB less a page
MAX_WHOLE_BYTES = 2**30  # for a sealed record, and for a read without a size

Update = Callable[[memoryview], object]  # the method of a hash object

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEMPORARY = re.compile(r"(tmp[a-z0-9_]{8}|[0-9a-f]{64})\.tmp", re.ASCII)  # written, or to go


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


def names_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the blobs that a checkpoint names, its payload's included; each once."""
    blobs = checkpoint.blobs if checkpoint.blob is None else (checkpoint.blob, *checkpoint.blobs)
    return tuple(dict.fromkeys(blobs))


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
    """The blobs of one run, ``blobs/RUN/DIGEST``.

    A store of format 2 has ``blobs/ab/abcd…`` for all its runs.  These are read, and stay.

    Args:
        folder: The folder of the store.
        run_id: The run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder / "blobs" / hashed_name(run_id)

    def _path(self, digest: str) -> Path:
        need_digest(digest)
        return self._folder / digest

    def find(self, digest: str) -> Path:
        """Return the path of a blob; the run's own if there is no such blob.

        Raises:
            StoreError: `digest` is not the name of a blob, or its folder is not a folder.
        """
        path = self._path(digest)
        if not os.path.lexists(path):
            shared = self._folder.parent / digest[:2] / digest
            path = shared if os.path.lexists(shared) else path
        need_folder(path.parent)
        return path

    def has(self, digest: str) -> bool:
        """Return whether there is a blob of this name."""
        path = self.find(digest)
        try:
            return stat.S_ISREG(path.lstat().st_mode)
        except OSError:
            return False

    def need(self, checkpoint: Checkpoint) -> None:
        """Check that the blobs that a checkpoint names are there.

        Raises:
            StoreError: one is not.
        """
        for digest in names_of(checkpoint):
            if not self.has(digest):
                raise StoreError(f"blob {digest} was not put")

    def size(self, digest: str) -> int:
        """Return the size of a blob in the run's own folder, in bytes; 0 if it is not there."""
        try:
            return self._path(digest).lstat().st_size
        except OSError:
            return 0

    def names(self) -> Generator[str]:
        """Yield the digests of the blobs in the run's own folder."""
        return self._files(_DIGEST)

    def _files(self, pattern: re.Pattern[str]) -> Generator[str]:
        need_folder(self._folder)
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        yield entry.name
        except FileNotFoundError:
            return

    def put(self, payload: BlobPayload, pin: Callable[[str], AbstractContextManager[None]]) -> str:
        """Write a blob (a temporary file, fsync, rename, fsync of the folders); return its name.

        Args:
            payload: Its buffers; this thread takes them one by one.
            pin: Entered while the blob gets its name; refuses it where the run is not owned.

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
                path = self._path(digest)
                with pin(digest):
                    if _has_size(path, size):
                        Path(temporary).unlink()
                    else:
                        os.replace(temporary, path)
                # For what exists, too: a crash may have come before this.
                sync_folder(self._folder)
                sync_folder(self._folder.parent)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return digest

    def get(self, digest: str) -> bytes:
        """Read a blob.

        Raises:
            StoreDamagedError: the blob is missing, or differs from what was put.
        """
        with self._opened(digest) as blob:
            if blob.nbytes > MAX_WHOLE_BYTES:
                raise StoreDamagedError(f"blob {blob.path} is larger than any record: refused")
            with explain(blob.path, "reading the blob"):
                payload = _read_part(blob.fd, 0, blob.nbytes)
        if hashlib.sha256(payload).hexdigest() != digest:
            raise StoreDamagedError(f"blob {blob.path} is not what was saved")
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
        path = self.find(digest)
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

    def set_aside(self, digests: Iterable[str]) -> list[Path]:
        """Take their names from blobs of the run's own folder; return the files to unlink.

        Raises:
            StoreError: a blob cannot be renamed.
        """
        doomed: list[Path] = []
        need_folder(self._folder)
        for digest in digests:
            path = self._path(digest)
            with explain(path, "removing the blob"), suppress(FileNotFoundError):
                os.replace(path, path.with_suffix(".tmp"))
                doomed.append(path.with_suffix(".tmp"))
        return doomed

    def temporaries(self) -> Generator[str]:
        """Yield the names of the temporary files."""
        return self._files(_TEMPORARY)

    def remove_orphans(self, names: Iterable[str]) -> None:
        """Remove what crashes left: temporary files, and blobs that no record names.

        Only valid for the owner of the run, before it puts a blob or after its last save.
        """
        for name in sorted(names):
            path = self._folder / name
            logger.info("removing %s, which no record names", path)
            path.unlink(missing_ok=True)

    def remove_folder(self) -> None:
        """Remove the folder of the run if there is nothing in it."""
        with suppress(OSError):
            self._folder.rmdir()


def unlink_all(doomed: Iterable[Path]) -> None:
    """Unlink blobs that were set aside; errors are logged."""
    for path in doomed:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("dropped blobs were not removed: %s", error)


class _OpenBlob(msgspec.Struct, frozen=True):
    path: Path
    fd: int
    nbytes: int

    def bytes_after(self, offset: int, wanted: int) -> int:
        """Return how many bytes there are after an offset; raises if they are fewer than wanted."""
        there = self.nbytes - offset
        if wanted > there:
            raise StoreDamagedError(f"blob {self.path} is too short: it was truncated")
        return there


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
