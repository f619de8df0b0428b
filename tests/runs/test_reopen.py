"""A complete stream goes on behind its last batch when its source has got more."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.opening import begin, begin_blocking
from tests.testing.programs import explore_crashes
from trio_ckpt import Batch, Status, Stream, open_run, read_history, run_batches
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import World


@pytest.fixture(params=["memory", "sqlite", "json"])
async def store(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncGenerator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = await open_store(f"{request.param}:{tmp_path / 'store'}", durability="process")
    yield opened
    await opened.aclose()


async def turn_pages(stream: Stream[Any], source: list[str], seen: list[str]) -> None:
    """Ask for what is behind the cursor, page by page, until a page is empty."""
    async for batch in stream.batches():
        at = (stream.cursor or {"next": 0})["next"]
        if at == len(source):
            batch.withdraw()
            continue
        seen.append(source[at])
        batch.complete(cursor={"next": at + 1}, records=1)


@asynccontextmanager
async def opened(store: Store, **options: Any) -> AsyncGenerator[Stream[Any]]:
    async with begin(store, **options) as run, run.open_stream("s") as stream:
        yield stream


async def test_it_goes_on_from_its_cursor(store: Store) -> None:
    source, seen = ["a", "b"], list[str]()
    async with opened(store) as stream:
        await turn_pages(stream, source, seen)
    source += ["c", "d"]
    async with opened(store) as stream:
        await turn_pages(stream, source, seen)
        assert (stream.status, seen) == (Status.COMPLETE, ["a", "b"])
        assert await stream.reopen(reason="it is Monday")
        assert stream.status is Status.IN_PROGRESS
        await turn_pages(stream, source, seen)
        assert (stream.status, seen) == (Status.COMPLETE, ["a", "b", "c", "d"])
        assert stream.progress.records == 4
    async with opened(store) as stream:
        await turn_pages(stream, source, seen)
        assert await stream.reopen(reason="it is Tuesday")
        await turn_pages(stream, source, seen)
        assert (stream.status, seen) == (Status.COMPLETE, ["a", "b", "c", "d"])
    reasons = [
        entry.metadata["reason"]
        async for entry in read_history(store, "r", ("s",))
        if "reason" in entry.metadata
    ]
    assert reasons == ["it is Tuesday", "it is Monday"]


async def test_a_start_goes_on_with_what_was_reopened(store: Store) -> None:
    source, seen = ["a"], list[str]()
    async with opened(store) as stream:
        await turn_pages(stream, source, seen)
        await stream.reopen(reason="x")
    source.append("b")
    async with opened(store) as stream:
        assert stream.status is Status.IN_PROGRESS
        await turn_pages(stream, source, seen)
        assert (stream.status, seen) == (Status.COMPLETE, ["a", "b"])


async def test_an_empty_stream_can_be_reopened(store: Store) -> None:
    source, seen = list[str](), list[str]()
    async with opened(store) as stream:
        await turn_pages(stream, source, seen)
        assert stream.status is Status.COMPLETE
        source.append("a")
        assert await stream.reopen(reason="x")
        await turn_pages(stream, source, seen)
        assert (stream.status, seen) == (Status.COMPLETE, ["a"])


async def test_the_last_state_goes_on(store: Store) -> None:
    for start in (0, 3):
        async with begin(store) as run, run.open_stream("s", state={"sum": 0}) as stream:
            if start:
                assert stream.state == {"sum": 3}
                assert await stream.reopen(reason="x")
            async for batch in stream.batches():
                if batch.index == start + 3:
                    batch.withdraw()
                    continue
                assert stream.state is not None
                stream.state["sum"] += batch.index
                batch.complete()
            assert stream.status is Status.COMPLETE
    async with begin(store) as run, run.open_stream("s", state={"sum": 0}) as stream:
        assert stream.state == {"sum": 15}


async def test_a_list_that_has_grown_may_be_reopened_too(store: Store) -> None:
    done = list[int]()

    async def handle(batch: Batch[int]) -> None:
        done.append(batch.item)
        batch.complete()

    async with opened(store) as stream:
        await run_batches(stream, range(3), handle)
        assert await stream.reopen(reason="x")
        await run_batches(stream, range(5), handle, concurrency=2)
        assert stream.status is Status.COMPLETE
        assert stream.expected_batches == 5
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_only_a_complete_stream_is_reopened() -> None:
    store = MemoryStore()
    async with opened(store) as stream:
        assert not await stream.reopen(reason="x")
        async for batch in stream.batches(range(2)):
            batch.complete()
            break
        assert not await stream.reopen(reason="x")
        assert len(stream.progress.done) == 1
    async with begin(store) as run, run.open_stream("t", on_fail="record") as failed:
        await failed.fail("it is gone", retryable=False)
        assert not await failed.reopen(reason="x")
        assert failed.status is Status.FAILED


@pytest.mark.parametrize("reason", [None, 3])
async def test_a_reason_is_a_text(reason: Any) -> None:
    async with opened(MemoryStore()) as stream:
        with pytest.raises(TypeError, match="reason must be"):
            await stream.reopen(reason=reason)


def test_a_synchronous_program_can_reopen_it() -> None:
    with begin_blocking() as run, run.open_stream("s") as stream:
        for _ in range(2):
            for batch in stream.batches():
                if batch.index % 2:
                    batch.withdraw()
                    continue
                batch.complete()
            assert stream.status is Status.COMPLETE
            assert stream.reopen(reason="x")


async def collect_twice(world: World) -> None:
    """Two batches, and a third one when the stream was complete."""
    async with open_run("r", store=world.store) as run, run.open_stream("s") as stream:
        while len(stream.progress.done) < 3 or stream.status is not Status.COMPLETE:
            await stream.reopen(reason="it has grown")
            end = 3 if len(stream.progress.done) >= 2 else 2
            async for batch in stream.batches():
                if batch.index == end:
                    batch.withdraw()
                    continue
                batch.complete(records=1)


async def check_twice(world: World) -> None:
    view = await world.store.load_run("r")
    assert view is not None
    progress = view.streams["s",].progress
    assert progress.records == len(progress.confirmed) == 3


def test_crashes_lose_and_double_nothing() -> None:
    explore_crashes(collect_twice, check_twice, schedules=10)


async def test_reopening_waits_for_its_turn(store: Store) -> None:
    with trio.fail_after(60):
        async with opened(store) as stream:
            async for batch in stream.batches():
                if batch.index == 1:
                    batch.withdraw()
                    continue
                batch.complete()
                assert not await stream.reopen(reason="x")  # the batch passes the gate first
            assert stream.status is Status.COMPLETE
