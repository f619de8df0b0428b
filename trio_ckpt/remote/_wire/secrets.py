"""The secret that lets peers in."""

from __future__ import annotations

import hmac
import secrets
from typing import cast

from .messages import MAX_SECRET_BYTES

MIN_SECRET_BYTES = 16  # 128 bits, if they are random
_RANDOM_BYTES = 32


def new_secret() -> str:
    """A secret that nobody guesses."""
    return secrets.token_urlsafe(_RANDOM_BYTES)


def check_secret(secret: bytes | str) -> bytes:
    """A secret as bytes.

    Raises:
        TypeError: it is neither bytes nor a str.
        ValueError: it is too short, or too long.
    """
    if not isinstance(cast("object", secret), bytes | str):  # and not shown: it may be one
        raise TypeError(f"secret must be bytes or a str, not a {type(secret).__name__}")
    found = secret.encode() if isinstance(secret, str) else secret
    if not MIN_SECRET_BYTES <= len(found) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"a secret has {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes, not {len(found)}; "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return found


def is_secret(said: bytes, secret: bytes) -> bool:
    """Whether it is the secret; how long that takes says nothing about it (RFC 2104's HMAC is
    compared, so its length does not matter either)."""
    key = secrets.token_bytes(32)
    return hmac.compare_digest(hmac.digest(key, said, "sha256"), hmac.digest(key, secret, "sha256"))
