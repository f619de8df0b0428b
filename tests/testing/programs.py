"""A program that is right, and three that are wrong in ways that no run without a crash shows."""

from __future__ import annotations

import json
import math
from functools import partial

import trio

import trio_ckpt
from trio_ckpt import testing
from trio_ckpt.testing import World

PAGES = 3

explore_crashes = partial(testing.explore_crashes, time_limit_s=math.inf)
"""What a test says of all crashes holds on a busy machine, too."""


async def good(world: World) -> None:
    """Outputs of all kinds, and a fact that is told when it is so."""
    async with (
        trio_ckpt.open_run("run", store=world.store, output_dir=world.output_dir) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(PAGES)):
            world.note("ran", batch.index)
            await trio.sleep(1)  # stands for a request
            path = await batch.write_json(f"pages/{batch.index}.json", {"page": batch.index})
            first = "x" * max(0, 3 - world.crashes)  # a line that is shorter when it is done again
            batch.append_json("lines.jsonl", {"page": batch.index, "more": first})
            batch.complete(outputs=[path], records=1, totals={"pages": 1})


def check_good(world: World) -> None:
    """Everything is there, exactly once, and nothing was done twice that was done."""
    progress = world.progress("pages")
    assert list(progress.confirmed) == list(range(PAGES))
    assert progress.records == PAGES
    tree = world.files.tree()
    assert {f"pages/{page}.json" for page in range(PAGES)} <= tree.keys()
    lines = [json.loads(line)["page"] for line in tree["lines.jsonl"].splitlines()]
    assert lines == list(range(PAGES))
    for page in range(PAGES):
        assert world.count("ran", page) <= 1 + world.crashes


async def tells_before_it_is_durable(world: World) -> None:
    """Broken: it says that a page is done as soon as it is completed, not when it is saved."""
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(PAGES)):
            batch.complete()
            world.note("told", batch.index)


async def tells_when_it_is_durable(world: World) -> None:
    """The program above, mended."""
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(PAGES)):
            batch.complete()
            await batch.confirm()
            world.note("told", batch.index)


def nothing_is_told_too_early(world: World) -> None:
    """At every moment what was told is so."""
    confirmed = world.progress("pages").confirmed
    for what, page in world.notes:
        assert what != "told" or page in confirmed, f"page {page} was told, and is not saved"


async def forgets_to_sync(world: World) -> None:
    """Broken: its file is written, but never synced, and no record names it."""
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(PAGES)):
            world.files.write(f"{batch.index}.txt", b"page %d" % batch.index)
            batch.complete()


async def syncs(world: World) -> None:
    """The program above, mended: the file, and each folder whose names it changed."""
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(PAGES)):
            world.files.write(f"{batch.index}.txt", b"page %d" % batch.index)
            for path in (f"{batch.index}.txt", "", "/"):
                world.files.fsync(path)
            batch.complete()


async def saves_before_it_writes(world: World) -> None:
    """Broken: progress goes ahead of the output."""
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(PAGES)):
            batch.complete()
            await batch.confirm()
            world.files.write(f"{batch.index}.txt", b"page %d" % batch.index)
            for path in (f"{batch.index}.txt", "", "/"):
                world.files.fsync(path)


def every_page_has_its_file(world: World) -> None:
    """At the end every page has its file, whole."""
    for page in range(PAGES):
        assert world.files.exists(f"{page}.txt"), f"the file of page {page} is missing"
        assert world.files.read(f"{page}.txt") == b"page %d" % page


def nothing_to_check(world: World) -> None:
    """Only the invariants."""
