"""The crawler done again: what is asked, what is written, and that a fresh crawl finds the same."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_ckpt
from examples import crawler
from tests.crash.test_crawler_kills import interrupt, serve
from tests.examples.site import Exchange, Handler, Site, links, page, redirect
from tests.examples.test_crawler import options
from tests.examples.test_crawler_warc import check_by_tool, field, path_of, records
from tests.hangs import PROGRAM_S

PAGES = 400
KILLS = 8
FILES = ("--files",)
AGAIN = ("--files", "--again")


def versioned(handler: Handler, etag: str = "", modified: str = "") -> Handler:
    """A page with an ETag or a time; it is not sent to who has it."""

    async def handle(exchange: Exchange) -> None:
        asked = exchange.headers.get("if-none-match"), exchange.headers.get("if-modified-since")
        headers = {"ETag": etag} if etag else {"Last-Modified": modified}
        if (etag or modified) in asked:
            await exchange.respond(status=304, headers=headers)
        else:
            await handler(exchange)

    return handle


def leaf(title: str, etag: str, *hrefs: str) -> Handler:
    anchors = "".join(f'<a href="{href}">x</a>' for href in hrefs)
    headers = {"Content-Type": "text/html", "ETag": etag}
    return versioned(page(f"<title>{title}</title>{anchors}", headers=headers), etag)


def found(out: Path) -> dict[str, dict[str, Any]]:
    """What the files of the pages say, but for when they were fetched."""
    lines = lines_of(out, "pages")
    known = {path_of(line["url"]): line for line in lines}
    assert len(known) == len(lines)
    for line in lines:
        del line["fetched_at"]
    return known


def lines_of(out: Path, folder: str) -> list[dict[str, Any]]:
    return [line for path in out.glob(f"{folder}/*.json") for line in json.loads(path.read_text())]


def files(out: Path) -> dict[Path, int]:
    """Each file of a page, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("pages/*.json")}


async def test_only_what_has_changed_is_sent_and_written(site: Site, tmp_path: Path) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    site.pages |= {"/": leaf("start", '"1"', "/a", "/b", "/c", "/moved"), "/moved": redirect("/a")}
    site.pages |= {"/a": leaf("a", '"1"', "/d"), "/b": leaf("b", '"1"'), "/c": links(title="c")}
    site.pages["/d"] = versioned(
        page("d", headers={"Last-Modified": (since := formatdate(0, usegmt=True))}), modified=since
    )
    assert await crawler.crawl(options(site, out, *FILES)) == 0
    before = files(out)
    site.pages |= {"/b": leaf("changed", '"2"', "/e"), "/e": leaf("new", '"1"')}
    site.hits.clear()
    site.requests.clear()
    assert await crawler.crawl(options(site, out, *AGAIN)) == 0
    asked = {
        request.path: request.headers.get("if-none-match")
        or request.headers.get("if-modified-since")
        for request in site.requests
    }
    assert asked == {"/robots.txt": None, "/": '"1"', "/a": '"1"', "/b": '"1"', "/d": since} | (
        dict.fromkeys(("/c", "/e", "/moved"))
    )
    written = {path for path, at in files(out).items() if before.get(path) != at}
    titles = {line["title"] for path in written for line in json.loads(path.read_text())}
    assert titles == {"changed", "new", "c"}
    assert await crawler.crawl(options(site, fresh, *FILES)) == 0
    assert found(out) == found(fresh)


async def test_a_validator_that_cannot_be_sent_is_not_kept(site: Site, tmp_path: Path) -> None:
    headers = {"Content-Type": "text/html", "ETag": '"\xe9"'}
    site.pages |= {"/": leaf("start", '"1"', "/a"), "/a": page("<title>a</title>", headers=headers)}
    for words in (FILES, AGAIN):
        assert await crawler.crawl(options(site, tmp_path, *words)) == 0
        assert found(tmp_path).keys() == {"/", "/a"}


@pytest.mark.parametrize("words", [(), FILES])
async def test_no_record_names_a_page_that_is_not_archived(
    words: tuple[str, ...], site: Site, tmp_path: Path
) -> None:
    """A crawl that has begun without `--warc` goes on with it."""
    site.pages |= {"/": links("/a", "/b", "/c")} | dict.fromkeys(("/a", "/b", "/c"), page("same"))
    words = (*words, "--concurrency", "1")
    with pytest.raises(trio_ckpt.RunStoppedError):
        await crawler.crawl(options(site, tmp_path, *words, "--max-pages", "2"))
    assert await crawler.crawl(options(site, tmp_path, *words, "--warc")) == 0
    first, second = (record for record, _ in records(tmp_path))
    assert (first.rec_type, second.rec_type) == ("response", "revisit")
    assert field(second, "Refers-To") == field(first, "Record-ID")


