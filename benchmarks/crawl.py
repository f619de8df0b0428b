"""The crawl with two kills, by our crawler and by the peers; see benchmarks.crawl_kills."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import attrs

from benchmarks import Options, Section, Target
from benchmarks.crawl_kills import (
    CrawlFigures,
    crawler_command,
    measure as measure_crawl,
    report,
    site_command,
)

PAGES = 3_000
QUICK_PAGES = 300
MIN_PAGES_PER_S = 700
MIN_RATIO = {"scrapy": 2.5, "crawlee": 5.0}
MAX_FIRST_FETCH_S = 0.3
CONCURRENCY = 16


def crawl(name: str, options: Options) -> CrawlFigures:
    """One crawl by one crawler."""
    pages = QUICK_PAGES if options.is_quick else PAGES
    command = crawler_command(name, options.peers_cache or Path())
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="crawl-") as temporary:
        out = Path(temporary).absolute()
        return measure_crawl(command, site_command(pages), pages, out=out)


def judge(found: dict[str, CrawlFigures]) -> list[Target]:
    """Ours against its targets and the peers of the same run."""
    ours = found.get("ours")
    if ours is None:
        return []
    first_s = max(each for each in (*ours.first_fetch_s, 0.0) if each is not None)
    gone = ours.never_fetched + ours.lost_records + ours.duplicate_records + ours.torn_records
    targets = [
        Target("crawl: pages per second", ours.pages_per_s, MIN_PAGES_PER_S, "/s", at_least=True),
        Target("crawl: never fetched, lost, repeated, torn", gone, 0, "pages"),
        Target(
            "crawl: extra fetches per kill",
            ours.extra_fetches / max(1, ours.kills),
            CONCURRENCY,
            "",
        ),
        Target("crawl: start to first fetch, the slowest", first_s, MAX_FIRST_FETCH_S, "s"),
    ]
    for peer, ratio in MIN_RATIO.items():
        if peer in found:
            times = ours.pages_per_s / found[peer].pages_per_s
            targets.append(Target(f"crawl: against {peer}", times, ratio, "x", at_least=True))
    return targets


def measure(options: Options) -> Section:
    """Run it; what is not there is left out."""
    names = ["ours"] if find_spec("examples.crawler") is not None else []
    if options.peers_cache is not None:
        names += MIN_RATIO
    found = {name: crawl(name, options) for name in names}
    lines = [report(name, figures) for name, figures in found.items()]
    if "ours" not in found:
        lines.append("ours: left out, there is no examples.crawler")
    if options.peers_cache is None:
        lines.append("peers: left out, give --peers-cache")
    figures: dict[str, object] = {
        name: {**attrs.asdict(each), "pages_per_s": each.pages_per_s}
        for name, each in found.items()
    }
    return Section(figures, lines, judge(found))
