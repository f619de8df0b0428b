"""Where a stream ends: it is never COMPLETE while work is known to be left."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import (
    Batch,
    Frontier,
    NotEncodableError,
    SourceChangedError,
    Status,
    Stream,
    run_batches,
)
from trio_ckpt.stores import MemoryStore


async def complete(batch: Batch[Any]) -> None:
    batch.complete()


PAGES = range(1, 21)


@pytest.mark.parametrize("make", [lambda: PAGES, lambda: lambda: iter(PAGES)])
async def test_finish_after_a_range_is_refused_while_work_is_left(
    make: Any, tmp_path: Path
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("ocr", first_index=1) as stream:
            await run_batches(stream, make(), complete, end=5)
            with pytest.raises(RuntimeError, match="batch 6"):
                await stream.finish(metadata={"model": "m"})
            assert stream.status is Status.IN_PROGRESS
        assert (stream.status, run.exit_code, stream.metadata) == (Status.INTERRUPTED, 75, {})
    assert not (tmp_path / "manifest.json").exists()
    async with begin(store, output_dir=tmp_path) as run:
        assert run.streams_to_process() == [("ocr",)]
        async with run.open_stream("ocr", first_index=1) as stream:
            async for batch in stream.batches(make(), start=6):
                batch.complete()
            await stream.finish(metadata={"model": "m"})
        assert (stream.status, run.exit_code) == (Status.COMPLETE, 0)


async def test_finish_needs_no_loop_to_know_that_work_is_left() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(9), complete, start=2, end=5)
        with pytest.raises(RuntimeError, match="batch 0"):
            await stream.finish()
    async with begin(store) as run, run.open_stream("s") as stream:
        with pytest.raises(RuntimeError, match="batch 0 of 0 to 8"):
            await stream.finish()
        await run_batches(stream, range(9), complete, end=5)
        with pytest.raises(RuntimeError, match="batch 6 of 0 to 8"):
            await stream.finish()


async def test_finish_after_a_loop_that_was_left_is_refused() -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(lambda: iter("abc")):
            batch.complete()
            break
        with pytest.raises(RuntimeError, match="the source has a batch 1"):
            await stream.finish()


async def test_finish_is_refused_while_a_frontier_has_items() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s", state=Frontier(["a", "b"])) as stream:
            with pytest.raises(RuntimeError, match="batch 0 of 0 to 1"):
                await stream.finish()
            await run_batches(stream, None, complete)
            await stream.finish()
            assert stream.status is Status.COMPLETE


async def test_an_open_end_that_a_range_cut_off_is_not_finished() -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(end=5):
            batch.complete()
        with pytest.raises(RuntimeError, match="end="):
            await stream.finish()
        async for batch in stream.batches():
            if batch.index == 8:
                batch.withdraw()
            else:
                batch.complete()
        await stream.finish(metadata={"pages": 8})
        assert (stream.status, len(stream.progress.confirmed)) == (Status.COMPLETE, 8)


@pytest.mark.parametrize("form", [list, lambda part: lambda: iter(part)])
async def test_a_part_given_as_the_list_completes_nothing(form: Any) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("ocr", first_index=1) as stream:
        await run_batches(stream, PAGES, complete, end=3)
    async with begin(store) as run:
        with pytest.raises(SourceChangedError, match=r"is left of 20.*start= and end=") as caught:
            async with run.open_stream("ocr", first_index=1) as stream:
                await run_batches(stream, form(range(1, 6)), complete)
        assert caught.value.batch_index == 6
        assert stream.status is Status.FAILED
        async with run.open_stream("ocr", first_index=1) as stream:
            await run_batches(stream, PAGES, complete)
            assert stream.status is Status.COMPLETE
        assert run.exit_code == 0


async def test_a_part_of_a_list_never_told_of_counts_as_the_list() -> None:
    """A source is the whole list: no loop can know of another, and a longer one goes on."""
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("ocr", first_index=1) as stream:
        await run_batches(stream, range(1, 6), complete)
        assert (stream.status, stream.progress.expected) == (Status.COMPLETE, 5)
    for first in (6, 1):  # what comes next, given as the list, is refused; the whole is not
        async with begin(store) as run:
            with suppress(SourceChangedError):
                async with run.open_stream("ocr", first_index=1) as stream:
                    await run_batches(stream, range(first, 21), complete)
        assert len(stream.progress.confirmed) == (5 if first == 6 else 20)
    assert stream.status is Status.COMPLETE


@pytest.mark.parametrize("done", [[], range(1, 6), range(3, 9)])
async def test_what_remains_is_no_list_of_items(done: range) -> None:
    store = MemoryStore()
    if done:
        async with begin(store) as run, run.open_stream("ocr", first_index=1) as stream:
            await run_batches(stream, PAGES, complete, start=done[0], end=done[-1])
    async with begin(store) as run:
        with pytest.raises(SourceChangedError, match="start= and end="):
            async with run.open_stream("ocr", first_index=1) as stream:
                left = stream.remaining(total=20, start=2)
                await run_batches(stream, left, complete)
        assert stream.progress.done.stop <= 20
        assert run.exit_code == 75


async def test_what_remains_beside_adopted_files_is_no_list(tmp_path: Path) -> None:
    for page in (1, 2, 3):
        (tmp_path / str(page)).write_text("old")
    async with begin("memory:", output_dir=tmp_path) as run:
        with pytest.raises(SourceChangedError):
            async with run.open_stream("ocr", first_index=1) as stream:
                await stream.rescan(str, total=6, adopt_outputs=True)
                await run_batches(stream, stream.remaining(total=6), complete)
        async with run.open_stream("ocr", first_index=1) as stream:
            await run_batches(stream, range(1, 7), complete)
        assert (stream.status, stream.progress.first_index) == (Status.COMPLETE, 1)


async def test_a_list_that_was_finished_may_grow() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(5), complete)
        await stream.finish()
    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(8), complete, end=5)
        assert stream.statistics().left == 2
        assert stream.progress.left == 2  # as it is seen from outside
        await run_batches(stream, range(8), complete)
        assert (stream.status, stream.progress.left) == (Status.COMPLETE, 0)


async def test_an_end_that_was_found_wins_over_a_total_that_was_said() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        assert len(stream.remaining(total=20)) == 20
        async for batch in stream.batches():
            if batch.index == 7:
                batch.withdraw()
            else:
                batch.complete()
        await stream.finish()
        assert (stream.status, stream.statistics().left) == (Status.COMPLETE, 0)
        assert stream.remaining() == []
    async with begin(store) as run, run.open_stream("s") as stream:
        assert (stream.remaining(), stream.statistics().left) == ([], 0)


async def in_a_loop(stream: Stream[Any], items: list[Any], handle: Any) -> None:
    async for batch in stream.batches(items):
        await handle(batch)


@pytest.mark.parametrize("bad", [object(), {"n": float("nan")}, [[2**64]], {1: "a"}])
@pytest.mark.parametrize("work", [in_a_loop, run_batches])
async def test_a_bad_item_is_refused_before_any_work(work: Any, bad: Any) -> None:
    """And not in hour three, when the loop comes to it."""
    worked = []

    async def handle(batch: Batch[Any]) -> None:
        worked.append(batch.index)
        batch.complete()

    async with begin(MemoryStore()) as run, run.open_stream("s") as stream:
        with pytest.raises(NotEncodableError, match="the item of batch 2"):
            await work(stream, ["a", 1, bad, "b"], handle)
        assert worked == []
        await work(stream, ["a", 1, "b"], handle)
        assert worked == [0, 1, 2]
