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

With ``--out s3://bucket/prefix`` all of it is in a bucket, each page of characters as a file of its
own, ``characters/SCRIPT/BLOCK/page-1.json``, and no disk is needed.

With ``--partitions 8`` the repositories are shared among eight partitions. Start the command some
times, also on several machines with one ``--store``: each process collects one partition after the
other, in a folder of its own below ``--out``.

With ``--database pages.db``, or ``postgresql://…``, records are rows of a table instead, each there
exactly once.

With ``--since 2026-11-01`` it collects what changed from then on instead, from the endpoint
``changes``, into ``data/changes``. The same command is started again and again, by cron say: each
time it asks from a little before the last change that it has, and writes what is new.

Whatever the API answers, to HTML or a cursor that comes back, at worst fails its own stream: the
other repositories go on.

Exit codes: 0 complete, 69 complete but for what failed for good, 75 there is work left, 130 and 143
stopped at once by a second signal, 1 it cannot work, 2 a bad command line.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import attrs
import trio

import trio_ckpt
from trio_ckpt.outputs import is_url, place_below

from ._api.faults import Plan
from ._api.server import Api, handler_of
from ._collector.answers import (
    Answer,
    RefusedError,
    RepeatedAnswerError,
    StrangeAnswerError,
    UnusableNameError,
    read_answer,
    repo_names,
)
from ._collector.changes import FIRST, Place, earlier, time_text
from ._collector.circle import Circle
from ._collector.database import Database, open_database
from ._collector.options import OWN_API, parse_options
from ._command import (
    EXIT_CANNOT,
    EXPECTED,
    explain,
    limits_of,
    open_stderr,
    resume_command,
    say,
)
from ._loopback import open_server
from ._partitions import work_through
from ._web import http

log = logging.getLogger("collector")

Batch = trio_ckpt.Batch[None]
Repo = str

NAME = "collector"
DISCOVERY = ("repositories",)  # the stream of the list of all repositories
UNUSABLE = "unusable names"  # a group of streams, one for each name that cannot be used
ENDPOINTS = ("characters", "decompositions")
CHANGES = "changes"  # the only endpoint of a run with --since, and the run's name
USER_AGENT = "trio-ckpt-collector/0.1 (+an example of the trio_ckpt library)"
MAX_REDIRECTS = 5  # of a repository that was renamed
GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
EXIT_AGAIN = 75

# What a page of the API may not be, and what the library cannot store of it.
STRANGE = (StrangeAnswerError, trio_ckpt.NotEncodableError)
RETRIES = trio_ckpt.RetryTable(
    (
        trio_ckpt.RetryRule(
            (*STRANGE, http.FetchError), backoff_s=0.5, then=trio_ckpt.Then.FAIL_STREAM
        ),
        *trio_ckpt.http_retries(backoff_s=0.5).rules,
        # Any other error of the API, and what would never end: asking again changes nothing.
        trio_ckpt.RetryRule(
            (RefusedError, RepeatedAnswerError),
            attempts=1,
            then=trio_ckpt.Then.FAIL_STREAM,
            retryable=False,
        ),
    )
)


class Client(Protocol):
    """A client for HTTP GET: `http.Client`, or a fake in tests."""

    async def get(self, url: str) -> http.Response:
        """One GET; any status is a response."""
        ...


@attrs.define
class Listing:
    """The state of the discovery: the repositories that the API has named."""

    repos: list[Repo] = attrs.Factory(list)
    unusable: list[str] = attrs.Factory(list)


Endpoint = (  # checkers read open_stream(state=Circle() or None) in two ways
    trio_ckpt.Stream[Circle] | trio_ckpt.Stream[None] | trio_ckpt.Stream[Circle | None]
)


