"""What type checkers tell synchronous programs.  Checked by mypy and pyright, never run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import assert_type

import attrs

from trio_ckpt import Phase, Progress, Run, RunStatistics, Status, blocking, from_asyncio
from trio_ckpt.blocking import (
    BlockingBatch,
    BlockingCollection,
    BlockingPartition,
    BlockingRun,
    BlockingStream,
    run_batches,
)
from trio_ckpt.progress import show_progress


@attrs.define
class Counter:
    steps: int


def a_run_is_a_block() -> None:
    with blocking.open_run("r", store="memory:", grace_s=1.0) as run:
        assert_type(run, BlockingRun)
        assert_type(run.run_id, str)
        assert_type(run.exit_code, int)
        assert_type(run.statistics(), RunStatistics)
        assert_type(run.open_streams, frozenset[tuple[str, ...]])
        run.request_stop()
        run.wait_confirmed(("a",), [1])
        with run.phase("discovery") as phase:
            assert_type(phase, Phase)
        with run.beside(show_progress, every_s=1.0):
            pass
        run.beside(show_progress, 7)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    blocking.open_run("r")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    blocking.open_run("r", store="s", no="option")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_collection_is_a_block() -> None:
    with blocking.open_collection("c", store="memory:", partitions=3, items=9) as collection:
        assert_type(collection, BlockingCollection)
        assert_type(collection.exit_code, int)
        with collection.claim() as partition:
            assert_type(partition, BlockingPartition | None)
            if partition is not None:
                assert_type(partition.range, range)
                assert_type(partition.holds("a"), bool)
                assert_type(partition.run, BlockingRun)
        with collection.finish() as run:
            assert_type(run, BlockingRun | None)
    blocking.open_collection("c", store="s")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_stream_is_generic_in_its_state(run: BlockingRun) -> None:
    with run.open_stream("a") as plain:
        assert_type(plain, BlockingStream[None])
    with run.open_stream("a", "b", state=Counter(0), first_index=1) as stream:
        assert_type(stream, BlockingStream[Counter])
        assert_type(stream.state, Counter)
        stream.state = Counter(1)
        stream.state = 7  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        assert_type(stream.progress, Progress)
        assert_type(stream.status, Status)
        assert_type(stream.expected_batches, int | None)
        assert_type(stream.remaining(total=3), list[int])
        assert_type(stream.finish(), None)
        stream.finish(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_batch_is_generic_in_its_item(stream: BlockingStream[None]) -> None:
    for batch in stream.batches(["a", "b"]):
        assert_type(batch, BlockingBatch[str])
        assert_type(batch.index, int)
        assert_type(batch.item, str)
        assert_type(batch.write_json("a.json", {}), str)
        assert_type(batch.complete(records=1), bool)
        assert_type(batch.confirm(), None)
        assert_type(batch.waiting(), AbstractContextManager[None])
        batch.complete(record=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        batch.write_text("a.txt", 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for endless in stream.batches():
        assert_type(endless.item, None)
    with stream.open_batch() as one:
        assert_type(one, BlockingBatch[None])


def a_handler_takes_the_items_of_the_list(stream: BlockingStream[None]) -> None:
    def handle(batch: BlockingBatch[str]) -> None:
        batch.complete()

    run_batches(stream, ["a"], handle, concurrency=2)
    run_batches(stream, [1], handle)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]


async def a_bridge_returns_what_its_function_does(run: Run) -> None:
    async def square(number: int) -> int:
        return number * number

    assert_type(await from_asyncio.run(square, 2), int)
    assert_type(await from_asyncio.call(square, 2), int)
    await from_asyncio.call(square, "2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
