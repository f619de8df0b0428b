"""Rows of batches that are re-queued are taken back before these run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from tests.sinks.program import AGAIN, open_sink, read_rows, undisturbed, undo, write
from tests.sinks.test_refusals import change
from tests.sinks.test_transactions import committed_without_record, insert
from trio_ckpt import (
    Batch,
    CannotRedoError,
    RunStoppedError,
    Stream,
    open_maintenance,
    run_batches,
)
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.sinks import Sink, SinkConnection, SinkMarker
from trio_ckpt.sinks._stream_rows import StreamRows
from trio_ckpt.stores import MemoryStore, open_store

KEY = ("s",)


async def write_all(sink: Sink, stream: Stream[None], count: int = 6) -> None:
    """Write the rows of batches that stand alone."""

    async def handle(batch: Batch[int]) -> None:
        async with sink.transaction(batch) as connection:
            for line in range(2):
                await connection.execute(f"INSERT INTO pages VALUES ({batch.index}, {line})")
            await connection.execute("UPDATE counted SET batches = batches + 1")
            batch.complete()

    await run_batches(stream, range(count), handle)


def without(*left_out: int) -> tuple[list[Any], int]:
    pages, count = undisturbed(6)
    return [row for row in pages if row[0] not in left_out], count - len(left_out)


class CrashError(Exception):
    """Where a process ends."""


async def crash(*_: object) -> None:
    raise CrashError


async def test_a_redo_takes_the_rows_of_its_batches_back(database: str) -> None:
    sink = open_sink(database, undo=undo)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        await write_all(sink, stream)
        await stream.redo([1, 4], reason="wrong")
        assert read_rows(database) == without(1, 4)
        await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_a_redo_is_refused_where_rows_cannot_be_taken_back(database: str) -> None:
    sink = open_sink(database)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        await write_all(sink, stream)
        with pytest.raises(CannotRedoError, match="does not know how: give it undo=") as refused:
            await stream.redo([1], reason="wrong")
        assert refused.value.batch_index == 1
        assert stream.remaining(total=6) == []
    assert read_rows(database) == undisturbed(6)


async def test_a_rewind_is_followed_when_the_stream_is_opened(database: str) -> None:
    sink = open_sink(database, undo=undo)
    async with begin() as run:
        async with run.open_stream("s", sink=sink, retry=AGAIN) as stream:
            async for batch in stream.batches(range(6)):
                await write(sink, batch)
        await run.rewind(KEY, to=2, reason="wrong")
        assert read_rows(database) == undisturbed(6)
        async with run.open_stream("s", sink=sink, retry=AGAIN) as stream:
            assert read_rows(database) == without(3, 4, 5)
            async for batch in stream.batches(range(6)):
                await write(sink, batch)
    assert read_rows(database) == undisturbed(6)


async def test_a_stream_is_not_opened_beside_rows_that_are_to_go(database: str) -> None:
    sink = open_sink(database)
    async with begin() as run:
        async with run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
        await run.rewind(KEY, to=3, reason="wrong")
        with pytest.raises(
            CannotRedoError, match=r"the rows of 2 batches \(4-5\) have to be taken"
        ):
            async with run.open_stream("s", sink=sink):
                raise AssertionError
        sink = open_sink(database, undo=undo)
        async with run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_a_stream_that_is_rewound_to_its_start_begins_again(database: str) -> None:
    sink = open_sink(database, undo=undo)
    async with begin() as run:
        async with run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
        await run.rewind(KEY, to=-1, reason="all of it")
        async with run.open_stream("s", sink=sink) as stream:
            assert read_rows(database) == ([], 0)
            await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_rows_without_markers_are_not_written_again(database: str) -> None:
    """However often the stream is opened after its table was lost."""
    sink = open_sink(database)
    async with begin() as run:
        async with run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
        await run.rewind(KEY, to=-1, reason="all of it")
        change(database, "DROP TABLE trio_ckpt_markers")
        for _ in range(2):
            with pytest.raises(CannotRedoError, match="give it undo="):
                async with run.open_stream("s", sink=sink):
                    raise AssertionError
        sink = open_sink(database, undo=undo)
        async with run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_a_redo_by_an_owner_without_a_sink_is_followed(database: str, tmp_path: Path) -> None:
    folder, sink = tmp_path / "store", open_sink(database, undo=undo)
    async with begin(folder) as run, run.open_stream("s", sink=sink) as stream:
        await write_all(sink, stream)
    store = await open_store(folder)
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.rewind(KEY, to=3, reason="by hand")
    await store.aclose()
    async with begin(folder) as run, run.open_stream("s", sink=sink) as stream:
        assert read_rows(database) == without(4, 5)
        await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_a_crash_between_a_redo_and_its_rows_is_mended(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sink = MemoryStore(), open_sink(database, undo=undo)

    async def work() -> None:
        async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
            monkeypatch.setattr(StreamRows, "_take_back", crash)
            await stream.redo([2], reason="wrong")

    with pytest.raises(CrashError):
        await work()
    monkeypatch.undo()
    assert read_rows(database) == undisturbed(6)
    store = store.after_crash()
    async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
        assert read_rows(database) == without(2)
        await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)
    async with begin(store.after_crash()) as run, run.open_stream("s", sink=sink):
        assert read_rows(database) == undisturbed(6)


async def test_a_commit_does_not_hide_a_redo_that_is_not_followed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sink = MemoryStore(), open_sink(database, undo=undo)

    async def redo_in_transaction(batch: Batch[int]) -> None:
        async with sink.transaction(batch):
            with monkeypatch.context() as patch:
                patch.setattr(StreamRows, "_take_back", crash)
                with pytest.raises(CrashError):
                    await stream._redo.redo([2], "wrong")
            batch.complete()

    async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
        await write_all(sink, stream)
        await run_batches(stream, range(7), redo_in_transaction, start=6)
        assert read_rows(database) == undisturbed(6)
    async with begin(store.after_crash()) as run, run.open_stream("s", sink=sink) as stream:
        assert read_rows(database) == without(2)


async def test_rows_that_were_not_taken_back_go_before_the_batch_begins(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink(database, undo=undo)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        await write_all(sink, stream)
        with monkeypatch.context() as patch:
            patch.setattr(StreamRows, "_take_back", crash)
            with pytest.raises(CrashError):
                await stream.redo([2], reason="wrong")
        await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_rows_are_taken_back_once_also_by_an_undo_that_counts(database: str) -> None:
    """The undo of a batch is in one transaction with the note that it is done."""
    sink = open_sink(database, undo=undo)
    async with begin() as run:
        for _ in range(3):
            async with run.open_stream("s", sink=sink) as stream:
                await write_all(sink, stream)
                await stream.redo([5], reason="wrong")
            assert read_rows(database) == without(5)


async def test_an_undo_that_fails_changes_nothing(database: str) -> None:
    class UndoError(Exception):
        pass

    async def fail(connection: SinkConnection, marker: SinkMarker) -> None:
        await undo(connection, marker)
        raise UndoError

    store, sink = MemoryStore(), open_sink(database, undo=fail)

    async def work() -> None:
        async with begin(store) as run, run.open_stream("s", sink=sink) as stream:
            await write_all(sink, stream)
            await stream.redo([2], reason="wrong")

    with pytest.raises(UndoError):
        await work()
    assert read_rows(database) == undisturbed(6)
    sink = open_sink(database, undo=undo)
    async with begin(store.after_crash()) as run, run.open_stream("s", sink=sink) as stream:
        await write_all(sink, stream)
    assert read_rows(database) == undisturbed(6)


async def test_rows_without_a_record_go_with_what_they_built_on(database: str) -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError):
        await committed_without_record(database, store, cursor=1)
    assert read_rows(database)[0] == [(0, 0)]
    store, sink = store.after_crash(), open_sink(database, undo=undo)
    async with begin(store) as run:
        async with run.open_stream("s") as stream:  # without the sink
            async for batch in stream.batches(["a", "b"]):
                batch.complete()
        await run.rewind(KEY, to=-1, reason="wrong")
        async with run.open_stream("s", sink=sink) as stream:
            assert read_rows(database)[0] == []
            async for batch in stream.batches(["a", "b"]):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    batch.complete()
    assert read_rows(database)[0] == [(0, 0)] * 2


async def test_a_damaged_output_takes_the_rows_of_its_batch_back(
    database: str, tmp_path: Path
) -> None:
    store, sink = MemoryStore(), open_sink(database, undo=undo)

    async def work(store: MemoryStore) -> list[int]:
        begun: list[int] = []
        async with (
            begin(store, output_dir=tmp_path / "out") as run,
            run.open_stream("s", sink=sink) as stream,
        ):
            async for batch in stream.batches(range(3)):
                begun.append(batch.index)
                async with sink.transaction(batch) as connection:
                    await connection.execute(f"INSERT INTO pages VALUES ({batch.index}, 0)")
                    await batch.write_text(f"{batch.index}.txt", "text")
                    batch.complete()
        return begun

    assert await work(store) == [0, 1, 2]
    (tmp_path / "out" / "1.txt").write_text("other")
    assert await work(store.after_crash()) == [1]
    assert read_rows(database)[0] == [(0, 0), (1, 0), (2, 0)]


async def test_a_damaged_output_stays_where_rows_cannot_be_taken_back(
    database: str, tmp_path: Path
) -> None:
    store, sink = MemoryStore(), open_sink(database)

    async def work(store: MemoryStore) -> None:
        async with (
            begin(store, output_dir=tmp_path / "out") as run,
            run.open_stream("s", sink=sink) as stream,
        ):
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch):
                    await batch.write_text("0.txt", "text")
                    batch.complete()

    await work(store)
    (tmp_path / "out" / "0.txt").write_text("other")
    with pytest.raises(CannotRedoError, match="give it undo="):
        await work(store.after_crash())
    assert (tmp_path / "out" / "0.txt").read_text() == "other"


async def test_a_batch_begins_when_its_older_rows_are_gone(database: str) -> None:
    sink, entered = open_sink(database, undo=undo), trio.Event()

    async def handle(batch: Batch[int]) -> None:
        async with sink.transaction(batch):
            entered.set()
            batch.complete()

    async def revert(rows: StreamRows) -> None:
        async with rows.reverting(IndexSet()):
            handled.set()
            await trio.sleep(0.1)
            assert not entered.is_set()

    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        handled = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(revert, sink._streams["r", KEY])
            await handled.wait()
            await run_batches(stream, range(1), handle)
    assert entered.is_set()
