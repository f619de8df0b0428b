"""The key that a store is sealed with: what it may be, and the file that it is kept in."""

from __future__ import annotations

import os
from pathlib import Path

from .._util.arguments import path_text
from .._util.errors import StoreError

MAX_KEY_BYTES = 64  # of BLAKE2b (RFC 7693, section 2.5)
MIN_FILE_KEY_BYTES = 16  # what is guessed by trying is shorter
_MAX_FILE_BYTES = MAX_KEY_BYTES + 16  # white space around it included
_OTHERS = 0o077


def check_mac_key(key: bytes | None) -> bytes | None:
    """Return a key that can be one; None: there is none.

    Raises:
        TypeError: it is not bytes.
        ValueError: it is empty, which would be no key at all, or too long.
    """
    if key is None:
        return None
    if not isinstance(key, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers err
        raise TypeError(f"mac_key is bytes, not {type(key).__name__}")
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"mac_key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}")
    return key


def read_mac_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a file, for ``open_store(mac_key=...)``.

    It is what the file holds without white space around it, 16 to 64 bytes; such as
    ``python -c "import secrets; print(secrets.token_hex())"`` prints.

    Raises:
        StoreError: others may read the file, or it holds no such key.
        OSError: it cannot be read.
        TypeError, ValueError: it is no path, or begins with ``~``.
    """
    shown = path_text("path", path)
    with Path(path).open("rb") as file:
        if os.name == "posix" and os.fstat(file.fileno()).st_mode & _OTHERS:
            raise StoreError(f"{shown!r} may be read by others: chmod 600, or take another key")
        key = file.read(_MAX_FILE_BYTES).strip()
    if not MIN_FILE_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise StoreError(
            f"{shown!r} holds no key: that is {MIN_FILE_KEY_BYTES} to {MAX_KEY_BYTES} bytes"
        )
    return key
