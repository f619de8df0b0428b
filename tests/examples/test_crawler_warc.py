"""The crawler's web archive: each response once, whatever is killed, as other tools read it."""

from __future__ import annotations

import gzip
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator  # type: ignore[import-untyped]
from warcio.recordloader import ArcWarcRecord  # type: ignore[import-untyped]

import trio_ckpt
from examples import crawler
from examples._crawler import warc
from examples._crawler.options import DEFAULT_USER_AGENT
from tests.crash.test_crawler_kills import interrupt, serve, written
from tests.examples.site import Site, first, html, links, page, redirect
from tests.examples.test_crawler import lines, options
from tests.hangs import PROGRAM_S

KILLS = 10
FROZEN = "tests.examples.frozen_crawler"


def records(out: Path) -> list[tuple[ArcWarcRecord, bytes]]:
    """The records of all parts and their payloads, without the first record of each part."""
    found = []
    for path in parts_of(out):
        first, *others = read_part(path)
        assert first[0].rec_type == "warcinfo"
        assert "warcinfo" not in [record.rec_type for record, _ in others]
        found += others
    return found


def read_part(path: Path) -> list[tuple[ArcWarcRecord, bytes]]:
    with path.open("rb") as file:
        return [(record, record.content_stream().read()) for record in ArchiveIterator(file)]


def parts_of(out: Path) -> list[Path]:
    return sorted(out.glob("crawl-*.warc.gz"))


def field(record: ArcWarcRecord, name: str) -> str:
    return str(record.rec_headers.get_header(f"WARC-{name}"))


def path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]


def check_by_tool(out: Path) -> None:
    """Digests and structure, as another program reads them."""
    command = [sys.executable, "-m", "warcio.cli", "check", "-v"]
    parts = [str(path) for path in parts_of(out)]
    checked = subprocess.run([*command, *parts], capture_output=True, text=True, timeout=PROGRAM_S)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "digest pass" in checked.stdout
    assert "fail" not in checked.stdout


async def test_each_response_is_a_record(site: Site, tmp_path: Path) -> None:
    site.pages |= {
        "/": links("/a", "/b", "/gone", "/moved"),
        "/a": html("<title>é</title>"),
        "/b": first(page(status=503), then=page(bytes(range(256)))),
        "/gone": page(status=404),
        "/moved": redirect("/a"),
    }
    assert await crawler.crawl(options(site, tmp_path, "--warc")) == 3
    found = {
        path_of(field(record, "Target-URI")): (record, body) for record, body in records(tmp_path)
    }
    assert sorted(found) == ["/", "/a", "/b", "/moved"]
    assert found["/a"][1] == "<title>é</title>".encode()
    assert found["/b"][1] == bytes(range(256))
    assert found["/moved"][0].http_headers.get_header("location") == "/a"
    assert found["/moved"][0].http_headers.statusline == "302 Found"
    dates = {path_of(line["url"]): line["fetched_at"] for line in lines(tmp_path)}
    assert field(found["/a"][0], "Date") == dates["/a"].replace("+00:00", "Z")
    check_by_tool(tmp_path)


async def test_a_body_is_kept_as_it_was_decoded(site: Site, tmp_path: Path) -> None:
    body = gzip.compress(b"<title>x</title>")
    site.pages["/"] = page(body, headers={"Content-Type": "text/html", "Content-Encoding": "gzip"})
    assert await crawler.crawl(options(site, tmp_path, "--warc")) == 0
    ((record, payload),) = records(tmp_path)
    assert payload == b"<title>x</title>"
    assert record.http_headers.get_header("x-archive-orig-content-encoding") == "gzip"
    assert record.http_headers.get_header("content-length") == str(len(payload))