async def test_what_has_gone_leaves_no_file(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": leaf("start", '"1"', "/a", "/b"), "/a": leaf("a", '"1"', "/only")}
    site.pages |= {"/b": leaf("b", '"1"'), "/only": leaf("only", '"1"')}
    assert await crawler.crawl(options(site, tmp_path, *FILES)) == 0
    site.pages["/a"] = leaf("a", '"2"')
    del site.pages["/b"]
    assert await crawler.crawl(options(site, tmp_path, *AGAIN)) == 3  # /b has failed
    assert found(tmp_path).keys() == {"/", "/a"}
    archived = list((tmp_path / ".archive").rglob("pages/*.json"))
    assert len(archived) == 3


async def test_a_redirect_that_turns_round_is_no_circle(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a", "/b"), "/a": redirect("/b"), "/b": leaf("b", '"1"')}
    assert await crawler.crawl(options(site, tmp_path, *FILES)) == 0
    site.pages |= {"/b": redirect("/a"), "/a": leaf("a", '"1"')}
    assert await crawler.crawl(options(site, tmp_path, *AGAIN)) == 0
    assert found(tmp_path).keys() == {"/", "/a"}


async def test_other_rules_let_a_page_be_fetched_whole(site: Site, tmp_path: Path) -> None:
    """Its line and its links are not those of a fresh crawl then."""
    forbidding, allowing = page("User-agent: *\nDisallow: /a"), page("")
    site.pages |= {"/": leaf("start", '"1"', "/a", "/b"), "/a": leaf("a", '"1"')}
    site.pages |= {"/b": leaf("b", '"1"', "/a"), "/robots.txt": forbidding}
    await crawler.crawl(options(site, tmp_path, *FILES))
    for rules, expected in (
        (forbidding, {"/", "/b"}),
        (allowing, {"/", "/a", "/b"}),
        (allowing, {"/", "/a", "/b"}),
        (forbidding, {"/", "/b"}),
    ):
        is_other = site.pages["/robots.txt"] is not rules
        site.pages["/robots.txt"] = rules
        site.requests.clear()
        assert await crawler.crawl(options(site, tmp_path, *AGAIN)) == 0
        assert found(tmp_path).keys() == expected
        noted = [path_of(line["on"]) for line in lines_of(tmp_path, "forbidden")]
        assert sorted(noted) == (["/", "/b"] if rules is forbidding else [])
        (start,) = [request for request in site.requests if request.path == "/"]
        assert ("if-none-match" in start.headers) is not is_other


async def test_an_archive_names_what_is_unchanged(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": leaf("start", '"1"', "/a"), "/a": leaf("a", '"1"')}
    assert await crawler.crawl(options(site, tmp_path, *FILES)) == 0
    assert await crawler.crawl(options(site, tmp_path, *AGAIN, "--warc")) == 0
    assert await crawler.crawl(options(site, tmp_path, *AGAIN, "--warc")) == 0
    kept = [record for record, _ in records(tmp_path)]
    assert [record.rec_type for record in kept] == ["response"] * 2 + ["revisit"] * 2
    for record in kept[2:]:
        (was,) = [o for o in kept[:2] if field(o, "Target-URI") == field(record, "Target-URI")]
        assert field(record, "Profile").endswith("/revisit/server-not-modified")
        assert field(record, "Refers-To") == field(was, "Record-ID")
        assert field(record, "Refers-To-Date") == field(was, "Date")
        assert record.http_headers.statusline == "304 Not Modified"
    check_by_tool(tmp_path)


async def test_again_needs_a_complete_crawl_with_files(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(site, tmp_path, "--again")
    assert "--again: a file that grows keeps what is gone: give --files" in capsys.readouterr().err
    site.pages |= {"/": links("/a"), "/a": links()}
    with pytest.raises(trio_ckpt.CannotRunAgainError):
        await crawler.crawl(options(site, tmp_path, *AGAIN))
    await crawler.crawl(options(site, tmp_path))
    with pytest.raises(trio_ckpt.ConfigChangedError, match="files"):
        await crawler.crawl(options(site, tmp_path, *AGAIN))


def test_killed_anywhere_it_ends_as_a_fresh_crawl(tmp_path: Path) -> None:
    """Of a site of which one page in a hundred has changed."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    with serve("--pages", str(PAGES), "--latency-ms", "3", "--etags") as site:
        assert interrupt(site, out, signal.SIGKILL, 0, 1, *FILES) == ([], 0)
        before = files(out)
        with urllib.request.urlopen(f"{site.url}__change", timeout=PROGRAM_S):
            pass
        codes = interrupt(site, out, signal.SIGKILL, KILLS, 32, *AGAIN)
        assert codes == ([-signal.SIGKILL] * KILLS, 0)
        with urllib.request.urlopen(f"{site.url}__bodies", timeout=PROGRAM_S) as answer:
            bodies = json.load(answer)
        assert interrupt(site, fresh, signal.SIGKILL, 0, 1, *FILES) == ([], 0)
    changed = {f"/page/{index}" for index in range(1, PAGES, 100)}
    assert bodies.keys() - {"/robots.txt"} == changed
    assert found(out) == found(fresh)
    written = {path for path, at in files(out).items() if before[path] != at}
    assert len(written) == len(changed)


async def said_of(
    site: Site, out: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> str:
    """What the command says where it cannot work."""
    monkeypatch.setattr(crawler, "open_stderr", lambda: None)
    monkeypatch.setattr(sys, "argv", ["crawler", site.url, "--out", str(out), *words])
    assert await trio.to_thread.run_sync(crawler.main) == 1
    said = capsys.readouterr().err
    assert "=True" not in said
    return str(said)


async def test_what_cannot_be_crawled_again_is_said_in_options(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pages |= {"/": leaf("start", '"1"')}
    for words, advice in (
        (AGAIN, "it has no generation yet; start it once without --again"),
        (FILES, "it was begun without --files and --again: go on so, or give --fresh"),
        ((), "it was begun with --files: go on so, or give --fresh"),
    ):
        out = tmp_path / str(len(words))
        if words != AGAIN:
            assert await crawler.crawl(options(site, out, *(() if words else FILES))) == 0
        assert advice in await said_of(site, out, words, monkeypatch, capsys)
    in_bucket = crawler.parse_options([site.url, "--out", "s3://bucket/crawl"])
    assert "an earlier version has begun it" in crawler.what_to_give(in_bucket, ["files"])
    with pytest.raises(SystemExit):
        options(site, tmp_path, *AGAIN, "--fresh")
