"""The crawler with `--partitions`: several processes on one store crawl each site once."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio

from examples import crawler
from examples.crawler import parse_options
from tests.examples.site import Handler, Site, html, links, page
from tests.hangs import HANG_S, PROGRAM_S
from trio_ckpt import partition_of

ROOT = Path(__file__).parents[2]
PARTITIONS = 3


async def serve_sites(nursery: trio.Nursery, count: int) -> list[Site]:
    """Sites of three pages each, with links to the next site."""
    sites = [Site() for _ in range(count)]
    for site in sites:
        await nursery.start(site.serve)
    for index, site in enumerate(sites):
        beside = sites[(index + 1) % count]
        site.pages |= {"/": links("/a", f"{beside.url}/hidden"), "/a": links("/b"), "/b": html("")}
        beside.pages["/hidden"] = html("no page of its own site leads to it")
    return sites


def words(out: Path, sites: list[Site], *more: str) -> list[str]:
    starts = [f"{site.url}/" for site in sites]
    return [*starts, "--out", str(out), "--partitions", str(PARTITIONS), *more]


def options(out: Path, sites: list[Site], *more: str) -> argparse.Namespace:
    return parse_options(words(out, sites, *more))


def folder_of(out: Path, site: Site, partitions: int) -> Path:
    """Where the partition of a site has its files."""
    number = partition_of(site.url, partitions)
    return out / f"crawl.{number:05}" / site.url.replace("://", ",").replace(":", ",")


def crawled(out: Path, site: Site, partitions: int = PARTITIONS) -> list[str]:
    text = (folder_of(out, site, partitions) / "pages.jsonl").read_text()
    return sorted(json.loads(line)["url"].removeprefix(site.url) for line in text.splitlines())


async def test_two_claimers_crawl_every_site_once(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A link to another site is left out, also where that site is crawled, too."""
    sites, codes = await serve_sites(nursery, 5), list[int]()

    async def claimer() -> None:
        codes.append(await crawler.crawl(options(tmp_path, sites)))

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as claimers:
            claimers.start_soon(claimer)
            claimers.start_soon(claimer)
    assert codes == [0, 0]
    for site in sites:
        assert crawled(tmp_path, site) == ["/", "/a", "/b"]
        assert site.hits == Counter(["/", "/a", "/b", "/robots.txt"])