async def test_a_known_payload_is_a_revisit_that_names_it(site: Site, tmp_path: Path) -> None:
    """Also over sessions."""
    same = html("<title>the same</title>")
    site.pages |= {"/": links("/a", "/b", "/c"), "/a": same, "/b": same, "/c": same}
    serial = ("--warc", "--concurrency", "1")
    with pytest.raises(trio_ckpt.RunStoppedError):
        await crawler.crawl(options(site, tmp_path, *serial, "--max-pages", "3"))
    assert await crawler.crawl(options(site, tmp_path, *serial)) == 0
    found = [record for record, _ in records(tmp_path)]
    assert [record.rec_type for record in found] == ["response", "response", "revisit", "revisit"]
    original = found[1]
    for record in found[2:]:
        assert field(record, "Refers-To") == field(original, "Record-ID")
        assert field(record, "Refers-To-Date") == field(original, "Date")
        assert field(record, "Refers-To-Target-URI") == field(original, "Target-URI")
        assert field(record, "Payload-Digest") == field(original, "Payload-Digest")
    check_by_tool(tmp_path)


async def test_only_what_is_durable_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crawl that is killed before may fetch that page again, at another time."""
    add, added = warc.Archive.add, list[str]()

    def look_and_add(self: warc.Archive, digest: str, url: str, fetched_at: datetime) -> None:
        assert url in [line["url"] for line in lines(tmp_path)]
        added.append(path_of(url))
        add(self, digest, url, fetched_at)

    monkeypatch.setattr(warc.Archive, "add", look_and_add)
    site.pages |= {"/": links("/a", "/b"), "/a": html("x"), "/b": html("x")}
    assert await crawler.crawl(options(site, tmp_path, "--warc")) == 0
    assert sorted(added) == ["/", "/a", "/b"]


async def test_an_archive_has_parts(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warc, "ROTATE_BYTES", 1_000)
    site.pages["/"] = links(*(f"/{n}" for n in range(9)))
    site.pages |= {f"/{n}": html(f"<title>{n}</title>") for n in range(9)}
    assert await crawler.crawl(options(site, tmp_path, "--warc")) == 0
    assert len(records(tmp_path)) == 10
    begun = [read_part(path)[0] for path in parts_of(tmp_path)]
    assert len({field(record, "Record-ID") for record, _ in begun}) == len(begun) > 2
    for record, body in begun:
        assert field(record, "Date").endswith("Z")
        assert record.content_type == "application/warc-fields"
        fields = dict(line.split(": ", 1) for line in body.decode().splitlines())
        assert fields["format"] == "WARC File Format 1.1"
        assert fields["software"].startswith("trio_ckpt/")
        assert fields["http-header-user-agent"] == DEFAULT_USER_AGENT
    check_by_tool(tmp_path)


def test_an_archive_in_a_bucket_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        crawler.parse_options(["http://x/", "--out", "s3://bucket/x", "--warc"])
    assert caught.value.code == 2
    assert "--warc: no file of a bucket can grow: give a folder as --out" in capsys.readouterr().err


def test_a_killed_crawl_has_each_response_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serve("--pages", "400", "--latency-ms", "3") as site:
        codes, last = interrupt(site, out, signal.SIGKILL, KILLS, 30, "--warc")
    assert (codes, last) == ([-signal.SIGKILL] * KILLS, 0)
    found = [record for record, _ in records(out)]
    urls = Counter(path_of(field(record, "Target-URI")) for record in found)
    assert urls == written(out)
    known = {field(record, "Record-ID") for record in found if record.rec_type == "response"}
    named = {field(record, "Refers-To") for record in found if record.rec_type == "revisit"}
    assert named <= known
    check_by_tool(out)


def test_a_killed_crawl_leaves_the_same_bytes(tmp_path: Path) -> None:
    """Of pages that are fetched one after the other, at a time that stands still."""
    archives = []
    with serve("--pages", "400", "--latency-ms", "1") as site:
        for kills in (0, KILLS):
            out, flags = tmp_path / str(kills), ("--warc", "--concurrency", "1")
            found = interrupt(site, out, signal.SIGKILL, kills, 31, *flags, module=FROZEN)
            assert found == ([-signal.SIGKILL] * kills, 0)
            archives.append([path.read_bytes() for path in parts_of(out)])
            assert len(records(out)) == 400
            check_by_tool(out)
    assert archives[0] == archives[1]
    assert len(archives[0]) > 2
