"""The crawler, killed from outside: nothing is lost, nothing is written twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.hangs import HANG_S, PROGRAM_S
from tests.leash import is_stopped, leashed

ROOT = Path(__file__).parents[2]
PAGES = 400
CONCURRENCY = 8
KILLS, STOPS = 20, 10


@attrs.frozen
class Site:
    """A site in a process of its own, that counts its hits."""

    url: str

    def hits(self) -> Counter[str]:
        """Requests by path, of pages only."""
        with urllib.request.urlopen(f"{self.url}__hits", timeout=HANG_S) as answer:
            counts = json.load(answer)
        return Counter({path: n for path, n in counts.items() if path != "/robots.txt"})


@contextmanager
def serve(*flags: str) -> Iterator[Site]:
    """Run ``benchmarks.site`` while the block runs."""
    command = [sys.executable, "-m", "benchmarks.site", "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield Site(f"http://127.0.0.1:{port}/")
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def start_crawler(
    site: Site,
    out: Path,
    *flags: str,
    module: str = "examples.crawler",
    pages: int | None = None,
) -> subprocess.Popen[bytes]:
    """The crawler as a process of its own; with `pages` it stops itself when it begins so many."""
    program = ["-m", module, site.url, "--out", str(out)]
    command = [sys.executable, *program] if pages is None else leashed(pages, *program)
    return subprocess.Popen(
        [*command, "--concurrency", str(CONCURRENCY), *flags],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )


def finish(crawler: subprocess.Popen[bytes]) -> int:
    """Wait for its exit code, not for ever."""
    try:
        return crawler.wait(PROGRAM_S)
    finally:
        crawler.kill()


def wait_for_hits(site: Site, crawler: subprocess.Popen[bytes], goal: int) -> None:
    """Wait until the site has had so many requests, or the crawler has stopped itself."""
    deadline = time.monotonic() + PROGRAM_S
    while time.monotonic() < deadline:
        if site.hits().total() >= goal or is_stopped(crawler.pid):
            return
        assert crawler.poll() is None, "the crawler has ended by itself"
        time.sleep(0.002)
    pytest.fail(f"the crawler has not made {goal} requests within {PROGRAM_S} s")


def written(out: Path) -> Counter[str]:
    """The paths of the lines in pages.jsonl; every line must be whole."""
    text = (out / "pages.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    paths = (json.loads(line)["url"] for line in text.splitlines())
    return Counter("/" + url.split("/", 3)[3] for url in paths)


def interrupt(
    site: Site,
    out: Path,
    number: int,
    times: int,
    seed: int,
    *flags: str,
    module: str = "examples.crawler",
) -> tuple[list[int], int]:
    """Run the crawler and send it `number` so often, at random moments; then let it end.

    All these crawlers together may begin fewer pages than the site has, so none ends by itself.

    Returns:
        The exit codes of those that were sent it, and of the last one.
    """
    chance, codes = random.Random(seed), list[int]()
    for _ in range(times):
        hits = chance.randint(1, PAGES // times // 2)
        goal = site.hits().total() + hits
        crawler = start_crawler(site, out, *flags, module=module, pages=hits + CONCURRENCY)
        try:
            wait_for_hits(site, crawler, goal)
            time.sleep(chance.random() * 0.01)
            os.kill(crawler.pid, number)
            os.kill(crawler.pid, signal.SIGCONT)
        except BaseException:
            crawler.kill()
            raise
        codes.append(finish(crawler))
    return codes, finish(start_crawler(site, out, *flags, module=module))


def test_sigkill_at_random_moments_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    with serve("--pages", str(PAGES), "--latency-ms", "3") as site:
        codes, last = interrupt(site, tmp_path / "out", signal.SIGKILL, KILLS, seed=20)
        hits = site.hits()
    assert (codes, last) == ([-signal.SIGKILL] * KILLS, 0)
    lines = written(tmp_path / "out")
    assert len(lines) == PAGES, "a page was never fetched, or its record was lost"
    assert set(lines.values()) == {1}, "a record was written twice"
    assert set(hits) >= set(lines)
    extra = sum(n - 1 for path, n in hits.items() if path in lines)
    assert extra <= KILLS * CONCURRENCY, "more than what was in flight was fetched again"


def test_sigterm_fetches_nothing_twice(tmp_path: Path) -> None:
    with serve("--pages", str(PAGES), "--latency-ms", "3") as site:
        codes, last = interrupt(site, tmp_path / "out", signal.SIGTERM, STOPS, seed=21)
        hits = site.hits()
    assert (codes, last) == ([75] * STOPS, 0)
    lines = written(tmp_path / "out")
    assert len(lines) == PAGES
    assert set(lines.values()) == {1}
    assert {path: n for path, n in hits.items() if path in lines and n > 1} == {}