async def test_a_site_that_cannot_be_crawled_stops_no_other(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = await serve_sites(nursery, 4)
    sites[0].pages["/robots.txt"] = page("User-agent: *\nDisallow: /")
    sites[1].pages["/"] = page(status=302, headers={"Location": "http://elsewhere.example/"})
    assert await crawler.crawl(options(tmp_path, sites)) == 69
    said = capsys.readouterr().err
    assert f"cannot crawl {sites[0].url}/: robots.txt of the site does not allow" in said
    assert f"cannot crawl {sites[1].url}/: {sites[1].url}/ redirects to http://elsewhere" in said
    for site in sites[2:]:
        assert crawled(tmp_path, site) == ["/", "/a", "/b"]
    del sites[0].pages["/robots.txt"]
    sites[1].pages["/"] = links("/b")
    assert await crawler.crawl(options(tmp_path, sites, "--retry-failed")) == 0
    assert crawled(tmp_path, sites[0]) == ["/", "/a", "/b"]
    assert crawled(tmp_path, sites[1]) == ["/", "/b"]


IN_ONE = ("--partitions", "1")


async def test_a_site_that_is_to_wait_keeps_no_other_waiting(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """It is left with work, and the next start asks it alone, whatever the others say by then."""
    sites = await serve_sites(nursery, 4)
    sites[1].pages["/a"] = page(status=503, headers={"Retry-After": "99999"})
    assert await crawler.crawl(options(tmp_path, sites, *IN_ONE)) == 75
    assert crawled(tmp_path, sites[1], 1) == ["/"]
    others = [sites[0], *sites[2:]]
    sites[1].pages["/a"] = links("/b")
    sites[0].pages["/robots.txt"] = page("User-agent: *\nDisallow: /")
    sites[2].pages["/robots.txt"] = page(status=503)
    assert await crawler.crawl(options(tmp_path, sites, *IN_ONE)) == 0
    assert sites[1].hits == Counter({"/": 1, "/a": 2, "/b": 1, "/robots.txt": 2})
    for site in others:
        assert crawled(tmp_path, site, 1) == ["/", "/a", "/b"]
        assert site.hits == Counter(["/", "/a", "/b", "/robots.txt"])


async def test_a_site_that_has_failed_is_asked_when_that_is_wanted(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    sites = await serve_sites(nursery, 3)
    sites[0].pages["/robots.txt"] = page("User-agent: *\nDisallow: /")
    sites[1].pages["/robots.txt"] = page(status=503)
    assert await crawler.crawl(options(tmp_path, sites, *IN_ONE)) == 75
    del sites[0].pages["/robots.txt"], sites[1].pages["/robots.txt"]
    assert await crawler.crawl(options(tmp_path, sites, *IN_ONE)) == 69
    assert sites[0].hits == Counter(["/robots.txt"])
    assert await crawler.crawl(options(tmp_path, sites, *IN_ONE, "--retry-failed")) == 0
    for site in sites:
        assert crawled(tmp_path, site, 1) == ["/", "/a", "/b"]
        assert site.hits["/a"] == 1


def holding(pages: dict[str, Handler | bytes | str], path: str, seen: trio.Event) -> None:
    """Let the first request of a path wait until its process is gone."""
    answer = pages[path]
    assert callable(answer)

    async def wait(exchange: object) -> None:
        if not seen.is_set():
            seen.set()
            await trio.sleep_forever()
        await answer(exchange)  # type: ignore[arg-type]

    pages[path] = wait


async def test_a_process_that_is_killed_leaves_its_sites_to_others(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    sites, seen = await serve_sites(nursery, 4), trio.Event()
    holding(sites[0].pages, "/b", seen)
    command = [sys.executable, "-m", "examples.crawler", *words(tmp_path, sites)]

    async def start() -> trio.Process:
        return await trio.lowlevel.open_process(command, cwd=ROOT, stderr=-3)

    with trio.fail_after(PROGRAM_S):
        killed = await start()
        await seen.wait()
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
        both = [await start() for _ in range(2)]
        assert [await process.wait() for process in both] == [0, 0]
    for site in sites:
        assert crawled(tmp_path, site) == ["/", "/a", "/b"]
        assert site.hits["/"] == 1
    assert sites[0].hits["/b"] == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["http://a.test/", "http://b.test/"], "several sites need --partitions"),
        (["http://a.test/", "--partitions", "2", "--fresh"], "--fresh is for a crawl without"),
        (["http://a.test/", "--partitions", "2", "--max-pages", "3"], "--max-pages is for a crawl"),
        (["http://a.test/", "--partitions", "2", "--out", "s3://b/c"], "give a folder as --out"),
    ],
)
def test_what_does_not_go_with_partitions_is_refused(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--out", "x", *more])
    assert said in capsys.readouterr().err


async def test_two_urls_of_one_site_are_refused(tmp_path: Path) -> None:
    given = ["http://a.test/x", "http://a.test/y", "--out", str(tmp_path), "--partitions", "2"]
    with pytest.raises(ValueError, match="two of the URLs are of one site"):
        await crawler.crawl(parse_options(given))


async def test_what_is_said_of_another_crawl_can_be_done(
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With --partitions the advice is not --fresh, which is refused there."""
    sites = await serve_sites(nursery, 1)
    assert await crawler.crawl(options(tmp_path, sites)) == 0
    monkeypatch.setattr(crawler, "open_stderr", lambda: None)
    monkeypatch.setattr(sys, "argv", ["crawler", *words(tmp_path, sites, *IN_ONE)])
    assert await trio.to_thread.run_sync(crawler.main) == 1
    said = capsys.readouterr().err
    assert "give the same URLs, --partitions, --include and --exclude as before, or another" in said
