"""How many workers a running run has, and what it may spend, are changed without a stop."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from tests.runs.steered import begin_steered, done, refused
from tests.runs.test_steering import acts_in
from trio_ckpt import Batch, Limits, RetryRule, RetryTable, RunStoppedError, run_batches
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt._journal.record import Record
from trio_ckpt._runs.steering import Steering
from trio_ckpt.stores import MemoryStore

Clock = trio.testing.MockClock
AGAIN = RetryTable([RetryRule((OSError,), backoff_s=5, max_backoff_s=5, jitter=0)])


class Open:
    """How many bodies are open at once, by the second."""

    def __init__(self) -> None:
        self.now = 0
        self.most: dict[int, int] = {}

    async def work(self, batch: Batch[int]) -> None:
        self.now += 1
        second = int(trio.current_time())
        self.most[second] = max(self.now, self.most.get(second, 0))
        await trio.sleep(1)
        self.now -= 1
        batch.complete()


@pytest.mark.parametrize("first", [1, 3])
async def test_workers_come_and_go_while_a_loop_runs(first: int, autojump_clock: Clock) -> None:
    store, bodies = MemoryStore(), Open()

    async def steer(steering: Steering) -> None:
        await trio.sleep(1.5)
        assert await done(steering, "concurrency", count=8) == "8 workers in each of 1 stream"
        await trio.sleep(2)
        assert await done(steering, "concurrency", count=2) == "2 workers in each of 1 stream"

    async with begin_steered(store) as (run, steering), run.open_stream("s") as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steer, steering)
            await run_batches(stream, list(range(50)), bodies.work, concurrency=first)
        assert run.exit_code == 0
        assert len(stream.progress.confirmed) == 50
    assert bodies.most[0] == first
    assert bodies.most[2] == bodies.most[3] == 8
    assert bodies.most[5] == bodies.most[6] == 2  # those that are open then go on to their end
    assert await acts_in(store) == ["concurrency", "concurrency"]


async def test_fewer_workers_leave_none_waiting_for_a_retry(autojump_clock: Clock) -> None:
    failed: set[int] = set()

    async def handle(batch: Batch[int]) -> None:
        if batch.index not in failed:
            failed.add(batch.index)
            raise OSError("again in 5 s")
        batch.complete()

    async with begin_steered(MemoryStore()) as (run, steering), run.open_stream("s") as stream:

        async def steer() -> None:
            await trio.sleep(1)
            await done(steering, "concurrency", count=1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(steer)
            await run_batches(stream, list(range(9)), handle, concurrency=4, retry=AGAIN)
        assert run.exit_code == 0
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_workers_that_end_as_an_act_is_saved_are_not_changed(autojump_clock: Clock) -> None:
    store, may_end, has_ended = MemoryStore(), trio.Event(), trio.Event()

    async def handle(batch: Batch[int]) -> None:
        await may_end.wait()
        batch.complete()

    async with begin_steered(store) as (run, steering), trio.open_nursery() as nursery:
        save = steering.session.save

        async def save_late(record: Record) -> None:
            may_end.set()
            await has_ended.wait()
            await save(record)

        steering.session.save = save_late  # type: ignore[method-assign]
        async with run.open_stream("s") as stream:
            nursery.start_soon(partial(done, steering, "concurrency", count=3))
            await run_batches(stream, [0], handle)
            has_ended.set()
            await trio.testing.wait_all_tasks_blocked()
    assert await acts_in(store) == ["concurrency"]


async def test_batches_with_an_order_stay_one_at_a_time(autojump_clock: Clock) -> None:
    store = MemoryStore()
    async with begin_steered(store) as (run, steering):
        assert "no run_batches" in await refused(steering, "concurrency", count=2)

        async def handle(batch: Batch[int]) -> None:
            if batch.index == 1:
                assert "needs batches in order" in await refused(steering, "concurrency", count=2)
                await done(steering, "concurrency", count=1)
                assert "from 1 to 10000" in await refused(steering, "concurrency", count=10**9)
            batch.complete(cursor=batch.index)

        async with run.open_stream("s") as stream:
            await run_batches(stream, list(range(3)), handle)
    assert await acts_in(store) == ["concurrency"]


async def spend(
    store: Any, acts: dict[float, dict[str, float]], limits: Limits | None
) -> tuple[list[int], str | None]:
    """Spend a dollar a batch, and change the limit at some times; returns what was begun."""
    begun: list[int] = []

    async def steer(steering: Steering) -> None:
        for at, amounts in acts.items():
            await trio.sleep_until(at)
            await done(steering, "limit", amounts=amounts)

    try:
        async with begin_steered(store, limits=limits) as (run, steering):
            async with trio.open_nursery() as nursery, run.open_stream("s") as stream:
                nursery.start_soon(steer, steering)
                async for batch in stream.batches(range(20)):
                    begun.append(batch.index)
                    await trio.sleep(1)
                    batch.spend(cost_usd=1)
                    batch.complete()
    except RunStoppedError as stopped:
        return begun, stopped.reason
    return begun, None


async def test_a_limit_is_raised_and_lowered_while_the_run_spends(autojump_clock: Clock) -> None:
    store = MemoryStore()
    began = trio.current_time()
    acts = {began + 2.5: {"cost_usd": 8.0}, began + 5.5: {"cost_usd": 7.0}}
    begun, reason = await spend(store, acts, Limits(spent={"cost_usd": 3}))
    assert begun == list(range(7))
    assert reason == "limit spent: 7 of 7 cost_usd are spent"
    view = await store.load_run("r")
    assert view is not None
    assert session_metadata_of(view)["limits"] == {"spent.cost_usd": 7}
    assert await acts_in(store) == ["limit", "limit"]


async def test_a_limit_below_what_is_spent_stops_at_once(autojump_clock: Clock) -> None:
    acts = {trio.current_time() + 2.5: {"cost_usd": 1.0}}
    begun, reason = await spend(MemoryStore(), acts, Limits(spent={"cost_usd": 30}))
    assert begun == [0, 1, 2]
    assert reason == "limit spent: 2 of 1 cost_usd are spent"


async def test_a_limit_of_another_name_counts_what_was_spent(autojump_clock: Clock) -> None:
    acts = {trio.current_time() + 2.5: {"cost_usd": 4.0}}
    begun, _ = await spend(MemoryStore(), acts, Limits(batches=10))
    assert begun == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("limits", "at", "amounts", "begun", "reason"),
    [
        (Limits(batches=3), 1.5, {"batches": 6}, 6, "limit batches: 6 of 6 batches are done"),
        (Limits(batches=3), 1.5, {"batches": 6.0}, 6, "limit batches: 6 of 6 batches are done"),
        (Limits(batches=9), 4.5, {"batches": 2}, 5, "limit batches: 4 of 2 batches are done"),
        (Limits(runtime_s=4), 1.5, {"runtime_s": 8}, 7, "limit runtime_s: its 8.0 s are over"),
        (Limits(runtime_s=90), 4.5, {"runtime_s": 2}, 5, "limit runtime_s: its 2.0 s are over"),
        (Limits(batches=19), 1.5, {"runtime_s": 8}, 7, "limit runtime_s: its 8.0 s are over"),
    ],
)
async def test_batches_and_time_of_a_session_are_changed(
    limits: Limits,
    at: float,
    amounts: dict[str, float],
    begun: int,
    reason: str,
    autojump_clock: Clock,
) -> None:
    store = MemoryStore()
    found, why = await spend(store, {trio.current_time() + at: amounts}, limits)
    assert (len(found), why) == (begun, reason)
    view = await store.load_run("r")
    assert view is not None
    assert session_metadata_of(view)["limits"].items() >= amounts.items()


async def test_the_start_after_a_killed_session_knows_its_limits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So it logs those that an act had changed."""
    caplog.set_level(logging.INFO)
    limits, store, killed = Limits(batches=9, spent={"cost_usd": 3}), MemoryStore(), MemoryStore()
    async with begin_steered(store, limits=limits) as (_, steering):
        for amounts in ({"batches": 5, "cost_usd": 4.5}, {"runtime_s": 60}):
            await done(steering, "limit", amounts=amounts)
        killed._memory.runs = copy.deepcopy(store._memory.runs)
    async with begin(killed, limits=limits):
        pass
    said = [one.getMessage() for one in caplog.records if " -> " in one.getMessage()]
    assert said == [
        "run 'r': limit batches: 5 -> 9",
        "run 'r': limit runtime_s: 60 -> none",
        "run 'r': limit spent.cost_usd: 4.5 -> 3",
    ]


async def test_a_limit_that_cannot_be_changed_is_refused(autojump_clock: Clock) -> None:
    store = MemoryStore()
    async with begin_steered(store) as (_, steering):
        why = await refused(steering, "limit", amounts={"cost_usd": 1.0})
        assert why == "the run was opened without limits, so it counts for none"
    with pytest.raises(RunStoppedError):
        async with begin_steered(store, limits=Limits(batches=1)) as (run, steering):
            assert await refused(steering, "limit") == "no limit is named"
            assert "spent['cost_usd']" in await refused(
                steering, "limit", amounts={"cost_usd": -1.0}
            )
            for amounts in ({"batches": 0}, {"batches": 1.5}, {"runtime_s": 0}):
                assert next(iter(amounts)) in await refused(steering, "limit", amounts=amounts)
            for name in ("stop_at", "min_free_bytes", "consecutive_failures", "failure_share"):
                why = await refused(steering, "limit", amounts={name: 3.0})
                assert why == f"the limit {name} cannot be changed while a session is open"
            run.request_stop()
            assert "a stop is under way" in await refused(
                steering, "limit", amounts={"cost_usd": 1.0}
            )
            async with run.open_stream("s"):
                pass
    assert await acts_in(store) == []
