"""What a crawler wants from a page: its title and the links that may be followed.

lxml (libxml2, with HTML5's tokenizer since lxml 6) hands the start tags to a small target and
builds no tree. That is for time bounds, not only for speed: tree builders take time quadratic in
the depth of nesting or in the attributes of one tag, and a page of 200 KB can hold a program up
for seconds (benchmarks/crawl_parts.py prints it). Events are linear in the bytes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import attrs
from lxml import etree

from . import urls

# Links looked at on one page. Real pages stay below 1,000; at 4 us each the bound is 20 ms.
MAX_LINKS_PER_PAGE = 5_000
# Bytes of a page that are parsed: 40 ms per MiB of common HTML, 0.13 s per MiB of the worst.
MAX_PARSED_BYTES = 4 * 1024 * 1024
MAX_TITLE_LENGTH = 300

_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s;"']+)""", re.IGNORECASE)


@attrs.frozen
class Page:
    """What was found on a page; the links are normalized and in the order of the page."""

    title: str = ""
    links: tuple[str, ...] = ()


@attrs.define(eq=False)
class _Collector:
    """The target of lxml's events; the names of its methods are lxml's."""

    hrefs: dict[str, None] = attrs.Factory(dict)
    base: str | None = None
    follow: bool = True
    _links_seen: int = 0
    _title_parts: list[str] = attrs.Factory(list)
    _in_title: bool = False
    _title_seen: bool = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in ("a", "area"):
            self._start_link(attributes)
        elif tag == "title":
            self._in_title = not self._title_seen
            self._title_seen = True
        elif tag == "meta":
            self._start_meta(attributes)
        elif tag == "base" and self.base is None:
            self.base = attributes.get("href")

    def end(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False

    def data(self, text: str) -> None:
        if self._in_title:
            self._title_parts.append(text)

    def close(self) -> None:
        pass

    def _start_link(self, attributes: Mapping[str, str]) -> None:
        href = attributes.get("href")
        if href is None or self._links_seen == MAX_LINKS_PER_PAGE:
            return
        self._links_seen += 1
        if "nofollow" not in attributes.get("rel", "").lower().split():
            self.hrefs[href] = None

    def _start_meta(self, attributes: Mapping[str, str]) -> None:
        if attributes.get("name", "").strip().lower() != "robots":
            return
        directives = {part.strip() for part in attributes.get("content", "").lower().split(",")}
        if directives & {"nofollow", "none"}:
            self.follow = False

    @property
    def title(self) -> str:
        return " ".join("".join(self._title_parts).split())[:MAX_TITLE_LENGTH]

    def links(self, url: str) -> tuple[str, ...]:
        if not self.follow:
            return ()
        base = url if self.base is None else urls.normalize(self.base, url) or url
        found = (urls.normalize(href, base) for href in self.hrefs)
        return tuple(dict.fromkeys(link for link in found if link is not None))


def parse_page(body: bytes, url: str, content_type: str) -> Page:
    """The title and the links of a page; never raises, whatever the bytes.

    ``<base href>`` is honoured; links with rel=nofollow, and all links of a page whose
    ``<meta name=robots>`` says nofollow or none, are left out.

    Args:
        body: The decoded response body; its first MAX_PARSED_BYTES are read.
        url: The URL it came from, which relative links start from.
        content_type: The header's value. Its charset outranks what the page says of itself.

    Returns:
        An empty Page for anything but HTML.
    """
    if content_type.partition(";")[0].strip().lower() not in _HTML_TYPES:
        return Page()
    collector = _Collector()
    # Suppressed: libxml2 gives up on few things, and what came before them was collected.
    with contextlib.suppress(etree.LxmlError):
        parser = _open_parser(collector, content_type)
        parser.feed(body[:MAX_PARSED_BYTES])
        parser.close()
    return Page(title=collector.title, links=collector.links(url))


def _open_parser(collector: Any, content_type: str) -> Any:
    # Any, because lxml asks a target for what it has, and its stubs for every method there is.
    charset = _CHARSET.search(content_type)
    if charset is not None:
        # Suppressed: a charset that nobody knows, as if the header had said nothing.
        with contextlib.suppress(LookupError, ValueError):
            return etree.HTMLParser(target=collector, encoding=charset[1])
    return etree.HTMLParser(target=collector)
