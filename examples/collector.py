"""A collector of paged records, repository by repository, that survives kill -9.

    python -m examples.collector --out data

collects the characters of some Unicode blocks from the API in `examples._api`, which it starts
itself (``--url`` names another one). The blocks play the repositories, and each has two endpoints:

- ``characters`` comes by page number; the page after the last is empty. Its records are lines of
  ``data/characters/SCRIPT/BLOCK.jsonl``.
- ``decompositions`` comes by cursor; the last page has none. Each page is a file,
  ``data/decompositions/SCRIPT/BLOCK/page-1.json``.

Stop it, kill it, unplug the machine: the same command goes on with the page it was at. See what
it does about errors with --fault, say ``--fault "429:5 /blocks/kana/hiragana/characters?page=2"``.

Exit codes: 0 complete, 69 complete but for what failed for good, 75 there is work left, start it
again, 130 and 143 stopped at once by a second signal,
1 it cannot work, 2 a bad command line.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import attrs
import trio

import trio_ckpt

from ._api.faults import Fault, Plan
from ._api.server import Api, serve
from ._web import http
from ._web.retry_after import retry_after_s

log = logging.getLogger("collector")

Page = dict[str, Any]
Repo = str

DISCOVERY = ("repositories",)  # the stream of the list of all repositories
ENDPOINTS = ("characters", "decompositions")
OWN_API = "the API of the example"
USER_AGENT = "trio-ckpt-collector/0.1 (+an example of the trio_ckpt library)"
EXIT_CANNOT = 1


class RefusedError(Exception):
    """The API answered with an error; `http_retries` reads the two attributes."""

    def __init__(self, status: int, url: str, retry_after: float | None) -> None:
        super().__init__(f"{status} {url}")
        self.status = status
        self.retry_after = retry_after


RETRIES = trio_ckpt.RetryTable(
    (
        trio_ckpt.RetryRule((http.FetchError,), backoff_s=0.5, then=trio_ckpt.Then.FAIL_STREAM),
        *trio_ckpt.http_retries(backoff_s=0.5).rules,
    )
)


class Client(Protocol):
    """What gets a URL: `http.Client`, or a test's own."""

    async def get(self, url: str) -> http.Response:
        """One GET; any status is a response."""
        ...


@attrs.define(eq=False)
class Collector:
    """The loops over pages; each belongs to one stream."""

    client: Client
    url: str
    per_page: int

    async def get(self, path: str, **query: object) -> Page:
        """Get one page.

        Raises:
            RefusedError: the API answered with an error.
            http.FetchError: it did not answer.
        """
        words = {"per_page": self.per_page, **query}
        url = f"{self.url}{quote(path)}?{urlencode(words)}"
        response = await self.client.get(url)
        if response.status != 200:
            raise RefusedError(response.status, url, retry_after_s(response.headers, time.time()))
        page: Page = json.loads(response.body)
        return page

    async def collect_repos(self, stream: trio_ckpt.Stream[list[Repo]]) -> None:
        """The names of all repositories become the stream's state: a resume has them again."""
        async for batch in stream.batches():
            with failing(batch):
                page = await self.get("/blocks", page=batch.index)
                names = [record["full_name"] for record in page["records"]]
                if names:
                    stream.state.extend(names)
                    batch.complete()
                else:
                    batch.withdraw()

    async def collect_characters(self, stream: trio_ckpt.Stream[None], repo: Repo) -> None:
        """By page number: an empty page is the end, and no page."""
        async for batch in stream.batches():
            with failing(batch):
                page = await self.get(f"/blocks/{repo}/characters", page=batch.index)
                records = page["records"]
                if records:
                    batch.append_json(f"characters/{repo}.jsonl", *records)
                    batch.complete(records=len(records))
                else:
                    batch.withdraw()

    async def collect_decompositions(self, stream: trio_ckpt.Stream[None], repo: Repo) -> None:
        """By cursor: each page says where the next one begins."""
        async for batch in stream.batches():
            with failing(batch):
                place = {} if stream.cursor is None else {"cursor": stream.cursor}
                page = await self.get(f"/blocks/{repo}/decompositions", **place)
                records, following = page["records"], page["next"]
                name = f"decompositions/{repo}/page-{batch.index}.json"
                path = await batch.write_json(name, records)
                batch.complete(
                    outputs=[path], records=len(records), cursor=following, last=following is None
                )


@contextmanager
def failing(batch: trio_ckpt.Batch[None]) -> Iterator[None]:
    """What goes wrong in the block fails the attempt; the retry table says what becomes of it."""
    try:
        yield
    except (RefusedError, http.FetchError) as error:
        log.info("page %d, attempt %d: %s", batch.index, batch.attempt, error)
        batch.fail(error)


# ---------------------------------------------------------------------------------------
# The collection
# ---------------------------------------------------------------------------------------


async def discover(run: trio_ckpt.Run, collector: Collector) -> None:
    """The first phase: which streams there are."""
    async with run.phase("discovery") as phase:
        if phase.complete:
            return
        async with run.open_stream(
            *DISCOVERY, first_index=1, state=list[Repo](), retry=RETRIES
        ) as stream:
            await collector.collect_repos(stream)
            repos = list(stream.state)
        added = await run.add_streams((repo, name) for repo in repos for name in ENDPOINTS)
        say(f"repositories {len(repos)}, streams that are new {len(added.new)}")


