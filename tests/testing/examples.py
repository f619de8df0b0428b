"""Our examples as programs that are made to crash: what they need is in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from examples import crawler, scan_book
from examples._web.http import NO_HEADERS, Headers, Response
from trio_ckpt import Status
from trio_ckpt.testing import World

# ------------------------------------------------------------------------------ the crawler

SITE = "http://site.test"
LINKS = {
    "/": ["/a", "/b", "/old"],
    "/a": ["/b", "/c", "/", "/secret"],
    "/b": ["/c", "/broken", "/secret"],
    "/c": ["/d"],
    "/d": [],
    "/old": "/d",  # a redirect
    "/broken": None,  # answers 403
}
PAGES = sorted(path for path, links in LINKS.items() if isinstance(links, list))


class MemoryClient:
    """Answers as a site would, and notes what was asked for."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def get(self, url: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
        del headers  # this site has no validators
        await trio.sleep(0.01)
        path = url.removeprefix(SITE)
        self.world.note("fetched", path)
        if path == "/robots.txt":
            return answer(url, 200, "User-agent: *\nDisallow: /secret")
        links = LINKS.get(path, ())
        if links is None or path not in LINKS:
            return answer(url, 404 if links == () else 403)
        if isinstance(links, str):
            return answer(url, 301, location=links)
        body = "".join(f'<a href="{link}">x</a>' for link in links)
        return answer(url, 200, f"<title>{path}</title>{body}", **{"content-type": "text/html"})


def answer(url: str, status: int, body: str = "", **headers: str) -> Response:
    return Response(url=url, status=status, headers=Headers(headers), body=body.encode())


async def crawl(world: World) -> None:
    """The crawler, against a site in memory."""

    @asynccontextmanager
    async def open_client(**_settings: Any) -> AsyncIterator[MemoryClient]:
        yield MemoryClient(world)

    options = crawler.parse_options([f"{SITE}/", "--out", "nowhere", "--concurrency", "3"])
    options.out, options.store = world.output_dir, world.store
    assert await crawler.crawl(options, open_client) == 3


def check_crawl(world: World) -> None:
    """Every page has its line, once; a crash costs at most what was in flight."""
    tree = world.files.tree()
    lines = [json.loads(line) for line in tree["pages.jsonl"].splitlines()]
    assert sorted(line["url"].removeprefix(SITE) for line in lines) == PAGES
    for name, path in (("failed", "broken"), ("redirects", "old"), ("forbidden", "secret")):
        noted = [json.loads(line)["url"] for line in tree[f"{name}.jsonl"].splitlines()]
        assert noted == [f"{SITE}/{path}"]
    fetched = Counter(path for _, path in world.notes if path != "/robots.txt")
    assert fetched.total() - len(fetched) <= 3 * world.crashes


# -------------------------------------------------------------------------------- the book

BOOK_PAGES = 4
BOOK = "".join(
    f"Chapter  {page}:   teh page\n  has ``quotes'' and num-\nber {page * 7919 % 101}.\n"
    for page in range(1, BOOK_PAGES + 1)
)


class Book:
    """The two stages over a book that is a file of this machine."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.path, self.workers = folder / "book.txt", workers
        self.path.write_text(BOOK)
        self.whole: dict[str, bytes] = {}

    async def scan(self, world: World) -> None:
        """One session."""

        async def read_page(name: str) -> str:
            await trio.lowlevel.checkpoint()
            return world.files.read(name).decode()

        words = [str(self.path), "--out", "nowhere", "--lines-per-page", "3"]
        options = scan_book.parse_options([*words, "--workers", str(self.workers)])
        options.out, options.store = world.output_dir, world.store
        assert await scan_book.scan(options, read_page) == 0

    def check(self, world: World) -> None:
        """The pages are, byte by byte, those of a run without a crash; and so are the sums."""
        tree = world.files.tree()
        pages = {path: data for path, data in tree.items() if path.startswith(("ext", "corr"))}
        self.whole = self.whole or pages
        assert len(pages) == 2 * BOOK_PAGES
        assert pages == self.whole
        for stage in ("extract", "correct"):
            progress = world.progress(stage)
            assert progress.status is Status.COMPLETE
            assert progress.records == BOOK_PAGES
        assert not any(name.endswith(".ckpt-tmp") for name in tree)
