"""The secret that authenticates peers."""

from __future__ import annotations

import hmac
import secrets
from typing import cast

from .message import MAX_SECRET_BYTES

MIN_SECRET_BYTES = 16  # 128 bits, if they are random


def check_secret(secret: bytes | str) -> bytes:
    """Return a secret as bytes.

    Raises:
        TypeError: it is neither bytes nor a str.
        ValueError: it is too short, or too long.
    """
    if not isinstance(cast("object", secret), bytes | str):  # not shown: it may be a secret
        raise TypeError(f"secret must be bytes or a str, not a {type(secret).__name__}")
    found = secret.encode() if isinstance(secret, str) else secret
    if not MIN_SECRET_BYTES <= len(found) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"a secret has {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes, not {len(found)}; "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return found


def is_secret(said: bytes, secret: bytes) -> bool:
    """Whether a given secret is the right one; the time says nothing about it (HMACs of RFC 2104
    are compared, so the length does not show either)."""
    key = secrets.token_bytes(32)
    return hmac.compare_digest(hmac.digest(key, said, "sha256"), hmac.digest(key, secret, "sha256"))
