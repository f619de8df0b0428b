"""Where checkpoints are durable: one file per kind of store, bytes in and bytes out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from .._errors import StoreError
from ..abc import Store
from .json import JsonStore as JsonStore
from .memory import MemoryStore as MemoryStore
from .sqlite import SqliteStore as SqliteStore

_KNOWN = "sqlite:FOLDER (or just the folder), json:FOLDER, memory:"
_FOLDER_STORES: dict[str, type[SqliteStore] | type[JsonStore]] = {
    "sqlite": SqliteStore,
    "json": JsonStore,
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)  # one letter is a drive, C:\x


async def open_store(
    url: str | os.PathLike[str],
    *,
    mac_key: bytes | None = None,
    durability: Literal["full", "process"] = "full",
    create: bool = True,
) -> Store:
    r"""Open a store by its URL.

    ==================  ==================================================================
    ``gh.ckpt``         a folder with an SQLite database, made if it is not there
    ``sqlite:gh.ckpt``  the same; the way to write a folder whose name looks like a URL
    ``json:gh.ckpt``    a folder with a readable ``checkpoint.json`` per run
    ``memory:``         in memory, gone with the object; each is a store of its own
    ==================  ==================================================================

    What comes before a colon is a scheme if it is two letters or more, without a slash:
    ``C:\x``, ``./a:b`` and any `pathlib.Path` are folders.

    Args:
        url: As above.
        mac_key: Seals records with a key, at most 64 bytes; without it the store's readers
            notice damage, with it also alteration on purpose.
        durability: "full": a save survives power loss.  "process": it survives kill -9,
            power loss may take the newest ones.
        create: Whether to make a store that is not there.

    Cancellation: not once it has begun; opening is short.

    Raises:
        StoreError: it cannot be opened, and why.
        StoreVersionError: a newer version of the library wrote it.
        StoreDamagedError: it is damaged.
    """
    if not isinstance(url, str):
        return await SqliteStore.open(
            Path(url), mac_key=mac_key, durability=durability, create=create
        )
    scheme, path = _split(url)
    if scheme == "memory":
        return MemoryStore(mac_key=mac_key)
    kind = _FOLDER_STORES[scheme]
    return await kind.open(Path(path), mac_key=mac_key, durability=durability, create=create)


def _split(url: str) -> tuple[str, str]:
    match = _SCHEME.fullmatch(url)
    scheme, rest = match.groups() if match else ("sqlite", url)
    if scheme == "memory" and rest:
        raise StoreError(f"{url!r}: a store in memory has no name, write 'memory:'")
    if scheme in _FOLDER_STORES and (not rest or rest.startswith("//")):
        raise StoreError(f"{url!r} names no folder; write '{scheme}:FOLDER', without '//'")
    if scheme != "memory" and scheme not in _FOLDER_STORES:
        raise StoreError(
            f"{url!r}: there are no stores of kind {scheme + ':'!r}; known are {_KNOWN}. "
            f"For a folder of that name write {'sqlite:' + url!r}"
        )
    return scheme, rest
