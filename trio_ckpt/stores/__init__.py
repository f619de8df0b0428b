"""Stores of durable checkpoints: bytes in and bytes out.

`memory` is the shortest one.  `_sqlite` and `_json` are kinds of `_local`: what stores in a folder
share.  A new store implements `trio_ckpt.abc.Store`, and `trio_ckpt.testing.check_store`
checks it; a new kind of folder implements `_local/kind.py`, and is added to the tables here.  This
room may not know what records mean, nor who saves them.
"""

from __future__ import annotations

import os
import re
import typing
from typing import Literal

from .._journal.store import INLINE_LIMIT_BYTES, Store
from .._util.arguments import any_path, flag
from .._util.errors import StoreError
from .._util.extras import needs_extra
from .._util.lazy import lazy_names as _lazy_names
from .._util.text import redacted_url
from .._util.threads import check_trio, run_blocking
from ._mac_key import check_mac_key, read_mac_key as read_mac_key
from ._sqlite.store import SqliteStore as SqliteStore

if typing.TYPE_CHECKING:
    from ._json.store import JsonStore as JsonStore
    from .memory import MemoryStore as MemoryStore
else:  # a process uses one kind of store, most of them this one
    __getattr__, __dir__, _ = _lazy_names(
        __name__, {"_json.store": "JsonStore", "memory": "MemoryStore"}
    )

__all__ = ["JsonStore", "MemoryStore", "SqliteStore", "open_store"]

_KNOWN = (
    "sqlite:FOLDER (or just the folder), json:FOLDER, postgresql://HOST/DATABASE, "
    "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///FOLDER, memory:"
)
_OF_FOLDERS = frozenset({"sqlite", "json"})
_OF_SERVERS = frozenset({"postgresql", "postgres"})
_OF_BUCKETS = frozenset({"s3", "gs", "az", "file"})
_SCHEMES = _OF_FOLDERS | _OF_SERVERS | _OF_BUCKETS | {"memory"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)  # one letter is a drive, C:\x


async def open_store(
    url: str | os.PathLike[str],
    *,
    mac_key: bytes | None = None,
    durability: Literal["full", "process"] = "full",
    inline_limit_bytes: int = INLINE_LIMIT_BYTES,
    create: bool = True,
) -> Store:
    r"""Open a store by its URL.

    ======================  ==============================================================
    ``gh.ckpt``             the store in that folder, of either kind; if it does not exist, an
                            SQLite store is created
    ``sqlite:gh.ckpt``      a folder with an SQLite database
    ``json:gh.ckpt``        a folder with a readable ``checkpoint.json`` per run
    ``postgresql://h/db``   tables in a PostgreSQL database, for many machines; the URL is
                            libpq's, and may have ``schema=``, ``lease_s=`` and
                            ``pooler=transaction`` in its query (extra ``postgres``)
    ``s3://bucket/prefix``  objects in a bucket, for many machines; so are ``gs://bucket/prefix``
                            and ``az://container/prefix``.  Their query may have ``lease_s=``
                            and, for a server of one's own, ``endpoint=`` (extra ``objects``)
    ``file:///folder``      the same objects in a folder, to try that out (extra ``objects``)
    ``memory:``             in memory, lost with the object; each one is a separate store
    ======================  ==============================================================

    Text before a colon is a scheme if it has two letters or more and no slash:
    ``C:\x``, ``./a:b`` and any `pathlib.Path` are folders; a folder whose own name looks like a
    scheme is written with ``sqlite:`` or ``json:`` in front.

    Args:
        url: One of the forms above.
        mac_key: Seals records with a key of 1 to 64 bytes, which should be random:
            see `read_mac_key`.  Without it readers detect accidental damage, with it also
            deliberate alteration.
        durability: "full": a save survives power loss.  "process": it survives kill -9,
            but power loss may take the newest saves.  What a database is set up for may be less:
            `Store.durability` tells.
        inline_limit_bytes: A record of this size or more is a file of its own, and so are the
            arrays of a state, these from 256 KiB on at the latest.
        create: Whether to create a store that does not exist.

    Durability: when this returns a store that was created survives power loss, but for ``memory:``.
    Cancellation: not once it has begun; opening is short.

    Raises:
        MissingExtraError: the library for such a store is not installed.
        StoreError: the store cannot be opened; the message says why.
        StoreVersionError: another version of the library wrote the store.
        StoreDamagedError: the store is damaged.
        ValueError: `mac_key` is empty or too long.
    """
    check_trio()
    check_mac_key(mac_key)
    flag("create", create)
    scheme, path = _split(url) if isinstance(url, str) else ("", any_path("url", url))
    if scheme == "memory":
        from .memory import MemoryStore

        return MemoryStore(mac_key=mac_key, inline_limit_bytes=inline_limit_bytes)
    if scheme in _OF_SERVERS:
        with needs_extra("postgres", "a store in PostgreSQL"):
            from ._postgres.store import PostgresStore

        return await PostgresStore.open(
            str(url),
            mac_key=mac_key,
            durability=durability,
            inline_limit_bytes=inline_limit_bytes,
            create=create,
        )
    if scheme in _OF_BUCKETS:
        with needs_extra("objects", "a store in a bucket"):
            from ._objects.store import ObjectsStore

        return await ObjectsStore.open(
            str(url), mac_key=mac_key, inline_limit_bytes=inline_limit_bytes, create=create
        )
    found = await run_blocking(_kind_in, path)
    if scheme and found and found != scheme:
        raise StoreError(
            f"{path} is not a trio_ckpt {scheme} store, it is a {found} store: {found}:{path}"
        )
    kind: type[SqliteStore | JsonStore] = SqliteStore
    if "json" in (scheme, found):
        from ._json.store import JsonStore

        kind = JsonStore
    return await kind.open(
        path,
        mac_key=mac_key,
        durability=durability,
        inline_limit_bytes=inline_limit_bytes,
        create=create,
    )


