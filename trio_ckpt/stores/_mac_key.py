"""The MAC key that seals a store: its limits, and how it is read from a file."""

from __future__ import annotations

import os
from pathlib import Path

from .._util.arguments import path_text
from .._util.errors import StoreError

MAX_KEY_BYTES = 64  # of BLAKE2b (RFC 7693, section 2.5)
MIN_FILE_KEY_BYTES = 16  # a shorter key can be found by brute force
_MAX_FILE_BYTES = MAX_KEY_BYTES + 16  # surrounding white space included
_OTHERS = 0o077


def check_mac_key(key: bytes | None) -> bytes | None:
    """Check a key and return it; None: the store has no key.

    Raises:
        TypeError: the key is not bytes.
        ValueError: the key is empty or too long.
    """
    if key is None:
        return None
    if not isinstance(key, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers err
        raise TypeError(f"mac_key is bytes, not {type(key).__name__}")
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"mac_key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}")
    return key


def read_mac_key(path: str | os.PathLike[str]) -> bytes:
    """Read the key in a file, for ``open_store(mac_key=...)``.

    The key is the file's content without surrounding white space, 16 to 64 bytes, such as
    ``python -c "import secrets; print(secrets.token_hex())"`` prints.

    Raises:
        StoreError: other users can read the file, or it does not hold a valid key.
        OSError: the file cannot be read.
        TypeError, ValueError: `path` is not a path, or begins with ``~``.
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
