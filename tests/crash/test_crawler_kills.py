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

from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[2]
PAGES = 400
CONCURRENCY = 8
KILLS = 20


@attrs.frozen
class Site:
    """A site in a process of its own, that counts its hits."""

    url: str

    def hits(self) -> Counter[str]:
        """Requests by path, of pages only."""
        with urllib.request.urlopen(f"{self.url}__hits", timeout=10) as answer:
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
    site: Site, out: Path, *flags: str, module: str = "examples.crawler"
) -> subprocess.Popen[bytes]:
    """The crawler as a process of its own."""
    command = [sys.executable, "-m", module, site.url, "--out", str(out)]
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


def wait_for_hits(site: Site, crawler: subprocess.Popen[bytes], goal: int) -> bool:
    """Wait until the site has had so many requests; False: the crawler ended before."""
    deadline = time.monotonic() + PROGRAM_S
    while time.monotonic() < deadline:
        if site.hits().total() >= goal:
            return crawler.poll() is None
        if crawler.poll() is not None:
            return False
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
) -> tuple[int, list[int]]:
    """Run the crawler, send it `number` at random moments, until it is done."""
    chance = random.Random(seed)
    codes, sent = [], 0
    while True:
        crawler = start_crawler(site, out, *flags, module=module)
        goal = site.hits().total() + chance.randint(1, PAGES // max(1, times))
        if sent < times and wait_for_hits(site, crawler, goal):
            time.sleep(chance.random() * 0.01)
            os.kill(crawler.pid, number)
            sent += 1
            codes.append(finish(crawler))
        else:
            codes.append(finish(crawler))
            return sent, codes


def test_sigkill_at_random_moments_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    with serve("--pages", str(PAGES), "--latency-ms", "3") as site:
        kills, codes = interrupt(site, tmp_path / "out", signal.SIGKILL, KILLS, seed=20)
        hits = site.hits()
    assert kills == KILLS
    assert codes[-1] == 0
    lines = written(tmp_path / "out")
    assert len(lines) == PAGES, "a page was never fetched, or its record was lost"
    assert set(lines.values()) == {1}, "a record was written twice"
    assert set(hits) >= set(lines)
    extra = sum(n - 1 for path, n in hits.items() if path in lines)
    assert extra <= kills * CONCURRENCY, "more than what was in flight was fetched again"


def test_sigterm_fetches_nothing_twice(tmp_path: Path) -> None:
    with serve("--pages", str(PAGES), "--latency-ms", "3") as site:
        stops, codes = interrupt(site, tmp_path / "out", signal.SIGTERM, 10, seed=21)
        hits = site.hits()
    assert stops == 10
    assert codes[-1] == 0
    # A signal that comes before the program listens, or after its last page, ends it otherwise.
    assert codes.count(75) >= 8
    assert set(codes) <= {0, 75, -signal.SIGTERM}
    lines = written(tmp_path / "out")
    assert len(lines) == PAGES
    assert set(lines.values()) == {1}
    assert {path: n for path, n in hits.items() if path in lines and n > 1} == {}
