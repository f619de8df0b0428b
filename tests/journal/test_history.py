"""The history of a stream: newest first, page by page, and what of it still stands."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import Batch, Status, StoreDamagedError, Stream, read_history, run_batches
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.history import LiveRecords, read_pages, run_runtime_s, session_metadata_of
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt.abc import Checkpoint, RunKey, RunView
from trio_ckpt.stores import MemoryStore, open_store


async def work(stream: Stream[Any], count: int, **part: int) -> list[int]:
    worked = []
    async for batch in stream.batches(range(count), **part):
        worked.append(batch.index)
        batch.complete()
    return worked


async def read(store: Any, limit: int = 1_000) -> list[list[tuple[int, Record]]]:
    return [page async for page in read_pages(store, "r", 0, ("s",), limit=limit)]


# ---------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("limit", [1, 3, 5, 100])
async def test_pages_are_newest_first_and_whole(kind: str, limit: int, tmp_path: Path) -> None:
    store = await open_store("memory:" if kind == "memory" else str(tmp_path / "r.ckpt"))
    async with begin(store) as run, run.open_stream("s") as stream:
        await work(stream, 4)
    pages = await read(store, limit)
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    flat = [entry for page in pages for entry in page]
    assert [sequence for sequence, _ in flat] == [5, 4, 3, 2, 1]
    assert [record.kind for _, record in flat] == [RecordKind.FINISH] + [RecordKind.BATCH] * 4
    await store.aclose()


async def test_the_history_of_an_older_generation_can_be_read() -> None:
    store = MemoryStore()
    for count, is_fresh in ((2, False), (3, True)):
        async with begin(store, fresh=is_fresh) as run, run.open_stream("s") as stream:
            await work(stream, count)
    for generation, batches in ((None, [2, 1, 0]), (1, [2, 1, 0]), (0, [1, 0])):
        entries = read_history(store, "r", ("s",), generation=generation)
        assert [e.batch_index async for e in entries if e.kind == "batch"] == batches


async def test_a_stream_without_records_has_an_empty_page() -> None:
    assert await read(MemoryStore()) == [[]]


async def test_what_is_not_what_was_saved_is_refused() -> None:
    store = MemoryStore()
    async with store.lock_run("r") as owner:
        await store.save(RunKey("r", 0, owner), [Checkpoint('["s"]', 1, b"x" * 40)])
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        await read(store)


# ---------------------------------------------------------------------------------------
# What stands
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_what_stands_is_the_newest_of_each_batch_that_is_done(seed: int) -> None:
    rng, progress = random.Random(seed), Progress()
    log, stands = list[tuple[int, Record]](), dict[int, int]()
    for sequence in range(1, 40):
        index = rng.randrange(6)
        if index in stands:
            record = Record(kind=RecordKind.REDO, at=0.0, steps=(index, 1))
            del stands[index]
        elif rng.random() < 0.3:
            record = Record(kind=RecordKind.ATTEMPT, at=0.0, index=index)
        else:
            kind = rng.choice([RecordKind.BATCH, RecordKind.SKIP])
            record = Record(kind=kind, at=0.0, index=index)
            stands[index] = sequence
        apply(progress, sequence, record)
        log.append((sequence, record))
    for kind, done in ((RecordKind.BATCH, progress.confirmed), (RecordKind.SKIP, progress.skipped)):
        live = LiveRecords(progress)
        size = rng.randrange(1, 10)
        newest = log[::-1]
        found = [
            entry
            for at in range(0, len(newest), size)
            for entry in live.of(newest[at : at + size], (kind,))  # type: ignore[arg-type]
        ]
        assert {entry.index: entry.sequence for entry in found} == {n: stands[n] for n in done}
        assert all(entry.record.kind is kind for entry in found)


def test_what_is_live_is_of_the_moment_when_the_reading_began() -> None:
    log = [
        *((n + 1, Record(at=0.0, index=n)) for n in range(3)),
        (4, Record(kind=RecordKind.REDO, at=0.0, steps=(1, 1))),
        (5, Record(at=0.0, index=1)),
        (6, Record(kind=RecordKind.SKIP, at=0.0, index=3)),
    ]
    expected = {3: [2, 1, 0], 4: [2, 0], 5: [1, 2, 0], 6: [1, 2, 0]}
    for moment, indexes in expected.items():
        progress = Progress()
        for sequence, record in log[:moment]:
            apply(progress, sequence, record)
        live = LiveRecords(progress)
        for sequence, record in log[moment:]:  # what is saved meanwhile changes nothing
            apply(progress, sequence, record)
        assert [e.index for e in live.of(log[::-1])] == indexes
        assert [e.index for e in live.of(log[::-1], (RecordKind.SKIP,))] == [3] * (moment == 6)


# ---------------------------------------------------------------------------------------
# What the run's own stream says
# ---------------------------------------------------------------------------------------


async def test_the_facts_of_a_run_are_those_of_its_newest_session() -> None:
    store = MemoryStore()
    empty = RunView("r", 0, 1, {})
    assert session_metadata_of(empty) == {}
    assert run_runtime_s(empty) == 0.0
    async with begin(store, config={"n": 1}):
        view = await store.load_run("r")
        assert view is not None
        assert "ended" not in session_metadata_of(view)
    view = await store.load_run("r")
    assert view is not None
    assert (session_metadata_of(view)["ended"], session_metadata_of(view)["config"]) == (
        "ended",
        {"n": 1},
    )


# ---------------------------------------------------------------------------------------
# Ranges
# ---------------------------------------------------------------------------------------


async def test_the_range_that_was_worked_on_is_in_the_history() -> None:
    async def handle(batch: Batch[int]) -> None:
        batch.complete()

    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        assert await work(stream, 9, start=1, end=2) == [1, 2]
        assert await work(stream, 9, start=7) == [7, 8]
        await run_batches(stream, range(9), handle, end=3)
        assert await work(stream, 9) == [4, 5, 6]
    notes = [
        record.metadata["range"]
        for page in await read(store)
        for _, record in page
        if record.kind is RecordKind.NOTE
    ]
    assert notes[::-1] == [[1, 2], [7, None], [None, 3]]


@pytest.mark.parametrize("items", [range(6), lambda: iter(range(6))], ids=["list", "function"])
@pytest.mark.parametrize("is_parallel", [False, True])
async def test_a_range_completes_a_stream_only_with_all_of_its_batches(
    is_parallel: bool, items: Any
) -> None:
    async def handle(batch: Batch[int]) -> None:
        if batch.index == 3:
            batch.skip("no")
        else:
            batch.complete()

    async def do(stream: Stream[Any], **part: int) -> None:
        if is_parallel:
            await run_batches(stream, items, handle, concurrency=2, **part)
        else:
            async for batch in stream.batches(items, **part):
                await handle(batch)

    async with begin("memory:") as run:
        for part, status, code in (
            ({"start": 1, "end": 3}, Status.INTERRUPTED, 75),
            ({"start": 5}, Status.INTERRUPTED, 75),
            ({"end": 0}, Status.INTERRUPTED, 75),
            ({"start": 2, "end": 3}, Status.INTERRUPTED, 75),
            ({"start": 4}, Status.COMPLETE, 3),
        ):
            async with run.open_stream("s") as stream:
                await do(stream, **part)
            assert (stream.status, run.exit_code) == (status, code)


async def test_an_open_end_is_not_complete_because_a_range_ended() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(end=2):
                batch.complete()
        assert stream.status is Status.INTERRUPTED
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(start=2, end=3):
                batch.complete(last=batch.index == 3)
        assert stream.status is Status.COMPLETE
        assert list(stream.progress.confirmed) == [0, 1, 2, 3]


async def test_what_is_remaining() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s", first_index=1) as stream:
            with pytest.raises(ValueError, match="the end of the stream is not known"):
                stream.remaining()
            assert stream.remaining(total=4) == [1, 2, 3, 4]
            assert stream.remaining(end=2) == [1, 2]
            assert stream.remaining(total=4, start=3, end=9) == [3, 4]
            assert stream.remaining(total=4, end=0) == []
            async for batch in stream.batches(range(6), end=4):
                if batch.index == 2:
                    batch.skip("no")
                else:
                    batch.complete()
                if batch.index == 3:
                    break
            assert await anext(stream.batches(range(6), start=5))
            assert stream.remaining() == [4, 5, 6]  # nothing in flight counts as done
            assert stream.remaining(start=5) == [5, 6]
            assert stream.remaining(end=5) == [4, 5]
            assert stream.remaining(total=8) == [4, 5, 6, 7, 8]
            with pytest.raises(Exception, match="left without complete"):
                await stream.finish()
        async with run.open_stream("t") as stream:
            async for batch in stream.batches():
                batch.complete(last=batch.index == 2)
            assert stream.remaining() == []
            await stream.redo([1, 2], reason="x")
            assert stream.remaining() == [1, 2]
            assert stream.remaining(start=2) == [2]
        async with run.open_stream("u") as stream:
            await stream.finish()
            assert stream.remaining() == []


async def test_what_remains_is_known_after_a_restart() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(5)):
            batch.complete()
            if batch.index == 1:
                break
    async with begin(store.after_crash()) as run, run.open_stream("s") as stream:
        assert stream.remaining() == [2, 3, 4]
        assert stream.progress.left == 3
        assert await work(stream, 7) == [2, 3, 4, 5, 6]  # the list has grown
        assert stream.progress.expected == 7
