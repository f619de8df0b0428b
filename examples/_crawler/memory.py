"""What a crawl has to remember besides its pages: redirects, and links that robots.txt forbids.

Both are files of lines, which the pages stage with their checkpoints, so a killed crawl has them
again. In memory they are what those lines say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from .failures import RedirectError

FORBIDDEN = "forbidden.jsonl"
REDIRECTS = "redirects.jsonl"
# As browsers have it (https://fetch.spec.whatwg.org, "HTTP-redirect fetch").
MAX_REDIRECTS = 20


def read_lines(path: Path, *names: str) -> Iterator[list[str]]:
    """These texts of each line of a file of JSON; lines that lack one are passed over.

    Half a line at the end is such a line: a kill left it, and its page is fetched again.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            values = [record.get(name) for name in names] if isinstance(record, dict) else []
            texts = [value for value in values if isinstance(value, str)]
            if len(texts) == len(names):
                yield texts


@attrs.define(eq=False)
class Redirects:
    """Which URL led to which. One that never arrives at a page is noticed."""

    _leads_to: dict[str, str] = attrs.Factory(dict)
    # The longest way on which a URL was reached.
    _hops: dict[str, int] = attrs.Factory(dict)

    @classmethod
    def load(cls, folder: Path) -> Redirects:
        """Those that the crawl in a folder has met."""
        redirects = cls()
        for url, location in read_lines(folder / REDIRECTS, "url", "location"):
            redirects._add(url, location)
        return redirects

    def follow(self, url: str, location: str) -> None:
        """Remember a redirect.

        Raises:
            RedirectError: It leads back to itself, or it is one of too many.
        """
        if url in self._way_from(location):
            raise RedirectError(f"redirects in a circle: {url} -> {location}")
        if self._hops.get(url, 0) >= MAX_REDIRECTS:
            raise RedirectError(f"more than {MAX_REDIRECTS} redirects, the last to {location}")
        self._add(url, location)

    def _add(self, url: str, location: str) -> None:
        self._leads_to[url] = location
        self._hops[location] = max(self._hops.get(location, 0), self._hops.get(url, 0) + 1)

    def _way_from(self, url: str) -> Iterator[str]:
        for _ in range(len(self._leads_to) + 1):
            yield url
            if url not in self._leads_to:
                return
            url = self._leads_to[url]


@attrs.define(eq=False)
class Forbidden:
    """Links that robots.txt does not allow: not fetched, and taken up if it allows them later."""

    urls: set[str] = attrs.Factory(set)

    @classmethod
    def load(cls, folder: Path) -> Forbidden:
        """Those that the crawl in a folder has met."""
        return cls({url for (url,) in read_lines(folder / FORBIDDEN, "url")})

    def release(self, is_allowed: Callable[[str], bool]) -> list[str]:
        """Forget those that are allowed now; returns them."""
        allowed = sorted(filter(is_allowed, self.urls))
        self.urls.difference_update(allowed)
        return allowed

    def new(self, links: Iterable[str]) -> list[str]:
        """Those that were not known, which are from now on."""
        news = [link for link in links if link not in self.urls]
        self.urls.update(news)
        return news
