"""The collector's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime

from .._api.faults import Fault
from .._command import add_limits, command_of, output_place, whole_number
from .._web import urls
from .changes import FIRST, read_moment

OWN_API = "the API of the example"


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog=command_of("collector"),
        description="Collect the pages of every endpoint of every repository of an API, "
        "resumably: stop or kill it, and the same command goes on.",
        epilog="exit codes: 0 complete, 69 complete but for what failed for good, 75 there is work "
        "left, 130 and 143 stopped at once, 1 it cannot work, 2 a bad command line",
    )
    parser.add_argument(
        "--out",
        type=output_place,
        required=True,
        help="folder of what is collected, or URL of a bucket",
    )
    parser.add_argument("--store", help="folder or URL of the checkpoints (OUT/collector.ckpt)")
    parser.add_argument(
        "--database", metavar="URL", help="write records there: a file of SQLite, or postgresql://…"
    )
    parser.add_argument("--url", type=_url, help=f"of the API ({OWN_API}, started here)")
    parser.add_argument(
        "--per-page",
        type=whole_number(1, 100),
        default=50,
        metavar="N",
        help="records on a page (50)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1, 100),
        default=2,
        metavar="N",
        help="repositories at once, for each endpoint (2)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="also what failed for good, such as 403"
    )
    parser.add_argument(
        "--from",
        dest="start_from",
        metavar="REPO",
        type=lambda repo: (repo,),
        help="leave out the repositories before this one",
    )
    parser.add_argument(
        "--partitions",
        type=whole_number(1, 100_000),
        metavar="N",
        help="share the repositories among N partitions, and any number of processes",
    )
    parser.add_argument(
        "--since",
        type=_moment,
        nargs="?",
        const=FIRST,
        metavar="TIME",
        help="collect what changed instead, since the last time; the first time, from a TIME of "
        "ISO 8601 on, or all of it",
    )
    parser.add_argument("--fresh", action="store_true", help="archive what is there, begin again")
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="'WHAT[:SECONDS][*TIMES] TARGET'",
        help="what requests meet at the example's API: a status, reset or slow; repeatable",
    )
    add_limits(parser)
    options = parser.parse_args(words)
    if options.url is not None and options.fault:
        parser.error("--fault is for the API of the example, not for another --url")
    if options.database is not None and options.fresh:
        parser.error("--fresh archives files, not rows: choose another --database and --out")
    if options.partitions is not None and options.fresh:
        parser.error("--fresh is for a run without --partitions: choose another --out")
    if options.since is not None and (options.database or options.partitions) is not None:
        parser.error("--since is for files, and without --partitions")
    return options


def _moment(text: str) -> datetime:
    try:
        return read_moment(text)
    except (ValueError, OverflowError) as error:
        problem = f"a date or a time such as 2026-11-30T12:00:00Z, not {text!r}"
        raise argparse.ArgumentTypeError(problem) from error


def _url(text: str) -> str:
    url = urls.normalize(text)
    if url is None or "?" in url:
        raise argparse.ArgumentTypeError(f"an absolute http or https URL, not {text!r}")
    return url.rstrip("/")


def _fault(text: str) -> Fault:
    try:
        return Fault.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
