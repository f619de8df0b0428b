"""Crawl a site with two kill -9 on the way: speed, and what was lost, repeated or never fetched.

    python -m benchmarks.crawl_kills scrapy --pages 3000 --peers-cache DIR
    python -m benchmarks.crawl_kills ours --pages 3000

The site (benchmarks.site) runs in a process of its own and counts every request; its ``/__hits``
decides when to kill and is the truth about fetches. The crawler's DIR/pages.jsonl, one JSON object
with a ``url`` per page, is the truth about records. A crawler that exits by itself is believed: it
is not started again, and the kills that were still to come are left out.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from benchmarks.peers import PEERS_FOLDER, ensure_environment
from benchmarks.site import page_path

KILLS = (1 / 3, 2 / 3)
# A poll costs the site and us about 2 ms each at 3,000 pages, so some 4 % of a core in the crawl;
# while a crawler starts and fetches no page, finer polls cost nothing and time its first fetch.
POLL_S = 0.05
STARTING_POLL_S = 0.01
# After a kill, requests may still lie in the site's sockets; it answers them within its latency.
SETTLE_S = 0.1
LIMIT_S = 300.0


@attrs.frozen(kw_only=True)
class CrawlFigures:
    """What one crawl came to, its kills and restarts included.

    A life is one process of the crawler, from its start to its exit or kill. Counts of fetches are
    the site's, and concern its pages only, not robots.txt.

    Attributes:
        pages: How many the site has.
        fetched: How many of them were requested at least once.
        running_s: All lives together, without the pauses between them.
        first_fetch_s: Per life, the seconds from its start to its first fetch; None where it made
            none. The second and later ones are the restarts: start-up and resume together.
        cpu_s: User and system CPU of all lives.
        never_fetched: Pages that no crawler requested.
        extra_fetches: Requests beyond the first of each page.
        lost_records: Pages that were fetched and have no record.
        duplicate_records: Records beyond the first of each page.
        torn_records: Lines of pages.jsonl that are no JSON object with a url.
        exit_codes: Per life; -9 is our kill.
        kills: How many kills were made.
        timed_out: The time limit ended the last life, so never_fetched is no verdict.
    """

    pages: int
    fetched: int
    running_s: float
    first_fetch_s: tuple[float | None, ...]
    cpu_s: float
    never_fetched: int
    extra_fetches: int
    lost_records: int
    duplicate_records: int
    torn_records: int
    exit_codes: tuple[int, ...]
    kills: int
    timed_out: bool

    @property
    def restart_s(self) -> float:
        """Start-up and resume of all restarts that fetched something: from start to first fetch."""
        return sum(each for each in self.first_fetch_s[1:] if each is not None)

    @property
    def pages_per_s(self) -> float:
        """Pages fetched per second of running, without the restarts' start-up and resume."""
        return self.fetched / (self.running_s - self.restart_s)

    @property
    def pages_per_s_with_restarts(self) -> float:
        """Pages fetched per second of running, everything included."""
        return self.fetched / self.running_s


@attrs.frozen
class _Life:
    """One process of the crawler, after its end."""

    running_s: float
    first_fetch_s: float | None
    cpu_s: float
    exit_code: int
    killed: bool
    timed_out: bool


class _Site:
    """The running site's counts, over one kept connection."""

    def __init__(self, port: int, pages: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._paths = {page_path(index) for index in range(pages)}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def hits(self) -> dict[str, int]:
        """How often each page was requested; pages that never were are left out."""
        self._connection.request("GET", "/__hits")
        counted = json.loads(self._connection.getresponse().read())
        return {path: count for path, count in counted.items() if path in self._paths}


def site_command(pages: int) -> list[str]:
    """The command of benchmarks.site on a free port."""
    return [sys.executable, "-m", "benchmarks.site", "--port", "0", "--pages", str(pages)]


def crawler_command(name: str, peers_cache: Path) -> list[str]:
    """The command of the crawler ``name``: "ours", "scrapy" or "crawlee"; see measure."""
    if name == "ours":
        ours = [sys.executable, "-m", "examples.crawler", "{url}"]
        return [*ours, "--out", "{out}", "--concurrency", "16"]
    python = ensure_environment(peers_cache)
    return [str(python), str(PEERS_FOLDER / f"{name}_crawl.py"), "--url", "{url}", "--out", "{out}"]


def measure(
    command: Sequence[str],
    site: Sequence[str],
    pages: int,
    kills: Sequence[float] = KILLS,
    *,
    out: Path,
    limit_s: float = LIMIT_S,
) -> CrawlFigures:
    """Run the crawler against a fresh site, killing and restarting it on the way.

    Args:
        command: The crawler's; "{url}" and "{out}" in its arguments are filled in. The same one
            starts the crawl and resumes it.
        site: The site's command, which prints its port as its first line.
        pages: How many pages the site has.
        kills: The fractions of the pages after whose fetch the crawler gets a SIGKILL, rising.
        out: An empty folder for the crawler; its stdout and stderr go to ``crawler.log`` there.
        limit_s: After that many seconds of running the crawler is killed for good.

    Raises:
        ValueError: ``kills`` do not rise between 0 and 1.
        FileExistsError: ``out`` is not empty, so the crawler might resume another crawl.
    """
    if list(kills) != sorted(set(kills)) or not all(0 < kill < 1 for kill in kills):
        raise ValueError(f"kills must rise between 0 and 1, not {kills}")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"{out} must be empty: the crawler would resume what is there")
    targets: list[int | None] = [*(round(pages * kill) for kill in kills), None]
    lives: list[_Life] = []
    with _running_site(site, pages) as running:
        filled = [part.format(url=running.url, out=out) for part in command]
        for target in targets:
            left_s = limit_s - sum(life.running_s for life in lives)
            lives.append(_live(filled, running, target, out / "crawler.log", left_s))
            if not lives[-1].killed:
                break
            time.sleep(SETTLE_S)
        hits = running.hits()
    return _figures(pages, lives, hits, out)


