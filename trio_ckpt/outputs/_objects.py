"""Outputs in a bucket of an object store.

Theory of operation.  An object has its final name as soon as it is there, and it is there whole
or not at all.  So there are no temporary names, and the order is that of a folder: the PUT is
answered, then the record is saved, then the batch is confirmed.

* A first writing is a PUT that must create.  It replaces nothing, and a lost answer is found
  out by asking again: an object with the same bytes is one's own.
* What is there and may be replaced is copied into the archive first.  Then the PUT names the ETag
  that was found before the owner was checked, so what another owner has written since is not
  replaced.  A server that compares no ETags gets a plain PUT.
* Only `archive` removes objects, and copies each before.

A killed attempt leaves an object that no record names, or none.  The next attempt finds it: with
the same bytes it is taken as it is.  Parts of a cut-off upload are in no list.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice, takewhile
from typing import Any, ClassVar

import attrs

from .._buckets.address import SCHEMES, STORE_FOLDERS, ObjectsAddress, parse_address
from .._buckets.bucket import PartedUpload, StoredObject, joined, open_bucket
from .._buckets.clock import probe
from .._buckets.requests import OPENING_S, Requests
from .._journal.record import Output
from .._util.errors import OutputError, OutputExistsError, StoreError
from .._util.forks import need_process, this_process
from .._util.log import get_logger
from .._util.text import redacted_url
from ._contract import (
    Archived,
    FileStatus,
    Outputs,
    Verify,
    digest_problem,
    label_of,
    length_problem,
)
from ._tree import ARCHIVE, AnyPath, OutputPathError, numbered, relative_path

_log = get_logger(__name__)

MAX_KEY_BYTES = 1_024  # what providers allow
LABEL_BYTES = 32  # of an archive, behind the id of its run, and of the number of a copy there
MAX_LISTED = 1_000  # objects that `names` looks at
AT_ONCE = 16  # requests side by side: each waits for its answer
SPOOL_BYTES = 8 * 2**20  # up to here a file that is written in pieces is one PUT
PROBES = f"{ARCHIVE}/.probe"  # the folder of what is made while it is opened
PROBE_S = 600.0  # no opening takes longer
READ_BYTES = 8 * 2**20  # of an object, read at once

NO_APPEND = (
    "objects of a bucket cannot grow, so append files need a folder: write what each batch has "
    "as a file of its own (write_json, write_bytes), or give output_dir= a folder"
)


@attrs.define(eq=False, repr=False)
class OutputBucket(Outputs):
    """Outputs below a prefix of a bucket, from `open_outputs`."""

    at_once: ClassVar[int] = AT_ONCE
    compared: ClassVar[str] = "size and ETag, hash where the ETag differs"
    large_bytes: ClassVar[int] = 0
    _address: ObjectsAddress
    _requests: Requests
    _opened_at: float  # by the store's clock; Unix time, s
    _kept_out: tuple[str, ...] = attrs.field(default=(), init=False)
    _room_bytes: int = attrs.field(default=0, init=False)  # what a key is longer in the archive
    _process: int = attrs.field(factory=this_process, init=False)

    @classmethod
    def open(
        cls, url: str, *, is_read_only: bool = False, requests: Requests | None = None
    ) -> OutputBucket:
        """Open the bucket of a URL, and try that it creates an object once only.

        Args:
            url: The URL, as that of a store, without ``lease_s``.
            is_read_only: Only ask whether there is such a bucket.
            requests: What is asked instead of the bucket of the URL, for tests.

        Raises:
            OutputError: it cannot be used; the message says why.
        """
        times = list[datetime]()
        with _output_errors(None):
            address = parse_address(url, has_lease=False)
            asked = Requests(open_bucket(address)) if requests is None else requests
            opening = asked.within(OPENING_S)
            if is_read_only:
                next(opening.iterate(address.prefix), None)
            else:
                key = joined(address.prefix, PROBES, secrets.token_hex(8))
                probe(opening, key, times.append)
        # Some stores write times in whole seconds.
        return cls(address, asked, math.floor(times[0].timestamp()) if times else 0.0)

    @property
    def root(self) -> str:
        """The URL."""
        return self._address.url

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def now(self) -> float:
        """When it was opened, by the store's clock; Unix time, s."""
        return self._opened_at

    def keep_out(self, store: str) -> None:
        """Refuse writes into a store in the same bucket.

        Raises:
            OutputError: it has the same prefix.
        """
        if store.partition("://")[0] not in SCHEMES:
            return
        there = parse_address(store)
        if _server_of(there) != _server_of(self._address):
            return
        place = joined(there.bucket, there.prefix)
        if place == joined(self._address.bucket, self._address.prefix):
            raise OutputError(
                redacted_url(self.root),
                "is the place of the store, too: give output_dir= another prefix",
            )
        self._kept_out = tuple(joined(place, folder) for folder in STORE_FOLDERS)

    def belong_to(self, run_id: str, owner: int, *, is_shared: bool) -> None:
        """Leave room in each key for its place in the archive of the run."""
        self._room_bytes = len(f"{ARCHIVE}/{run_id}".encode(errors="surrogatepass")) + LABEL_BYTES

    def need_append(self, path: AnyPath) -> None:
        """Raise `OutputError`: objects cannot grow."""
        raise OutputError(self.relative(path), NO_APPEND)

    def relative(self, path: AnyPath) -> str:
        """Return the name of an output, see `relative_path`; it is never an absolute path."""
        need_process(self._process)
        return relative_path(redacted_url(self.root), path)

    # -- looking ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return names in the root itself, of the first thousand objects."""
        with _output_errors(None):
            return sorted({name.partition("/")[0] for name in islice(self._names(), MAX_LISTED)})

    def count(self, limit: int) -> int:
        """Count the objects without the archive; at most `limit`."""
        with _output_errors(None):
            return sum(1 for _ in islice(self._names(), limit))

    def _names(self) -> Generator[str]:
        """The names of all objects behind the archive, without those of a store."""
        prefix, after = self._address.prefix, self._key(f"{ARCHIVE}0")  # it follows the slash
        for found in self._requests.iterate(prefix, after):
            if not self._is_kept_out(found.key):
                yield found.key.removeprefix(f"{prefix}/" if prefix else "")

    def status(self, path: AnyPath) -> FileStatus | None:
        """Return the size and the time of an object; None: there is none."""
        found = self._find(self.relative(path))
        if found is None:
            return None
        tags = (found.etag, found.version)
        return FileStatus(found.size, found.modified.timestamp(), tags)

    def check(self, output: Output, verify: Verify = "size") -> str | None:
        """Compare a confirmed output with the object.

        Args:
            output: As it was confirmed.
            verify: ``"size"``: size and ETag, and the content where the ETag differs;
                ``"sha256"``: the content.

        Returns:
            None if it is good, else a text that says what is wrong with it.

        Raises:
            OutputError: this is unknown, because the store does not answer.
        """
        try:
            name = self.relative(output.path)
        except OutputPathError as error:
            return str(error)
        found = self._find(name)
        if found is None:
            return "missing"
        if (problem := length_problem(found.size, output)) is not None:
            return problem
        if verify == "size" and found.etag and stamp_of(found.etag) == output.mtime_ns:
            return None
        return digest_problem(self._digest(name, found), output)

    @contextmanager
    def unchanged(self) -> Generator[Callable[[Output], bool]]:
        """Open a block with a quick check, which never says that an object is unchanged."""
        yield lambda _output: False

    # -- reading ------------------------------------------------------------------------------

    def read(self, path: AnyPath, limit_bytes: int) -> bytes:
        """Read an object.

        Raises:
            OutputError: it is missing, or larger than `limit_bytes`.
        """
        name = self.relative(path)
        found = self._need(name)
        if found.size > limit_bytes:
            raise OutputError(name, f"has {found.size:,} bytes, over {limit_bytes:,}")
        return b"".join(self._pieces(name, found, limit_bytes))

    def read_pieces(self, path: AnyPath, limit_bytes: int) -> Generator[bytes]:
        """Read an object piece by piece, `limit_bytes` in all; close it at the end.

        Raises:
            OutputError: it is missing.
        """
        name = self.relative(path)
        yield from self._pieces(name, self._need(name), limit_bytes)

    def adopt(self, path: AnyPath) -> Output:
        """Adopt an object that the user has put as an output; its content is read.

        Durability: it was durable before.

        Raises:
            OutputError: it is missing, or was replaced while it was read.
        """
        name = self.relative(path)
        found = self._need(name)
        sha256 = self._digest(name, found)
        if self._find(name) != found:
            raise OutputError(name, "was replaced while it was hashed: write it first")
        return Output(name, found.size, stamp_of(found.etag), sha256)

    def _digest(self, name: str, found: StoredObject) -> str:
        hasher = hashlib.sha256()
        for piece in self._pieces(name, found, found.size):
            hasher.update(piece)
        return hasher.hexdigest()

    def _pieces(self, name: str, found: StoredObject, limit_bytes: int) -> Generator[bytes]:
        end = min(found.size, limit_bytes)
        for offset in range(0, end, READ_BYTES):
            with _output_errors(name):
                piece = self._requests.get_range(found.key, offset, min(end - offset, READ_BYTES))
            if piece is None:
                raise OutputError(name, "was removed while it was read")
            yield piece

    # -- writing ------------------------------------------------------------------------------

    def write(
        self,
        path: AnyPath,
        data: bytes,
        *,
        is_new: bool = False,
        over: FileStatus | None = None,
    ) -> Output:
        """Put an object, in place of the one that has its name.

        Args:
            path: Its path, relative to the root.
            data: Its content.
            is_new: Replace no object; one that has this content is taken as it is.
            over: Replace no other object than this one.

        Durability: it is durable once this has returned.

        Raises:
            OutputExistsError: `is_new`, and another object has its name.
            OutputError: it cannot be written, or its outcome is unknown.
        """
        name = self.relative(path)
        key = self._key_to_write(name)
        with _output_errors(name):
            etag = self._requests.write(key, data, _object_of(key, over))
            if etag is None and is_new:
                raise OutputExistsError(name, "exists already; it was not overwritten")
            if etag is None and over is None:
                etag = self._requests.write(key, data, self._requests.find(key))
        if etag is None:
            raise OutputError(name, "another process has written it meanwhile; it was not replaced")
        return Output(name, len(data), stamp_of(etag), hashlib.sha256(data).hexdigest())

    def create(self, path: AnyPath) -> NewObject:
        """Begin an object that is too large for memory: written piece by piece, then committed.

        Durability: none yet; it is durable when `NewObject.commit` has returned.
        """
        name = self.relative(path)
        return NewObject(name, self, self._key_to_write(name))

    def begin_upload(self, key: str) -> PartedUpload:
        """Begin an object that is written in parts; see `create`."""
        return self._requests.bucket.begin_upload(key)

    def etag_of(self, name: str) -> str:
        """The ETag of an object that was just written."""
        return self._need(name).etag

    # -- the archive --------------------------------------------------------------------------

    def remove_orphans(self, folders: Iterable[str] | None = None) -> list[str]:
        """Remove what killed processes left when they opened it; there are no temporary files."""
        try:
            probes = self._requests.list_all(self._key(PROBES))
            before = self._opened_at - PROBE_S
            left = [found.key for found in probes if found.modified.timestamp() < before]
            self._requests.delete(left)
        except StoreError as error:
            _log.warning("what killed processes left was not removed: %s", error)
            return []
        return left

    def set_aside(self, path: AnyPath, label: str) -> str | None:
        """Copy an object into ``.archive/<label>/`` that is about to be replaced."""
        name = self.relative(path)
        return self._copy(name, f"{ARCHIVE}/{label_of(self.root, label)}/{name}")

    def archive(self, paths: Iterable[str], label: str) -> Archived:
        """Move objects into ``.archive/<label>/``, each keeping its path.

        All are copied there before the first is removed.  Those that an earlier call with the
        same label moved count as moved, so an interrupted call can be repeated.

        Durability: all moves are durable once this has returned.

        Raises:
            OutputError: one cannot be moved.
        """
        names = [self.relative(path) for path in paths]
        folder = f"{ARCHIVE}/{label_of(self.root, label)}"
        goals = [f"{folder}/{name}" for name in names]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            copied = dict(zip(names, pool.map(self._copy, names, goals), strict=True))
            left = [name for name, goal in copied.items() if goal is None]
            found = pool.map(self._find, [f"{folder}/{name}" for name in left])
            earlier = dict(zip(left, found, strict=True))
        moved = {name: goal for name, goal in copied.items() if goal is not None}
        with _output_errors(None):
            self._requests.delete(map(self._key, moved))
        moved |= {name: f"{folder}/{name}" for name in left if earlier[name] is not None}
        return Archived(moved, tuple(name for name in left if earlier[name] is None))

    def archived_head(self, path: AnyPath, label: str, limit_bytes: int) -> bytes | None:
        """Read the head of the copy of a path that was archived last; None: there is none."""
        places = numbered(f"{ARCHIVE}/{label}/{self.relative(path)}")
        copies = list(takewhile(lambda place: self._find(place) is not None, places))
        if not copies:
            return None
        return b"".join(self._pieces(copies[-1], self._need(copies[-1]), limit_bytes))

    def _copy(self, name: str, goal: str) -> str | None:
        """Copy an object to a free name, unless it is there already; None: there is no object."""
        found = self._find(name)
        if found is None:
            return None
        for free in numbered(goal):
            there = self._find(free)
            if there is None:
                with _output_errors(name):
                    self._requests.copy(found.key, self._key(free))
            elif (there.size, there.etag) != (found.size, found.etag):
                continue
            return free
        raise AssertionError("names do not end")

    # -- requests -----------------------------------------------------------------------------

    def _find(self, name: str) -> StoredObject | None:
        with _output_errors(name):
            return self._requests.find(self._key(name))

    def _need(self, name: str) -> StoredObject:
        """Look at an object.

        Raises:
            OutputError: there is none; its cause is a `FileNotFoundError`, as in a folder.
        """
        found = self._find(name)
        if found is None:
            raise OutputError(name, "there is no such object") from FileNotFoundError(name)
        return found

    def _key(self, name: str) -> str:
        return joined(self._address.prefix, name)

    def _key_to_write(self, name: str) -> str:
        key = self._key(name)
        limit = MAX_KEY_BYTES - self._room_bytes
        if (size := len(key.encode())) > limit:
            why = f"its key has {size:,} bytes, over {limit:,}; the other {self._room_bytes:,} of "
            raise OutputPathError(name, f"{why}{MAX_KEY_BYTES:,} are for its place in the archive")
        if self._is_kept_out(key):
            raise OutputError(name, "is within the store: outputs need another prefix")
        return key

    def _is_kept_out(self, key: str) -> bool:
        place = joined(self._address.bucket, key)
        return any(place == kept or place.startswith(f"{kept}/") for kept in self._kept_out)


