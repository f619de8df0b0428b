"""What type checkers tell users.  Checked by mypy and pyright, never run."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, assert_type

import attrs

import trio_ckpt
from trio_ckpt import (
    Batch,
    Batches,
    CheckpointCoordinator,
    CheckpointFailedError,
    CheckpointResult,
    CheckpointToken,
    Frontier,
    Progress,
    RetryRule,
    RetryTable,
    Run,
    Status,
    Stream,
    StreamStatistics,
    Then,
    TokenState,
)
from trio_ckpt.engines import map_tasks
from trio_ckpt.remote import TaskFailedError, Work
from trio_ckpt.testing import Exploration, World, explore_crashes


@attrs.define
class Page:
    number: int


# -- tokens -----------------------------------------------------------------------------------


async def a_token_is_generic_in_its_result(token: CheckpointToken[int]) -> None:
    assert_type(await token.wait(), int)
    assert_type(token.result_nowait(), int)
    assert_type(token.complete(1), bool)
    assert_type(token.complete(), bool)
    assert_type(token.fail("a reason"), bool)
    assert_type(token.fail(OSError()), bool)
    assert_type(token.state, TokenState)
    assert_type(token.is_pending, bool)
    assert_type(token.created_at, datetime)
    assert_type(token.age_s, float)
    assert_type(token.stream, tuple[str, ...])
    token.complete("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    token.fail(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_coordinator_makes_tokens_of_any_result() -> None:
    async with CheckpointCoordinator() as coordinator:
        assert_type(coordinator, CheckpointCoordinator)
        pages: CheckpointToken[list[Page]] = coordinator.create_checkpoint("run", 0)
        assert_type(await pages.wait(), list[Page])
        assert_type(coordinator.create_checkpoint("run", 1), CheckpointToken[Any])
        assert_type(coordinator.find_checkpoint("run", 0), CheckpointToken[Any] | None)
        assert_type(coordinator.get_pending_checkpoints(), tuple[CheckpointToken[Any], ...])
        assert_type(await coordinator.registry.wait_changed(0), int)
        async with coordinator.open_checkpoint("run", 2, stream=("a", "b")) as token:
            assert_type(token, CheckpointToken[Any])
        coordinator.create_checkpoint("run", 0, ("a",))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def an_error_says_where(error: CheckpointFailedError) -> None:
    assert_type(error.reason, str)
    assert_type(error.run_id, str | None)
    assert_type(error.stream, tuple[str, ...])
    assert_type(error.batch_index, int | None)


# -- runs -------------------------------------------------------------------------------------


async def a_run() -> None:
    opened = trio_ckpt.open_run("run", store="memory:", config={"a": 1}, output_dir="data")
    is_context: AbstractAsyncContextManager[Run] = opened
    async with is_context as run:
        assert_type(run.exit_code, int)
        await run.wait_confirmed(("a", "b"), range(3))
        stream: Stream[None]
        async with run.open_stream("repo", "pulls", first_index=1) as stream:
            assert_type(stream.status, Status)
            assert_type(stream.progress, Progress)
            assert_type(stream.statistics(), StreamStatistics)
            await run.wait_confirmed(stream, [1, 2])


async def a_stream_is_generic_in_its_state(run: Run, page: Page) -> None:
    async with run.open_stream("train", state=page) as stream:
        assert_type(stream, Stream[Page])
        assert_type(stream.state, Page)
        stream.state = Page(2)
        stream.state = 2  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    async with run.open_stream("site", state=Frontier(["https://example.org"])) as site:
        assert_type(site, Stream[Frontier[str]])


async def a_batch_is_generic_in_its_item(stream: Stream[Any], pages: list[Page]) -> None:
    assert_type(stream.batches(pages), Batches[Page])
    async for batch in stream.batches(pages, key=lambda page: str(page.number)):
        assert_type(batch, Batch[Page])
        assert_type(batch.item, Page)
        assert_type(batch.index, int)
        assert_type(batch.token, CheckpointToken[CheckpointResult])
        assert_type(await batch.write_json("page.json", {}), str)
        assert_type(batch.complete(records=1, totals={"cost_usd": 0.5}), bool)
        assert_type(batch.skip("a reason"), bool)
        assert_type(await batch.token.wait(), CheckpointResult)
    async for number in stream.batches(lambda: iter([1, 2, 3])):
        assert_type(number.item, int)
    async with stream.open_batch() as one:
        assert_type(one, Batch[None])


async def a_handler_takes_the_batches_of_its_items(stream: Stream[Any], pages: list[Page]) -> None:
    async def handle(batch: Batch[Page]) -> None:
        batch.complete()

    retry = RetryTable((RetryRule((OSError,), attempts=3, then=Then.SKIP),))
    await trio_ckpt.run_batches(stream, pages, handle, concurrency=4, retry=retry)


def scale(item: Page, factor: float = 2.0) -> float:
    return item.number * factor


def grow(item: int, work: Work) -> str:  # a state of any type
    work.state["n"] = item
    assert_type(work, Work[Any])
    return str(item)


async def grow_typed(item: int, work: Work[Page]) -> Page:
    work.point_sync()
    assert_type(work.state, Page)
    return Page(item)


async def functions_of_map_tasks_say_what_it_gives(pages: list[Page]) -> None:
    assert_type(await map_tasks(scale, pages), list[float])
    assert_type(await map_tasks(grow, [1], workers=1), list[str])
    assert_type(await map_tasks(grow_typed, range(3)), list[Page])
    assert_type(await map_tasks(grow, [1], errors="collect", slots=2), list[str | TaskFailedError])
    assert_type(await map_tasks(grow_typed, [1], errors="collect"), list[Page | TaskFailedError])
    assert_type(await map_tasks("module:function", [1]), list[Any])
    await map_tasks(grow, ["x"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_program_that_crashes(world: World) -> int:
    async with trio_ckpt.open_run("run", store=world.store, output_dir=world.output_dir):
        assert_type(world.files.read("f"), bytes)
        assert_type(world.progress("pages"), Progress)
        return world.count("ran", 1)


async def an_async_check(world: World) -> None:
    assert_type(world.crashes, int)


def crashes_are_explored_with_either_check() -> None:
    assert_type(explore_crashes(a_program_that_crashes, an_async_check), Exploration)
    assert_type(explore_crashes(a_program_that_crashes, lambda world: None), Exploration)
    explore_crashes(a_program_that_crashes, an_async_check, points=("store", "files"))
