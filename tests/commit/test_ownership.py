"""Questions about who owns a run: which generation they name, and how long they last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.commit.leased import LEASE_S, LeasedStore, end_of, hang_if_empty, is_refused, work
from trio_ckpt import (
    Batch,
    LeaseLostError,
    RunStoppedError,
    StoreConflictError,
    open_maintenance,
    open_run,
)
from trio_ckpt.abc import Checkpoint, RunKey, RunView


async def test_a_run_that_ends_does_not_wait_for_a_store_that_is_gone(
    autojump_clock: MockClock,
) -> None:
    store = LeasedStore()
    async with open_run("r", store=store):
        store.fails = hang_if_empty
        await trio.sleep(11)
    assert store.asked == pytest.approx([10])
    assert trio.current_time() == pytest.approx(11 + LEASE_S / 10)
    assert await is_refused(store)  # the question may still arrive


async def test_a_question_takes_at_most_the_time_of_a_save(autojump_clock: MockClock) -> None:
    store = LeasedStore()

    async def hang_once(_group: Sequence[object]) -> None:
        if len(store.asked) == 1:
            await trio.sleep_forever()

    async with open_run("r", store=store, save_timeout_s=3):
        store.fails = hang_once
        await trio.sleep(20)
    assert store.asked == pytest.approx([10, 10 + 3 + LEASE_S / 30])


@pytest.mark.parametrize("slow", ["the save", "the question", "the answer to the save"])
async def test_the_next_generation_begins_with_its_first_record(
    slow: str, autojump_clock: MockClock
) -> None:
    """That record says which outputs are to be archived; so no question comes before it.

    A question about the generation before may be answered after it, and is asked again.
    """

    class SlowStore(LeasedStore):
        async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
            await trio.sleep(LEASE_S / 2)
            return await super().load_run(run_id, generation)

        async def save(
            self, run: RunKey, group: Sequence[Checkpoint], *args: Any, **kw: Any
        ) -> Any:
            outcomes = await super().save(run, group, *args, **kw)
            if group and slow == "the answer to the save":
                await trio.sleep(2)
            return outcomes

    store = SlowStore()
    await work(store, batches=1, seconds=0)
    store.taken.clear()

    async def wait(group: Sequence[object]) -> None:
        await trio.sleep(1 if bool(group) is (slow == "the save") else 0)  # before it lands

    store.fails = wait
    async with open_run("r", store=store, fresh=True):
        await trio.sleep(LEASE_S / 2)
    number_and_is_empty = next(taken for taken in store.taken if taken[0] == 1)
    assert number_and_is_empty == (1, False)
    assert (1, True) in store.taken


async def test_the_lease_is_kept_after_a_reset(autojump_clock: MockClock) -> None:
    """The generation that was there when maintenance began is not the newest any more."""
    store = LeasedStore()
    await work(store, batches=1, seconds=0)
    store.taken.clear()
    async with open_maintenance(store, "r") as maintenance:
        assert await maintenance.reset("x") == 1
        await trio.sleep(95)
        assert await is_refused(store)
    number_and_is_empty = next(taken for taken in store.taken if taken[0] == 1)
    assert number_and_is_empty == (1, False)
    assert not await is_refused(store)


async def test_a_question_ends_with_the_run(autojump_clock: MockClock) -> None:
    """What poisons the run does not wait for the answer."""

    async def hang_or_refuse(group: Sequence[object]) -> None:
        if not group:
            await trio.sleep_forever()
        raise StoreConflictError("rows were changed")

    store = LeasedStore()

    async def body(batch: Batch[int]) -> None:
        store.fails = hang_or_refuse
        await trio.sleep(12)
        batch.complete()

    lost = (await end_of(store, body)).__cause__
    assert trio.current_time() == pytest.approx(12)
    assert isinstance(lost, LeaseLostError)
    assert "was taken over, or its store was changed: rows were changed" in str(lost)


@pytest.mark.parametrize("lease_s", [LEASE_S, None])
async def test_files_are_removed_only_where_the_run_is_owned(
    lease_s: float | None, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """While the run is read its lease may end, and the next owner writes files."""

    class SlowStore(LeasedStore):
        async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
            view = await super().load_run(run_id, generation)
            await trio.sleep(LEASE_S + 1)
            if lease_s is not None:
                async with self.reopen().lock_run(run_id):
                    pass
            return view

    store = LeasedStore(lease_s)
    with pytest.raises(ZeroDivisionError):
        async with open_run("r", store=store, output_dir=tmp_path):
            raise ZeroDivisionError
    file = tmp_path / ".a.ckpt-tmp-0123456789abcdef"
    file.write_bytes(b"")
    slow = SlowStore(lease_s)
    slow._memory = store._memory
    try:
        async with open_run("r", store=slow, output_dir=tmp_path):
            assert lease_s is None
    except RunStoppedError:
        assert lease_s is not None
    assert file.exists() is (lease_s is not None)
    assert len(slow.asked) == (lease_s is not None)
