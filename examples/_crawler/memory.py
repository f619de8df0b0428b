"""What a crawl has to remember besides its pages: redirects, and links that robots.txt forbids.

Both are files of lines, which the pages stage with their checkpoints, so a killed crawl has them
again. In memory they are what those lines say. In a bucket no file can grow: there, and with
``--files``, the lines of a page are a file of its own, and the history of the crawl says which
there are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import aclosing

import attrs
import trio

import trio_ckpt
from trio_ckpt.outputs import OutputDir, open_outputs
from trio_ckpt.stores import open_store

from .failures import RedirectError

AnyPath = str | os.PathLike[str]

PAGES = "pages.jsonl"
FORBIDDEN = "forbidden.jsonl"
REDIRECTS = "redirects.jsonl"
# As browsers have it (https://fetch.spec.whatwg.org, "HTTP-redirect fetch").
MAX_REDIRECTS = 20
MAX_FILE_BYTES = 2**32
NAME_DIGITS = 24  # of 10**9 pages no two have one name by chance


def read_lines(folder: AnyPath, name: str, size: int, *fields: str) -> Iterator[list[str]]:
    """These texts of each line of a file of JSON; lines that lack one are passed over.

    Args:
        folder: Of the outputs.
        name: Of the file, which need not be there.
        size: How many of its bytes to read.
        fields: Of each line.
    """
    outputs = OutputDir.open(folder)
    try:
        if name not in outputs.names():
            return
        lines = b"".join(outputs.read_pieces(name, size)).split(b"\n")
    finally:
        outputs.close()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        yield from texts_of([record], *fields)


def texts_of(records: Iterable[object], *fields: str) -> Iterator[list[str]]:
    """These texts of each record; those that lack one are passed over."""
    for record in records:
        values = [record.get(field) for field in fields] if isinstance(record, dict) else []
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) == len(fields):
            yield texts


def object_name(name: str, url: str) -> str:
    """The name of the lines of one page as a file, which it has in each crawl."""
    digest = hashlib.sha256(url.encode()).hexdigest()
    return f"{name.removesuffix('.jsonl')}/{digest[:NAME_DIGITS]}.json"


async def read_objects(
    store: str, place: AnyPath, files: Collection[str]
) -> dict[str, list[object]]:
    """The records in the files of the pages of a crawl, by the name of their file of lines.

    Args:
        store: The folder or the URL of the checkpoints.
        place: The folder or the URL of the outputs.
        files: The files of lines.
    """
    names = dict[int, list[str]]()
    opened = await open_store(store)
    try:
        async with aclosing(trio_ckpt.read_history(opened, "crawl", ("pages",))) as history:
            async for entry in history:
                if entry.batch_index is not None and entry.kind == "batch":
                    names.setdefault(entry.batch_index, [o.path for o in entry.outputs])
    finally:
        await opened.aclose()
    outputs = open_outputs(place)
    found = dict[str, list[object]]()
    try:
        for _, paths in sorted(names.items()):
            for path in paths:
                name = f"{path.partition('/')[0]}.jsonl"
                if name in files:
                    data = await trio.to_thread.run_sync(outputs.read, path, MAX_FILE_BYTES)
                    found.setdefault(name, []).extend(json.loads(data))
    finally:
        outputs.close()
    return found


@attrs.define(eq=False)
class Redirects:
    """Which URL led to which. One that never arrives at a page is noticed."""

    _leads_to: dict[str, str] = attrs.Factory(dict)
    # The longest way on which a URL was reached.
    _hops: dict[str, int] = attrs.Factory(dict)

    @classmethod
    def load(cls, folder: AnyPath, size: int) -> Redirects:
        """Those that the crawl in a folder has met: so many bytes of the file are confirmed."""
        return cls._of(read_lines(folder, REDIRECTS, size, "url", "location"))

    @classmethod
    def of(cls, records: Iterable[object]) -> Redirects:
        """Those of records."""
        return cls._of(texts_of(records, "url", "location"))

    @classmethod
    def _of(cls, texts: Iterable[list[str]]) -> Redirects:
        redirects = cls()
        for url, location in texts:
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
    def load(cls, folder: AnyPath, size: int) -> Forbidden:
        """Those that the crawl in a folder has met: so many bytes of the file are confirmed."""
        return cls({url for (url,) in read_lines(folder, FORBIDDEN, size, "url")})

    @classmethod
    def of(cls, records: Iterable[object]) -> Forbidden:
        """Those of records."""
        return cls({url for (url,) in texts_of(records, "url")})

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
