"""Runs that reach a limit: they stop in good order, and say why wherever one looks."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    Limits,
    RetryRule,
    RetryTable,
    RunStoppedError,
    Stream,
    Then,
    read_sessions,
    run_batches,
)
from trio_ckpt._commit.limits import plain_limits
from trio_ckpt._runs import limited
from trio_ckpt._runs.limited import FREE_EVERY_S
from trio_ckpt.stores import MemoryStore

Clock = trio.testing.MockClock

ONCE = RetryTable([RetryRule((OSError,), attempts=1, then=Then.SKIP)])


async def work(
    store: Any,
    limits: Limits | None,
    *,
    count: int = 10,
    concurrency: int = 1,
    cost: float = 1.0,
    body_s: float = 1.0,
    **options: Any,
) -> list[int]:
    """Work on what is left of a list; returns the batches that were begun."""
    begun: list[int] = []

    async def handle(batch: Batch[int]) -> None:
        begun.append(batch.index)
        await trio.sleep(body_s)
        batch.spend(cost_usd=cost)
        batch.complete()

    try:
        async with begin(store, limits=limits, **options) as run, run.open_stream("s") as stream:
            await run_batches(stream, list(range(count)), handle, concurrency=concurrency)
    except RunStoppedError as stopped:
        stops.append(stopped)
    return begun


stops: list[RunStoppedError] = []


@pytest.fixture(autouse=True)
def _no_stops() -> None:
    stops.clear()


def reason() -> str | None:
    [stopped] = stops
    assert stopped.exit_code == 75
    stops.clear()
    return stopped.reason


async def test_what_a_run_may_cost_is_of_all_its_sessions(autojump_clock: Clock) -> None:
    store, limits = MemoryStore(), Limits(spent={"cost_usd": 5})
    assert await work(store, limits, count=3) == [0, 1, 2]
    assert not stops
    assert await work(store, limits) == [3, 4]
    assert reason() == "limit spent: 5 of 5 cost_usd are spent"
    assert await work(store, limits) == []
    said = "limit spent: 5 of 5 cost_usd are spent: nothing is handed out until that changes"
    assert reason() == said


async def test_a_limit_goes_over_by_what_is_open(autojump_clock: Clock) -> None:
    begun = await work(MemoryStore(), Limits(spent={"cost_usd": 4}), count=100, concurrency=8)
    assert reason() == "limit spent: 4 of 4 cost_usd are spent"
    assert len(begun) <= 4 + 8


async def test_a_raised_limit_is_logged_as_an_override(
    caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    store = MemoryStore()
    await work(store, Limits(spent={"cost_usd": 2}))
    stops.clear()
    caplog.clear()
    assert await work(store, Limits(spent={"cost_usd": 4})) == [2, 3]
    [line] = [one for one in caplog.records if "limit spent.cost_usd" in one.getMessage()]
    assert line.levelno == logging.WARNING
    assert line.getMessage() == "run 'r': limit spent.cost_usd: 2 -> 4"
    sessions = await read_sessions(store, "r")
    assert [one.reason for one in sessions] == [
        "limit spent: 2 of 2 cost_usd are spent",
        "limit spent: 4 of 4 cost_usd are spent",
    ]


async def test_limits_that_stay_log_nothing(
    caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    store, limits = MemoryStore(), Limits(batches=2)
    for _ in range(2):
        await work(store, limits)
    assert "->" not in caplog.text


async def test_batches_are_those_of_a_session(autojump_clock: Clock) -> None:
    store, limits = MemoryStore(), Limits(batches=4)
    assert await work(store, limits) == [0, 1, 2, 3]
    assert reason() == "limit batches: 4 of 4 batches are done"
    assert await work(store, limits) == [4, 5, 6, 7]
    assert reason()
    assert await work(store, limits) == [8, 9]
    assert not stops


async def test_a_run_that_is_complete_has_reached_nothing(autojump_clock: Clock) -> None:
    store, limits = MemoryStore(), Limits(batches=3, spent={"cost_usd": 3})
    assert await work(store, limits, count=3) == [0, 1, 2]
    assert await work(store, limits, count=3) == []
    assert not stops
    assert [one.reason for one in await read_sessions(store, "r")] == [None, None]


@pytest.mark.parametrize("body_s", [1, 4, 7])
async def test_a_deadline_drains_before_it_strikes(body_s: int, autojump_clock: Clock) -> None:
    store, done = MemoryStore(), list[int]()
    began = trio.current_time()
    while len(done) < 40:
        at = trio.current_time()
        begun = await work(store, Limits(runtime_s=30), count=40, body_s=body_s)
        assert trio.current_time() - at <= 30.01
        done += begun
        if len(done) < 40:
            assert reason() == "limit runtime_s: its 30 s are over"
    assert done == list(range(40))  # nothing twice, nothing cut off
    assert trio.current_time() - began <= 40 * body_s * 1.5


async def test_a_hundred_deadlines_repeat_nothing(autojump_clock: Clock) -> None:
    store, done = MemoryStore(), list[int]()
    for _ in range(100):
        done += await work(
            store, Limits(runtime_s=30), count=10_000, concurrency=4, body_s=2.7, grace_s=5
        )
        assert reason() == "limit runtime_s: its 30 s are over"
    assert len(done) == len(set(done))
    assert len(done) > 100 * 4 * 8


async def test_a_body_that_is_longer_than_the_others_has_the_grace(autojump_clock: Clock) -> None:
    assert await work(MemoryStore(), Limits(runtime_s=10), body_s=12, grace_s=5) == [0]
    assert reason() == "limit runtime_s: its 10 s are over"
    assert trio.current_time() == pytest.approx(12, abs=0.01)


@pytest.mark.parametrize("left_s", [10, 0, -86_400])
async def test_a_run_ends_by_its_time(left_s: int, autojump_clock: Clock) -> None:
    at = datetime.now(timezone(timedelta(hours=-5))) + timedelta(seconds=left_s)
    begun = await work(MemoryStore(), Limits(stop_at=at), body_s=4)
    is_late = ": nothing is handed out until that changes" if left_s <= 0 else ""
    at_text = at.isoformat(timespec="seconds")
    assert reason() == f"limit stop_at: its time ends at {at_text}{is_late}"
    assert begun == ([0, 1] if left_s == 10 else [])
    assert trio.current_time() == pytest.approx(8 if left_s == 10 else 0, abs=0.05)


async def test_the_earlier_of_two_deadlines_counts(autojump_clock: Clock) -> None:
    at = datetime.now(UTC) + timedelta(seconds=5)
    await work(MemoryStore(), Limits(stop_at=at, runtime_s=3_600))
    assert str(reason()).startswith("limit stop_at")
    await work(MemoryStore(), Limits(stop_at=at + timedelta(days=9), runtime_s=5))
    assert str(reason()).startswith("limit runtime_s")


async def test_a_time_after_the_end_of_a_run_changes_nothing(autojump_clock: Clock) -> None:
    assert await work(MemoryStore(), Limits(runtime_s=3_600), count=3) == [0, 1, 2]
    assert not stops
    assert trio.current_time() == pytest.approx(3, abs=0.01)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    free = [1_000]

    class Usage:
        @property
        def free(self) -> int:
            return free[0]

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage())
    return lambda amount: free.__setitem__(0, amount)


async def test_a_disk_that_fills_stops_the_run(
    tmp_path: Path, disk: Callable[[int], None], autojump_clock: Clock
) -> None:
    limits = Limits(min_free_bytes=500)

    async def fill() -> None:
        await trio.sleep(12)
        disk(499)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        begun = await work(tmp_path / "s", limits, count=30)
    assert 12 <= len(begun) <= 12 + limited.FREE_EVERY_S + 1
    said = f"limit min_free_bytes: 499 bytes are free in {tmp_path / 's'}, fewer than 500"
    assert reason() == said
    assert await work(tmp_path / "s", limits, count=30) == []
    assert str(reason()).endswith("nothing is handed out until that changes")
    disk(500)
    assert len(await work(tmp_path / "s", limits, count=30)) == 30 - len(begun)


async def test_a_run_without_a_disk_has_no_free_space(autojump_clock: Clock) -> None:
    store = MemoryStore()
    with pytest.raises(ValueError, match="min_free_bytes needs a store or an output_dir"):
        await work(store, Limits(min_free_bytes=1))
    [session] = await read_sessions(store, "r")
    assert session.how == "ended by ValueError"  # it was not killed


async def test_what_a_cancelled_batch_has_cost_counts(autojump_clock: Clock) -> None:
    begun = list[int]()

    async def spend() -> None:
        limits = Limits(spent={"cost_usd": 5})
        async with begin(MemoryStore(), limits=limits) as run, run.open_stream("s") as stream:
            with trio.move_on_after(1):
                async for batch in stream.batches(range(9)):
                    batch.spend(cost_usd=6)
                    await trio.sleep_forever()
            async for batch in stream.batches(range(9)):
                begun.append(batch.index)

    with pytest.raises(RunStoppedError, match="6 of 5 cost_usd are spent"):
        await spend()
    assert begun == []


async def test_a_deadline_that_is_over_hands_out_nothing(autojump_clock: Clock) -> None:
    stream: Stream[None]
    limits = Limits(stop_at=datetime.now(UTC) - timedelta(hours=1))
    handed_out = list[int]()
    with pytest.raises(RunStoppedError, match="nothing is handed out"):
        async with begin(limits=limits) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                handed_out.append(batch.index)
                batch.complete()
    assert handed_out == []


async def test_a_share_is_one_of_a_session(autojump_clock: Clock) -> None:
    """What failed in the last one is a row, not a part of the share of this one."""
    stream: Stream[None]
    store, limits = MemoryStore(), Limits(failure_share=(0.09, 100), consecutive_failures=50)
    counts = list[int]()
    for _ in range(2):
        counts.append(0)
        with pytest.raises(RunStoppedError, match="10 of the newest 10 attempts"):
            async with (
                begin(store, limits=limits) as run,
                run.open_stream("s", retry=ONCE) as stream,
            ):
                async for batch in stream.batches(range(50)):
                    counts[-1] += 1
                    batch.skip(ConnectionError("down"))
    assert counts == [10, 10]


async def test_a_folder_that_goes_away_ends_no_run(tmp_path: Path, autojump_clock: Clock) -> None:
    stream: Stream[None]
    folder = tmp_path / "out"
    limits = Limits(min_free_bytes=1)
    async with (
        begin("memory:", output_dir=folder, limits=limits) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(1)):
            shutil.rmtree(folder)
            await trio.sleep(3 * FREE_EVERY_S)
            folder.mkdir()
            batch.complete()
    assert run.exit_code == 0


def test_limits_of_other_classes_of_numbers_are_kept_as_plain_ones() -> None:
    numpy = pytest.importorskip("numpy")
    limits = Limits(
        spent={"tokens": 2**64, "cost": numpy.float64(1.5)},
        batches=numpy.int64(5),
        failure_share=(numpy.float64(0.5), 9),
    )
    plain = plain_limits(limits)
    assert plain == {
        "spent.tokens": 2.0**64,
        "spent.cost": 1.5,
        "batches": 5,
        "failure_share": [0.5, 9],
    }
    assert {type(value) for value in plain.values()} == {int, float, list}
