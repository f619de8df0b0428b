"""Session and total, always told apart: over restarts, kills and downtime."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import RetryRule, RetryTable, RunStatistics, Status, StreamStatistics
from trio_ckpt._commit.open_stream import OpenStream
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.statistics import resume_line
from trio_ckpt._util.exact_sum import add_amounts
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import MemoryStore


@pytest.fixture
def downtime(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> list[float]:
    """The wall clock goes as trio's does; what is added to the list is downtime."""
    lost = [1_000_000.0]

    def now() -> float:
        return sum(lost) + autojump_clock.current_time()

    def open_now(*args: Any, **options: Any) -> OpenStream:
        return OpenStream(
            *args, **options, opened_at=now()
        )  # its default was bound to the real clock

    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr("trio_ckpt._runs.open_run.OpenStream", open_now)
    return lost


async def work(
    store: MemoryStore, until: int, *, kill: bool = False
) -> tuple[StreamStatistics, RunStatistics, MemoryStore]:
    """One session: 10 s for each of its batches."""
    async with begin(store) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(100)):
                await trio.sleep(10)
                batch.spend(cost=0.5)
                batch.complete(records=2, totals={"words": 3})
                if batch.index == until:
                    await batch.confirm()
                    break
            return stream.statistics(), run.statistics(), store.after_crash() if kill else store


