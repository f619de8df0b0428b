"""The crawler's command line."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT_USER_AGENT = "trio-ckpt-crawler/0.1 (+an example of the trio_ckpt library)"
MAX_CONCURRENCY = 1_000  # sockets: common systems give a process 1,024 files


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.crawler",
        description="Crawl a site, resumably: stop or kill it, and the same command goes on.",
        epilog="exit codes: 0 complete, 3 complete but for what failed.jsonl and the final line "
        "name, 75 stopped in good order with work left, 130 and 143 stopped at once, 1 it cannot "
        "work, 2 a bad command line",
    )
    parser.add_argument("url", help="where to start; the crawl stays on its site")
    parser.add_argument("--out", type=Path, required=True, help="folder of pages.jsonl")
    parser.add_argument("--store", help="folder or URL of the checkpoints (OUT/crawl.ckpt)")
    parser.add_argument(
        "--concurrency", type=_count, default=16, metavar="N", help="pages at once (16)"
    )
    parser.add_argument(
        "--per-host", type=_count, metavar="N", help="requests to the host at once (all)"
    )
    parser.add_argument(
        "--delay", type=_seconds, default=0.0, metavar="S", help="s between two requests (0)"
    )
    parser.add_argument(
        "--timeout", type=_positive_seconds, default=30.0, metavar="S", help="s for a request (30)"
    )
    parser.add_argument(
        "--max-pages", type=_number, metavar="N", help="stop after so many, this time"
    )
    for name, which in (
        ("--include", "only URLs in which it is found"),
        ("--exclude", "no URL in which it is found"),
    ):
        parser.add_argument(
            name, action="append", default=[], metavar="REGEX", help=f"{which}; repeatable"
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
    return parser.parse_args(words)


def resume_command() -> str:
    """The command that goes on: this one, but for what is to happen only once."""
    return shlex.join(word for word in sys.orig_argv if word not in ("--fresh", "--retry-failed"))


def _number(text: str, most: int = 10**9) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {most}, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    return _number(text, MAX_CONCURRENCY)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"seconds from 0 to 86400, not {text!r}")
    return number


def _positive_seconds(text: str) -> float:
    if not (number := _seconds(text)):
        raise argparse.ArgumentTypeError("more than 0 seconds")
    return number


def _user_agent(text: str) -> str:
    if not (text.isascii() and text.isprintable() and text.strip()):
        raise argparse.ArgumentTypeError(f"printable ASCII, not {text!r}")
    return text.strip()
