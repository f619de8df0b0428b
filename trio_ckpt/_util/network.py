"""What servers of this library check before they listen, and the secrets that they make."""

from __future__ import annotations

import ipaddress
import secrets
import ssl

from .errors import TrioCkptError

_SECRET_BYTES = 32


class UnsafeBindingError(TrioCkptError, ValueError):
    """A server refuses to listen beyond this machine without TLS."""


def new_secret() -> str:
    """Return a random secret, in characters that need no quoting."""
    return secrets.token_urlsafe(_SECRET_BYTES)


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