@attrs.define(eq=False)
class Collector:
    """The loops over pages; each belongs to one stream."""

    client: Client
    url: str
    per_page: int
    is_in_bucket: bool = False
    database: Database | None = None
    since: datetime | None = None  # collect changes, the first time those from then on
    written: int = 0  # lines of files: what a run that is done again carries over is none

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Those of each repository."""
        return ENDPOINTS if self.since is None else (CHANGES,)

    async def get(self, path: str, **query: object) -> Answer:
        """Get one page.

        Raises:
            RefusedError: the API answered with an error.
            StrangeAnswerError: it answered with something else than a page.
            http.FetchError: it did not answer.
        """
        words = {"per_page": self.per_page, **query}
        url = f"{self.url}{quote(path)}?{urlencode(words)}"
        response = await self.client.get(url)
        for _ in range(MAX_REDIRECTS):
            if response.location is None:
                break
            response = await self.client.get(response.location)
        if response.status != 200:
            raise RefusedError(response.status, url, response.headers)
        return read_answer(response.body, response.headers.get("link", ""))

    async def write(self, batch: Batch, name: str, records: Sequence[Any], **place: Any) -> None:
        """Complete a page with lines of a file; where no file can grow, with one of its own."""
        if not self.is_in_bucket:
            batch.append_json(f"{name}.jsonl", *records)
        elif records:
            await batch.write_json(f"{name}/page-{batch.index}.json", records)
        batch.complete(records=len(records), **place)
        self.written += len(records)

    async def collect_repos(self, stream: trio_ckpt.Stream[Listing]) -> None:
        """The names of all repositories become the stream's state: a resume has them again."""
        before = Listing()
        async for batch in stream.batches():
            with failing(batch):
                page = await self.get("/blocks", page=batch.index)
                found = Listing(*repo_names(page.records))
                # Nothing is the end; so is the same once more, from an API that has one page.
                if found in (Listing(), before):
                    batch.withdraw()
                    continue
                stream.state.repos.extend(found.repos)
                stream.state.unusable.extend(found.unusable)
                batch.complete()
                before = found

    async def collect_characters(self, stream: Endpoint, repo: Repo) -> None:
        """By page number: an empty page is the end, and no page."""
        before: Answer | None = None
        async for batch in stream.batches():
            with failing(batch):
                page = await self.get(f"/blocks/{repo}/characters", page=batch.index)
                if not page.records:
                    batch.withdraw()
                    continue
                if page == before:
                    raise RepeatedAnswerError(f"page {batch.index} is the one before it once more")
                if self.database is not None:
                    await self.database.write(batch, "characters", repo, page.records)
                else:
                    await self.write(batch, f"characters/{repo}", page.records)
                before = page

    async def collect_decompositions(self, stream: Endpoint, repo: Repo) -> None:
        """By cursor: each page says where the next one begins."""
        sent = set[str | None]()
        async for batch in stream.batches():
            with failing(batch):
                cursor: str | None = stream.cursor
                circle = stream.state or Circle()
                if cursor in sent or circle.comes_back(cursor):
                    raise RepeatedAnswerError(f"cursor {cursor!r} comes back: this has no end")
                query = {} if cursor is None else {"cursor": cursor}
                page = await self.get(f"/blocks/{repo}/decompositions", **query)
                circle.add(cursor)
                place: dict[str, Any] = {"cursor": page.following, "last": page.following is None}
                if self.database is not None:
                    await self.database.write(batch, "decompositions", repo, page.records, **place)
                else:
                    name = f"decompositions/{repo}/page-{batch.index}.json"
                    path = await batch.write_json(name, page.records)
                    batch.complete(outputs=[path], records=len(page.records), **place)
                sent.add(cursor)

    async def collect_changes(self, stream: Endpoint, repo: Repo) -> None:
        """By time: a page begins where the one before it ended."""
        async for batch in stream.batches():
            with failing(batch):
                cursor: Any = stream.cursor
                place = Place(self.since or FIRST) if cursor is None else Place.read(cursor)
                before: Answer | None = None
                found, is_last = list[Any](), False
                while not found and not is_last:  # what the lag sends again makes no batch
                    page = await self.get_changes(repo, place)
                    if page.records and page == before and place.page > 1:
                        problem = f"page {place.page} is the one before it once more"
                        raise RepeatedAnswerError(problem)
                    found, place = place.take(page.records)
                    before, is_last = page, page.is_last or not page.records
                if found:
                    await self.write(batch, repo, found, cursor=place.cursor(), last=is_last)
                else:
                    batch.withdraw()

    async def get_changes(self, repo: Repo, place: Place) -> Answer:
        """Get a page of changes; a repository that is gone has no more."""
        try:
            return await self.get(f"/blocks/{repo}/changes", **place.query())
        except RefusedError as error:
            if error.status not in GONE:
                raise
            return Answer([], None)


