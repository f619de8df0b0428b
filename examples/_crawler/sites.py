"""Several sites: each is in one partition, and a process crawls one partition after the other."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

import trio_ckpt
from trio_ckpt.outputs import place_below

from .._command import limits_of, resume_command, say
from .._partitions import work_through
from .._web import http, robots, urls
from .failures import CannotCrawlError
from .options import store_of

EXIT_LEFT_OUT = 3  # the same as for skipped batches: complete, but for something

CrawlSite = Callable[
    [trio_ckpt.Run, http.Client, urls.Scope, robots.RobotsRules, argparse.Namespace, str],
    Awaitable[int],
]
"""Crawls a site in an open run; returns how many links were left out."""


def scopes_of(options: argparse.Namespace) -> list[urls.Scope]:
    """What is crawled of each site.

    Raises:
        ValueError: two of the start URLs are of one site.
    """
    narrowed = {"include": options.include, "exclude": options.exclude}
    scopes = {scope.site: scope for scope in [urls.Scope(u, **narrowed) for u in options.sites]}
    if len(scopes) < len(options.sites):
        raise ValueError("two of the URLs are of one site: give one of them")
    return list(scopes.values())


async def crawl_sites(client: http.Client, options: argparse.Namespace, crawl_in: CrawlSite) -> int:
    """Crawl partitions until none is left, beside any other process.

    Args:
        client: Fetches pages.
        options: As `parse_options` gives them.
        crawl_in: Crawls a site in an open run.

    Returns:
        The exit code.
    """
    scopes, left_out = scopes_of(options), 0

    async def crawl_partition(partition: trio_ckpt.Partition) -> None:
        nonlocal left_out
        run = partition.run
        here = {key_of(scope): scope for scope in scopes if partition.holds(scope.site)}
        await begin_streams(run, list(here))
        # Sites that are complete, or have failed for good, are asked for nothing.
        for key in run.streams_to_process(retry_failed=options.retry_failed):
            if (scope := here.get(key)) is not None:
                await crawl_site(run, client, scope, options, crawl_in)
        left_out += int(run.statistics().totals.get("links_left_out", 0))

    async with trio_ckpt.open_collection(
        "crawl",
        store=store_of(options),
        partitions=options.partitions,
        output_dir=options.out,
        config={
            "urls": sorted(scope.start_url for scope in scopes),
            "include": options.include,
            "exclude": options.exclude,
        },
        retry_failed=options.retry_failed,
        limits=limits_of(options),
        resume_command=resume_command(),
    ) as collection:
        exit_code = await work_through(collection, crawl_partition)
        return exit_code or (EXIT_LEFT_OUT if left_out else 0)


def key_of(scope: urls.Scope) -> tuple[str, ...]:
    """The stream of a site; its second part also names the folder of the site."""
    return "pages", scope.site.replace("://", ",").replace(":", ",")


async def begin_streams(run: trio_ckpt.Run, keys: list[tuple[str, ...]]) -> None:
    """Put the sites of a partition on its list; one that has no site is complete then."""
    async with run.open_stream("sites") as stream:
        async for _ in stream.batches([]):
            pass
    await run.add_streams(keys)


async def crawl_site(
    run: trio_ckpt.Run,
    client: http.Client,
    scope: urls.Scope,
    options: argparse.Namespace,
    crawl_in: CrawlSite,
) -> None:
    """Crawl one site of a partition; one that cannot be crawled does not stop the others."""
    _, site = key_of(scope)
    start, folder = scope.start_url, place_below(place_below(options.out, run.run_id), site)
    try:
        rules = await robots.load_robots(client, start, options.user_agent)
        if not rules.allows(start):
            raise CannotCrawlError(f"robots.txt of the site does not allow {start}")
        here = argparse.Namespace(**vars(options) | {"out": folder})
        await crawl_in(run, client, scope, rules, here, site)
        return
    except (CannotCrawlError, robots.RobotsUnavailableError, trio_ckpt.BatchFailedError) as error:
        problem = error.__cause__ if isinstance(error, trio_ckpt.BatchFailedError) else error
        is_down = isinstance(problem, robots.RobotsUnavailableError)
        if not is_down and not isinstance(problem, CannotCrawlError):
            raise
    say(f"cannot crawl {start}: {problem}")
    async with run.open_stream(
        "pages", site, state=trio_ckpt.Frontier([start]), on_fail="record", retry_failed=True
    ) as stream:
        await stream.fail(str(problem), retryable=is_down)
