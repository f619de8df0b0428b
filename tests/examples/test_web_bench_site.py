"""The site of the crawl benchmark serves what its flags say: every page reachable, faults once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from benchmarks.site import Fault, SiteSettings, chosen_fault, linked_pages, page_html, page_path
from examples._web import http
from examples._web.page import parse_page

FLAGS = ["--pages", "40", "--latency-ms", "1", "--forbidden", "2"]
FAULTS = [f"--every-{fault.value}=10" for fault in Fault]


@pytest.mark.parametrize("pages", [1, 9, 3000])
def test_every_page_is_reachable(pages: int) -> None:
    found, waiting = {0}, [0]
    while waiting:
        fresh = set(linked_pages(waiting.pop(), pages)) - found
        found |= fresh
        waiting.extend(fresh)
    assert found == set(range(pages))


def test_a_page_is_4_kb_and_shows_its_links_to_a_crawler() -> None:
    settings = SiteSettings(pages=3000)
    body = page_html(17, settings)
    found = parse_page(body, "http://e.test/page/17", "text/html")
    assert len(body) == 4096
    assert found.title == "Page 17"
    assert found.links == tuple(f"http://e.test{page_path(i)}" for i in linked_pages(17, 3000))
    assert len(found.links) == 20


@pytest.fixture
async def bench_url() -> AsyncIterator[str]:
    command = [sys.executable, "-m", "benchmarks.site", *FLAGS, *FAULTS]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE))
        port = await process.stdout.receive_some()
        yield f"http://127.0.0.1:{int(port)}"
        nursery.cancel_scope.cancel()


async def outcome(client: http.Client, url: str) -> str:
    """The status, and Retry-After; or the error."""
    try:
        response = await client.get(url)
    except http.FetchError as error:
        return type(error).__name__
    return " ".join([str(response.status), *filter(None, [response.headers.get("retry-after")])])


async def test_faults_meet_the_first_request_only_and_hits_are_counted(bench_url: str) -> None:
    expected = {
        None: "200",
        Fault.UNAVAILABLE: "503",
        Fault.TOO_MANY: "429 1",
        Fault.RESET: "ConnectionReset",
        Fault.TRUNCATE: "TruncatedBody",
    }
    chosen = [chosen_fault(index, dict.fromkeys(Fault, 10)) for index in range(40)]
    assert {fault: chosen.count(fault) for fault in Fault} == dict.fromkeys(Fault, 4)
    for index, fault in enumerate(chosen):
        # A client of its own for each page: on a kept connection a reset is tried once more.
        async with http.open_client(user_agent="bot") as client:
            assert await outcome(client, bench_url + page_path(index)) == expected[fault]
            assert await outcome(client, bench_url + page_path(index)) == "200"
    async with http.open_client(user_agent="bot") as client:
        assert await outcome(client, f"{bench_url}/forbidden/1") == "403"
        assert await outcome(client, f"{bench_url}/forbidden/2") == "404"
        assert b"Disallow: /private/" in (await client.get(f"{bench_url}/robots.txt")).body
        hits = json.loads((await client.get(f"{bench_url}/__hits")).body)
    assert hits["/"] == 2
    assert hits["/page/39"] == 2
    assert hits["/forbidden/1"] == 1
