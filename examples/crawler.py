"""A polite crawler of one site that survives kill -9.

    python -m examples.crawler https://example.org/ --out crawl

writes one JSON line per page to ``crawl/pages.jsonl`` and what it gave up on to
``crawl/failed.jsonl``.  Stop it, kill it, unplug the machine: the same command goes on with what
is left.  A page's line, its links and the fact that it is done are saved together, so no page is
lost and no line is written twice; a crash costs one more fetch of what was in flight.

Exit codes: 0 complete, 3 complete but for the pages in failed.jsonl, 75 stopped in good order with
work left, 130 and 143 stopped at once by a second signal, 1 it cannot work, 2 a bad command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import shlex
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import attrs
import trio

import trio_ckpt
from trio_ckpt.outputs import OutputDir

from ._web import http, robots, urls
from ._web.page import parse_page
from ._web.politeness import HostGate
from ._web.retry_after import retry_after_s

log = logging.getLogger("crawler")

Url = str
Frontier = trio_ckpt.Frontier[Url]

LIVE_EVERY_S = 0.25  # often enough to look alive
PLAIN_EVERY_S = 5.0  # seldom enough for a log
DEFAULT_USER_AGENT = "trio-ckpt-crawler/0.1 (+an example of the trio_ckpt library)"
EXIT_CANNOT = 1


class CannotCrawlError(Exception):
    """There is nothing to crawl there; the message says why."""


class RefusedError(Exception):
    """The server answered for good: 403, 404 and their like."""


class ServerTroubleError(Exception):
    """The server failed for now: 5xx."""


class SlowDownError(Exception):
    """The server asks us to wait: 429, or 503 with Retry-After."""

    def __init__(self, message: str, after_s: float | None) -> None:
        super().__init__(message)
        self.after_s = after_s


def _asked_wait(error: BaseException) -> float | None:
    return error.after_s if isinstance(error, SlowDownError) else None


RETRIES = trio_ckpt.RetryTable(
    (
        trio_ckpt.RetryRule(
            (SlowDownError,), attempts=20, retry_after=_asked_wait, then=trio_ckpt.Then.SKIP
        ),
        trio_ckpt.RetryRule(
            (http.BodyTooLarge, http.BadResponse, RefusedError),
            attempts=1,
            then=trio_ckpt.Then.SKIP,
        ),
        trio_ckpt.RetryRule(
            (http.FetchError, ServerTroubleError),
            attempts=5,
            backoff_s=0.5,
            max_backoff_s=30,
            then=trio_ckpt.Then.SKIP,
        ),
    )
)


@attrs.define(eq=False)
class Crawler:
    """What the handler of a page needs to know."""

    run: trio_ckpt.Run
    stream: trio_ckpt.Stream[Frontier]
    client: http.Client
    scope: urls.Scope
    rules: robots.RobotsRules
    gate: HostGate
    max_pages: int | None

    async def crawl_page(self, batch: trio_ckpt.Batch[Url]) -> None:
        """Fetch one page, stage its line and its links, and complete it."""
        url = batch.item
        async with self.gate.slot():
            response = await self.client.get(url)
        fetched_at = datetime.now(UTC)
        self._check_status(response)
        if (location := response.location) is not None:
            self._follow(batch, location)
            batch.complete(metadata={"redirect": location})
            return
        page = parse_page(response.body, url, response.content_type)
        links = [link for link in page.links if self._wants(link)]
        if batch.index == 0 and not page.links:
            log.warning("%s is no page with links: there is nothing to go on to", url)
        batch.add(links)
        batch.append_json(
            "pages.jsonl",
            {
                "url": url,
                "status": response.status,
                "title": page.title,
                "bytes": len(response.body),
                "sha256": hashlib.sha256(response.body).hexdigest(),
                "links": len(page.links),
                "fetched_at": fetched_at.isoformat(timespec="milliseconds"),
            },
        )
        batch.complete(records=1)
        if self.max_pages is not None and self._pages() >= self.max_pages:
            self.run.request_stop()

    def _pages(self) -> int:
        now = self.stream.statistics()
        return now.session_confirmed + now.in_flight

    def _check_status(self, response: http.Response) -> None:
        status = response.status
        problem = f"{status} {response.url}"
        after_s = retry_after_s(response.headers, time.time())
        if status == 429 or (status == 503 and after_s is not None):
            self.gate.pause(after_s or 1.0)
            raise SlowDownError(problem, after_s)
        if status >= 500:
            raise ServerTroubleError(problem)
        if status >= 400:
            raise RefusedError(problem)

    def _follow(self, batch: trio_ckpt.Batch[Url], location: Url) -> None:
        if self._wants(location):
            batch.add([location])
        elif batch.index == 0 and urls.site_of(location) != urls.site_of(batch.item):
            raise CannotCrawlError(
                f"{batch.item} redirects to another site, {location}: start there"
            )

    def _wants(self, url: Url) -> bool:
        return self.scope.admits(url) and self.rules.allows(url)


# ---------------------------------------------------------------------------------------
# What a person sees
# ---------------------------------------------------------------------------------------


def describe(crawler: Crawler) -> str:
    """One line: where the crawl stands."""
    now = crawler.stream.statistics()
    parts = [f"{now.confirmed:,} done", f"{(now.left or 0):,} in queue"]
    if now.rate_per_s is not None:
        parts.append(f"{now.rate_per_s:,.0f}/s")
    if now.eta_s:
        parts.append(f"ETA {math.ceil(now.eta_s):,} s")
    if now.session_retries:
        parts.append(f"{now.session_retries:,} retries")
    if now.skipped:
        parts.append(f"{now.skipped:,} failed")
    if now.waiting:
        parts.append(f"{now.waiting:,} waiting to be tried again")
    if crawler.gate.paused_for_s:
        parts.append(f"Retry-After: waiting {math.ceil(crawler.gate.paused_for_s):,} s")
    if crawler.run.is_stopping:
        parts.append(f"stopping: {now.in_flight:,} in flight")
    return ", ".join(parts)


async def show(crawler: Crawler, out: TextIO) -> None:
    """Keep a line on the terminal up to date, or write one now and then into a log."""
    is_live = out.isatty()
    while True:
        await trio.sleep(LIVE_EVERY_S if is_live else PLAIN_EVERY_S)
        line = describe(crawler)[: shutil.get_terminal_size().columns - 1 if is_live else None]
        print(f"\r\x1b[K{line}" if is_live else line, end="" if is_live else "\n", file=out)
        out.flush()


@asynccontextmanager
async def shown(crawler: Crawler, out: TextIO) -> AsyncIterator[None]:
    """Show how it goes while the block runs, and once more at its end."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show, crawler, out)
        try:
            yield
        except Exception as error:  # leaves below as it is, not in the nursery's group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
            end = "\r\x1b[K" if out.isatty() else ""
            print(f"{end}{describe(crawler)}", file=out, flush=True)
    if failure is not None:
        raise failure


