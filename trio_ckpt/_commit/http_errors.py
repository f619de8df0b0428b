"""What an exception says about an HTTP request that failed, whatever library made the request.

No such library is imported.  Their exceptions are recognized by what they have in common, a
status, a response with headers, and by the names of their classes.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any

import trio

from .._util.exceptions import leaves_of

BROKEN = (
    TimeoutError,
    ConnectionError,
    socket.gaierror,
    socket.herror,
    ssl.SSLError,
    trio.TooSlowError,
    trio.BrokenResourceError,
)
"""Exceptions that mean a timeout or a broken connection."""

BROKEN_NAMES = frozenset(
    {
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "anthropic.APIConnectionError",
        "anyio.BrokenResourceError",
        "anyio.EndOfStream",
        "h11._util.RemoteProtocolError",
        "http.client.IncompleteRead",
        "httpcore.NetworkError",
        "httpcore.ProxyError",
        "httpcore.RemoteProtocolError",
        "httpcore.TimeoutException",
        "httpx.NetworkError",
        "httpx.ProxyError",
        "httpx.RemoteProtocolError",
        "httpx.TimeoutException",
        "httpx2.NetworkError",
        "httpx2.ProxyError",
        "httpx2.RemoteProtocolError",
        "httpx2.TimeoutException",
        "openai.APIConnectionError",
        "requests.exceptions.ChunkedEncodingError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
        "urllib3.exceptions.MaxRetryError",
        "urllib3.exceptions.ProtocolError",
        "urllib3.exceptions.TimeoutError",
    }
)
"""Such exceptions of HTTP libraries: module and name of a class or of one of its bases."""

UNREACHABLE = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
    }
)
"""Numbers of an OSError that are about the network and have no Python class of their own."""

TOO_MANY_REQUESTS = 429
FORBIDDEN = 403

FIRST_DATE_S = 1_000_000_000
"""From here on a number is a date (of 2001 or later, Unix time), not a number of seconds."""

MAX_ASKED_S = 10**12
"""Longer than any rule waits, in seconds; caps an int of any size that an exception carries."""

RESET_MARGIN_S = 1.0
"""A reset is given in whole seconds, so it may be up to one second later than it says."""


def is_broken(error: BaseException) -> bool:
    """Whether an exception means a timeout or a broken connection, so that a retry may succeed."""
    if isinstance(error, BROKEN):
        return True
    if any(
        f"{kind.__module__}.{kind.__qualname__}" in BROKEN_NAMES for kind in type(error).__mro__
    ):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in UNREACHABLE
    # trio reports all attempts to connect by one OSError, and urllib one of them by its URLError
    return any(is_broken(cause) for cause in _causes(error))


def _causes(error: OSError) -> Iterator[BaseException]:
    cause: object = error.__cause__ or getattr(error, "reason", None)
    if isinstance(cause, BaseException):
        yield from leaves_of(cause)


def status_of(error: BaseException) -> int | None:
    """The status code of the exception, or of its response; None: there is none."""
    for thing in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            code: object = getattr(thing, name, None)
            if isinstance(code, int) and 100 <= code <= 599:
                return int(code)
    return None


def header_of(error: BaseException, name: str) -> str | None:
    """A header of the response: of the exception's response, or of the exception itself."""
    for thing in (getattr(error, "response", None), error):
        get: Any = getattr(getattr(thing, "headers", None), "get", None)
        if not callable(get):
            continue
        for spelled in (name, name.lower()):  # a plain dict has one spelling only
            value: object = get(spelled)
            if isinstance(value, str):
                return value.strip()
    return None


def is_used_up(error: BaseException) -> bool:
    """Whether the response says that its rate limit is used up."""
    return header_of(error, "X-RateLimit-Remaining") == "0"


def retry_after_of(error: BaseException) -> float | None:
    """How long the server asks to wait, in seconds; None where it does not say.

    It is Retry-After (RFC 9110, section 10.2.3), or the attribute ``retry_after``; else, where
    the rate limit is used up, the time until X-RateLimit-Reset.
    """
    asked: object = getattr(error, "retry_after", None)
    if asked is None:
        asked = header_of(error, "Retry-After")
    if isinstance(asked, str):
        asked = _seconds_of(asked)
    if isinstance(asked, int | float) and 0 <= asked < math.inf:
        return float(min(asked, MAX_ASKED_S))
    return _until_reset(error)


def is_limited(
    error: BaseException,
    *,
    status_of: Callable[[BaseException], int | None] = status_of,
    retry_after: Callable[[BaseException], float | None] = retry_after_of,
) -> bool:
    """Whether the server has refused because of a rate: 429, or 403 that says how long to wait."""
    status = status_of(error)
    if status != FORBIDDEN:
        return status == TOO_MANY_REQUESTS
    return is_used_up(error) or retry_after(error) is not None


def _until_reset(error: BaseException) -> float | None:
    text = header_of(error, "X-RateLimit-Reset")
    if text is None or not (is_used_up(error) or status_of(error) == TOO_MANY_REQUESTS):
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        return None
    number = int(text)
    if number < FIRST_DATE_S:
        return number + RESET_MARGIN_S
    # compared with the server's clock where it is known: that of this machine may differ
    now = _date_of(header_of(error, "Date") or "")
    return max(0.0, number - (time.time() if now is None else now)) + RESET_MARGIN_S


def _seconds_of(text: str) -> float | None:
    """What a Retry-After header asks for: seconds, or a date."""
    try:
        return float(text)
    except ValueError:
        at = _date_of(text)
        return None if at is None else max(0.0, at - time.time())


def _date_of(text: str) -> float | None:
    """Parse an HTTP date to Unix time; it is GMT also where the text does not say so."""
    from email.utils import parsedate_to_datetime  # costs a megabyte, and few programs need it

    try:
        at = parsedate_to_datetime(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
