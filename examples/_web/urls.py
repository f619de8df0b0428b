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

# Servers take about 8 KB. Longer URLs are traps (calendars, ever-growing paths) more often than
# pages; a crawler counts those that it leaves out.
MAX_URL_LENGTH = 8_000
# What the URL standard strips from both ends, C0 controls and the space, and what anywhere.
_STRIPPED = "".join(map(chr, range(0x21)))
_REMOVED = str.maketrans("", "", "\t\n\r")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
# What most links do not have, and what browsers read in a way of their own.
_ODD = re.compile(r"[\x00-\x20\\:]|^//|^\?(#|$)")
_PATH_END = re.compile(r"[?#]")
# Names as DNS takes them, after IDNA; `_` is not a legal host name but is in use.
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def normalize(url: str, base: str | None = None) -> str | None:
    """The one spelling of an http(s) URL, or None where it is not one that can be fetched.

    Never raises, whatever the string. Normalizing twice changes nothing. The time is linear in the
    length, which has no limit here.

    Args:
        url: As found; relative only with ``base``.
        base: The absolute URL that a relative ``url`` starts from.

    Returns:
        scheme://host[:port]/path[?query]; None if it is malformed, of another scheme, or carries
        credentials (no link should).
    """
    written: str | None = url
    if _ODD.search(url) is not None:
        written = _as_browsers_read(url.strip(_STRIPPED).translate(_REMOVED), base)
    if written is None:
        return None
    try:
        written.encode()  # yarl drops lone surrogates, in ways that depend on what is around them
        parsed = yarl.URL(written)
        if base is not None:
            parsed = yarl.URL(base).join(parsed)
        return _spelled(parsed) if _is_fetchable(parsed) else None
    except (ValueError, IndexError):  # yarl 1.25: IndexError for "http://[]@"
        return None


def _as_browsers_read(url: str, base: str | None) -> str | None:
    """What RFC 3986 has no word for, as https://url.spec.whatwg.org reads it; None: no http(s).

    Backslashes in front of the query are slashes; how many slashes follow the scheme, or begin a
    link to another host, makes no difference; "http:page" is relative to a page of http.
    """
    end = _PATH_END.search(url)
    at = len(url) if end is None else end.start()
    path, rest = url[:at].replace("\\", "/"), url[at:]
    if base is not None and not path and rest.partition("#")[0] == "?":
        return base.partition("?")[0]  # an empty query, which yarl takes for none
    found = _SCHEME.match(path)
    if found is None:
        path = "//" + path.lstrip("/") if path.startswith("//") else _relative(path)
        return path + rest
    scheme, path = found[0].lower(), path[found.end() :]
    if scheme not in ("http:", "https:"):
        return None
    if base is not None and base.startswith(scheme) and not path.startswith("//"):
        return _relative(path) + rest
    return f"{scheme}//{path.lstrip('/')}{rest}"


def _relative(path: str) -> str:
    """A path in which yarl takes nothing for a scheme, such as "12:30-news"."""
    return f"./{path}" if ":" in path.partition("/")[0] else path


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
        raise ValueError(f"not an absolute http or https URL without a user: {url!r}")
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

    @property
    def site(self) -> str:
        """Its scheme, host and port."""
        return site_of(self.start_url)

    def admits(self, url: str) -> bool:
        """Whether a normalized URL belongs to the crawl."""
        if not url.startswith(self._prefix):
            return False
        if self.include and not any(pattern.search(url) for pattern in self.include):
            return False
        return not any(pattern.search(url) for pattern in self.exclude)
