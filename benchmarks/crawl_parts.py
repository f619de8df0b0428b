"""What the crawler's parts cost: HTTP clients on trio, HTML parsers, URL normalisers.

    python -m benchmarks.crawl_parts [--requests 3000] [--connections 16]

Prints tables; asserts nothing. The site runs in its own process on another core and answers at
once, so requests per second are those of one busy core and the CPU figures are the client's own.
Candidates that are not installed are named and left out. The first row of each table is ours.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeAlias
from urllib.parse import urljoin, urlsplit

import trio

from benchmarks.site import SiteSettings, page_html, page_path
from examples._web import http, page, urls

# The candidates below are optional and partly untyped; Any is honest about both.
Get: TypeAlias = Callable[[str], Awaitable[tuple[int, bytes]]]
OpenClient: TypeAlias = Callable[[int], AbstractAsyncContextManager[Get]]

PARSE_REPEATS = 2000
HOSTILE_BYTES = 100_000


# ------------------------------------------------------------------------------------ HTTP clients


@asynccontextmanager
async def open_ours(connections: int) -> AsyncIterator[Get]:
    """examples/_web/http.py."""
    async with http.open_client(user_agent="bench", connections=connections) as client:

        async def get(url: str) -> tuple[int, bytes]:
            response = await client.get(url)
            return response.status, response.body

        yield get


@asynccontextmanager
async def open_httpcore(connections: int) -> AsyncIterator[Get]:
    """httpcore's pool, with the timeouts that every crawler sets."""
    import httpcore

    timeouts = {"connect": 30.0, "read": 30.0, "write": 30.0, "pool": 30.0}
    async with httpcore.AsyncConnectionPool(
        max_connections=connections, max_keepalive_connections=connections
    ) as pool:

        async def get(url: str) -> tuple[int, bytes]:
            response = await pool.request(
                "GET", url, headers={"User-Agent": "bench"}, extensions={"timeout": timeouts}
            )
            return response.status, response.content

        yield get


@asynccontextmanager
async def open_httpx(connections: int) -> AsyncIterator[Get]:
    """httpx, which stands on httpcore."""
    import httpx

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=30.0) as client:

        async def get(url: str) -> tuple[int, bytes]:
            response = await client.get(url)
            return response.status_code, response.content

        yield get


HTTP_CANDIDATES: dict[str, OpenClient] = {
    "examples._web.http (h11)": open_ours,
    "httpcore": open_httpcore,
    "httpx": open_httpx,
}


async def fetch_all(open_client: OpenClient, connections: int, targets: list[str]) -> float:
    """CPU seconds of this process for fetching every target, ``connections`` at once."""
    waiting = iter(targets)

    async def fetch_rest(get: Get) -> None:
        for target in waiting:
            status, body = await get(target)
            assert status == 200, (target, status)
            assert body, target

    async with open_client(connections) as get:
        await get(targets[0])  # imports and the first connection are not what is measured
        started = time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(fetch_rest, get)
        return time.process_time() - started


# ----------------------------------------------------------------------------------- HTML parsers


def links_ours(body: bytes, url: str) -> int:
    """examples/_web/page.py: the whole job, normalisation and de-duplication included."""
    return len(page.parse_page(body, url, "text/html; charset=utf-8").links)