# ---------------------------------------------------------------------------------------
# The crawl
# ---------------------------------------------------------------------------------------


OpenClient = Callable[..., AbstractAsyncContextManager[http.Client]]


async def crawl(options: argparse.Namespace, open_client: OpenClient = http.open_client) -> int:
    """Crawl, or go on; returns the exit code.

    Args:
        options: As `parse_options` gives them.
        open_client: Opens what pages are fetched with.
    """
    scope = urls.Scope(options.url, include=options.include, exclude=options.exclude)
    start = scope.start_url
    client_options = {"user_agent": options.user_agent, "connections": options.concurrency}
    async with (
        open_client(**client_options, timeout_s=options.timeout) as client,
        trio_ckpt.open_run(
            "crawl",
            store=options.store or options.out / "crawl.ckpt",
            output_dir=options.out,
            config={"url": start, "include": options.include, "exclude": options.exclude},
            fresh=options.fresh,
            retry_failed=options.retry_failed,
            resume_command=resume_command(),
        ) as run,
    ):
        if run.found.sessions:
            print(f"resuming {start}: {run.found}", file=sys.stderr, flush=True)
        rules = await robots.load_robots(client, start, options.user_agent)
        if not rules.allows(start):
            raise CannotCrawlError(f"robots.txt of the site does not allow {start}")
        delay_s = max(options.delay, rules.crawl_delay_s or 0)
        gate = HostGate(options.per_host or options.concurrency, delay_s)
        async with run.open_stream("pages", state=trio_ckpt.Frontier([start])) as stream:
            crawler = Crawler(run, stream, client, scope, rules, gate, options.max_pages)
            try:
                async with shown(crawler, sys.stderr):
                    await trio_ckpt.run_batches(
                        stream,
                        None,
                        crawler.crawl_page,
                        concurrency=options.concurrency,
                        retry=RETRIES,
                    )
            finally:
                with trio.CancelScope(shield=True):
                    await save_failed(options.out, stream)
        return run.exit_code


