"""What a person sees of a crawl: one line, kept up to date."""

from __future__ import annotations

import math
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

import trio

import trio_ckpt

LIVE_EVERY_S = 0.25  # often enough to look alive
PLAIN_EVERY_S = 5.0  # seldom enough for a log


def describe(now: trio_ckpt.StreamStatistics, *, forbidden: int) -> str:
    """Where the crawl stands.

    Args:
        now: Of its stream of pages.
        forbidden: How many links robots.txt does not allow.
    """
    parts = [_count(now.records, "page"), f"{(now.left or 0):,} in queue"]
    if now.rate_per_s is not None and now.left:
        parts.append(f"{now.rate_per_s:,.0f}/s")
    if now.eta_s:
        parts.append(f"ETA {math.ceil(now.eta_s):,} s")
    if now.session_retries:
        parts.append(_count(now.session_retries, "retry", "retries"))
    if redirects := now.totals.get("redirects"):
        parts.append(_count(redirects, "redirect"))
    if forbidden:
        parts.append(f"{forbidden:,} forbidden by robots.txt")
    if now.skipped:
        parts.append(f"{now.skipped:,} failed")
    if left_out := now.totals.get("links_left_out"):
        parts.append(f"{_count(left_out, 'link')} left out")
    if now.waiting:
        parts.append(f"{now.waiting:,} waiting to be tried again")
    return ", ".join(parts)


def _count(number: float, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


@asynccontextmanager
async def shown(describe_now: Callable[[], str], out: TextIO) -> AsyncIterator[None]:
    """Show how it goes while the block runs, and once more at its end."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show, describe_now, out)
        try:
            yield
        except Exception as error:  # leaves below as it is, not in the nursery's group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
            end = "\r\x1b[K" if out.isatty() else ""
            print(f"{end}{describe_now()}", file=out, flush=True)
    if failure is not None:
        raise failure


async def _show(describe_now: Callable[[], str], out: TextIO) -> None:
    """Keep a line on the terminal up to date, or write one now and then into a log."""
    is_live = out.isatty()
    while True:
        await trio.sleep(LIVE_EVERY_S if is_live else PLAIN_EVERY_S)
        line = describe_now()[: shutil.get_terminal_size().columns - 1 if is_live else None]
        print(f"\r\x1b[K{line}" if is_live else line, end="" if is_live else "\n", file=out)
        out.flush()
