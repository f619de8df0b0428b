"""What a crawler wants from a page: its title and the links that may be followed.

lxml (libxml2, with HTML5's tokenizer since lxml 6) hands the start tags to a small target and
builds no tree. That is for time bounds, not only for speed: tree builders take time quadratic in
the depth of nesting or in the attributes of one tag, and a page of 200 KB can hold a program up
for seconds (benchmarks/crawl_parts.py prints it). Events are linear in the bytes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote_from_bytes

import attrs
from lxml import etree

from . import charsets, urls

# Links looked at on one page: 4 us each. A list of all files of a large archive has fewer.
MAX_LINKS_PER_PAGE = 100_000
MAX_TITLE_LENGTH = 300

_HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_MEDIA_TYPE = re.compile(r"[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+", re.ASCII)
# What stands for "I do not know": https://mimesniff.spec.whatwg.org, section 7.
_NO_TYPES = frozenset({"unknown/unknown", "application/unknown", "*/*"})
_REFRESH = re.compile(r"""\s*[\d.]+\s*[;,]\s*url\s*=\s*["']?([^"']+)""", re.IGNORECASE)


@attrs.frozen
class Page:
    """What was found on a page.

    Attributes:
        title: Its title, at most MAX_TITLE_LENGTH characters.
        links: Normalized, each once, in the order of the page.
        more_links: How many were not looked at, because they are too many.
        is_cut: Whether the parser gave up in the middle.
    """

    title: str = ""
    links: tuple[str, ...] = ()
    more_links: int = 0
    is_cut: bool = False


@attrs.define(eq=False)
class _Collector:
    """The target of lxml's events; the names of its methods are lxml's."""

    hrefs: dict[str, None] = attrs.Factory(dict)
    base: str | None = None
    follow: bool = True
    more_links: int = 0
    _title_parts: list[str] = attrs.Factory(list)
    _in_title: bool = False
    _title_seen: bool = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in ("a", "area"):
            self._start_link(attributes)
        elif tag in ("frame", "iframe"):
            self._add_link(attributes.get("src"))
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
        if "nofollow" not in attributes.get("rel", "").lower().split():
            self._add_link(attributes.get("href"))

    def _add_link(self, href: str | None) -> None:
        if href is None or href in self.hrefs:
            return
        if len(self.hrefs) == MAX_LINKS_PER_PAGE:
            self.more_links += 1
        else:
            self.hrefs[href] = None

    def _start_meta(self, attributes: Mapping[str, str]) -> None:
        content = attributes.get("content", "")
        if attributes.get("http-equiv", "").strip().lower() == "refresh":
            if (found := _REFRESH.match(content)) is not None:
                self._add_link(found[1])
        elif attributes.get("name", "").strip().lower() == "robots":
            directives = {part.strip() for part in content.lower().split(",")}
            if directives & {"nofollow", "none"}:
                self.follow = False

    @property
    def title(self) -> str:
        title = " ".join("".join(self._title_parts).split())
        return title if len(title) <= MAX_TITLE_LENGTH else title[: MAX_TITLE_LENGTH - 1] + "…"

    def links(self, url: str, codec: str) -> tuple[str, ...]:
        if not self.follow:
            return ()
        base = url if self.base is None else urls.normalize(self.base, url) or url
        found = (urls.normalize(encode_query(href, codec), base) for href in self.hrefs)
        return tuple(dict.fromkeys(link for link in found if link is not None))


def parse_page(body: bytes, url: str, content_type: str) -> Page:
    """The title and the links of a page.

    ``<base href>`` is honoured; links with rel=nofollow, and all links of a page whose
    ``<meta name=robots>`` says nofollow or none, are left out. Frames, and the page that a
    ``<meta http-equiv=refresh>`` leads to, are links, too.

    Args:
        body: The decoded response body.
        url: The URL it came from, which relative links start from.
        content_type: The header's value. Its charset outranks what the page says of itself.

    Returns:
        An empty Page for anything but HTML.

    Raises:
        UnreadableText: Its encoding is one that browsers refuse.
    """
    if not is_html(body, content_type):
        return Page()
    text = charsets.decode(body, content_type)
    collector: Any = _Collector()
    # Any, because lxml asks a target for what it has, and its stubs for every method there is.
    parser = etree.HTMLParser(target=collector, encoding="utf-8")
    is_cut = False
    try:
        parser.feed(text.text.encode("utf-8", "replace"))
        parser.close()
    except etree.LxmlError:  # it gives up on nothing that we know; what came before counts
        is_cut = True
    links = collector.links(url, text.codec)
    return Page(collector.title, links, collector.more_links, is_cut)


def is_html(body: bytes, content_type: str) -> bool:
    """Whether a response is a page: by its type, or by its first bytes where no type is given."""
    if (media_type := media_type_of(content_type)) is not None:
        return media_type in _HTML_TYPES
    start = body[:1024]
    if start.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        start = start.replace(b"\0", b"")[2:]
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<")


@lru_cache  # a site has few
def media_type_of(content_type: str) -> str | None:
    """The media type in a header; None: it says nothing that can be used.

    Of repeated headers, which are joined by commas, the last that is a type counts.
    """
    names = [part.partition(";")[0].strip().lower() for part in content_type.split(",")]
    types = [name for name in names if _MEDIA_TYPE.fullmatch(name) and name not in _NO_TYPES]
    return types[-1] if types else None


def encode_query(href: str, codec: str) -> str:
    """A link whose query is percent-encoded as forms of the page would be: in its encoding."""
    if href.isascii() or codec.startswith("utf"):
        return href
    path, mark, rest = href.partition("?")
    query, hash_mark, fragment = rest.partition("#")
    if "#" in path:  # the question mark is in the fragment
        return href
    encoded = "".join(_percent(character, codec) for character in query)
    return f"{path}{mark}{encoded}{hash_mark}{fragment}"


def _percent(character: str, codec: str) -> str:
    if character.isascii():
        return character
    encoded = character.encode(codec, "xmlcharrefreplace")
    return quote_from_bytes(encoded, safe="")