@contextmanager
def failing(batch: Batch) -> Iterator[None]:
    """An error in the block fails the attempt; the retry table decides what follows."""
    try:
        yield
    except (RefusedError, RepeatedAnswerError, http.FetchError, *STRANGE) as error:
        log.info("page %d, attempt %d: %s", batch.index, batch.attempt, error)
        batch.fail(error)


# ---------------------------------------------------------------------------------------
# The collection
# ---------------------------------------------------------------------------------------


async def discover(run: trio_ckpt.Run, collector: Collector, holds: Callable[[str], bool]) -> None:
    """The first phase: find out which streams there are.

    Args:
        run: The run.
        collector: Gets the list of the repositories.
        holds: Whether a repository is this run's.
    """
    async with run.phase("discovery") as phase:
        if phase.complete:
            return
        async with run.open_stream(
            *DISCOVERY,
            first_index=1,
            state=Listing(),
            retry=RETRIES,
            retry_failed=True,  # without the list nothing can be done, so each start asks for it
        ) as stream:
            await collector.collect_repos(stream)
            found = stream.state
        for name in filter(holds, found.unusable):
            if collector.since is None:  # a run that has failed is not done again
                await refuse(run, name)
            say(f"a repository is called {name}, which cannot name a file: it is left out")
        mine = list(filter(holds, found.repos))
        added = await run.add_streams((repo, name) for repo in mine for name in collector.endpoints)
        say(f"repositories {len(set(mine))}, streams that are new {len(added.new)}")


async def refuse(run: trio_ckpt.Run, name: str) -> None:
    """Record a repository that cannot be collected as one that failed, for good."""
    async with run.open_stream(UNUSABLE, name, on_fail="record", retry_failed=True) as stream:
        await stream.fail(UnusableNameError(f"{name} cannot name a file"), retryable=False)


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
            for endpoint in collector.endpoints:
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
    """Collect one repository after the other; a failure of one does not stop the others."""
    loops = {
        "characters": collector.collect_characters,
        "decompositions": collector.collect_decompositions,
        CHANGES: collector.collect_changes,
    }
    for repo in repos:
        async with run.open_stream(
            repo,
            endpoint,
            first_index=1,
            state=Circle() if endpoint == "decompositions" else None,
            retry=RETRIES,
            on_fail="record",
            retry_failed=options.retry_failed,
            sink=None if collector.database is None else collector.database.sink,
            lag=earlier if endpoint == CHANGES else None,
        ) as stream:
            await loops[endpoint](stream, repo)
        say(f"{repo} {endpoint}: {describe(stream)}")


def describe(stream: Endpoint) -> str:
    """How a stream ended, in words."""
    if stream.error is not None:
        again = "" if stream.error.retryable else ", for good"
        return f"failed{again}: {stream.error.message}"
    now = stream.statistics()
    return f"pages {now.confirmed}, records {now.records}"


def show_statistics(run: trio_ckpt.Run, written: int | None) -> None:
    """The final report: repositories by status, and their records."""
    groups = run.groups()
    repos = [group for key, group in groups.items() if key not in (DISCOVERY, (UNUSABLE,))]
    if (UNUSABLE,) in groups:
        say(f"{UNUSABLE} {sum(groups[UNUSABLE,].streams.values())}")
    counts = Counter(repo.status.value for repo in repos)
    now = run.statistics()
    say(
        f"repositories {len(repos)}: "
        f"{', '.join(f'{count} {status}' for status, count in counts.items())}\n"
        f"pages {sum(repo.confirmed for repo in repos)}, records {now.records}, of these "
        f"{now.session_records if written is None else written} this time; attempts repeated "
        f"{now.session_retries}"
    )