def links_selectolax(body: bytes, url: str) -> int:
    """selectolax's lexbor, title and raw links only."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(body)
    title = tree.css_first("title")
    assert title is not None
    assert title.text()
    return len([node.attributes.get("href") for node in tree.css("a[href]")])


def links_lxml(body: bytes, url: str) -> int:
    """lxml.html, title and raw links only."""
    import lxml.html

    tree = lxml.html.document_fromstring(body)
    assert tree.findtext(".//title")
    return len(tree.xpath("//a/@href"))


def links_parsel(body: bytes, url: str) -> int:
    """parsel (lxml behind Scrapy's selectors), title and raw links only."""
    import parsel

    selector = parsel.Selector(body=body)
    assert selector.xpath("//title/text()").get()
    return len(selector.xpath("//a/@href").getall())


HTML_CANDIDATES: dict[str, Callable[[bytes, str], int]] = {
    "examples._web.page (all of it)": links_ours,
    "selectolax": links_selectolax,
    "lxml": links_lxml,
    "parsel": links_parsel,
}

# ------------------------------------------------------------------------------- URL normalisers


def normalize_urllib(url: str) -> str:
    """What one would write by hand; does less than the others (no percent-encoding)."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.lower(), fragment="").geturl()


def normalize_w3lib(url: str) -> str:
    """w3lib, which sorts the query, too."""
    import w3lib.url

    return str(w3lib.url.canonicalize_url(url))


def normalize_yarl(url: str) -> str:
    """yarl, whose constructor normalises."""
    import yarl

    return str(yarl.URL(url).with_fragment(None))


def normalize_url_normalize(url: str) -> str:
    """url-normalize."""
    import url_normalize

    return str(url_normalize.url_normalize(url))


def normalize_ours(url: str) -> str:
    """examples/_web/urls.py."""
    return str(urls.normalize(url))


URL_CANDIDATES: dict[str, Callable[[str], str]] = {
    "examples._web.urls": normalize_ours,
    "urllib": normalize_urllib,
    "w3lib": normalize_w3lib,
    "yarl": normalize_yarl,
    "url_normalize": normalize_url_normalize,
}


# -------------------------------------------------------------------------------------- the tables


def installed(candidates: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The candidates whose package is there."""
    for name, candidate in candidates.items():
        package = name.split()[0].split(".")[0]
        if importlib.util.find_spec(package) is None:
            print(f"{name:32} not installed")
        else:
            yield name, candidate


def cpu_us_each(work: Callable[..., object], calls: list[tuple[Any, ...]]) -> float:
    """CPU microseconds of one call, the garbage of others collected before."""
    work(*calls[-1])
    gc.collect()
    started = time.process_time()
    for arguments in calls:
        work(*arguments)
    return (time.process_time() - started) / len(calls) * 1e6


def cpu_us_once(links: Callable[[bytes, str], int], body: bytes) -> float:
    """CPU microseconds of one parse."""
    started = time.process_time()
    links(body, "http://site.test/hostile")
    return (time.process_time() - started) * 1e6


@contextmanager
def running_site(pages: int) -> Iterator[str]:
    """The site in a process of its own; its URL."""
    command = [sys.executable, "-m", "benchmarks.site", "--latency-ms", "0", "--pages", str(pages)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as site:
        try:
            assert site.stdout is not None
            yield f"http://127.0.0.1:{int(site.stdout.readline())}"
        finally:
            site.terminate()


def pin_to_one_core() -> None:
    """Keep this process off the site's core, where the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


async def site_cost(origin: str) -> tuple[float, int]:
    """The site's CPU seconds and answers so far."""
    async with http.open_client(user_agent="bench") as client:
        cost = json.loads((await client.get(f"{origin}/__cost")).body)
    return cost["cpu_s"], cost["answers"]


def print_http(connections: int, requests: int) -> None:
    """Requests per second and CPU per request of each client; the site's own CPU beside it."""
    print(f"HTTP: {requests} GETs of 4 KB, {connections} keep-alive connections, one core")
    print(f"{'':32} {'requests/s':>10} {'CPU us':>8} {'site us':>8}")
    with running_site(requests) as origin:
        pin_to_one_core()
        targets = [origin + page_path(index) for index in range(requests)]
        for name, open_client in installed(HTTP_CANDIDATES):
            site_cpu_s, answers = trio.run(site_cost, origin)
            started = time.perf_counter()
            cpu_s = trio.run(fetch_all, open_client, connections, targets)
            wall_s = time.perf_counter() - started
            site_cpu_after_s, answers_after = trio.run(site_cost, origin)
            site_us = (site_cpu_after_s - site_cpu_s) / (answers_after - answers) * 1e6
            print(
                f"{name:32} {requests / wall_s:10.0f} {cpu_s / requests * 1e6:8.0f} {site_us:8.0f}"
            )


def print_html() -> None:
    """CPU per page of each parser."""
    body = page_html(5, SiteSettings(pages=3000))
    print(f"\nHTML: title and links of a page of {len(body)} bytes with 20 links")
    for name, links in installed(HTML_CANDIDATES):
        assert links(body, "http://site.test/page/5") == 20, name
        pages = [(body, "http://site.test/page/5")] * PARSE_REPEATS
        cpu_us = cpu_us_each(links, pages)
        print(f"{name:32} {cpu_us:8.1f} CPU us/page")


def print_hostile() -> None:
    """Time for pages made to be slow: what decides between a tree and events."""
    hostile = {
        "nested": b"<div>" * (HOSTILE_BYTES // 5),
        "attributes": b"<a " + b" ".join(b"a%d=1" % n for n in range(HOSTILE_BYTES // 8)) + b">",
    }
    print(f"\nHTML: {HOSTILE_BYTES // 1000} KB made to be slow, CPU ms/page")
    for name, links in installed(HTML_CANDIDATES):
        figures = []
        for kind, tags in hostile.items():
            body = b"<title>t</title>" + tags
            figures.append(f"{kind} {cpu_us_once(links, body) / 1000:8.1f}")
        print(f"{name:32} {'   '.join(figures)}")


def print_urls() -> None:
    """CPU per URL of each normaliser, on URLs not seen before (caches do not help a crawl much)."""
    fresh = [
        urljoin("http://site.test/", f"/page/{index}?q=%7euser {index}#part")
        for index in range(20_000)
    ]
    print(f"\nURLs: {fresh[7]!r}")
    for name, normalize in installed(URL_CANDIDATES):
        cpu_us = cpu_us_each(normalize, [(url,) for url in fresh])
        print(f"{name:32} {cpu_us:8.1f} CPU us/URL   {normalize(fresh[7])}")


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crawl_parts")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    print_http(options.connections, options.requests)
    print_html()
    print_hostile()
    print_urls()


if __name__ == "__main__":
    main()
