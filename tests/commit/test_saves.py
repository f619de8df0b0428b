"""Records that are not about a batch: at once, or with the next one where a save is far away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import trio
import trio.testing

import trio_ckpt
from tests.watched import WatchedStore
from trio_ckpt import StoreError, open_run
from trio_ckpt._journal.store import FarStore
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt.abc import Checkpoint, Fold, RunKey


class NotedStore(WatchedStore):
    """Notes what each of its saves contains, as streams with sequence numbers, and `folds`."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[list[str]] = []

    async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        noted = [f"{one.stream} {one.sequence}" for one in group]
        self.saves.append([*noted, "folds"] if folds else noted)


class FarNotedStore(NotedStore, FarStore):
    """A `NotedStore` of a work item."""


async def one_batch_and_its_end(store: NotedStore) -> None:
    async with open_run("r", store=store) as run:
        async with run.open_stream("s") as stream, stream.open_batch() as batch:
            batch.complete(last=True)
        async with run.open_stream("t") as stream:
            pass


async def test_records_without_a_batch_wait_for_others_of_a_far_store() -> None:
    store = FarNotedStore()
    await one_batch_and_its_end(store)
    assert store.saves == [["[] 1", '["s"] 1'], ['["s"] 2', "[] 2"]]
    found = await read_run_status(store, "r")
    assert found is not None
    assert found.view.streams["s",].progress.status is trio_ckpt.Status.COMPLETE


async def test_each_record_of_a_store_on_this_machine_is_saved_at_once() -> None:
    store = NotedStore()
    await one_batch_and_its_end(store)
    assert store.saves == [["[] 1"], ['["s"] 1'], ['["s"] 2'], ["[] 2"], ["folds"]]


async def test_a_session_of_a_far_store_without_batches_is_saved() -> None:
    store = FarNotedStore()
    async with open_run("r", store=store):
        await trio.testing.wait_all_tasks_blocked()
        assert store.saves == []
    assert store.saves == [["[] 1", "[] 2"]]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("is_left_by_error", [False, True])
async def test_a_stream_of_a_far_store_whose_end_is_on_its_way_is_complete(
    count: int, is_left_by_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not left before its end, is not begun again, and no later exception fails it."""
    store, caught = FarNotedStore(), pytest.raises(ZeroDivisionError)
    with caplog.at_level(logging.INFO, "trio_ckpt"), caught if is_left_by_error else nullcontext():
        async with open_run("r", store=store) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(count)):
                batch.complete()
            if is_left_by_error:
                raise ZeroDivisionError
    assert stream.status is trio_ckpt.Status.COMPLETE
    assert stream.progress.sequence == count + 1
    assert "before its end" not in caplog.text


async def test_finish_is_durable_in_a_far_store_when_it_returns() -> None:
    store = FarNotedStore()
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        await stream.finish()
        assert store.saves == [["[] 1", '["s"] 1']]
        assert stream.status is trio_ckpt.Status.COMPLETE


async def test_a_far_store_hands_out_no_batch_after_an_end_on_its_way() -> None:
    async with open_run("r", store=FarNotedStore()) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
        with pytest.raises(trio_ckpt.StreamEndedError):
            async with stream.open_batch():
                pass


async def test_an_end_that_is_refused_alone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(FarNotedStore):
        async def save(
            self,
            run: RunKey,
            group: Sequence[Checkpoint],
            folds: Sequence[Fold] = (),
            *,
            summary: bytes | None = None,
        ) -> list[Exception | None]:
            accepted = [one for one in group if (one.stream, one.sequence) != ('["s"]', 2)]
            await super().save(run, accepted, folds, summary=summary)
            return [None if one in accepted else StoreError("no") for one in group]

    async with open_run("r", store=Refusing()) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
    assert '["s"]: its last record was not saved: no' in caplog.text


async def test_an_end_that_was_not_saved_is_saved_after_more_batches() -> None:
    """Also where the record of a batch has the number that the end would have had."""

    async def refuse(
        _run: RunKey, group: Sequence[Checkpoint], _folds: object = (), **_: object
    ) -> Any:
        return [StoreError("disk full")] * len(group)

    store = FarNotedStore()
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        await stream.save()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "save", refuse)
            async for _ in stream.batches([]):
                pass
            with pytest.raises(StoreError, match="disk full"):
                await stream.save()
        async for batch in stream.batches(range(1)):
            batch.complete()
    assert stream.status is trio_ckpt.Status.COMPLETE
