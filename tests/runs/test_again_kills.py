"""A run that is done again may be killed anywhere: it ends as a fresh run does."""

from __future__ import annotations

import math
from typing import Any

from tests.opening import begin
from trio_ckpt import Frontier, run_batches
from trio_ckpt.testing import World, explore_crashes

HOW: dict[str, Any] = {"schedules": 20, "crashes": 400, "time_limit_s": math.inf}
"""Spread evenly over all points; no time decides which."""

OLD = {"a": "1", "b": "1", "c": "1"}
NEW = {"d": "1", "b": "2", "a": "1"}  # a has moved, b has changed, c is gone, d is new
LINKS = ({"/": ["/a", "/b"], "/a": [], "/b": []}, {"/": ["/b"], "/b": ["/c"], "/c": []})


async def work(world: World, items: dict[str, str], **options: Any) -> None:
    async with (
        begin(world.store, output_dir=world.output_dir, **options) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(list(items)):
            value, was = items[batch.item], batch.previous
            if was is not None and was.metadata["v"] == value:
                batch.unchanged()
                continue
            await batch.write_text(f"{batch.item}.txt", value)
            batch.append_json("log.jsonl", batch.item + value)
            batch.complete(metadata={"v": value}, totals={"n": 1})


async def twice(world: World) -> None:
    """Do the run once, then again; what is over stays over."""
    if not world.count("first"):
        await work(world, OLD)
        world.note("first")
    await work(world, NEW, again=True)


def check_files(world: World) -> None:
    files = {name: world.files.read(name).decode() for name in ("a.txt", "b.txt", "d.txt")}
    assert files == {"a.txt": "1", "b.txt": "2", "d.txt": "1"}
    assert not world.files.exists("c.txt")
    assert world.files.read(".archive/r-0/c.txt") == b"1"
    assert world.files.read(".archive/r-0/b.txt") == b"1"
    assert world.files.read("log.jsonl").split() == [b'"a1"', b'"b1"', b'"c1"', b'"d1"', b'"b2"']
    progress = world.progress("s")
    assert len(progress.confirmed) == 3


def test_a_list_that_is_done_again_survives_every_crash() -> None:
    found = explore_crashes(twice, check_files, **HOW)
    assert found.crash_points >= 400


async def crawl(world: World, links: dict[str, list[str]], **options: Any) -> None:
    async def visit(batch: Any) -> None:
        batch.add(links[batch.item])
        was = batch.previous
        if was is not None and was.metadata["links"] == links[batch.item]:
            batch.unchanged()
            return
        await batch.write_text(f"{batch.item.strip('/') or 'root'}.txt", str(links[batch.item]))
        batch.complete(metadata={"links": links[batch.item]})

    async with (
        begin(world.store, output_dir=world.output_dir, **options) as run,
        run.open_stream("s", state=Frontier(["/"])) as stream,
    ):
        await run_batches(stream, None, visit, concurrency=2)


async def crawl_twice(world: World) -> None:
    if not world.count("first"):
        await crawl(world, LINKS[0])
        world.note("first")
    await crawl(world, LINKS[1], again=True)


def check_pages(world: World) -> None:
    assert world.files.read("root.txt").decode() == str(["/b"])
    assert world.files.read("b.txt").decode() == str(["/c"])
    assert world.files.exists("c.txt")
    assert not world.files.exists("a.txt")


def test_a_frontier_that_is_done_again_survives_every_crash() -> None:
    found = explore_crashes(crawl_twice, check_pages, **HOW)
    assert found.crash_points >= 400


async def follow(world: World, rows: int, **options: Any) -> None:
    async with (
        begin(world.store, output_dir=world.output_dir, **options) as run,
        run.open_stream("s", lag=1) as stream,
    ):
        async for batch in stream.batches():
            since = stream.cursor or 0
            assert isinstance(since, int)
            page = list(range(since + 1, min(since + 3, rows + 1)))
            await batch.write_json(f"{batch.index}.json", page)
            batch.append_json("rows.jsonl", *page)
            batch.complete(cursor=page[-1] if page else since, last=len(page) < 2)


async def follow_twice(world: World) -> None:
    if not world.count("first"):
        await follow(world, 3)
        world.note("first")
    if not world.count("second"):
        await follow(world, 5, again=True)
        world.note("second")


def test_a_cursor_that_goes_on_survives_every_crash() -> None:
    def check(world: World) -> None:
        rows = [int(line) for line in world.files.read("rows.jsonl").split()]
        assert rows[:6] == [1, 2, 3, 3, 4, 5]
        assert set(rows[6:]) <= {5}  # killed between the end of the run and the note: once more
        assert world.files.read("0.json") == b"[1,2]\n"

    found = explore_crashes(follow_twice, check, **HOW)
    assert found.crash_points >= 400
