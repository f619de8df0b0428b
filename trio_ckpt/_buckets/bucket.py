"""A bucket: the one file that talks to obstore, the library for object stores.

Each method is one request (`list` one for each 1,000 objects), blocks, and is sent once.  Its
errors say what is known afterwards: that the request changed nothing, or that no answer came.
https://developmentseed.org/obstore/latest/
"""

# The stubs of obstore name types of pyarrow, which is not needed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import attrs
import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store

from .._util.errors import StoreDamagedError, StoreError
from .._util.text import message_of
from .address import ObjectsAddress

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion

TIMEOUT_S = 20.0  # of a request, but for those that move much
LONG_TIMEOUT_S = 300.0
TIMEOUT_SHARE = 1 / 3  # of the lease at most, of what a save may have to wait for
CONNECT_TIMEOUT_S = 5.0
MAX_OBJECT_BYTES = 2**30  # of an object that is read whole
PART_BYTES = 8 * 2**20  # of an upload in parts; providers take 10,000 of them
WRITE_BYTES = 2**20
QUICK_BYTES = 2**20  # an object of this size is written or compared within `TIMEOUT_S`
LIST_AT_ONCE = 1_000

# A status that says that the server has refused the request itself; 501 is what it never does.
# It may answer these in time: 408 timeout, 409 another write at this moment, 412 the condition, 429
# too many requests.
# So does a folder, or memory, with a range that an object does not have.
_REFUSED = re.compile(
    r"status code: (4(?!08|09|12|29)[0-9]{2}|501)|range (was|is) invalid|invalid range",
    re.ASCII | re.IGNORECASE,
)
_CODE = re.compile("<Code>([^<]+)</Code>")
_MESSAGE = re.compile("<Message>([^<]+)</Message>")
_REFUSALS = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.NotSupportedError,
    exceptions.InvalidPathError,
    exceptions.UnknownConfigurationKeyError,
    PermissionError,
    ValueError,
)


class KeyTakenError(Exception):
    """There may be an object of that key: a server says so also while another write goes on."""


class RefusedError(StoreError, is_internal=True):
    """The server has refused a request: it changed nothing, and sending it again will not help."""


class NoAnswerError(StoreError, is_internal=True):
    """No answer came, or the server failed: whether the request had an effect is unknown."""


@attrs.frozen
class StoredObject:
    """What the store says of an object, not what is in it.

    Attributes:
        key: Its key.
        size: Its size in bytes.
        modified: When it was written, by the store's clock.
        etag: Its ETag, which no other content of the key has; empty: the store gives none.
        version: What the store calls the version; None: it has no name for it.
    """

    key: str
    size: int
    modified: datetime
    etag: str = ""
    version: str | None = None


@attrs.define(eq=False)
class PartedUpload:
    """An object that is written in parts; there is none before `close` has returned."""

    _writer: obstore.WritableFile
    _explain: Callable[[], AbstractContextManager[None]]

    def write(self, view: memoryview) -> None:
        """Write at the end."""
        for start in range(0, len(view), WRITE_BYTES):
            with self._explain():
                self._writer.write(view[start : start + WRITE_BYTES])

    def close(self) -> None:
        """Make the object."""
        with self._explain():
            self._writer.close()


@attrs.frozen
class Clients:
    """Clients of a bucket, by how long they wait for an answer.

    Attributes:
        quick: For requests that move little.
        large: For an object that is read or written whole, where a save may have to wait for it.
        patient: For what no save waits for.
    """

    quick: ObjectStore
    large: ObjectStore
    patient: ObjectStore


