"""The lease of a run: renewed while nothing is saved, and given up before another has the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.commit.leased import (
    LEASE_S,
    LOST_S,
    LeasedStore,
    end_of,
    hang,
    hang_if_empty,
    is_down,
    is_refused,
    work,
)
from trio_ckpt import (
    Batch,
    LeaseLostError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
    open_run,
)
from trio_ckpt._commit.lease import open_committer
from trio_ckpt.abc import RunKey
from trio_ckpt.stores import MemoryStore

# ---------------------------------------------------------------------------------------
# Renewing
# ---------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_while_nothing_is_saved(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    async with open_run("r", store=store):
        for _ in range(95):
            await trio.sleep(1)
            assert await is_refused(store)
    assert store.asked == pytest.approx([10, 20, 30, 40, 50, 60, 70, 80, 90], abs=0.1)
    assert not await is_refused(store)


async def test_a_run_that_saves_renews_by_that(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    await work(store, batches=100, seconds=9)
    assert store.asked == []


async def test_a_run_that_saves_seldom_is_asked_in_between(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    await work(store, batches=3, seconds=15)
    assert store.asked == pytest.approx([10, 25, 40], abs=0.1)


async def test_a_store_without_a_lease_is_not_asked(autojump_clock: MockClock) -> None:
    store = LeasedStore(lease_s=None)
    await work(store, batches=3, seconds=1_000)
    assert store.asked == []


async def test_a_short_failure_of_the_store_is_got_over(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    async with open_run("r", store=store):
        store.fails = is_down
        await trio.sleep(LOST_S - 2)
        store.fails = None
        await trio.sleep(100)
        assert await is_refused(store)


async def test_the_lease_is_kept_while_a_cancelled_run_ends(autojump_clock: MockClock) -> None:
    """A body may shield what it has to end; the run is its own until then."""
    store = LeasedStore()
    with trio.move_on_after(5):
        async with open_run("r", store=store), trio.open_nursery():
            with trio.CancelScope(shield=True):
                await trio.sleep(95)
                assert await is_refused(store)
    assert len(store.asked) == 9
    assert not await is_refused(store)


async def test_a_run_that_ends_during_a_renewal_is_released(autojump_clock: MockClock) -> None:
    """The question is waited for: after one that was abandoned, a store keeps the lock."""
    store = LeasedStore()

    async def slow(group: Sequence[object]) -> None:
        await trio.sleep(0 if group else 3)

    async with open_run("r", store=store):
        store.fails = slow
        await trio.sleep(11)
    assert len(store.asked) == 1
    assert trio.current_time() == pytest.approx(13)
    assert not await is_refused(store)


async def test_a_proof_is_as_old_as_its_question(autojump_clock: MockClock) -> None:
    """The store may have answered long before the answer is here."""
    store = LeasedStore()

    async def slow(group: Sequence[object]) -> None:
        await trio.sleep(0 if group else 5)

    async with open_run("r", store=store):
        store.fails = slow
        await trio.sleep(48)
    assert store.asked == pytest.approx([10, 20, 30, 40], abs=0.1)


async def test_maintenance_renews_too(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    async with (
        store.lock_run("r") as owner,
        open_committer(store, RunKey("r", 0, owner)),
    ):
        await trio.sleep(100)
        assert await is_refused(store)


# ---------------------------------------------------------------------------------------
# Losing
# ---------------------------------------------------------------------------------------


async def test_a_run_that_cannot_renew_is_lost_before_its_lease_ends(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store, left_at = LeasedStore(), list[float]()

    async def body(_batch: Batch[int]) -> None:
        store.fails = is_down
        try:
            await trio.sleep_forever()
        finally:
            left_at.append(trio.current_time())

    with caplog.at_level(logging.ERROR, "trio_ckpt"):
        error = await end_of(store, body)
    assert left_at == pytest.approx([LOST_S])
    assert error.exit_code == 75
    lost = error.__cause__
    assert isinstance(lost, LeaseLostError)
    assert "could not be renewed in the store for 80% of that (the network is down)" in str(lost)
    assert lost.run_id == "r"
    assert "run 'r' is poisoned and saves nothing more" in caplog.text


async def test_a_store_that_does_not_answer_loses_the_lease(autojump_clock: MockClock) -> None:
    store = LeasedStore()

    async def body(_batch: Batch[int]) -> None:
        store.fails = hang
        await trio.sleep_forever()

    lost = (await end_of(store, body)).__cause__
    assert trio.current_time() == pytest.approx(LOST_S)
    assert isinstance(lost, LeaseLostError)
    assert "it has not answered" in str(lost)


async def test_a_bug_in_a_store_is_no_answer(autojump_clock: MockClock) -> None:
    async def divide(_group: Sequence[object]) -> None:
        raise ZeroDivisionError("one by nothing")

    store = LeasedStore()

    async def body(_batch: Batch[int]) -> None:
        store.fails = divide
        await trio.sleep_forever()

    assert "one by nothing" in str((await end_of(store, body)).__cause__)


async def test_a_save_on_its_way_is_unknown_when_the_lease_is_lost(
    autojump_clock: MockClock,
) -> None:
    """The proof was before it: the save may have become durable.  So its lock stays."""
    store = LeasedStore()

    async def body(batch: Batch[int]) -> None:
        await trio.sleep(5)
        store.fails = hang
        batch.complete()

    error = await end_of(store, body)
    assert trio.current_time() == pytest.approx(LOST_S)
    assert error.exit_code == 75
    unknown = error.__cause__
    assert isinstance(unknown, SaveOutcomeUnknownError)
    assert isinstance(unknown.__cause__, LeaseLostError)
    assert await is_refused(store)
    await trio.sleep(LEASE_S - LOST_S)
    assert not await is_refused(store)


@pytest.mark.parametrize(("save_timeout_s", "after_s"), [(60.0, 5 + LOST_S), (7.0, 5 + 7.0)])
async def test_a_save_takes_at_most_the_lease(
    save_timeout_s: float, after_s: float, autojump_clock: MockClock
) -> None:
    """Also where the lease is renewed beside it."""

    async def hang_if_full(group: Sequence[object]) -> None:
        if group:
            await trio.sleep_forever()

    store = LeasedStore()

    async def body(batch: Batch[int]) -> None:
        await trio.sleep(5)
        store.fails = hang_if_full
        batch.complete()

    unknown = (await end_of(store, body, save_timeout_s=save_timeout_s)).__cause__
    assert trio.current_time() == pytest.approx(after_s)
    assert isinstance(unknown, SaveOutcomeUnknownError)
    name = "save_timeout_s" if save_timeout_s == 7 else "80% of the lease"
    assert name in str(unknown)


async def test_saves_prove_the_lease_while_a_renewal_hangs(autojump_clock: MockClock) -> None:
    store = LeasedStore()
    store.fails = hang_if_empty
    await work(store, batches=10, seconds=20)
    assert len(store.asked) == 10


async def test_a_blob_may_take_longer_than_the_lease(autojump_clock: MockClock) -> None:
    class SlowStore(LeasedStore):
        async def put_blob(self, *args: Any) -> str:
            await trio.sleep(55)
            return await super().put_blob(*args)

    store = SlowStore()
    store.inline_limit_bytes = 1_000
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete(metadata={"page": "x" * 2_000})
        assert len(store.asked) == 5
    assert trio.current_time() == pytest.approx(55)


@pytest.mark.parametrize("is_shielded", [False, True])
async def test_a_blob_on_its_way_is_given_up_with_the_lease(
    is_shielded: bool, autojump_clock: MockClock
) -> None:
    """Else the run would end when `save_timeout_s` is over, and another process works on it.

    A store that does not let a blob be abandoned has a limit of its own, which ends the run.
    """
    limit_s = LOST_S + 10

    class HangingStore(LeasedStore):
        async def put_blob(self, *args: Any) -> str:
            with trio.CancelScope(shield=is_shielded):
                await trio.sleep(limit_s)
            raise StoreError("the network is down")

    store = HangingStore()
    store.inline_limit_bytes = 1_000

    async def body(batch: Batch[int]) -> None:
        store.fails = is_down
        batch.complete(metadata={"page": "x" * 2_000})

    error = await end_of(store, body)
    assert trio.current_time() == pytest.approx(limit_s if is_shielded else LOST_S)
    assert error.exit_code == 75
    assert isinstance(error.__cause__, LeaseLostError)


# ---------------------------------------------------------------------------------------
# A process that was stopped
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_s", [1.0, LOST_S + 1, 10 * LEASE_S])
async def test_a_process_that_was_stopped_goes_on_with_its_run(
    stopped_s: float, autojump_clock: MockClock
) -> None:
    """If no other process has taken it over: it asks before it gives up."""
    store = LeasedStore()
    async with open_run("r", store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            autojump_clock.jump(stopped_s)
            await trio.sleep(0.01)
            batch.complete()
    assert run.exit_code == 0


@pytest.mark.parametrize("kind", ["asks", "saves", "writes a blob"])
async def test_a_process_that_wakes_after_a_takeover_confirms_nothing(
    kind: str, autojump_clock: MockClock
) -> None:
    """Whatever it does first, its run is lost, with the same exit code."""

    class Store(LeasedStore):
        async def put_blob(self, *args: Any) -> str:
            await take_over(())
            return await super().put_blob(*args)

    store = Store()
    store.inline_limit_bytes = 1_000
    tokens = []

    taking, is_taken = trio.Lock(), trio.Event()

    async def take_over(_group: Sequence[object]) -> None:
        async with taking:  # what else is saved comes after it, too
            if not is_taken.is_set():
                async with store.reopen().lock_run("r"):
                    is_taken.set()

    async def body(batch: Batch[int]) -> None:
        tokens.append(batch.token)
        autojump_clock.jump(LEASE_S + 1)
        store.fails = take_over
        if kind == "asks":
            await trio.sleep_forever()
        batch.complete(metadata={"page": "x" * 2_000 * (kind == "writes a blob")})

    error = await end_of(store, body)
    assert error.exit_code == 75
    lost = error.__cause__
    assert isinstance(lost, LeaseLostError)
    assert "was taken over" in str(lost)
    assert type(lost.__cause__) is StoreConflictError
    assert tokens[0].state.value == "failed"
    stored = await store.read_run("r")
    assert stored is not None
    assert [entry.stream for entry in stored.streams] == ["[]"]


async def test_a_stopped_process_whose_store_is_down_is_lost_soon(
    autojump_clock: MockClock,
) -> None:
    store = LeasedStore()

    async def body(_batch: Batch[int]) -> None:
        autojump_clock.jump(1_000)
        store.fails = is_down
        await trio.sleep_forever()

    error = await end_of(store, body)
    assert trio.current_time() == pytest.approx(1_000 + LEASE_S - LOST_S)
    assert isinstance(error.__cause__, LeaseLostError)


@pytest.mark.parametrize("read_s", [5.0, 1_000.0])
async def test_a_run_that_is_read_for_long_is_asked_for(
    read_s: float, autojump_clock: MockClock
) -> None:
    """The lease counts from the lock on; the records are read after it."""

    class SlowStore(LeasedStore):
        async def load_run(self, *args: Any) -> None:
            await trio.sleep(read_s)

    store = SlowStore()
    async with open_run("r", store=store):
        assert bool(store.asked) is (read_s > LEASE_S / 3)


async def test_a_run_without_a_lease_that_is_taken_over_says_so() -> None:
    """As it was: the conflict itself leaves `open_run`."""
    store = MemoryStore()

    async def body(batch: Batch[int]) -> None:
        store._memory.runs["r"].owner += 1
        batch.complete()

    with pytest.raises(StoreConflictError) as caught:
        await end_of(store, body)
    assert type(caught.value) is StoreConflictError