# ---------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------


async def run_collector(options: argparse.Namespace) -> int:
    """Collect, or resume; returns the exit code."""
    async with open_api(options) as url, http.open_client(user_agent=USER_AGENT) as client:
        return await run_with(client, url, options)


async def run_with(client: Client, url: str, options: argparse.Namespace) -> int:
    """Collect from an API that is there; returns the exit code."""
    database = None
    if options.database is not None:
        database = await trio.to_thread.run_sync(open_database, options.database)
    collector = Collector(
        client, url, options.per_page, is_url(options.out), database, options.since
    )
    if options.since is not None:
        return await follow_changes(collector, options)
    if options.partitions is not None:
        return await collect_partitions(collector, options)
    async with trio_ckpt.open_run(
        NAME,
        store=options.store or place_below(options.out, "collector.ckpt"),
        output_dir=options.out,
        config={"url": options.url or OWN_API, "per_page": options.per_page},
        fresh=options.fresh,
        limits=limits_of(options),
        resume_command=resume_command(),
    ) as run:
        await collect_run(run, collector, options, lambda repo: True)
        return run.exit_code


async def follow_changes(collector: Collector, options: argparse.Namespace) -> int:
    """Collect what has changed since the last time, or go on with it; returns the exit code."""
    open_changes = partial(
        trio_ckpt.open_run,
        CHANGES,
        store=options.store or place_below(options.out, "collector.ckpt"),
        output_dir=place_below(options.out, CHANGES),
        config={"url": options.url or OWN_API},
        limits=limits_of(options),
        resume_command=resume_command(),
    )
    async with AsyncExitStack() as stack:
        try:
            again = open_changes(again=not options.fresh, fresh=options.fresh)
            run = await stack.enter_async_context(again)
        except trio_ckpt.CannotRunAgainError:
            say(f"no changes are complete yet: collecting those since {time_text(options.since)}")
            run = await stack.enter_async_context(open_changes())
        await collect_run(run, collector, options, lambda repo: True)
        return run.exit_code


async def collect_run(
    run: trio_ckpt.Run,
    collector: Collector,
    options: argparse.Namespace,
    holds: Callable[[str], bool],
) -> None:
    """Collect the repositories of a run."""
    await discover(run, collector, holds)
    await collect(run, collector, options)
    show_statistics(run, None if collector.since is None else collector.written)


async def collect_partitions(collector: Collector, options: argparse.Namespace) -> int:
    """Collect partitions until none is left, beside any other process; returns the exit code."""
    async with trio_ckpt.open_collection(
        NAME,
        store=options.store or place_below(options.out, "collector.ckpt"),
        partitions=options.partitions,
        output_dir=options.out,
        config={"url": options.url or OWN_API, "per_page": options.per_page},
        retry_failed=options.retry_failed,
        limits=limits_of(options),
        resume_command=resume_command(),
    ) as collection:

        async def work(partition: trio_ckpt.Partition) -> None:
            await collect_run(partition.run, collector, options, partition.holds)

        return await work_through(collection, work)


@asynccontextmanager
async def open_api(options: argparse.Namespace) -> AsyncIterator[str]:
    """The URL of the API; the example's own is there as long as the block."""
    if options.url is not None:
        yield options.url
        return
    async with open_server(handler_of(Api(plan=Plan(options.fault)))) as url:
        yield url


def main() -> int:
    """Run the command; an error is one line, not a traceback."""
    options = parse_options()
    open_stderr()
    try:
        return trio.run(run_collector, options)
    except trio_ckpt.StreamFailedError as error:
        say(f"the list of repositories cannot be had: {error}")
        return EXIT_AGAIN if error.retryable else EXIT_CANNOT
    except EXPECTED as error:
        return explain(error)


if __name__ == "__main__":
    sys.exit(main())
