"""The crawler against a site inside the test: what it does with what a site can do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_ckpt
from examples import crawler
from tests.examples.site import (
    Site,
    busy,
    first,
    html,
    links,
    page,
    redirect,
    reset,
    truncated,
)


def options(site: Site, out: Path, *words: str) -> argparse.Namespace:
    return crawler.parse_options([f"{site.url}/", "--out", str(out), *words])


def lines(out: Path, name: str = "pages.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def paths(out: Path, name: str = "pages.jsonl") -> list[str]:
    return sorted("/" + line["url"].split("/", 3)[3] for line in lines(out, name))


async def test_every_page_of_the_site_is_written_once(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a", "/b"), "/a": links("/b", "/"), "/b": html("<title>B</title>")}
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/a", "/b"]
    (b,) = [line for line in lines(tmp_path) if line["url"].endswith("/b")]
    assert b["title"] == "B"
    assert b["status"] == 200
    assert b["bytes"] == len("<title>B</title>")


async def test_it_stays_on_the_site_and_within_the_patterns(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a", "/secret", "http://elsewhere.example/"), "/a": html("")}
    assert await crawler.crawl(options(site, tmp_path, "--exclude", "secret")) == 0
    assert paths(tmp_path) == ["/", "/a"]


async def test_it_obeys_robots(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/robots.txt": page("User-agent: *\nDisallow: /a"), "/": links("/a", "/b")}
    site.pages |= {"/a": html(""), "/b": html("")}
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/b"]
    assert site.hits["/a"] == 0


async def test_faults_are_tried_again(site: Site, tmp_path: Path) -> None:
    good = html("<title>good</title>")
    site.pages |= {
        "/": links("/503", "/reset", "/cut"),
        "/503": first(page(status=503), then=good),
        "/reset": first(reset, reset, then=good),
        "/cut": first(truncated(), then=good),
    }
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/503", "/cut", "/reset"]
    assert site.hits["/503"] == 2


async def test_refusals_are_recorded_and_not_repeated(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/403", "/404", "/ok"), "/403": page(status=403), "/ok": html("")}
    site.pages["/404"] = page(status=404)
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert paths(tmp_path, "failed.jsonl") == ["/403", "/404"]
    assert {line["attempts"] for line in lines(tmp_path, "failed.jsonl")} == {1}
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert site.hits["/403"] == 1

    site.pages["/403"] = html("")
    assert await crawler.crawl(options(site, tmp_path, "--retry-failed")) == 3
    assert paths(tmp_path, "failed.jsonl") == ["/404"]
    assert paths(tmp_path) == ["/", "/403", "/ok"]


async def test_retry_after_pauses_the_host(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a", "/b"), "/b": html(""), "/a": first(busy("1"), then=html(""))}
    before = trio.current_time()
    assert await crawler.crawl(options(site, tmp_path, "--concurrency", "1")) == 0
    assert trio.current_time() - before >= 1
    assert paths(tmp_path) == ["/", "/a", "/b"]


async def test_redirects_are_followed_within_the_site(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/old"), "/old": redirect("/new"), "/new": html("")}
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/new"]


async def test_a_start_that_leads_to_another_site_is_refused(site: Site, tmp_path: Path) -> None:
    site.pages["/"] = redirect("http://elsewhere.example/")
    with pytest.raises(trio_ckpt.BatchFailedError) as caught:
        await crawler.crawl(options(site, tmp_path))
    assert isinstance(caught.value.__cause__, crawler.CannotCrawlError)
    assert "redirects to another site" in str(caught.value)


async def test_a_start_that_is_no_html_is_said(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.pages["/"] = page(b"\x89PNG", headers={"Content-Type": "image/png"})
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert "no page with links" in caplog.text


async def test_max_pages_stops_with_work_left_and_goes_on(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a"), "/a": links("/b"), "/b": links("/c"), "/c": html("")}
    with pytest.raises(trio_ckpt.RunStoppedError) as caught:
        await crawler.crawl(options(site, tmp_path, "--max-pages", "2"))
    assert caught.value.exit_code == 75
    assert paths(tmp_path) == ["/", "/a"]
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/a", "/b", "/c"]
    assert site.hits["/"] == site.hits["/a"] == 1


async def test_another_configuration_is_refused(site: Site, tmp_path: Path) -> None:
    site.pages["/"] = html("")
    await crawler.crawl(options(site, tmp_path))
    with pytest.raises(trio_ckpt.ConfigChangedError, match="exclude"):
        await crawler.crawl(options(site, tmp_path, "--exclude", "x"))


async def test_fresh_archives_and_begins_again(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a"), "/a": html("")}
    await crawler.crawl(options(site, tmp_path))
    await crawler.crawl(options(site, tmp_path, "--fresh"))
    assert paths(tmp_path) == ["/", "/a"]
    assert site.hits["/a"] == 2
    (kept,) = (tmp_path / ".archive").rglob("pages.jsonl")
    assert len(kept.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["http://127.0.0.1:1/", "--out", "{out}"], "cannot crawl"),
        (["ftp://127.0.0.1/", "--out", "{out}"], "cannot crawl"),
        (["http://127.0.0.1:1/", "--out", "{out}", "--exclude", "("], "cannot crawl"),
        (["http://127.0.0.1:1/", "--out", "{out}", "--store", "{file}"], "StoreError"),
        (["http://127.0.0.1:1/", "--out", "{file}"], "Error"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_1(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    filled = [word.format(out=tmp_path / "out", file=file) for word in words]
    monkeypatch.setattr("sys.argv", ["crawler", *filled])
    assert crawler.main() == 1
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert file.read_text() == "not a folder"
