"""What servers of this library check before they listen, and the secrets of their peers."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import ssl
from typing import cast

from .errors import TrioCkptError

MIN_SECRET_BYTES = 16  # 128 bits, if they are random
MAX_SECRET_BYTES = 1_024
_SECRET_BYTES = 32


class UnsafeBindingError(TrioCkptError, ValueError, is_internal=True):
    """A server refuses to listen beyond this machine without TLS."""


def new_secret() -> str:
    """Return a random secret, in characters that need no quoting."""
    return secrets.token_urlsafe(_SECRET_BYTES)


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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost is not one."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_unspecified(host: str) -> bool:
    """Whether an address means all addresses of this machine."""
    address = _address(host)
    return address is not None and address.is_unspecified


def is_address(host: str) -> bool:
    """Whether a host is an address, not a name."""
    return _address(host) is not None


def url_host(host: str) -> str:
    """Return a host for a URL; this machine's own if the address means all of them."""
    address = _address(host)
    if address is None:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def check_binding(host: str, ssl_context: ssl.SSLContext | None, *, allow_plain: bool) -> None:
    """Refuse to send secrets over a network in the clear.

    Raises:
        UnsafeBindingError: a server that listens on this host would.
    """
    if ssl_context is None and not allow_plain and not is_loopback(host):
        raise UnsafeBindingError(
            f"{host!r} is beyond this machine, and without TLS other machines on the way can read "
            "the secret: give ssl_context=, or allow_plain=True if you trust the network",
        )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
