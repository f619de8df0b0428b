"""Acts on batches of a running run: re-queued and given up without a stop; snapshots on demand."""

# ruff: noqa: SIM117  (a block for each thing that is open)

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.runs.steered import begin_steered, done, refused
from tests.runs.test_steering import acts_in
from trio_ckpt import (
    Batch,
    CheckpointFailedError,
    Frontier,
    RetryRule,
    RetryTable,
    Run,
    Snapshots,
    Stream,
    read_history,
    run_batches,
)
from trio_ckpt._commit.open_stream import OpenStream
from trio_ckpt._runs.parallel import WorkQueue
from trio_ckpt._runs.run import open_run_of
from trio_ckpt._runs.steering import Steering
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import World, explore_crashes
from trio_ckpt.testing._session import seeded_scheduler

Clock = trio.testing.MockClock
HOUR_S = 3_600.0
SLOW = RetryTable([RetryRule((OSError,), backoff_s=HOUR_S, max_backoff_s=HOUR_S)])


async def work_in_turn(stream: Stream[Any], begun: list[int], count: int = 6) -> None:
    async for batch in stream.batches(list(range(count))):
        begun.append(batch.index)
        await trio.sleep(1)
        if batch.index == 1 and begun.count(1) == 1:
            batch.skip("bad luck")
        else:
            batch.complete()


async def work_at_once(stream: Stream[Any], begun: list[int], count: int = 6) -> None:
    async def handle(batch: Batch[int]) -> None:
        begun.append(batch.index)
        await trio.sleep(1)
        if batch.index == 1 and begun.count(1) == 1:
            batch.skip("bad luck")
        else:
            batch.complete()

    await run_batches(stream, list(range(count)), handle, concurrency=2)


async def at(seconds: float, steering: Steering, do: Any, indexes: list[int]) -> None:
    await trio.sleep(seconds)
    await done(steering, do, stream=("s",), steps=steps(indexes))


def steps(indexes: list[int]) -> tuple[int, ...]:
    """Single batches that do not follow each other, as an act has them."""
    found, last = list[int](), 0
    for index in indexes:
        found += [index - last, 1]
        last = index + 1
    return tuple(found)


@pytest.mark.parametrize("work", [work_in_turn, work_at_once])
async def test_a_skipped_batch_is_done_without_a_stop(work: Any, autojump_clock: Clock) -> None:
    store, begun = MemoryStore(), list[int]()
    async with begin_steered(store) as (run, steering), trio.open_nursery() as nursery:
        nursery.start_soon(at, 2.5, steering, "requeue", [1])
        async with run.open_stream("s") as stream:
            await work(stream, begun)
        assert begun.count(1) == 2
        assert run.exit_code == 0
    assert await acts_in(store) == ["requeue"]
    reasons = [
        view.metadata["reason"]
        async for view in read_history(store, "r", ("s",))
        if view.kind == "redo"
    ]
    assert reasons == ["requeue s 1 by ann, process 4711 on box"]


@pytest.mark.parametrize("work", [work_in_turn, work_at_once])
async def test_a_batch_that_is_left_is_given_up(work: Any, autojump_clock: Clock) -> None:
    store, begun = MemoryStore(), list[int]()
    async with begin_steered(store) as (run, steering), trio.open_nursery() as nursery:
        nursery.start_soon(at, 0.5, steering, "skip", [3, 5])
        async with run.open_stream("s") as stream:
            await work(stream, begun)
            assert stream.progress.skips[5].error is not None
        assert sorted(begun) == [0, 1, 2, 4]
        assert run.exit_code == 3
    assert await acts_in(store) == ["skip"]