@contextmanager
def _running_site(command: Sequence[str], pages: int) -> Iterator[_Site]:
    """The site, until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            if not port:
                raise RuntimeError(f"the site ended before it printed its port: {command}")
            with closing(_Site(int(port), pages)) as site:
                yield site
        finally:
            process.kill()


def _live(command: list[str], site: _Site, kill_at: int | None, log: Path, limit_s: float) -> _Life:
    """Start the crawler; kill it once ``kill_at`` pages are fetched, or let it end by itself."""
    fetches_before = sum(site.hits().values())
    first_fetch_s: float | None = None
    killed = timed_out = False
    with log.open("ab") as output:
        started_s = time.perf_counter()
        # A group of its own, so that a kill takes what the crawler may have started, too.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            running_s = time.perf_counter() - started_s
            hits = site.hits()
            if first_fetch_s is None and sum(hits.values()) > fetches_before:
                first_fetch_s = running_s
            killed = kill_at is not None and len(hits) >= kill_at
            timed_out = not killed and running_s > limit_s
            if killed or timed_out:
                os.killpg(process.pid, signal.SIGKILL)
                ended = os.wait4(process.pid, 0)
                break
            time.sleep(STARTING_POLL_S if first_fetch_s is None else POLL_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    running_s = time.perf_counter() - started_s
    _, status, usage = ended
    # Popen must not wait for a process that is reaped.
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    return _Life(running_s, first_fetch_s, cpu_s, process.returncode, killed, timed_out)


def _figures(pages: int, lives: list[_Life], hits: dict[str, int], out: Path) -> CrawlFigures:
    """The lives, the site's counts and the crawler's records, put together."""
    records, torn = _read_records(out / "pages.jsonl")
    return CrawlFigures(
        pages=pages,
        fetched=len(hits),
        running_s=sum(life.running_s for life in lives),
        first_fetch_s=tuple(life.first_fetch_s for life in lives),
        cpu_s=sum(life.cpu_s for life in lives),
        never_fetched=pages - len(hits),
        extra_fetches=sum(hits.values()) - len(hits),
        lost_records=len(hits.keys() - records.keys()),
        duplicate_records=records.total() - len(records),
        torn_records=torn,
        exit_codes=tuple(life.exit_code for life in lives),
        kills=sum(life.killed for life in lives),
        timed_out=lives[-1].timed_out,
    )


def _read_records(path: Path) -> tuple[Counter[str], int]:
    """How many records each path has, and how many lines are none; a missing file has neither."""
    records: Counter[str] = Counter()
    torn = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            records[urlsplit(json.loads(line)["url"]).path] += 1
        except (ValueError, KeyError, TypeError):
            torn += 1
    return records, torn


def report(name: str, figures: CrawlFigures) -> str:
    """The figures as text."""
    first_s = ", ".join("never" if s is None else f"{s:.2f}" for s in figures.first_fetch_s)
    lines = [
        f"{name}: {figures.fetched} of {figures.pages} pages, {figures.kills} kills",
        f"  pages/s            {figures.pages_per_s:.0f}"
        f" ({figures.pages_per_s_with_restarts:.0f} with restarts)",
        f"  running            {figures.running_s:.1f} s, {figures.restart_s:.2f} s in restarts",
        f"  CPU                {figures.cpu_s:.1f} s",
        f"  start to 1st fetch {first_s} s",
        f"  never fetched      {figures.never_fetched}",
        f"  extra fetches      {figures.extra_fetches}",
        f"  lost records       {figures.lost_records}",
        f"  duplicate records  {figures.duplicate_records}",
        f"  torn records       {figures.torn_records}",
        f"  exit codes         {', '.join(map(str, figures.exit_codes))}",
    ]
    if figures.timed_out:
        lines.append("  KILLED AT THE TIME LIMIT: the counts are not final")
    return "\n".join(lines)


def main() -> None:
    """Measure one crawler and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crawl_kills", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("crawler", choices=["ours", "scrapy", "crawlee"])
    parser.add_argument("--pages", type=int, default=3000)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--folder", type=Path, default=Path(), help="for the crawler's files")
    parser.add_argument(
        "--peers-cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "trio-ckpt-peers",
        help="where the peers' environment is made once",
    )
    options = parser.parse_args()
    command = crawler_command(options.crawler, options.peers_cache)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="crawl-") as temporary:
        out = Path(temporary).absolute()
        site = site_command(options.pages)
        figures = measure(command, site, options.pages, out=out, limit_s=options.limit_s)
        print(report(options.crawler, figures))
        if figures.exit_codes[-1]:
            log = (out / "crawler.log").read_text(errors="replace")
            print(log[-2000:], file=sys.stderr)


if __name__ == "__main__":
    main()
