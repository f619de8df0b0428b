"""The end of a run that has nothing but deferred batches left: which it waits for, which not."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from tests.runs.deferring import DAY_S, Clock, Wall, Work, some, wall as wall
from trio_ckpt import (
    RunStoppedError,
    Status,
    read_sessions,
    run_batches,
)
from trio_ckpt._journal.overview import overview_of
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._runs.deferred import SETTLE_S
from trio_ckpt.stores import MemoryStore


async def test_a_run_with_only_deferred_work_ends(wall: Wall, autojump_clock: Clock) -> None:
    store, work = MemoryStore(), Work(some(DAY_S, 2, 3))
    assert await work.run(store, concurrency=2) == 75
    stopped, due = work.stopped, wall.at + DAY_S
    assert stopped is not None
    assert stopped.next_due is not None
    assert abs(stopped.next_due.timestamp() - due) < 10
    when = stopped.next_due.strftime("%Y-%m-%d %H:%M:%S UTC")
    assert stopped.reason == f"deferred work: 2 batches, the first due at {when}"
    assert trio.current_time() < 10 + SETTLE_S  # it did not wait for that
    [session] = await read_sessions(store, "r")
    assert (session.reason, session.next_due) == (stopped.reason, stopped.next_due.timestamp())
    status = await read_run_status(store, "r")
    assert status is not None
    overview = overview_of(status)
    assert overview.session is not None
    assert overview.session.next_due == session.next_due
    assert (overview.summary.deferred, overview.exit_code) == (2, 75)


async def test_a_start_before_it_is_due_hands_out_nothing(
    caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    store, work = MemoryStore(), Work(some(DAY_S, 2))
    caplog.set_level(logging.INFO)
    assert await work.run(store) == 75
    for _ in range(3):
        await trio.sleep(3_600)
        begun = len(work.begun)
        caplog.clear()
        assert await work.run(store) == 75
        assert len(work.begun) == begun
        assert "deferred: 1 batch, due at" in caplog.text
        assert work.stopped is not None
        assert work.stopped.next_due is not None
    await trio.sleep(DAY_S)
    assert await work.run(store) == 0
    assert work.indexes == [0, 1, 2, 3, 4, 5, 2]


async def test_a_datetime_is_kept_over_sessions(wall: Wall, autojump_clock: Clock) -> None:
    until = datetime.fromtimestamp(wall(), UTC) + timedelta(hours=2)
    store, work = MemoryStore(), Work(some(until, 0))
    assert await work.run(store) == 75
    assert work.stopped is not None
    assert work.stopped.next_due == until
    await trio.sleep_until((until - datetime.fromtimestamp(wall.at, UTC)).total_seconds() - 90)
    assert await work.run(store) == 75
    assert await work.run(store, wait_for_deferred_s=100) == 0
    assert work.begun[-1][1] >= 7_200 - 0.01


async def test_a_clock_that_was_years_ahead_does_not_hold_back(
    wall: Wall, autojump_clock: Clock
) -> None:
    store, work = MemoryStore(), Work(some(120.0, 0))
    wall.at += 10 * 365 * DAY_S
    assert await work.run(store) == 75
    wall.at -= 10 * 365 * DAY_S
    assert await work.run(store) == 75
    assert work.stopped is not None
    assert work.stopped.next_due is not None
    assert work.stopped.next_due.timestamp() == pytest.approx(wall() + 120, abs=5)
    assert await work.run(store, wait_for_deferred_s=600) == 0
    assert work.begun[-1][1] < 300


async def test_a_run_waits_for_work_that_is_due_soon(autojump_clock: Clock) -> None:
    work = Work(some(300.0, 2))
    assert await work.run(MemoryStore(), wait_for_deferred_s=400) == 0


async def test_other_streams_go_on_beside_it(autojump_clock: Clock) -> None:
    store, slow = MemoryStore(), Work(lambda _: None)

    async def one(run: Any, name: str, work: Work) -> None:
        async with run.open_stream(name) as stream:
            await run_batches(stream, range(50), work.handle)

    deferring = Work(some(DAY_S, 0))
    with pytest.raises(RunStoppedError, match="deferred work"):
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(one, run, "a", deferring)
            await trio.sleep(40)
            nursery.start_soon(one, run, "b", slow)
    assert len(slow.begun) == 50  # it was begun while the other had work, and ended after it


async def test_a_stream_that_records_lets_the_next_run(autojump_clock: Clock) -> None:
    store = MemoryStore()
    works = {name: Work(some(DAY_S, 1)) for name in "abc"}
    with pytest.raises(RunStoppedError) as stopped:
        async with begin(store) as run:
            for name, work in works.items():
                async with run.open_stream(name, on_fail="record") as stream:
                    await run_batches(stream, range(4), work.handle)
                    raise AssertionError("it is not complete")
                assert stream.status is Status.INTERRUPTED
    assert stopped.value.exit_code == 75
    assert "deferred work: 3 batches, the first due at" in str(stopped.value.reason)
    assert all(work.indexes == [0, 1, 2, 3] for work in works.values())


async def test_a_stream_that_is_opened_soon_is_waited_for(autojump_clock: Clock) -> None:
    store, deferring, others = MemoryStore(), Work(some(DAY_S, 0)), Work(lambda _: None)

    async def one_after_the_other(run: Any) -> None:
        for name in ("b", "c"):
            async with run.open_stream(name) as stream:
                await run_batches(stream, range(3), others.handle)
            await trio.sleep(SETTLE_S - 1)  # it asks a server what there is

    with pytest.raises(RunStoppedError, match="deferred work"):
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(one_after_the_other, run)
            async with run.open_stream("a") as stream:
                await run_batches(stream, range(1), deferring.handle)
    assert len(others.begun) == 6


async def test_a_loop_that_was_cancelled_waits_no_more(autojump_clock: Clock) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        with trio.move_on_after(4):
            await run_batches(stream, range(1), Work(some(DAY_S, 0)).handle)
        await trio.sleep(1_000)  # the body has something else to do
        assert not run.is_stopping


async def test_a_signal_is_not_taken_for_deferred_work(autojump_clock: Clock) -> None:
    store, work = MemoryStore(), Work(some(DAY_S, 0))

    async def stop(run: Any) -> None:
        await trio.sleep(2.5)
        run.request_stop()

    with pytest.raises(RunStoppedError) as stopped:
        async with begin(store) as run, run.open_stream("s") as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop, run)
                await run_batches(stream, range(10), work.handle)
    assert (stopped.value.reason, stopped.value.next_due) == (None, None)
