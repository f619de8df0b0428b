"""A polite crawler of one site that survives kill -9.

    python -m examples.crawler https://example.org/ --out crawl

writes one JSON line per page to ``crawl/pages.jsonl`` and what it gave up on to
``crawl/failed.jsonl``.  Stop it, kill it, unplug the machine: the same command goes on with what
is left.  A page's line, its links and the fact that it is done are saved together, so no page is
lost and no line is written twice; a crash costs one more fetch of what was in flight.

With ``--warc`` the responses are in ``crawl/crawl-00000.warc.gz`` and its next parts, too.

With ``--partitions 8`` and the start URLs of several sites, the sites are shared among eight
partitions. Start the command some times, also on several machines with one ``--store``: each
process crawls one partition after the other. A site is in one partition, so one process at a time
asks it, as slowly as ``--delay`` and its robots.txt say; the links of a page to other sites are
left out, as ever. Its files are in ``crawl/crawl.00002/https,example.org``.

With ``--out s3://bucket/prefix`` all of it is in a bucket, the line of a page as an object of its
own, ``pages/DIGEST.json`` by its URL, and no disk is needed. With ``--files`` it is so in a folder.

With ``--again`` a complete crawl is done again: each page is asked for only if it has changed, and
what is left behind is that of a fresh crawl.

Exit codes: 0 complete, 3 complete but for the pages in failed.jsonl and the links that the final
line counts as left out, 75 stopped in good order with work left, 130 and 143 stopped at once by a
second signal, 1 it cannot work, 2 a bad command line.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

import attrs
import trio

import trio_ckpt
from trio_ckpt.outputs import is_url

from ._command import EXIT_CANNOT, EXPECTED, explain, limits_of, open_stderr, resume_command, say
from ._crawler.display import describe, shown
from ._crawler.failures import (
    LONGEST_PAUSE_S,
    RETRIES,
    CannotCrawlError,
    ForbiddenError,
    RedirectError,
    SlowDownError,
    check_status,
    write_failed,
)
from ._crawler.kept import Kept, metadata_of
from ._crawler.memory import (
    FORBIDDEN,
    MAX_FILE_BYTES,
    PAGES,
    REDIRECTS,
    Forbidden,
    Redirects,
    object_name,
    read_objects,
)
from ._crawler.options import parse_options, store_of
from ._crawler.sites import EXIT_LEFT_OUT, crawl_sites, scopes_of
from ._web import http, robots, urls
from ._web.page import Page, parse_page
from ._web.politeness import HostGate

if TYPE_CHECKING:
    from ._crawler.warc import Archive

log = logging.getLogger("crawler")

Url = str
Batch = trio_ckpt.Batch[Url]
Frontier = trio_ckpt.Frontier[Url]

LARGE_PAGE_BYTES = 256 * 1024  # takes 10 ms and more to parse
LONG_DELAY_S = 60.0
RULES_LAST_S = 86_400.0  # RFC 9309, section 2.4
GONE_AFTER_S = 60.0  # a site without an answer for longer is down


@attrs.define(eq=False)
class Crawler:
    """The handler of a page, and what it needs; `leave` leaves a site that is down for later."""

    run: trio_ckpt.Run
    stream: trio_ckpt.Stream[Frontier]
    client: http.Client
    scope: urls.Scope
    rules: robots.RobotsRules
    gate: HostGate
    redirects: Redirects
    forbidden: Forbidden
    max_pages: int | None
    leave: Callable[[], None]
    has_files: bool = False
    archive: Archive | None = None
    rules_until: float = attrs.Factory(lambda: trio.current_time() + RULES_LAST_S)
    answered_at: float = attrs.Factory(trio.current_time)

    async def crawl_page(self, batch: Batch) -> None:
        """Fetch one page, stage its line and its links, and complete it."""
        if trio.current_time() >= self.rules_until:
            await self._renew_rules(batch)
        if not self.rules.allows(batch.item):
            raise ForbiddenError(f"robots.txt does not allow {batch.item} any more")
        kept = self._kept(batch)
        response = await self._get(batch, kept)
        fetched_at = datetime.now(UTC)
        if kept is not None and response.status == HTTPStatus.NOT_MODIFIED:
            self._keep(batch, kept, response, fetched_at)
        else:
            self._check_status(response)
            if self.archive is not None:
                self.archive.append(batch, response, fetched_at)
            if response.status in http.REDIRECTS:
                await self._follow(batch, response)
            else:
                await self._read(batch, response, fetched_at)
        if self.max_pages is not None and self._pages() >= self.max_pages:
            self.run.request_stop()

    def _pages(self) -> int:
        now = self.stream.statistics()
        return now.session_confirmed + now.in_flight

    def _kept(self, batch: Batch) -> Kept | None:
        """What is known of a page; None: it has to be fetched whole."""
        kept = Kept.of(batch)
        if kept is None or (self.archive is not None and not kept.is_archived):
            return None
        return kept if kept.is_judged_so(self.rules.allows) else None

    def _keep(
        self, batch: Batch, kept: Kept, response: http.Response, fetched_at: datetime
    ) -> None:
        """Stage the links of a page that is as it was; its line is carried over."""
        if self.archive is not None:
            self.archive.append_unchanged(batch, response, fetched_at, kept.fetched_at)
        self.forbidden.new(kept.forbidden)
        batch.add(kept.links)
        batch.unchanged()

    async def _get(self, batch: Batch, kept: Kept | None) -> http.Response:
        async with AsyncExitStack() as stack:
            async with batch.waiting():  # a stop does not wait for our turn
                await stack.enter_async_context(self.gate.slot())
            try:
                response = await self.client.get(
                    batch.item, http.NO_HEADERS if kept is None else kept.conditions
                )
            except http.FetchError as error:
                self._check_site(error)
                raise
        self.answered_at = trio.current_time()
        return response

    def _check_site(self, error: http.FetchError) -> None:
        """Stop the run when the whole site does not answer: its pages have not failed."""
        if trio.current_time() - self.answered_at > GONE_AFTER_S:
            log.warning("%s; the site answers nothing for %.0f s: stopping", error, GONE_AFTER_S)
            self.leave()

    async def _renew_rules(self, batch: Batch) -> None:
        """Read robots.txt once a day; where that fails, the old rules hold."""
        self.rules_until = trio.current_time() + RULES_LAST_S
        start, agent = self.scope.start_url, self.client.user_agent
        try:
            async with batch.waiting():
                self.rules = await robots.load_robots(self.client, start, agent)
        except robots.RobotsUnavailableError as error:
            log.warning("%s", error)

    def _check_status(self, response: http.Response) -> None:
        try:
            check_status(response)
        except SlowDownError as error:
            after_s = error.after_s or 1.0
            self.gate.pause(after_s)
            if after_s > LONGEST_PAUSE_S:
                log.warning("%s: the site asks for a pause of %.0f s: stopping", error, after_s)
                self.leave()
            raise

    # -- redirects --------------------------------------------------------------------------

    async def _follow(self, batch: Batch, response: http.Response) -> None:
        """Stage the target of a redirect; its page is fetched in its turn, once."""
        location = response.location
        if location is None or len(location) > urls.MAX_URL_LENGTH:
            given = response.headers.get("location", "nothing")[:200]
            raise RedirectError(f"{response.status} {batch.item} leads to no page: {given!r}")
        if batch.index == 0:
            self._check_start(batch.item, location)
        if not self.scope.admits(location):
            batch.complete(metadata={"redirect": location})
            return
        self.redirects.follow(batch.item, location)
        await self._add(batch, [location])
        line = {"url": batch.item, "status": response.status, "location": location}
        await self._note(batch, REDIRECTS, line)
        batch.complete(totals={"redirects": 1})

    def _check_start(self, start: Url, location: Url) -> None:
        """Raise CannotCrawlError where nothing can be crawled from the start."""
        where = f"{start} redirects to {location}"
        if urls.site_of(location) != urls.site_of(start):
            raise CannotCrawlError(f"{where}, which is another site: start there")
        if not self.scope.admits(location):
            raise CannotCrawlError(f"{where}, which --include or --exclude leave out")
        if not self.rules.allows(location):
            raise CannotCrawlError(f"{where}, which robots.txt does not allow")

    # -- pages ------------------------------------------------------------------------------

    async def _read(self, batch: Batch, response: http.Response, fetched_at: datetime) -> None:
        """Stage the line of a page and its links."""
        url, body = batch.item, response.body
        page = await _parse(response)
        links = [link for link in page.links if self.scope.admits(link)]
        short = [link for link in links if len(link) <= urls.MAX_URL_LENGTH]
        left_out = len(links) - len(short) + page.more_links + page.is_cut
        if left_out:
            log.warning("%s: links left out: %d (too long, or too many)", url, left_out)
        if batch.index == 0 and not page.links:
            log.warning("%s is not a page with links: there is nothing more to crawl", url)
        await self._add(batch, short)
        digest = hashlib.sha256(body).hexdigest()
        at = fetched_at.isoformat(timespec="milliseconds")
        line = {
            "url": url,
            "status": response.status,
            "title": page.title,
            "bytes": len(body),
            "sha256": digest,
            "links": len(page.links),
            "links_left_out": left_out,
            "fetched_at": at,
        }
        if self.archive is not None and not self.archive.has(digest):
            line["archived_at"] = at  # what other records may name, also after a kill
        await self._note(batch, PAGES, line)
        batch.complete(
            records=1,
            totals={"links_left_out": left_out} if left_out else None,
            metadata=metadata_of(
                response, fetched_at, short, self.rules.allows, is_archived=self.archive is not None
            )
            if self.has_files
            else None,
        )
        if self.archive is not None:
            await batch.confirm()  # only a record that is durable is named by others
            self.archive.add(digest, url, fetched_at)

    async def _add(self, batch: Batch, links: list[Url]) -> None:
        """Stage links of the site: to be fetched, or remembered as forbidden."""
        batch.add([link for link in links if self.rules.allows(link)])
        refused = [link for link in links if not self.rules.allows(link)]
        news = self.forbidden.new(refused)
        # A file of the page has all of them, so that it is right whatever other pages have.
        if noted := refused if self.has_files else news:
            lines = [{"url": link, "on": batch.item} for link in noted]
            await self._note(batch, FORBIDDEN, *lines)

    async def _note(self, batch: Batch, name: str, *lines: Mapping[str, object]) -> None:
        """Stage lines of a file, or a file of the page."""
        if self.has_files:
            await batch.write_json(object_name(name, batch.item), list(lines))
        else:
            batch.append_json(name, *lines)


async def _parse(response: http.Response) -> Page:
    words = response.body, response.url, response.content_type
    if len(response.body) < LARGE_PAGE_BYTES:
        return parse_page(*words)
    return await trio.to_thread.run_sync(parse_page, *words)  # other tasks run during it


# ---------------------------------------------------------------------------------------
# The crawl
# ---------------------------------------------------------------------------------------


OpenClient = Callable[..., AbstractAsyncContextManager[http.Client]]


async def crawl(options: argparse.Namespace, open_client: OpenClient = http.open_client) -> int:
    """Crawl, or resume; returns the exit code.

    Args:
        options: As `parse_options` gives them.
        open_client: Opens what pages are fetched with.
    """
    async with _opened(options, open_client) as client:
        if options.partitions is not None:
            return await crawl_sites(client, options, crawl_in)
        (scope,) = scopes_of(options)
        # Before the run is open: a signal ends this at once, and nothing has to be saved.
        rules = await robots.load_robots(client, scope.start_url, options.user_agent)
        if not rules.allows(scope.start_url):
            raise CannotCrawlError(f"robots.txt of the site does not allow {scope.start_url}")
        async with trio_ckpt.open_run(
            "crawl",
            store=store_of(options),
            output_dir=options.out,
            config={
                "url": scope.start_url,
                "include": options.include,
                "exclude": options.exclude,
            }
            | ({"files": True} if options.files else {}),
            fresh=options.fresh,
            again=options.again,
            retry_failed=options.retry_failed,
            limits=limits_of(options),
            resume_command=resume_command(),
        ) as run:
            left_out = await crawl_in(run, client, scope, rules, options)
            return run.exit_code or (EXIT_LEFT_OUT if left_out else 0)


def _opened(
    options: argparse.Namespace, open_client: OpenClient
) -> AbstractAsyncContextManager[http.Client]:
    return open_client(
        user_agent=options.user_agent, connections=options.concurrency, timeout_s=options.timeout
    )


async def _records_of(options: argparse.Namespace) -> dict[str, list[object]]:
    """What the files of the pages say that the crawl has met so far."""
    files = (FORBIDDEN, REDIRECTS, *([PAGES] if options.warc else []))
    return await read_objects(store_of(options), options.out, files)


async def crawl_in(
    run: trio_ckpt.Run,
    client: http.Client,
    scope: urls.Scope,
    rules: robots.RobotsRules,
    options: argparse.Namespace,
    site: str = "",
) -> int:
    """Crawl a site in an open run; returns how many links were left out.

    Args:
        run: The run.
        client: Fetches pages.
        scope: What is crawled.
        rules: The site's robots.txt.
        options: As `parse_options` gives them, but ``out`` has the files of this site.
        site: Names its stream and its folder in a partition; empty: the run crawls one site.
    """
    # What robots.txt allows now is begun with; the frontier leaves out what it has had already.
    records = await _records_of(options) if options.files else {}
    if options.files:
        forbidden = Forbidden.of(records.get(FORBIDDEN, ()))
    else:
        forbidden = await trio.to_thread.run_sync(Forbidden.load, options.out, MAX_FILE_BYTES)
    frontier = Frontier([scope.start_url, *forbidden.release(rules.allows)])
    delay_s = max(options.delay, rules.crawl_delay_s or 0)
    if delay_s > LONG_DELAY_S:
        log.warning("one request in %.0f s: --delay, or Crawl-delay in robots.txt", delay_s)
    if rules.is_cut:
        log.warning(
            "robots.txt is long: only its first %d bytes are obeyed", robots.MAX_ROBOTS_BYTES
        )
    gate = HostGate(options.per_host or options.concurrency, delay_s)
    archive, until_left = None, trio.CancelScope()
    key, before = ("pages", site) if site else ("pages",), f"{site}/" if site else ""
    async with run.open_stream(*key, state=frontier, output_dir=site or None) as stream:
        if options.files:
            redirects = Redirects.of(records.get(REDIRECTS, ()))
        else:
            # Once more, without lines that a kill has left there and no checkpoint knows.
            sizes = stream.progress.sinks
            forbidden = await trio.to_thread.run_sync(
                Forbidden.load, options.out, sizes.get(before + FORBIDDEN, 0)
            )
            forbidden.release(rules.allows)
            redirects = await trio.to_thread.run_sync(
                Redirects.load, options.out, sizes.get(before + REDIRECTS, 0)
            )
        if options.warc:
            from ._crawler.warc import Archive  # few crawls keep an archive

            size = stream.progress.sinks.get(before + PAGES, 0)
            archive = (
                Archive.of(records.get(PAGES, ()), options.user_agent)
                if options.files
                else await trio.to_thread.run_sync(
                    Archive.load, options.out, size, options.user_agent
                )
            )
        crawler = Crawler(
            run,
            stream,
            client,
            scope,
            rules,
            gate,
            redirects,
            forbidden,
            options.max_pages,
            # In a partition other sites are next, which a stop of the run would keep from it.
            until_left.cancel if site else run.request_stop,
            options.files,
            archive,
        )
        try:
            async with shown(lambda: status_line(crawler), sys.stderr):
                with until_left:
                    await trio_ckpt.run_batches(
                        stream,
                        None,
                        crawler.crawl_page,
                        concurrency=options.concurrency,
                        retry=RETRIES,
                    )
        finally:
            with trio.CancelScope(shield=True):
                await save_failed(options, stream)
        return int(stream.statistics().totals.get("links_left_out", 0))


def status_line(crawler: Crawler) -> str:
    """The status of the crawl, for the display."""
    gate = crawler.gate
    line = describe(crawler.stream.statistics(), forbidden=len(crawler.forbidden.urls))
    if gate.paused_for_s:
        line += f", Retry-After: waiting {gate.paused_for_s:,.0f} s"
    if crawler.run.is_stopping:
        line += ", stopping"
    return line


async def save_failed(options: argparse.Namespace, stream: trio_ckpt.Stream[Frontier]) -> None:
    """Write failed.jsonl; where that cannot be done, what is leaving says more."""
    try:
        failed = sorted([entry async for entry in stream.skipped()], key=lambda entry: entry[0])
        await trio.to_thread.run_sync(write_failed, options.out, failed)
    except (trio_ckpt.OutputError, trio_ckpt.StoreError) as error:
        log.warning("%s", error)


def begin_again(options: argparse.Namespace) -> str:
    """The option that begins a crawl from its start."""
    return "--fresh" if options.partitions is None else "another --out"


def what_to_give(options: argparse.Namespace, changed: Collection[str]) -> str:
    """What goes on with a crawl that was begun with other options."""
    if "files" in changed and is_url(options.out):
        return "an earlier version has begun it, with other names of files: give --fresh"
    if "files" in changed:
        other = "without --files and --again" if options.files else "with --files"
        return f"it was begun {other}: go on so, or give --fresh"
    before = "URL" if options.partitions is None else "URLs, --partitions"
    return f"give the same {before}, --include and --exclude as before, or {begin_again(options)}"


def main() -> int:
    """Run the command; an error is one line, not a traceback."""
    options = parse_options()
    open_stderr()
    try:
        return trio.run(crawl, options)
    except KeyboardInterrupt:  # before anything was begun
        return 130
    except trio_ckpt.ConfigChangedError as error:
        changes = "; ".join(f"{name}: {was} -> {now}" for name, was, now in error.changes)
        advice = what_to_give(options, [name for name, _, _ in error.changes])
        say(f"cannot go on with another crawl: {changes}\n{advice}")
    except trio_ckpt.CannotRunAgainError as error:
        say(f"{error}".replace("again=True", "--again").replace("fresh=True", "--fresh"))
    except trio_ckpt.OutputsMissingError as error:
        say(f"cannot go on: {error.path}: put it back, or give {begin_again(options)}")
    except (CannotCrawlError, robots.RobotsUnavailableError, ValueError) as error:
        say(f"cannot crawl: {error}")
    except trio_ckpt.BatchFailedError as error:
        say(f"cannot crawl: {error.__cause__ or error}")
    except EXPECTED as error:
        return explain(error)
    return EXIT_CANNOT


if __name__ == "__main__":
    sys.exit(main())
