"""Rows that are committed before their record: the record follows, or the run ends."""

from __future__ import annotations

import pytest
import trio

from tests.commit.test_gate import records_of
from tests.opening import begin
from trio_ckpt import RunStoppedError, SinkError
from trio_ckpt._commit.batch import commit_rows
from trio_ckpt._journal.record import Record, RecordKind, decode_record
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore


class RefusedError(Exception):
    """Why a database commits nothing."""


async def test_rows_are_committed_with_the_record_before_it_is_saved() -> None:
    store, seen = MemoryStore(), list[Record]()

    async def rows(payload: bytes, has_more: bool) -> None:
        assert not has_more
        assert await records_of(store) == []
        seen.append(decode_record(payload))

    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete(records=3, cursor=5)
            await commit_rows(batch, rows)
            assert stream.progress.records == 3
    assert (await records_of(store))[:1] == seen


async def test_a_commit_that_is_refused_fails_the_attempt() -> None:
    store = MemoryStore()

    async def rows(payload: bytes, has_more: bool) -> Exception:
        return RefusedError("a constraint")

    async def work() -> None:
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
                await commit_rows(batch, rows)

    with pytest.raises(RefusedError, match="a constraint"):
        await work()
    kinds = [record.kind for record in await records_of(store)]
    assert kinds == [RecordKind.ATTEMPT, RecordKind.FAIL]


async def test_a_cancelled_task_waits_for_its_commit_and_record() -> None:
    store, began = MemoryStore(), trio.Event()

    async def rows(payload: bytes, has_more: bool) -> None:
        began.set()
        await trio.sleep(0.01)

    async with begin(store) as run, run.open_stream("s") as stream:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await began.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            async for batch in stream.batches(range(1)):
                batch.complete()
                await commit_rows(batch, rows)
        assert stream.progress.is_done(0)


async def test_committed_rows_without_a_record_end_the_run() -> None:
    """Their batch must not run again in this session: the next start has the record."""
    store, attempts = FaultyStore(MemoryStore(), {2: Fail()}), 0

    async def rows(payload: bytes, has_more: bool) -> None:
        nonlocal attempts
        attempts += 1

    async def work() -> None:
        async with begin(store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                try:
                    await commit_rows(batch, rows)
                except Exception as error:
                    batch.fail(error)

    with pytest.raises(RunStoppedError) as stopped:
        await work()
    assert attempts == 1
    assert isinstance(stopped.value.__cause__, SinkError)
    assert str(stopped.value.__cause__) == (
        "the rows of batch 0 of run 'r', stream 's' are committed, and its record could not be "
        "saved (save 2 fails as planned; nothing was saved); start the run again: that saves it"
    )