class Bucket:
    """A bucket, or what stands for one."""

    def __init__(self, shown: str, clients: Clients) -> None:
        self.shown = shown
        self._clients = clients
        self._is_in_folder = isinstance(clients.quick, LocalStore)  # its lists come in any order

    def _client_for(self, data: bytes) -> ObjectStore:
        return self._clients.quick if len(data) <= QUICK_BYTES else self._clients.large

    def create(self, key: str, data: bytes) -> str:
        """Put an object that must not exist; returns its ETag.

        Raises:
            KeyTakenError: there is one.
        """
        return self._put(key, data, "create")

    def replace(self, old: StoredObject, data: bytes) -> str:
        """Put an object in place of a version of it; returns its ETag.

        A folder has no such condition: there any version is replaced.

        Raises:
            KeyTakenError: there is another version, or none; or the server cannot tell.
        """
        if self._is_in_folder:
            return self._put(old.key, data, "overwrite")
        version: UpdateVersion = {"e_tag": old.etag}
        if old.version is not None:
            version["version"] = old.version
        return self._put(old.key, data, version)

    def _put(self, key: str, data: bytes, mode: PutMode) -> str:
        with self._explain("PUT", key):
            try:
                done = obstore.put(
                    self._client_for(data), key, data, mode=mode, use_multipart=False
                )
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                raise KeyTakenError(key) from error
            return done["e_tag"] or ""

    def put(self, key: str, data: bytes) -> None:
        """Put an object whose key no other writer uses."""
        with self._explain("PUT", key):
            obstore.put(self._client_for(data), key, data, use_multipart=False)

    def get(self, key: str) -> bytes | None:
        """Read a whole object; None: there is none."""
        with self._explain("GET", key), suppress(FileNotFoundError):
            found = obstore.get(self._clients.large, key)
            if found.meta["size"] > MAX_OBJECT_BYTES:
                raise StoreDamagedError(f"{self.shown}: {key} is too large to be an object of it")
            return bytes(found.bytes())
        return None

    def compare(self, key: str, data: bytes) -> tuple[StoredObject, bool] | None:
        """Look at an object, and whether it has these bytes; None: there is none."""
        with self._explain("GET", key), suppress(FileNotFoundError):
            found = obstore.get(self._client_for(data), key)
            is_same = found.meta["size"] == len(data) and bytes(found.bytes()) == data
            return _entry_of(found.meta), is_same
        return None

    def get_range(self, key: str, offset: int, size: int) -> bytes | None:
        """Read a part of an object, maybe a shorter one; None: there is no such object."""
        with self._explain("GET", key), suppress(FileNotFoundError):
            return bytes(obstore.get_range(self._clients.patient, key, start=offset, length=size))
        return None

    def peek(self, key: str, size: int) -> bytes | None:
        """Read the beginning of an object that is small, or damaged; None: there is none.

        What waits for it waits no longer than for a save.  An empty object has no range that could
        be read, so it is looked at.
        """
        try:
            with self._explain("GET", key), suppress(FileNotFoundError):
                return bytes(obstore.get_range(self._clients.quick, key, start=0, length=size))
        except RefusedError:
            found = self.find(key)
            if found is None or found.size:
                raise
            return b""
        return None

    def find(self, key: str) -> StoredObject | None:
        """Look at an object without reading it; None: there is none."""
        with self._explain("HEAD", key), suppress(FileNotFoundError):
            return _entry_of(obstore.head(self._clients.quick, key))
        return None

    def list(self, folder: str, after: str | None = None) -> Iterator[StoredObject]:
        """List the objects of a folder in the order of their keys.

        Args:
            folder: What their keys begin with, before a slash.
            after: Only objects whose keys come after it.
        """
        with self._explain("LIST", folder):
            stream = obstore.list(
                self._clients.quick, folder, offset=after, chunk_size=LIST_AT_ONCE
            )
            chunks = iter([stream.collect()]) if self._is_in_folder else iter(stream)
        while True:
            with self._explain("LIST", folder):
                found = [_entry_of(meta) for meta in next(chunks, ())]
            if not found:
                return
            yield from sorted(found, key=lambda entry: entry.key)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that do not exist are passed over."""
        with self._explain("DELETE", keys[0]):
            try:
                obstore.delete(self._clients.quick, keys)
            except FileNotFoundError:  # a folder stops at the first
                for key in keys:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._clients.quick, key)

    def copy(self, source: str, target: str) -> None:
        """Copy an object, within the server."""
        with self._explain("COPY", source):
            obstore.copy(self._clients.patient, source, target)

    def upload(self, key: str, views: Iterable[memoryview]) -> None:
        """Write an object in parts, in place of any; if an error is raised, there is none.

        Raises:
            Exception: the exception of the iterator of views.
        """
        upload = self.begin_upload(key)
        for view in views:
            upload.write(view)
        upload.close()

    def begin_upload(self, key: str) -> PartedUpload:
        """Begin an object that is written in parts, in place of any."""
        with self._explain("PUT", key):
            writer = obstore.open_writer(self._clients.patient, key, buffer_size=PART_BYTES)
        return PartedUpload(writer, partial(self._explain, "PUT", key))

    @contextmanager
    def _explain(self, verb: str, key: str) -> Generator[None]:
        """Turn errors of the library into ours."""
        try:
            yield
        except FileNotFoundError as error:  # of a write: there is no bucket
            raise RefusedError(f"{self.shown}: there is no such bucket or folder") from error
        except _REFUSALS as error:
            raise RefusedError(self._words(verb, key, error)) from error
        except (exceptions.BaseError, OSError) as error:
            kind = RefusedError if _REFUSED.search(str(error)) else NoAnswerError
            raise kind(self._words(verb, key, error)) from error

    def _words(self, verb: str, key: str, error: Exception) -> str:
        return f"{self.shown}: {verb} {key}: {_reason_of(error)}"


def _reason_of(error: Exception) -> str:
    """What the server says, if it says something, else what the library says."""
    text = str(error)
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is None:
        return message_of(text)
    return message_of(code[1] if message is None else f"{code[1]}: {message[1]}")


def _entry_of(meta: obstore.ObjectMeta) -> StoredObject:
    etag, version = meta["e_tag"] or "", meta["version"]
    return StoredObject(meta["path"], meta["size"], meta["last_modified"], etag, version)


def open_bucket(address: ObjectsAddress) -> Bucket:
    """Open the bucket of a URL; it asks nothing yet.

    Raises:
        StoreError: it cannot be used so.
    """
    try:
        clients = Clients(
            _open(address, min(TIMEOUT_S, address.lease_s * TIMEOUT_SHARE)),
            _open(address, min(LONG_TIMEOUT_S, address.lease_s * TIMEOUT_SHARE)),
            _open(address, LONG_TIMEOUT_S),
        )
    except (exceptions.BaseError, ValueError, OSError) as error:
        raise StoreError(f"{address.shown}: {message_of(str(error))}") from error
    return Bucket(address.shown, clients)


def memory_bucket() -> Bucket:
    """A bucket in memory, for tests."""
    store = MemoryStore()
    return Bucket("memory", Clients(store, store, store))


def _open(address: ObjectsAddress, timeout_s: float) -> ObjectStore:
    if address.scheme == "file":
        return LocalStore(address.bucket, mkdir=True)
    is_plain = address.endpoint is not None and address.endpoint.startswith("http://")
    client = {
        "timeout": f"{timeout_s * 1000:.0f}ms",
        "connect_timeout": f"{CONNECT_TIMEOUT_S:.0f}s",
        "allow_http": is_plain,
    }
    # A request is sent again by `requests`, which knows what may have happened.
    retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout_s)}
    config = {
        name: value
        for name, value in (
            ("endpoint", address.endpoint),
            ("region", address.region),
            ("account_name", address.account),
        )
        if value is not None
    }
    kinds: dict[str, Callable[..., ObjectStore]] = {
        "s3": S3Store,
        "gs": GCSStore,
        "az": AzureStore,
    }
    return kinds[address.scheme](
        address.bucket, config=config, client_options=client, retry_config=retry
    )


def joined(*parts: str) -> str:
    """A key of parts, those that are empty left out."""
    return "/".join(filter(None, parts))


def in_batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """Keys as they are deleted, `LIST_AT_ONCE` at once."""
    batch = list[str]()
    for key in keys:
        batch.append(key)
        if len(batch) == LIST_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
