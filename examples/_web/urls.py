"""One spelling for every URL, and which URLs belong to a crawl.

A frontier knows a page by its URL, so two spellings of one page would be two fetches. The rules
are those of RFC 3986, section 6.2.2 and 6.2.3, applied by yarl: case, percent-encoding, dot
segments, default port, empty path. Nothing that may name another page is touched: query order,
a trailing slash, ``%2F`` and ``%2B`` stay as they are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import attrs
import yarl

# Longer URLs are traps (calendars, session ids, ever-growing paths) far more often than pages.
MAX_URL_LENGTH = 2000
# What the URL standard strips from both ends: C0 controls and the space.
_STRIPPED = "".join(map(chr, range(0x21)))
# Names as DNS takes them, after IDNA; `_` is not a legal host name but is in use.
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def normalize(url: str, base: str | None = None) -> str | None:
    """The one spelling of an http(s) URL, or None where it is not one that can be fetched.

    Never raises, whatever the string. Normalizing twice changes nothing.

    Args:
        url: As found; relative only with ``base``.
        base: The absolute URL that a relative ``url`` starts from.

    Returns:
        scheme://host[:port]/path[?query], at most MAX_URL_LENGTH characters; None if it is
        malformed, longer, of another scheme, or carries credentials (no link should).
    """
    url = url.strip(_STRIPPED)
    if len(url) > MAX_URL_LENGTH:
        return None
    if base is not None and url[:1].isdigit():
        url = "./" + url  # yarl takes "12:30-news" for a scheme, which cannot start with a digit
    try:
        url.encode()  # yarl drops lone surrogates, in ways that depend on what is around them
        parsed = yarl.URL(url) if base is None else yarl.URL(base).join(yarl.URL(url))
        text = _spelled(parsed) if _is_fetchable(parsed) else ""
    except (ValueError, IndexError):  # yarl 1.25: IndexError for "http://[]@"
        return None
    return text if 0 < len(text) <= MAX_URL_LENGTH else None


def _spelled(url: yarl.URL) -> str:
    text = str(url).partition("#")[0]
    # yarl keeps "http://host" as it is; with a query it adds the slash itself.
    return text + "/" if text.count("/") == 2 else text


def _is_fetchable(url: yarl.URL) -> bool:
    if url.scheme not in ("http", "https") or url.raw_user is not None or url.port == 0:
        return False
    host = url.raw_host
    if not host or url.raw_authority.endswith(":"):  # what yarl joins from "http://[。:]"
        return False
    if ":" in host:
        # yarl takes anything in brackets; this raises the ValueError that normalize awaits. A zone
        # ("fe80::1%eth0") means something on one machine only.
        return "%" not in host and bool(ipaddress.IPv6Address(host))
    return _HOST_NAME.fullmatch(host) is not None


def site_of(url: str) -> str:
    """scheme://host[:port] of a normalized URL: what robots.txt and connections belong to."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"not a regular expression: {pattern!r} ({error})") from error
    return tuple(compiled)


def _start(url: str) -> str:
    normalized = normalize(url)
    if normalized is None:
        raise ValueError(f"not an absolute http or https URL: {url!r}")
    return normalized


@attrs.frozen
class Scope:
    """Which URLs belong to the crawl: one site, narrowed by patterns.

    Args:
        start_url: Its scheme, host and port are the site.
        include: Regular expressions searched in the URL; where given, one has to be found.
        exclude: Regular expressions searched in the URL; none may be found.

    Raises:
        ValueError: For a start URL that cannot be fetched, or a malformed pattern.
    """

    start_url: str = attrs.field(converter=_start)
    include: tuple[re.Pattern[str], ...] = attrs.field(default=(), converter=_compiled)
    exclude: tuple[re.Pattern[str], ...] = attrs.field(default=(), converter=_compiled)
    # The slash matters: http://site.test.evil.example starts with http://site.test.
    _prefix: str = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: site_of(self.start_url) + "/", takes_self=True),
    )

    def admits(self, url: str) -> bool:
        """Whether a normalized URL belongs to the crawl."""
        if not url.startswith(self._prefix):
            return False
        if self.include and not any(pattern.search(url) for pattern in self.include):
            return False
        return not any(pattern.search(url) for pattern in self.exclude)