@pytest.mark.parametrize("work", [work_in_turn, work_at_once])
async def test_what_is_given_up_during_a_pause_is_not_handed_out(
    work: Any, autojump_clock: Clock
) -> None:
    begun: list[int] = []

    async def steer(steering: Steering) -> None:
        await trio.sleep(0.5)
        await done(steering, "pause")
        await trio.sleep(5)  # the loops have taken their next batches, and wait
        left = sorted({0, 1, 2, 3, 4, 5} - set(begun))
        await done(steering, "skip", stream=("s",), steps=steps(left[:1]))
        given_up.extend(left[:1])
        await done(steering, "resume")

    given_up: list[int] = []
    async with begin_steered(MemoryStore()) as (run, steering), trio.open_nursery() as nursery:
        nursery.start_soon(steer, steering)
        async with run.open_stream("s") as stream:
            await work(stream, begun)
    assert len(begun) == 5
    assert set(begun) == {0, 1, 2, 3, 4, 5} - set(given_up)


async def skip_as_a_worker_comes(ticks: int) -> tuple[list[int], int]:
    """Give a batch up, and have a worker begin so many ticks later; what is begun, and saved."""
    store, begun, is_skipped = MemoryStore(), list[int](), trio.Event()

    async def handle(batch: Batch[int]) -> None:
        begun.append(batch.index)
        if batch.index == 0:
            await is_skipped.wait()
        batch.complete()

    async def skip(steering: Steering) -> None:
        await trio.testing.wait_all_tasks_blocked()
        await done(steering, "skip", stream=("s",), steps=(1, 1))
        is_skipped.set()

    async def hire(run: Run) -> None:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        queue = open_run_of(run).stream_table.opened["s",].listener
        assert isinstance(queue, WorkQueue)
        queue.set_concurrency(2)

    async with begin_steered(store) as (run, steering), trio.open_nursery() as nursery:
        async with run.open_stream("s") as stream:
            nursery.start_soon(skip, steering)
            nursery.start_soon(hire, run)
            await run_batches(stream, list(range(4)), handle)
    views = [view async for view in read_history(store, "r", ("s",)) if view.batch_index == 1]
    return begun, len(views)


@pytest.mark.parametrize("ticks", range(5))
def test_a_batch_given_up_as_a_worker_takes_it_is_not_begun(ticks: int) -> None:
    for seed in range(20):
        with seeded_scheduler(seed):
            begun, saved = trio.run(skip_as_a_worker_comes, ticks)
        assert (sorted(begun), saved) == ([0, 2, 3], 1)


