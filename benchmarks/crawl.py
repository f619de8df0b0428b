"""The crawl with two kills, by our crawler and by the peers; see benchmarks.crawl_kills."""

import math
import tempfile
from pathlib import Path

import attrs

from benchmarks import Found, Options, Section, best
from benchmarks.crawl_kills import (
    CrawlFigures,
    crawler_command,
    measure as measure_crawl,
    report,
    site_command,
)
from benchmarks.peers import ensure_environment, with_version

PAGES = 3_000
QUICK_PAGES = 60
PEERS = {"scrapy": "Scrapy", "crawlee": "Crawlee"}


def crawl(name: str, options: Options) -> CrawlFigures:
    """One crawl by one crawler."""
    pages = QUICK_PAGES if options.is_quick else PAGES
    command = crawler_command(name, options.peers_cache or Path())
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="crawl-") as temporary:
        out = Path(temporary).absolute()
        return measure_crawl(command, site_command(pages), pages, out=out)


def first_fetch_s(figures: CrawlFigures) -> float:
    """The slowest start of a crawl, to its first fetch; infinite where none was made."""
    return max((each for each in figures.first_fetch_s if each is not None), default=math.inf)


def wrong_pages(of: CrawlFigures) -> int:
    """Pages that are not in the output exactly once and whole."""
    return of.never_fetched + of.lost_records + of.duplicate_records + of.torn_records


def judge(found: dict[str, CrawlFigures]) -> dict[str, Found]:
    """Ours beside the site's own count, and beside the peers of the same run."""
    ours, peers = (
        found["ours"],
        {PEERS[name]: each for name, each in found.items() if name in PEERS},
    )
    of_peers = ", ".join(f"{name} {wrong_pages(each):,} pages" for name, each in peers.items())
    site = f"{ours.fetched + ours.extra_fetches:,} requests to {ours.pages:,} pages"
    starts = ", ".join(f"{name} {first_fetch_s(each):.2f} s" for name, each in peers.items())
    rates = {name: each.pages_per_s for name, each in peers.items()}
    rows = {
        "crawl with two kills: pages never fetched, lost, repeated, torn": Found(
            wrong_pages(ours), site, of_peers
        ),
        "crawl: repeated requests of a kill": Found(ours.extra_fetches / max(1, ours.kills), site),
        "crawl: start to the first fetch": Found(first_fetch_s(ours), site, starts),
        "crawl: pages/s": Found(ours.pages_per_s, site, best(rates, "/s")),
    }
    for name, rate in rates.items():
        control = f"{rate:,.0f}/s"
        ratio = ours.pages_per_s / rate
        rows[f"crawl: pages/s against {name}"] = Found(ratio, control, f"{name} {control}")
    return rows


def measure(options: Options) -> Section:
    """Run it; peers that are not installed are left out."""
    names, peers = ["ours"], tuple[str, ...]()
    if options.peers_cache is not None:
        names += PEERS
        python = ensure_environment(options.peers_cache)
        peers = tuple(with_version(python, name) for name in PEERS)
    found = {name: crawl(name, options) for name in names}
    lines = [report(name, figures) for name, figures in found.items()]
    if not peers:
        lines.append("peers: left out, give --peers-cache")
    figures: dict[str, object] = {
        name: {**attrs.asdict(each), "pages_per_s": each.pages_per_s}
        for name, each in found.items()
    }
    return Section(figures, lines, judge(found), peers)
