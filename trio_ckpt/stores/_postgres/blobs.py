"""Blobs of runs as rows: one that names a blob, and its bytes in parts.

Theory of operation.  The parts of a large blob are uploaded first, each by a statement of its own
that may be sent again, under a random number that no other upload has.  The row that names the
blob is written last, compares the owner, and so makes the whole blob visible at once.  A small blob
is one statement.  No lock is held in between: an owner that is paused keeps no process waiting.

A blob belongs to its run, and one process at a time owns that.  So the owner itself knows which
blobs were put and are not named by a record yet, its `pins`; all others without a name may go.
Blobs are named and removed in the thread that saves, so none is removed while it is being named;
each statement that does either changes the row of the run, so none of an older owner comes late.
What a killed owner left goes when the run is locked the next time.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection

import attrs

from ..._journal.store import BlobPart, BlobPayload, RunKey, scatter
from ..._util.errors import StoreConflictError, StoreDamagedError, StoreError
from .._local.blobs import check_part, need_digest, views_of
from .connection import PostgresConnection
from .owning import OWNED, OwnedRun, values_of

PART_BYTES = 2**20
PARTS_AT_ONCE = 16  # that a check reads
MAX_WHOLE_BYTES = 2**30  # for a read without a size, and for a sealed record

_NAME = (
    f"WITH fence AS ({OWNED}) "
    "INSERT INTO {s}.blobs (run, digest, size, upload) "
    "SELECT id, %(digest)s, %(size)s, %(upload)s FROM fence ON CONFLICT DO NOTHING"
)
_PUT_SMALL = (
    f"WITH fence AS ({OWNED}), named AS ("
    "INSERT INTO {s}.blobs (run, digest, size, upload) "
    "SELECT id, %(digest)s, %(size)s, %(upload)s FROM fence ON CONFLICT DO NOTHING RETURNING run) "
    "INSERT INTO {s}.parts SELECT run, %(upload)s, 0, %(content)s FROM named"
)
_PUT_PART = (
    "INSERT INTO {s}.parts VALUES (%(run)s, %(upload)s, %(place)s, %(content)s) "
    "ON CONFLICT DO NOTHING"
)
_FIND_OWN = (
    "SELECT upload FROM {s}.blobs b JOIN {s}.runs r ON r.id = b.run "
    "WHERE run = %(run)s AND digest = %(digest)s AND nonce = %(nonce)s"
)
_DROP_UPLOAD = (
    "DELETE FROM {s}.parts p WHERE run = %(run)s AND upload = %(upload)s AND NOT EXISTS "
    "(SELECT FROM {s}.blobs b WHERE b.run = p.run AND b.upload = p.upload)"
)
_FIND = (
    "SELECT b.run, size, upload FROM {s}.blobs b JOIN {s}.runs r ON r.id = b.run "
    "WHERE run_id = %(run_id)s AND digest = %(digest)s"
)
_FIND_IN_RUN = "SELECT run, size, upload FROM {s}.blobs WHERE run = %(run)s AND digest = %(digest)s"
_READ_PARTS = (
    "SELECT content FROM {s}.parts WHERE run = %(run)s AND upload = %(upload)s "
    "AND place BETWEEN %(first)s AND %(last)s ORDER BY place"
)
_IS_UNNAMED = (
    "NOT EXISTS (SELECT FROM {s}.log l WHERE l.run = b.run AND l.blob = b.digest) "
    "AND NOT EXISTS (SELECT FROM {s}.attached a WHERE a.run = b.run AND a.digest = b.digest)"
)
_IS_OWNER = "EXISTS (SELECT FROM {s}.runs WHERE id = %(run)s AND nonce = %(nonce)s)"
_FIND_UNNAMED = (
    "SELECT digest, size, upload FROM {s}.blobs b "
    f"WHERE run = %(run)s AND {_IS_UNNAMED} AND {_IS_OWNER}"
)
_FIND_UPLOADS = (
    "SELECT DISTINCT upload FROM {s}.parts p WHERE run = %(run)s AND NOT EXISTS "
    "(SELECT FROM {s}.blobs b WHERE b.run = p.run AND b.upload = p.upload) "
    f"AND {_IS_OWNER}"
)
# A removal names uploads, which are never made again: a copy of it that lands late, after the blob
# was put once more, removes nothing of that.
_REMOVE_BLOBS = (
    f"WITH fence AS ({OWNED}), gone AS (DELETE FROM {{s}}.blobs b USING fence "
    f"WHERE b.run = fence.id AND b.upload = ANY(%(uploads)s::bigint[]) AND {_IS_UNNAMED} "
    "RETURNING b.run, b.upload) DELETE FROM {s}.parts p USING gone "
    "WHERE p.run = gone.run AND p.upload = gone.upload"
)
_REMOVE_UPLOADS = (
    f"WITH fence AS ({OWNED}) DELETE FROM {{s}}.parts p USING fence WHERE p.run = fence.id "
    "AND p.upload = ANY(%(uploads)s::bigint[]) "
    "AND NOT EXISTS (SELECT FROM {s}.blobs b WHERE b.run = p.run AND b.upload = p.upload)"
)


@attrs.frozen
class Upload:
    """A payload whose bytes are in the database, but for the last.

    Attributes:
        number: The number of the upload.
        digest: The SHA-256 of the payload.
        size: Its size.
        parts: How many parts are in the database.
        rest: What is not in them; empty if there are parts.
    """

    number: int
    digest: str
    size: int
    parts: int
    rest: bytes


def upload(
    connection: PostgresConnection,
    run: int,
    payload: BlobPayload,
    is_abandoned: Callable[[], bool] = lambda: False,
) -> Upload:
    """Take a payload, and upload it in parts if it is large.

    Args:
        connection: The connection.
        run: The number of the run's row.
        payload: The payload.
        is_abandoned: Asked before each part whether no caller waits for it any more.

    Raises:
        StoreError: it was abandoned.
        psycopg.Error: the database refused.
        Exception: the exception of the iterator of buffers.
    """
    hasher, size, buffer, place = hashlib.sha256(), 0, bytearray(), 0
    number = secrets.randbits(63)

    def put_part(content: bytes) -> None:
        if is_abandoned():
            raise StoreError("putting a blob was abandoned")
        values = {"run": run, "upload": number, "place": place, "content": content}
        connection.repeat(lambda: connection.query(_PUT_PART, values))

    try:
        for view in views_of(payload):
            hasher.update(view)
            size += view.nbytes
            for start in range(0, view.nbytes, PART_BYTES):
                buffer += view[start : start + PART_BYTES]
                if len(buffer) > PART_BYTES:
                    put_part(bytes(buffer[:PART_BYTES]))
                    del buffer[:PART_BYTES]
                    place += 1
        if place:
            put_part(bytes(buffer))
            place += 1
            buffer.clear()
    except BaseException:
        if place:
            drop_upload(connection, run, number)
        raise
    return Upload(number, hasher.hexdigest(), size, place, bytes(buffer))


def drop_upload(connection: PostgresConnection, run: int, number: int) -> None:
    """Remove the parts of an upload, unless they are a blob."""
    values = {"run": run, "upload": number}
    connection.repeat(lambda: connection.query(_DROP_UPLOAD, values))


def name_blob(
    connection: PostgresConnection, owned: OwnedRun, key: RunKey, uploaded: Upload
) -> str:
    """Make an uploaded payload a blob of a run, and pin it; returns its name.

    Raises:
        StoreConflictError: another owner has the run.
        psycopg.Error: the database refused.
    """
    values = values_of(connection, owned) | {
        "digest": uploaded.digest,
        "size": uploaded.size,
        "upload": uploaded.number,
        "content": uploaded.rest,
    }
    statement = _NAME if uploaded.parts else _PUT_SMALL
    connection.repeat(lambda: connection.query(statement, values))
    found = connection.repeat(lambda: connection.query(_FIND_OWN, values))
    if uploaded.parts and found != [(uploaded.number,)]:  # it is a blob of the run already
        drop_upload(connection, owned.row, uploaded.number)
    if not found:
        raise StoreConflictError(
            f"owner {owned.owner} does not have the run any more: nothing was stored",
            run_id=key.run_id,
        )
    owned.pins[uploaded.digest] += 1
    return uploaded.digest


def remove_unnamed(connection: PostgresConnection, owned: OwnedRun) -> int:
    """Remove blobs that no record of a run names, except those pinned; returns the size of all."""
    values = values_of(connection, owned)
    free = connection.repeat(lambda: connection.query(_FIND_UNNAMED, values))
    uploads = [number for digest, _, number in free if digest not in owned.pins]
    if uploads:
        values["uploads"] = uploads
        connection.repeat(lambda: connection.query(_REMOVE_BLOBS, values))
    return sum(size for _, size, _ in free)


def remove_uploads(connection: PostgresConnection, owned: OwnedRun) -> None:
    """Remove parts of blobs that a killed owner did not put to the end."""
    values = values_of(connection, owned)
    found = connection.repeat(lambda: connection.query(_FIND_UPLOADS, values))
    if found:
        values["uploads"] = [number for (number,) in found]
        connection.repeat(lambda: connection.query(_REMOVE_UPLOADS, values))


def read_blob(
    connection: PostgresConnection, run_id: str, digest: str, offset: int, size: int | None
) -> bytes:
    """See `Store.read_blob`."""
    check_part(offset, size)
    need_digest(digest)
    with connection.transaction(is_snapshot=True):
        found = connection.query(_FIND, {"run_id": run_id, "digest": digest})
        return _read_part(connection, digest, found, offset, size)


def read_part(connection: PostgresConnection, run_id: str, part: BlobPart) -> None:
    """Read a part of a blob into memory of the caller."""
    scatter(read_blob(connection, run_id, part.digest, part.offset, part.nbytes), part.targets)


def read_whole(connection: PostgresConnection, run: int, digest: str) -> bytes:
    """Read a blob of a run in the open transaction, and compare it with its name.

    Raises:
        StoreDamagedError: it is missing, or was altered.
    """
    found = connection.query(_FIND_IN_RUN, {"run": run, "digest": digest})
    payload = _read_part(connection, digest, found, 0, None)
    if hashlib.sha256(payload).hexdigest() != digest:
        raise StoreDamagedError(f"blob {digest} is not what was saved")
    return payload


def blob_problem(connection: PostgresConnection, run: int, digest: str) -> str | None:
    """Return why a blob is not the one of its name, in the open transaction; None: it is."""
    hasher = hashlib.sha256()
    for _, size, number in connection.query(_FIND_IN_RUN, {"run": run, "digest": digest}):
        for place in range(0, -(-size // PART_BYTES), PARTS_AT_ONCE):
            some = {"run": run, "upload": number, "first": place, "last": place + PARTS_AT_ONCE - 1}
            for (content,) in connection.query(_READ_PARTS, some):
                hasher.update(content)
    return None if hasher.hexdigest() == digest else "its content does not match its name"


def _read_part(
    connection: PostgresConnection,
    digest: str,
    found: Collection[tuple[int, int, int]],
    offset: int,
    size: int | None,
) -> bytes:
    for run, whole, upload in found:
        wanted = whole - offset if size is None else size
        if not 0 <= wanted <= whole - offset:
            break
        if size is None and wanted > MAX_WHOLE_BYTES:
            raise StoreError(f"blob {digest} has {wanted:,} bytes: read it in parts")
        if not wanted:
            return b""
        first, last = offset // PART_BYTES, (offset + wanted - 1) // PART_BYTES
        place = {"run": run, "upload": upload, "first": first, "last": last}
        content = b"".join(content for (content,) in connection.query(_READ_PARTS, place))
        start = offset - first * PART_BYTES
        if len(content) < start + wanted:
            break
        return content[start : start + wanted]
    raise StoreDamagedError(f"blob {digest} is missing or too short")