async def test_a_batch_given_up_as_its_state_is_restored_is_not_begun(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    async with (
        begin_steered(MemoryStore()) as (run, steering),
        run.open_stream("s", state={"n": 0}) as stream,
    ):

        async def restore(_: Any) -> None:  # which may read arrays
            if begun == [0]:
                begun.append(-1)
                await done(steering, "skip", stream=("s",), steps=(1, 1))

        monkeypatch.setattr(OpenStream, "restore_state", restore)
        async for batch in stream.batches(list(range(3))):
            begun.append(batch.index)
            batch.complete()
    assert begun == [0, -1, 2]


async def test_a_batch_that_waits_to_run_again_is_given_up_at_once(autojump_clock: Clock) -> None:
    async def handle(batch: Batch[int]) -> None:
        if batch.index == 0:
            raise OSError("again in an hour")
        batch.complete()

    async def wait(run: Run) -> None:
        with pytest.raises(CheckpointFailedError):
            await run.wait_confirmed(("s",), [0])
        assert trio.current_time() == 5

    async with begin_steered(MemoryStore()) as (run, steering), trio.open_nursery() as nursery:
        async with run.open_stream("s") as stream:
            nursery.start_soon(at, 5, steering, "skip", [0])
            nursery.start_soon(wait, run)
            await run_batches(stream, list(range(3)), handle, concurrency=2, retry=SLOW)
            assert trio.current_time() == 5
        assert run.exit_code == 3


async def test_what_cannot_be_done_is_refused_and_leaves_no_record(autojump_clock: Clock) -> None:
    store, target = MemoryStore(), {"stream": ("s",), "steps": (0, 1)}
    async with begin_steered(store) as (run, steering):
        assert "no stream 's'" in await refused(steering, "requeue", **target)
        async with run.open_stream("s", state={"n": 0}) as stream:
            async for batch in stream.batches(range(3)):
                if batch.index == 0:
                    assert "batch 0 is being worked on" in await refused(steering, "skip", **target)
                    assert "neither confirmed nor skipped" in await refused(
                        steering, "requeue", **target
                    )
                if batch.index == 2:
                    assert "later ones build on it" in await refused(steering, "requeue", **target)
                    assert "not known to be in the stream" in await refused(
                        steering, "skip", stream=("s",), steps=(9, 1)
                    )
                    assert "takes snapshots" in await refused(steering, "snapshot")
                batch.complete()
            for do in ("skip", "requeue"):
                assert await refused(steering, do, stream=("s",)) == "no batch is named"
        async with run.open_stream("f", state=Frontier(["a"])) as frontier:
            await run_batches(frontier, None, _complete)
            f = {"stream": ("f",), "steps": (0, 1)}
            assert "has a Frontier" in await refused(steering, "requeue", **f)
            assert "has a Frontier" in await refused(steering, "skip", **f)
        assert run.exit_code == 0
    assert await acts_in(store) == []


async def _complete(batch: Batch[Any]) -> None:
    batch.complete()


async def work_on(run: Run, begun: list[int]) -> None:
    async with run.open_stream("s") as stream:
        await work_in_turn(stream, begun, count=2)


async def test_batches_of_a_closed_stream_are_changed_too(autojump_clock: Clock) -> None:
    async with begin_steered(MemoryStore()) as (run, steering):
        await work_on(run, [])
        assert run.exit_code == 3
        huge = {"stream": ("s",), "steps": (0, 2**52)}  # is not counted out one by one
        assert "neither confirmed nor skipped" in await refused(steering, "requeue", **huge)
        assert "at most 1,000" in await refused(steering, "skip", **huge)
        await done(steering, "requeue", stream=("s",), steps=(0, 2))
        assert run.exit_code == 75
        await done(steering, "skip", stream=("s",), steps=(0, 1))
        begun: list[int] = [1]
        await work_on(run, begun)
        assert begun == [1, 1]


async def test_a_snapshot_is_saved_at_the_next_point(autojump_clock: Clock) -> None:
    store, begun = MemoryStore(), list[bool]()

    async def body(snapshots: Snapshots) -> None:
        for _ in range(3):
            begun.append(await snapshots.point())
            await trio.sleep(10)

    async with (
        begin_steered(store) as (run, steering),
        run.open_stream("s", state={"n": 0}) as stream,
    ):
        async for batch in stream.batches(range(1)):
            async with stream.snapshots(every_s=HOUR_S) as snapshots:
                assert await snapshots.point()
                await snapshots.wait()
                stream.state["n"] = 1
                assert "of 1 open batch is saved" in await done(steering, "snapshot")
                await body(snapshots)
            batch.complete()
    assert begun == [True, False, False]
    assert await acts_in(store) == ["snapshot"]


@pytest.mark.parametrize("do", ["requeue", "skip"])
def test_a_crash_at_any_point_leaves_an_act_on_batches_done_or_not(do: str) -> None:
    async def program(world: World) -> None:
        async with begin_steered(world.store) as (run, steering):
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3), end=0):
                    batch.complete()
                if not await acts_in(world.store):
                    indexes = (0, 1) if do == "requeue" else (2, 1)
                    await done(steering, do, stream=("s",), steps=indexes)
                _check(stream, await acts_in(world.store))
                async for batch in stream.batches(range(3)):
                    batch.complete()

    def _check(stream: Stream[Any], acts: list[str]) -> None:
        assert acts == [do]
        assert (do == "skip") == (2 in stream.progress.skipped)

    async def check(world: World) -> None:
        kinds = [view.kind async for view in read_history(world.store, "r", ("s",))]
        assert kinds.count("redo" if do == "requeue" else "skip") == 1
        assert await acts_in(world.store) == [do]

    found = explore_crashes(program, check, schedules=10)
    assert found.crash_points > 30