async def collect(run: trio_ckpt.Run, collector: Collector, options: argparse.Namespace) -> None:
    """The second phase: every endpoint of every repository that is left.

    An API limits each endpoint by itself, so each has workers of its own here: while one
    endpoint waits for its limit, the others go on.
    """
    async with run.phase("collection"):
        todo = run.streams_to_process(
            retry_failed=options.retry_failed, start_from=options.start_from
        )
        async with trio.open_nursery() as nursery:
            for endpoint in ENDPOINTS:
                repos = iter([key[0] for key in todo if key[1:] == (endpoint,)])
                for _ in range(options.workers):
                    nursery.start_soon(collect_endpoint, run, collector, endpoint, repos, options)


async def collect_endpoint(
    run: trio_ckpt.Run,
    collector: Collector,
    endpoint: str,
    repos: Iterator[Repo],
    options: argparse.Namespace,
) -> None:
    """Take one repository after the other; that one fails keeps no other from its turn."""
    loops = {
        "characters": collector.collect_characters,
        "decompositions": collector.collect_decompositions,
    }
    for repo in repos:
        async with run.open_stream(
            repo,
            endpoint,
            first_index=1,
            retry=RETRIES,
            on_fail="record",
            retry_failed=options.retry_failed,
        ) as stream:
            await loops[endpoint](stream, repo)
        say(f"{repo} {endpoint}: {describe(stream)}")


def describe(stream: trio_ckpt.Stream[None]) -> str:
    """How a stream ended, in words."""
    if stream.error is not None:
        again = "" if stream.error.retryable else ", for good"
        return f"failed{again}: {stream.error.message}"
    now = stream.statistics()
    return f"pages {now.confirmed}, records {now.records}"


def show_statistics(run: trio_ckpt.Run) -> None:
    """What there is in the end: repositories by status, and what they gave."""
    repos = [group for key, group in run.groups().items() if key != DISCOVERY]
    counts = Counter(repo.status.value for repo in repos)
    now = run.statistics()
    say(
        f"repositories {len(repos)}: "
        f"{', '.join(f'{count} {status}' for status, count in counts.items())}\n"
        f"pages {sum(repo.confirmed for repo in repos)}, records {now.records}, of these "
        f"{now.session_records} this time; attempts repeated {now.session_retries}"
    )


def say(line: str) -> None:
    """Tell whoever watches."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------


async def run_collector(options: argparse.Namespace) -> int:
    """Collect, or go on; returns the exit code."""
    async with open_api(options) as url, http.open_client(user_agent=USER_AGENT) as client:
        return await run_with(client, url, options)


async def run_with(client: Client, url: str, options: argparse.Namespace) -> int:
    """Collect from an API that is there; returns the exit code."""
    async with trio_ckpt.open_run(
        "collector",
        store=options.store or options.out / "collector.ckpt",
        output_dir=options.out,
        config={"url": options.url or OWN_API, "per_page": options.per_page},
        fresh=options.fresh,
        resume_command=resume_command(),
    ) as run:
        if run.found.sessions:
            say(f"resuming: {run.found}")
        collector = Collector(client, url, options.per_page)
        await discover(run, collector)
        await collect(run, collector, options)
        show_statistics(run)
        return run.exit_code


@asynccontextmanager
async def open_api(options: argparse.Namespace) -> AsyncIterator[str]:
    """The URL of the API; the example's own is there as long as the block."""
    if options.url is not None:
        yield options.url.rstrip("/")
        return
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, Api(plan=Plan(options.fault)))
        try:
            yield url
        except Exception as error:  # leaves below as it is, not in the nursery's group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def resume_command() -> str:
    """The command that goes on: this one, but for what is to happen only once."""
    return shlex.join(word for word in sys.orig_argv if word not in ("--fresh", "--retry-failed"))


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a bad one ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.collector",
        description="Collect the pages of every endpoint of every repository of an API, "
        "resumably: stop or kill it, and the same command goes on.",
        epilog="exit codes: 0 complete, 69 complete but for what failed for good, "
        "75 there is work left, 130 and 143 stopped at once, "
        "1 it cannot work, 2 a bad command line",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of what is collected")
    parser.add_argument("--store", help="folder or URL of the checkpoints (OUT/collector.ckpt)")
    parser.add_argument("--url", help=f"of the API ({OWN_API}, started here)")
    parser.add_argument(
        "--per-page", type=_count, default=50, metavar="N", help="records on a page (50)"
    )
    parser.add_argument(
        "--workers",
        type=_count,
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
    parser.add_argument("--fresh", action="store_true", help="archive what is there, begin again")
    parser.add_argument(
        "--fault",
        type=Fault.parse,
        action="append",
        default=[],
        metavar="'WHAT[:SECONDS][*TIMES] TARGET'",
        help="what requests meet at the example's API: a status, reset or slow; repeatable",
    )
    options = parser.parse_args(words)
    if options.url is not None and options.fault:
        parser.error("--fault is for the API of the example, not for another --url")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to 100, not {text!r}")
    return int(text)


def main() -> int:
    """Run the command; what goes wrong is one line, not a traceback."""
    options = parse_options()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        return trio.run(run_collector, options)
    except trio_ckpt.RunStoppedError as stopped:
        say(f"stopped; go on with:\n  {stopped.resume_command}")
        return stopped.exit_code
    except (trio_ckpt.TrioCkptError, OSError, ValueError) as error:
        say(f"{type(error).__name__}: {error}")
    except ExceptionGroup as group:
        for part in group.exceptions:
            say(f"{type(part).__name__}: {part}")
    return EXIT_CANNOT


if __name__ == "__main__":
    sys.exit(main())
