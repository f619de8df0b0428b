"""The crawler's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trio_ckpt.outputs import is_url, place_below

from .._command import add_limits, command_of, output_place, seconds, whole_number

DEFAULT_USER_AGENT = "trio-ckpt-crawler/0.1 (+an example of the trio_ckpt library)"
MAX_CONCURRENCY = 1_000  # sockets: common systems give a process 1,024 files


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog=command_of("crawler"),
        description="Crawl a site, resumably: stop or kill it, and the same command goes on.",
        epilog="exit codes: 0 complete, 3 complete but for what failed.jsonl and the final line "
        "name, 75 stopped in good order with work left, 130 and 143 stopped at once, 1 it cannot "
        "work, 2 a bad command line",
    )
    parser.add_argument(
        "url",
        nargs="+",
        help="where to start; the crawl stays on its site. Several, each of another site, with "
        "--partitions",
    )
    parser.add_argument(
        "--out", type=output_place, required=True, help="folder of pages.jsonl, or URL of a bucket"
    )
    parser.add_argument("--store", help="folder or URL of the checkpoints (OUT/crawl.ckpt)")
    parser.add_argument(
        "--concurrency",
        type=whole_number(1, MAX_CONCURRENCY),
        default=16,
        metavar="N",
        help="pages at once (16)",
    )
    parser.add_argument(
        "--per-host",
        type=whole_number(1, MAX_CONCURRENCY),
        metavar="N",
        help="requests to the host at once (all)",
    )
    parser.add_argument(
        "--delay", type=seconds(), default=0.0, metavar="S", help="s between two requests (0)"
    )
    parser.add_argument(
        "--timeout",
        type=seconds(is_zero_allowed=False),
        default=30.0,
        metavar="S",
        help="s for a request (30)",
    )
    parser.add_argument(
        "--max-pages",
        type=whole_number(1, 10**9),
        metavar="N",
        help="stop after so many, this time",
    )
    for name, which in (
        ("--include", "only URLs in which it is found"),
        ("--exclude", "no URL in which it is found"),
    ):
        parser.add_argument(
            name, action="append", default=[], metavar="REGEX", help=f"{which}; repeatable"
        )
    parser.add_argument(
        "--warc", action="store_true", help="keep the responses, too, as crawl-00000.warc.gz"
    )
    parser.add_argument(
        "--partitions",
        type=whole_number(1, 100_000),
        metavar="N",
        help="share the sites among N partitions, and any number of processes",
    )
    parser.add_argument(
        "--files", action="store_true", help="each page as a file of its own, as in a bucket"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="crawl a complete site again: ask for what has changed; needs --files or a bucket",
    )
    parser.add_argument("--fresh", action="store_true", help="archive what is there, begin again")
    parser.add_argument("--retry-failed", action="store_true", help="try failed pages once more")
    parser.add_argument(
        "--user-agent",
        type=_user_agent,
        default=DEFAULT_USER_AGENT,
        metavar="TEXT",
        help="who we say we are",
    )
    add_limits(parser)
    options = parser.parse_args(words)
    if options.again and options.fresh:
        parser.error("--again begins from what is there, --fresh from nothing: give one of them")
    options.files = options.files or is_url(options.out)
    if options.again and not options.files:
        parser.error("--again: a file that grows keeps what is gone: give --files in each crawl")
    if options.warc and is_url(options.out):
        parser.error("--warc: no file of a bucket can grow: give a folder as --out")
    options.sites, options.url = options.url, options.url[0]
    _check_partitions(parser, options)
    return options


def store_of(options: argparse.Namespace) -> str:
    """Where the checkpoints are."""
    return options.store or place_below(options.out, "crawl.ckpt")


def _check_partitions(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.partitions is None:
        if len(options.sites) > 1:
            parser.error("several sites need --partitions N, which may be 1")
        return
    if options.fresh:
        parser.error("--fresh is for a crawl without --partitions: choose another --out")
    if options.max_pages is not None:
        parser.error("--max-pages is for a crawl without --partitions: see --max-batches")
    if is_url(options.out):
        parser.error("--partitions: give a folder as --out")
    if options.files:
        parser.error("--files and --again are for a crawl without --partitions")


def _user_agent(text: str) -> str:
    if not (text.isascii() and text.isprintable() and text.strip()):
        raise argparse.ArgumentTypeError(f"printable ASCII, not {text!r}")
    return text.strip()