async def test_three_sessions_and_a_kill_between_them(
    downtime: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    before, done = 0, 0.0
    for until, kill in ((3, True), (24, False), (29, False)):
        stream, run, store = await work(store, until, kill=kill)
        worked = until + 1 - before
        for found in (stream, run):
            assert (found.session_confirmed, found.confirmed) == (worked, until + 1)
            assert (found.session_records, found.records) == (2 * worked, 2 * (until + 1))
            assert found.session_totals == {"words": 3 * worked}
            assert found.totals == {"words": 3 * (until + 1)}
            assert found.session_spent == {"cost": worked / 2}
            assert found.spent == found.saved == {"cost": (until + 1) / 2}
            assert (found.session_skipped, found.session_retries) == (0, 0)
            assert found.session_s == pytest.approx(10 * worked)
            assert found.runtime_s == pytest.approx(done + 10 * worked)
            assert found.left == 100 - (until + 1)
            is_warm = worked >= 20
            assert found.rate_per_s == (pytest.approx(0.1) if is_warm else None)
            assert found.eta_s == (pytest.approx(750) if is_warm else None)
        before, done = until + 1, done + 10 * worked
        downtime.append(86_400.0)


async def test_runtimes_leave_downtime_out_and_are_kept_with_the_records(
    downtime: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    for until in (1, 4, 5):
        _, _, store = await work(store, until, kill=until == 4)
        downtime.append(1_000.0)
    view = await store.load_run("r")
    assert view is not None
    progress = view.streams[("s",)].progress
    assert progress.runtime_s == pytest.approx(60)
    assert progress.opens == 3
    assert progress.started_at == pytest.approx(1_000_010)
    assert progress.updated_at == pytest.approx(1_002_060)


async def test_a_batch_that_goes_back_on_resume_brings_no_downtime_in(
    downtime: list[float], autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    store = MemoryStore()
    for expected in (20, 30):
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                await trio.sleep(10)
                await batch.write_text(f"{batch.index}", "x")
                batch.complete()
            assert stream.statistics().runtime_s == pytest.approx(expected)
        assert stream.progress.runtime_s == pytest.approx(expected)
        downtime.append(86_400.0)
        (tmp_path / "1").unlink()


async def test_a_stream_opened_twice_in_a_session_counts_both(
    downtime: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    async with begin("memory:") as run:
        for until in (1, 3):
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(9)):
                    await trio.sleep(10)
                    batch.complete(records=1)
                    if batch.index == until:
                        break
            await trio.sleep(1_000)
        found = stream.statistics()
        assert (found.session_confirmed, found.session_records) == (4, 4)
        assert found.session_s == pytest.approx(40)
        assert found.runtime_s == pytest.approx(40)
        assert stream.progress.runtime_s == pytest.approx(40)
        assert run.statistics().session_s == pytest.approx(2_040)


async def test_what_a_session_takes_back_is_taken_from_what_it_has_added() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.spend(cost=1)
            batch.complete(records=2)
        assert stream.statistics().session_records == 6
        await stream.redo([0], reason="x")
        found = stream.statistics()
        assert (found.session_records, found.records) == (4, 4)
        assert (found.session_spent, found.spent) == ({"cost": 3}, {"cost": 3})
        assert found.saved == {"cost": 2}


async def test_skips_and_retries_are_counted_by_session() -> None:
    store = MemoryStore()
    retry = RetryTable((RetryRule((ValueError,), attempts=3, backoff_s=0.0),))
    for number in range(2):
        async with begin(store) as run, run.open_stream("s", retry=retry) as stream:
            async for batch in stream.batches(range(3 + 3 * number)):
                if batch.index % 3 == 0:
                    batch.skip("no")
                elif batch.index % 3 == 1 and batch.attempt < 3:
                    batch.fail(ValueError("not yet"))
                else:
                    batch.complete()
            for found in (stream.statistics(), run.statistics()):
                assert (found.session_skipped, found.session_retries) == (1, 2)
                assert (found.skipped, found.confirmed) == (1 + number, 2 + 2 * number)


async def test_streams_not_opened_in_this_session_are_in_the_totals_only() -> None:
    store = MemoryStore()
    for name in ("a", "b"):
        async with begin(store) as run, run.open_stream(name) as stream:
            async for batch in stream.batches(range(2)):
                batch.complete(records=1)
    found = run.statistics()
    assert (found.session_confirmed, found.confirmed) == (2, 4)
    assert (found.session_records, found.records) == (2, 4)
    assert found.streams[Status.COMPLETE] == 2


# ---------------------------------------------------------------------------------------
# The line of what resuming saves
# ---------------------------------------------------------------------------------------


def done(*confirmed: int, skipped: tuple[int, ...] = (), **spent: float) -> Progress:
    progress = Progress(confirmed=IndexSet(confirmed), skipped=IndexSet(skipped))
    add_amounts(progress.spent_confirmed, spent)
    return progress


@pytest.mark.parametrize(
    ("progress", "part", "line"),
    [
        (done(), (0, None, 9), None),
        (done(0, 1, 2), (0, None, 10), "resuming: 3 of 10 batches done, 7 left"),
        (done(0, 1, 2), (0, None, None), "resuming: 3 batches done"),
        (
            done(0, 2, skipped=(1,), cost_usd=1.25),
            (0, None, 1_447),
            "resuming: 2 of 1,447 batches done, 1 skipped, 1.25 cost_usd saved, 1,444 left",
        ),
        (
            done(1, 2, 3, 4, cost_usd=2.0, tokens=1_000),
            (1, 3, 9),
            "resuming: 2 of 6 batches done, about 1 cost_usd saved, about 500 tokens saved, 4 left",
        ),
        (
            done(1, 2, cost_usd=2.0),
            (1, None, 3),
            "resuming: 2 of 2 batches done, 2 cost_usd saved, 0 left",
        ),
        (
            done(skipped=(0,), cost=1.0),
            (0, None, 2),
            "resuming: 0 of 2 batches done, 1 skipped, 1 left",
        ),
        (done(0, 1, cost=0.0), (0, None, 2), "resuming: 2 of 2 batches done, 0 left"),
        (done(5), (0, 0, 5), None),
    ],
)
def test_the_resume_line(
    progress: Progress, part: tuple[int, int | None, int | None], line: str | None
) -> None:
    assert resume_line(progress, *part) == line


async def test_the_resume_line_is_logged_when_a_loop_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    store = MemoryStore()

    async def session(count: int, part: dict[str, int]) -> list[str]:
        caplog.clear()
        async with begin(store) as run, run.open_stream("s", first_index=1) as stream:
            async for batch in stream.batches(range(20), **part):
                batch.spend(cost=0.5)
                batch.complete()
                if batch.index == count:
                    break
        return [r.message for r in caplog.records if "resuming" in r.message]

    where = "run 'r', stream 's': resuming: "
    assert await session(8, {}) == []
    assert await session(10, {}) == [f"{where}8 of 20 batches done, 4 cost saved, 12 left"]
    assert await session(12, {"start": 9, "end": 12}) == [
        f"{where}2 of 4 batches done, about 1 cost saved, 2 left"
    ]
    assert await session(20, {"start": 1}) == [
        f"{where}12 of 20 batches done, 6 cost saved, 8 left"
    ]


async def test_a_tiny_amount_is_not_shown_as_zero() -> None:
    store = MemoryStore()
    for text in ("nothing saved yet", "1 record, 2e-06 cost spent in all"):
        async with begin(store) as run, run.open_stream("s") as stream:
            assert text in str(run.found)
            async for batch in stream.batches(range(2)):
                batch.spend(cost=2e-6)
                batch.complete(records=1)
                break
