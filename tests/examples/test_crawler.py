"""The crawler against a site inside the test: what it does with what a site can do."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http import server as http_server
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_ckpt
from examples import crawler
from examples._web import http, urls
from examples._web.page import MAX_LINKS_PER_PAGE
from tests.examples.site import (
    Exchange,
    Handler,
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
from tests.hangs import HANG_S, PROGRAM_S


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
    with pytest.raises(
        crawler.CannotCrawlError, match=r"elsewhere\.example/, which is another site: start"
    ):
        await crawler.crawl(options(site, tmp_path))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--exclude", "/inner"], "which --include or --exclude leave out"),
        ([], "which robots.txt does not allow"),
    ],
)
async def test_a_start_that_leads_to_what_is_left_out_is_refused(
    site: Site, tmp_path: Path, words: list[str], problem: str
) -> None:
    site.pages |= {"/": redirect("/inner"), "/inner": html("")}
    site.pages["/robots.txt"] = page("User-agent: *\nDisallow: /inner")
    with pytest.raises(crawler.CannotCrawlError, match=problem):
        await crawler.crawl(options(site, tmp_path, *words))


async def test_a_start_that_is_no_html_is_said(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.pages["/"] = page(b"\x89PNG", headers={"Content-Type": "image/png"})
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert "is not a page with links" in caplog.text


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


# -- what is left out is counted -------------------------------------------------------------------


async def test_links_that_are_too_long_are_counted_over_sessions(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "/q?" + "a" * urls.MAX_URL_LENGTH
    site.pages |= {"/": links("/a", long, f"http://elsewhere.example{long}"), "/a": html("")}
    site.pages["/long"] = html("")
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert [line["links_left_out"] for line in lines(tmp_path)] == [1, 0]
    assert f"{site.url}/: links left out: 1" in caplog.text
    assert "2 pages, 0 in queue, 1 link left out\n" in capsys.readouterr().err
    assert await crawler.crawl(options(site, tmp_path)) == 3  # nothing is left, and it is still so
    assert "2 pages, 0 in queue, 1 link left out\n" in capsys.readouterr().err


async def test_links_that_are_too_many_are_counted(site: Site, tmp_path: Path) -> None:
    elsewhere = "".join(f"<a href=//e.test/{n}>" for n in range(MAX_LINKS_PER_PAGE))
    site.pages["/"] = html(f"<a href=/a>{elsewhere}<a href=/b><a href=/c>")
    site.pages["/a"] = html("")
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert [line["links_left_out"] for line in lines(tmp_path)] == [3, 0]


async def test_long_links_and_large_pages_are_read(site: Site, tmp_path: Path) -> None:
    long = "/q?" + "a" * 5_000
    site.pages |= {"/": links("/large", long), long: html("")}
    site.pages["/large"] = html(b"x" * 5_000_000 + b"<a href=/last>")
    site.pages["/last"] = html("")
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/large", "/last", long]


async def test_a_page_that_is_too_large_is_one_that_failed(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/large"), "/large": html(b"x" * 10_001)}
    open_client = partial(http.open_client, max_body_bytes=10_000)
    assert await crawler.crawl(options(site, tmp_path), open_client) == 3
    assert paths(tmp_path, "failed.jsonl") == ["/large"]


async def test_pages_without_a_usable_type_are_read(site: Site, tmp_path: Path) -> None:
    body = "<title>x</title><a href=/leaf>"
    site.pages |= {"/": links("/none", "/odd"), "/none": page(body), "/leaf": html("")}
    site.pages["/odd"] = page(body, headers={"Content-Type": "html"})
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/leaf", "/none", "/odd"]


async def test_a_page_that_cannot_be_read_is_one_that_failed(site: Site, tmp_path: Path) -> None:
    headers = {"Content-Type": "text/html; charset=hz-gb-2312"}
    site.pages |= {"/": links("/hz"), "/hz": page("<a href=/x>", headers=headers)}
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert paths(tmp_path, "failed.jsonl") == ["/hz"]


# -- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("/r", "redirects in a circle"),
        ("/r#again", "redirects in a circle"),
        ("mailto:a@e.test", "leads to no page: 'mailto:a@e.test'"),
        ("http://[", "leads to no page"),
        ("/" + "a" * 9_000, "leads to no page"),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_a_failure(
    site: Site, tmp_path: Path, location: str, problem: str
) -> None:
    site.pages |= {"/": links("/r", "/none"), "/r": redirect(location)}
    site.pages["/none"] = page(b"<a href=/x>", status=302)
    assert await crawler.crawl(options(site, tmp_path)) == 3
    failed = {line["url"].removeprefix(site.url): line for line in lines(tmp_path, "failed.jsonl")}
    assert failed.keys() == {"/r", "/none"}
    assert problem in failed["/r"]["message"]
    assert "leads to no page: 'nothing'" in failed["/none"]["message"]
    assert site.hits["/r"] == 1


async def test_redirects_that_never_end_are_a_failure(site: Site, tmp_path: Path) -> None:
    site.pages |= {f"/{n}": redirect(f"/{n + 1}") for n in range(100)} | {"/": links("/0")}
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert paths(tmp_path, "failed.jsonl") == ["/20"]
    assert site.hits["/21"] == 0


async def test_a_circle_is_noticed_over_sessions(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a"), "/a": redirect("/b"), "/b": redirect("/a")}
    with pytest.raises(trio_ckpt.RunStoppedError):
        await crawler.crawl(options(site, tmp_path, "--max-pages", "2"))
    assert paths(tmp_path, "redirects.jsonl") == ["/a"]
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert paths(tmp_path, "failed.jsonl") == ["/b"]


async def test_a_redirect_to_another_site_is_done(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/out"), "/out": redirect("http://elsewhere.example/")}
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/"]


# -- what robots.txt says changes ------------------------------------------------------------------


def forbidding(folder: str) -> Handler:
    return page(f"User-agent: *\nDisallow: {folder}")


async def test_what_is_forbidden_later_is_not_fetched(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/": links("/a/1", "/a/2", "/b"), "/b": html("")}
    site.pages |= {"/a/1": html(""), "/a/2": html("")}
    with pytest.raises(trio_ckpt.RunStoppedError):
        await crawler.crawl(options(site, tmp_path, "--max-pages", "1"))
    site.pages["/robots.txt"] = forbidding("/a/")
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert site.hits["/a/1"] == site.hits["/a/2"] == 0
    assert paths(tmp_path) == ["/", "/b"]
    assert paths(tmp_path, "failed.jsonl") == ["/a/1", "/a/2"]
    site.pages["/robots.txt"] = page("")
    assert await crawler.crawl(options(site, tmp_path, "--retry-failed")) == 0
    assert paths(tmp_path) == ["/", "/a/1", "/a/2", "/b"]


async def test_what_is_allowed_later_is_fetched(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pages |= {"/": links("/a", "/b"), "/a": links("/b"), "/b": html("")}
    site.pages["/robots.txt"] = forbidding("/b")
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert "2 pages, 0 in queue, 1 forbidden by robots.txt\n" in capsys.readouterr().err
    assert paths(tmp_path, "forbidden.jsonl") == ["/b"]
    site.pages["/robots.txt"] = page("")
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/a", "/b"]
    assert site.hits["/a"] == 1
    assert "3 pages, 0 in queue\n" in capsys.readouterr().err


async def test_rules_are_renewed_during_a_long_crawl(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crawler, "RULES_LAST_S", 0.0)
    site.pages |= {"/robots.txt": first(page(""), page(""), then=forbidding("/a"))}
    site.pages |= {"/": links("/a", "/b"), "/a": html(""), "/b": html("")}
    assert await crawler.crawl(options(site, tmp_path)) == 3
    assert paths(tmp_path) == ["/", "/b"]
    assert site.hits["/a"] == 0


# -- stops -----------------------------------------------------------------------------------------


async def terminate_after(site: Site, path: str) -> None:
    """SIGTERM to this process, when a page was asked for and answered."""
    while not site.hits[path] or site.in_flight:  # noqa: ASYNC110
        await trio.sleep(0.01)
    await trio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "last"), [(["--delay", "3600"], "/"), ([], "/a"), (["--concurrency", "1"], "/a")]
)
async def test_a_stop_does_not_wait_for_a_delay(
    site: Site, nursery: trio.Nursery, tmp_path: Path, words: list[str], last: str
) -> None:
    site.pages |= {"/": links("/a", "/b"), "/a": busy("3000"), "/b": html("")}
    nursery.start_soon(terminate_after, site, last)
    with trio.fail_after(HANG_S), pytest.raises(trio_ckpt.RunStoppedError) as caught:
        await crawler.crawl(options(site, tmp_path, *words))
    assert caught.value.exit_code == 75
    assert paths(tmp_path, "failed.jsonl") == []


async def test_a_site_that_asks_for_a_long_pause_is_left(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.pages |= {"/": links("/a", "/b"), "/a": busy("86400", 503), "/b": busy("86400", 403)}
    with trio.fail_after(HANG_S), pytest.raises(trio_ckpt.RunStoppedError) as caught:
        await crawler.crawl(options(site, tmp_path))
    assert caught.value.exit_code == 75
    assert "asks for a pause of 86400 s: stopping" in caplog.text
    site.pages |= {"/a": html(""), "/b": html("")}
    assert await crawler.crawl(options(site, tmp_path)) == 0
    assert paths(tmp_path) == ["/", "/a", "/b"]


async def test_a_site_that_goes_away_fails_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crawler, "GONE_AFTER_S", 0.3)
    site = Site({"/": links("/a", "/b"), "/a": html(""), "/b": html("")})
    async with trio.open_nursery() as nursery:
        await nursery.start(site.serve)

        async def answer_and_go(exchange: Exchange) -> None:
            await links("/a", "/b")(exchange)
            nursery.cancel_scope.cancel()

        site.pages["/"] = answer_and_go
        with (
            trio.CancelScope(shield=True),
            trio.fail_after(HANG_S),
            pytest.raises(trio_ckpt.RunStoppedError) as caught,
        ):
            await crawler.crawl(options(site, tmp_path, "--concurrency", "1"))
    assert caught.value.exit_code == 75
    assert "the site answers nothing for 0 s: stopping" in caplog.text
    assert paths(tmp_path, "failed.jsonl") == []


# -- as a process ----------------------------------------------------------------------------------


class KeepAlive(http_server.SimpleHTTPRequestHandler):
    """As `python -m http.server --protocol HTTP/1.1` answers: errors close the connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of a folder with broken links."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "index.html").write_text("".join(f"<a href=/{n}.html>" for n in range(60)))
    for number in range(0, 60, 2):
        (folder / f"{number}.html").write_text("<title>leaf</title>")
    handler = partial(KeepAlive, directory=str(folder))
    with http_server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is of Linux")
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-"])
def test_broken_links_and_a_dead_terminal_end_no_crawl(
    served: str, tmp_path: Path, redirected: str
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "examples.crawler", served, "--out", str(out)]
    words = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command]
    assert subprocess.run(words, check=False, timeout=PROGRAM_S).returncode == 3
    assert len(lines(out)) == 31
    assert len(lines(out, "failed.jsonl")) == 30


@pytest.mark.parametrize(
    "words",
    [
        ["--concurrency", "0"],
        ["--concurrency", "1001"],
        ["--timeout", "0"],
        ["--delay", "nan"],
        ["--max-pages", "²"],
        ["--user-agent", "a\nb"],
        ["--user-agent", "é"],
        ["--user-agent", ""],
    ],
)
def test_a_bad_command_line_exits_with_2(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        crawler.parse_options(["http://e.test/", "--out", str(tmp_path), *words])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["http://127.0.0.1:1/", "--out", "{out}"], "cannot crawl"),
        (["ftp://127.0.0.1/", "--out", "{out}"], "cannot crawl"),
        (["http://127.0.0.1:1/", "--out", "{out}", "--exclude", "("], "cannot crawl"),
        (["{served}", "--out", "{out}", "--store", "{file}"], "StoreError"),
        (["{served}", "--out", "{file}"], "Error"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_1(
    words: list[str],
    said: str,
    served: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    filled = [word.format(out=tmp_path / "out", file=file, served=served) for word in words]
    monkeypatch.setattr("sys.argv", ["crawler", *filled])
    assert crawler.main() == 1
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert file.read_text() == "not a folder"