@attrs.define(eq=False, repr=False)
class NewObject:
    """An object that is written piece by piece, from `OutputBucket.create`.

    Until `commit` there is no such object, or the old one; `close` comes last.  One thread at a
    time.

    Attributes:
        path: Its final path, relative to the root.
        size: The number of bytes written so far.
    """

    path: str
    _outputs: OutputBucket
    _key: str
    size: int = attrs.field(default=0, init=False)
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _upload: PartedUpload | None = attrs.field(default=None, init=False)
    _is_over: bool = attrs.field(default=False, init=False)
    _hasher: Any = attrs.field(factory=hashlib.sha256, init=False)

    def write(self, data: bytes) -> None:
        """Write `data` at the end.

        Durability: none yet; `commit` makes the whole object durable.

        Raises:
            OutputError: it cannot be written, or was committed.
        """
        if self._is_over:
            raise OutputError(self.path, "is committed or closed: nothing more is written")
        self._hasher.update(data)
        self.size += len(data)
        self._buffer += data
        if self._upload is None and len(self._buffer) <= SPOOL_BYTES:
            return
        with _output_errors(self.path):
            if self._upload is None:
                self._upload = self._outputs.begin_upload(self._key)
            self._upload.write(memoryview(self._buffer))
        self._buffer = bytearray()  # the library may still look into the old one

    def commit(self) -> Output:
        """Make the object, in place of the one that has its name.

        Durability: it is durable once this has returned.

        Raises:
            OutputError: it could not be made, or that is unknown.
        """
        if self._is_over:
            raise OutputError(self.path, "is committed or closed")
        self._is_over = True
        if self._upload is None:
            return self._outputs.write(self.path, bytes(self._buffer))
        with _output_errors(self.path):
            self._upload.close()
        etag = self._outputs.etag_of(self.path)
        return Output(self.path, self.size, stamp_of(etag), self._hasher.hexdigest())

    def close(self) -> None:
        """Give it up unless it is committed; a second call does nothing."""
        self._is_over = True
        self._buffer = bytearray()


def stamp_of(etag: str) -> int:
    """A number that stands for an ETag where an output has its time; below 0, as no time is."""
    return -1 - int.from_bytes(hashlib.sha256(etag.encode()).digest()[:7])


def _object_of(key: str, found: FileStatus | None) -> StoredObject | None:
    """An object as `OutputBucket.status` has found it."""
    if found is None:
        return None
    etag, version = found.tags
    modified = datetime.fromtimestamp(found.written_at, UTC)
    return StoredObject(key, found.size, modified, etag or "", version)


def _server_of(address: ObjectsAddress) -> tuple[str, str | None, str | None]:
    return address.scheme, address.endpoint, address.account


@contextmanager
def _output_errors(name: str | None) -> Generator[None]:
    """Turn the errors of requests into `OutputError` with the path of the output."""
    try:
        yield
    except StoreError as error:
        raise OutputError(name, str(error)) from error
