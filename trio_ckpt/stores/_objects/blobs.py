"""Blobs in a bucket: each put of a new one is an object of its own, which is never made again.

Theory of operation.  A removal cannot be conditional, and an owner that is paused before one may
send it much later.  So it must never hit what its heir has put since: the key of a blob has its
digest and a random number, the *upload*.  Which upload a digest means is said by the entry that
first names it.  An heir that finds a blob which no record names puts its own upload, and removes
the other.

A large payload is uploaded in parts while it is hashed, to a key of its own; then the server copies
it to that of its digest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping

import attrs

from ..._buckets.bucket import StoredObject
from ..._buckets.requests import Requests
from ..._journal.store import BlobPart, BlobPayload, scatter
from ..._util.errors import StoreDamagedError, StoreError
from .._local.blobs import MAX_WHOLE_BYTES, check_part, need_digest, views_of
from .entries import NamedBlob
from .layout import RunKeys, upload_of
from .owning import OwnedLog, Put, need_next_free

SMALL_BYTES = 8 * 2**20  # up to here a payload waits in memory for its digest
HASH_BYTES = 8 * 2**20  # of a blob, read at once

_LARGE = "large"  # the folder of payloads whose digest is not known yet


@attrs.frozen
class Spooled:
    """A payload whose digest is known.

    Attributes:
        digest: Its SHA-256.
        size: Its size in bytes.
        data: All of it, if it is small.
        key: Where it was uploaded to, else.
    """

    digest: str
    size: int
    data: bytes | None = None
    key: str = ""


def spool(requests: Requests, keys: RunKeys, payload: BlobPayload) -> Spooled:
    """Take a payload, and upload it if it is large.

    Raises:
        Exception: the exception of the iterator of buffers.
    """
    hasher, size, buffer = hashlib.sha256(), 0, bytearray()
    views = views_of(payload)
    for view in views:
        hasher.update(view)
        size += view.nbytes
        buffer += view
        if size > SMALL_BYTES:
            break
    else:
        return Spooled(hasher.hexdigest(), size, bytes(buffer))

    def hashed() -> Iterator[memoryview]:
        nonlocal size
        yield memoryview(buffer)
        for view in views:
            hasher.update(view)
            size += view.nbytes
            yield view

    key = keys.blob(_LARGE, secrets.token_hex(8))
    requests.counts["PUT"] += 1
    requests.bucket.upload(key, hashed())
    return Spooled(hasher.hexdigest(), size, key=key)


def upload(requests: Requests, keys: RunKeys, spooled: Spooled) -> str:
    """Make a payload an object that is named by its digest; returns the upload."""
    name = secrets.token_hex(8)
    key = keys.blob(spooled.digest, name)
    if spooled.data is None:
        requests.copy(spooled.key, key)
        requests.delete([spooled.key])
    else:
        requests.put(key, spooled.data)
    return name


def pin_known(requests: Requests, owned: OwnedLog, spooled: Spooled) -> bool:
    """Pin a blob that the run has already; returns whether it has.

    Raises:
        StoreConflictError: another process has the run.
    """
    digest = spooled.digest
    named, put = owned.loaded.state.uploads.get(digest), owned.puts.get(digest)
    if named is None and put is None:
        return False
    need_next_free(requests, owned)
    if put is not None:
        put.pins += 1
    elif named is not None:
        owned.puts[digest] = Put(named.name, named.size)
    if spooled.data is None:
        requests.delete([spooled.key])
    return True


def pin_new(requests: Requests, owned: OwnedLog, spooled: Spooled, name: str) -> None:
    """Pin a blob that was just uploaded.

    Raises:
        StoreConflictError: another process has the run.
    """
    key = owned.keys.blob(spooled.digest, name)
    try:
        is_known = pin_known(requests, owned, Spooled(spooled.digest, spooled.size, b""))
        if not is_known:
            need_next_free(requests, owned)
    except StoreError:
        requests.delete([key])
        raise
    if is_known:  # an equal one was put meanwhile
        requests.delete([key])
    else:
        owned.puts[spooled.digest] = Put(name, spooled.size)


def remove_unnamed(requests: Requests, owned: OwnedLog) -> None:
    """Remove the blobs that a former owner left, and that no record names.

    Raises:
        StoreConflictError: another process has the run: what is listed may be its own.
    """
    named = owned.loaded.state.uploads
    doomed = list[str]()
    entries = list(requests.list_all(owned.keys.blobs))
    if entries:
        need_next_free(requests, owned)  # so all that was listed is older than any heir
    for entry in entries:
        digest, name = upload_of(entry.key)
        if digest not in named or named[digest].name != name:
            doomed.append(entry.key)
    requests.delete(doomed)


def remove_freed(requests: Requests, owned: OwnedLog, freed: Mapping[str, NamedBlob]) -> int:
    """Remove blobs that no record names any more, unless pinned; returns the size of all."""
    requests.delete(
        owned.keys.blob(digest, one.name)
        for digest, one in freed.items()
        if digest not in owned.puts
    )
    return sum(one.size for one in freed.values())


def remove_pinned(requests: Requests, owned: OwnedLog) -> None:
    """Remove the blobs that were put under this lock, and that no record names."""
    named = owned.loaded.state.uploads
    requests.delete(
        owned.keys.blob(digest, put.upload)
        for digest, put in owned.puts.items()
        if digest not in named
    )
    owned.puts.clear()


def read_blob(
    requests: Requests, keys: RunKeys, digest: str, offset: int, size: int | None
) -> bytes:
    """See `Store.read_blob`; the digest and the part were checked."""
    for entry in requests.list_all(keys.uploads(digest)):
        wanted = entry.size - offset if size is None else size
        if not 0 <= wanted <= entry.size - offset:
            break
        if size is None and wanted > MAX_WHOLE_BYTES:
            raise StoreError(f"blob {digest} has {wanted:,} bytes: read it in parts")
        content = requests.get_range(entry.key, offset, wanted) if wanted else b""
        if content is not None and len(content) == wanted:  # else it was removed meanwhile
            return content
    raise StoreDamagedError(f"blob {digest} of run {keys.run_id!r} is missing or too short")


def read_next(requests: Requests, keys: RunKeys, parts: Iterator[BlobPart]) -> bool:
    """Read the next part into memory of the caller; False: there are no more."""
    for part in parts:
        check_part(part.offset, part.nbytes)
        need_digest(part.digest)
        content = read_blob(requests, keys, part.digest, part.offset, part.nbytes)
        scatter(content, part.targets)
        return True
    return False


def read_whole(requests: Requests, keys: RunKeys, digest: str, upload: str) -> bytes:
    """Read a blob, and compare it with its name.

    Raises:
        StoreDamagedError: it is missing, or was altered.
    """
    key = keys.blob(digest, upload)
    entry = requests.find(key)
    parts = () if entry is None else _parts_of(requests, entry)
    content = b"".join(parts)
    if entry is None or hashlib.sha256(content).hexdigest() != digest:
        raise StoreDamagedError(f"blob {digest} of run {keys.run_id!r} is missing or was altered")
    return content


def blob_problem(requests: Requests, entry: StoredObject, digest: str) -> str | None:
    """Why a blob is not the one of its name; None: it is."""
    hasher = hashlib.sha256()
    for part in _parts_of(requests, entry):
        hasher.update(part)
    return None if hasher.hexdigest() == digest else "its content does not match its name"


def _parts_of(requests: Requests, entry: StoredObject) -> Iterator[bytes]:
    """Read an object in parts, so that no request takes long; a part that is gone is empty."""
    for offset in range(0, entry.size, HASH_BYTES):
        size = min(HASH_BYTES, entry.size - offset)
        yield requests.get_range(entry.key, offset, size) or b""