async def save_failed(folder: Path, stream: trio_ckpt.Stream[Frontier]) -> None:
    """Write failed.jsonl; where that cannot be done, what is leaving says more."""
    try:
        await trio.to_thread.run_sync(write_failed, folder, list(stream.skipped()))
    except trio_ckpt.OutputError as error:
        log.warning("%s", error)


def write_failed(folder: Path, skipped: Sequence[tuple[int, Url, trio_ckpt.FailedAttempt]]) -> None:
    """Write what was given up, all of it anew, so that it is always the present truth."""
    lines = [
        json.dumps(
            {
                "url": url,
                "error": attempt.error.type if attempt.error else None,
                "message": attempt.error.message if attempt.error else None,
                "attempts": attempt.attempts,
            },
            ensure_ascii=False,
        )
        for _index, url, attempt in skipped
    ]
    outputs = OutputDir.open(folder)
    try:
        outputs.write("failed.jsonl", "".join(f"{line}\n" for line in lines).encode())
    finally:
        outputs.close()


def resume_command() -> str:
    """The command that goes on: this one, but for what is to happen only once."""
    return shlex.join(word for word in sys.orig_argv if word not in ("--fresh", "--retry-failed"))


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.crawler", description="Crawl a site, resumably."
    )
    parser.add_argument("url", help="where to start; the crawl stays on its site")
    parser.add_argument("--out", type=Path, required=True, help="folder of pages.jsonl")
    parser.add_argument("--store", type=Path, help="folder of the checkpoints (OUT/crawl.ckpt)")
    parser.add_argument("--concurrency", type=_count, default=16, help="pages at once (16)")
    parser.add_argument("--per-host", type=_count, help="requests to the host at once (all)")
    parser.add_argument("--delay", type=_seconds, default=0.0, help="s between two requests")
    parser.add_argument("--timeout", type=_seconds, default=30.0, help="s for one request (30)")
    parser.add_argument("--max-pages", type=_count, help="stop after so many, this time")
    for name, which in (
        ("--include", "only URLs that match"),
        ("--exclude", "no URL that matches"),
    ):
        parser.add_argument(
            name, action="append", default=[], metavar="REGEX", help=f"{which}; repeatable"
        )
    parser.add_argument("--fresh", action="store_true", help="archive what is there, begin again")
    parser.add_argument("--retry-failed", action="store_true", help="try failed pages once more")
    parser.add_argument("--user-agent", default=DEFAULT_USER_AGENT, help="who we say we are")
    return parser.parse_args(words)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"seconds from 0 to 86400, not {text!r}")
    return number


def main() -> int:
    """Run the command; what goes wrong is one line, not a traceback."""
    options = parse_options()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        return trio.run(crawl, options)
    except trio_ckpt.RunStoppedError as stopped:
        print(f"stopped; go on with:\n  {stopped.resume_command}", file=sys.stderr)
        return stopped.exit_code
    except trio_ckpt.ConfigChangedError as error:
        changes = "; ".join(f"{name}: {was} -> {now}" for name, was, now in error.changes)
        print(
            f"cannot go on with another crawl: {changes}\n"
            "give the same URL, --include and --exclude as before, or --fresh",
            file=sys.stderr,
        )
    except (CannotCrawlError, robots.RobotsUnavailableError, ValueError) as error:
        print(f"cannot crawl: {error}", file=sys.stderr)
    except trio_ckpt.BatchFailedError as error:
        print(f"cannot crawl: {error.__cause__ or error}", file=sys.stderr)
    except (trio_ckpt.TrioCkptError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except ExceptionGroup as group:
        for part in group.exceptions:
            print(f"{type(part).__name__}: {part}", file=sys.stderr)
    return EXIT_CANNOT


if __name__ == "__main__":
    sys.exit(main())