def folder_of(address: str) -> str:
    """The folder of a store, from its address or URL; empty: the store is in none."""
    match = _SCHEME.fullmatch(address)
    if match is None:
        return address
    return match[2] if match[1] in _OF_FOLDERS else ""


def is_server(address: str) -> bool:
    """Whether a store is in the database of a server, from its address or URL."""
    return address.partition(":")[0] in _OF_SERVERS


def is_bucket(address: str) -> bool:
    """Whether a store is in a bucket of an object store, from its address or URL."""
    return address.partition(":")[0] in _OF_BUCKETS


def _kind_in(folder: str) -> str | None:
    """Return the kind of the store in a folder, by the files that only that kind has."""
    try:
        if os.path.lexists(os.path.join(folder, "state.db")):
            return "sqlite"
        is_json = os.path.isfile(os.path.join(folder, "store.json"))
        return "json" if is_json and os.path.isdir(os.path.join(folder, "runs")) else None
    except ValueError:  # not a valid path: opening it reports the error
        return None


def _split(url: str) -> tuple[str, str]:
    """Split a URL into scheme and folder; the scheme of a plain folder is empty."""
    match = _SCHEME.fullmatch(url)
    scheme, rest = match.groups() if match else ("", url)
    shown = redacted_url(url)
    if scheme != "memory" and not rest.strip():
        raise StoreError(f"{shown!r} names no folder")
    if rest == ":memory:":
        raise StoreError(f"{shown!r}: SQLite's name of a database in memory; write 'memory:'")
    if scheme == "memory" and rest:
        raise StoreError(f"{shown!r}: a store in memory has no name, write 'memory:'")
    if scheme in _OF_FOLDERS and rest.startswith("//"):
        raise StoreError(f"{shown!r} names no folder; write '{scheme}:FOLDER', without '//'")
    if scheme in _OF_SERVERS and not rest.startswith("//"):
        raise StoreError(f"{shown!r} names no server; write '{scheme}://HOST/DATABASE'")
    if scheme in _OF_BUCKETS and not rest.startswith("//"):
        kind = "file:///FOLDER" if scheme == "file" else f"{scheme}://BUCKET/PREFIX"
        raise StoreError(f"{shown!r} names no bucket; write '{kind}'")
    if scheme and scheme not in _SCHEMES:
        raise StoreError(
            f"{shown!r}: there are no stores of kind {scheme + ':'!r}; known are {_KNOWN}. "
            f"For a folder of that name write {'sqlite:' + shown!r}"
        )
    return scheme, rest
