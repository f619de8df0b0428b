"""Acts on an open run: each takes effect at once, is on record, and is done or never was."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from tests.runs.steered import act, begin_steered, done, refused
from trio_ckpt import Batch, RunStoppedError, read_sessions, run_batches
from trio_ckpt._journal.acts import paused_text, read_acts
from trio_ckpt._journal.history import session_metadata_of
from trio_ckpt._runs.steering import Steering
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import World, explore_crashes

Clock = trio.testing.MockClock
HOUR_S = 3_600.0


async def acts_in(store: Any) -> list[str]:
    return [one.do for one in await read_acts(store, "r")]


async def paused_in(store: Any) -> str:
    view = await store.load_run("r")
    assert view is not None
    return paused_text(session_metadata_of(view))


async def test_a_pause_hands_out_nothing_until_it_is_lifted(autojump_clock: Clock) -> None:
    store, begun = MemoryStore(), list[float]()

    async def work(batch: Batch[int]) -> None:
        begun.append(trio.current_time())
        await trio.sleep(1)
        batch.complete()

    async def steer(steering: Steering) -> None:
        await trio.sleep(0.5)  # a batch is open: it goes on
        assert await done(steering, "pause") == (
            "paused: nothing more is handed out; what is open goes on"
        )
        await trio.sleep(HOUR_S)
        assert begun == [0.0, 0.0]
        assert "paused already" in await refused(steering, "pause")
        assert await done(steering, "resume") == "resumed"
        assert await refused(steering, "resume") == "it is not paused"

    async with begin_steered(store) as (run, steering), run.open_stream("s") as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steer, steering)
            await run_batches(stream, list(range(4)), work, concurrency=2)
        assert begun == [0.0, 0.0, HOUR_S + 0.5, HOUR_S + 0.5]
    assert await acts_in(store) == ["pause", "resume"]
    assert not await paused_in(store)


async def test_a_loop_waits_for_the_end_of_a_pause(autojump_clock: Clock) -> None:
    begun: list[float] = []
    async with begin_steered(MemoryStore()) as (run, steering), run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            begun.append(trio.current_time())
            batch.complete()
            if batch.index == 0:
                await done(steering, "pause")
                steering.run.nursery.start_soon(_resume_after, steering, 7)
    assert begun == [0.0, 7.0, 7.0]


async def _resume_after(steering: Steering, seconds: float) -> None:
    await trio.sleep(seconds)
    await done(steering, "resume")


async def test_a_paused_run_starts_paused_and_says_so(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    async with begin_steered(store) as (_, steering):
        await done(steering, "pause", why="the quota is used up")
    assert "ann, process 4711 on box: the quota is used up" in await paused_in(store)
    for _ in range(2):  # every start, until it is lifted
        caplog.clear()
        with trio.move_on_after(HOUR_S):
            async with begin(store) as run, run.open_stream("s") as stream:
                async for _ in stream.batches(range(3)):
                    raise AssertionError("a batch is handed out")
        [line] = [r for r in caplog.records if r.name.endswith("_runs.opening")]
        assert line.levelno == logging.WARNING
        assert "starts paused since" in line.getMessage()
        assert "ann, process 4711 on box: the quota is used up" in line.getMessage()
    async with begin_steered(store) as (run, steering), run.open_stream("s") as stream:
        await done(steering, "resume")
        async for batch in stream.batches(range(3)):
            batch.complete()
        assert run.exit_code == 0
    assert not await paused_in(store)


async def test_a_run_that_begins_afresh_is_not_paused(autojump_clock: Clock) -> None:
    store = MemoryStore()
    async with begin_steered(store) as (_, steering):
        await done(steering, "pause")
    async with begin(store, fresh=True) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()


@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_stop_ends_a_run_also_while_it_is_paused(
    is_paused: bool, autojump_clock: Clock
) -> None:
    store = MemoryStore()

    async def steer(steering: Steering) -> None:
        await trio.sleep(1.5)
        if is_paused:
            await done(steering, "pause")
            await trio.sleep(HOUR_S)
        assert (await done(steering, "stop")).startswith("stopping in good order")
        assert "under way" in await refused(steering, "stop")

    with pytest.raises(RunStoppedError) as caught:
        async with begin_steered(store) as (run, steering), trio.open_nursery() as nursery:
            nursery.start_soon(steer, steering)
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(10_000)):
                    await trio.sleep(1)
                    batch.complete()
    assert caught.value.exit_code == 75
    assert trio.current_time() == (HOUR_S + 1.5 if is_paused else 2.0)
    assert await acts_in(store) == ["pause", "stop"] if is_paused else ["stop"]
    assert (await read_sessions(store, "r"))[-1].how == "was stopped"
    assert bool(await paused_in(store)) is is_paused


async def test_an_act_after_the_end_of_the_block_is_refused(autojump_clock: Clock) -> None:
    async with begin_steered(MemoryStore()) as (_, steering):
        pass
    assert await refused(steering, "pause") == "run 'r' is closed"


async def test_an_act_that_is_not_saved_was_not_done(autojump_clock: Clock) -> None:
    store = MemoryStore()
    async with begin_steered(store) as (run, steering):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steering.session, "save", _full_disk)
            assert await refused(steering, "pause") == "the disk is full"
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
    assert await acts_in(store) == []
    assert not await paused_in(store)


async def _full_disk(_: object) -> None:
    raise ValueError("the disk is full")


async def test_the_status_is_that_of_the_moment(autojump_clock: Clock) -> None:
    store = MemoryStore()
    async with begin_steered(store) as (run, steering), run.open_stream("a", "b") as stream:
        async for batch in stream.batches(range(3)):
            if batch.index == 1:
                await done(steering, "pause", why="now")
                reply = await steering.do(act("status"))
                assert reply.status["paused"]["why"] == "now"
                [one] = reply.status["streams"]
                assert one == {
                    "stream": ["a", "b"],
                    "confirmed": 1,
                    "skipped": 0,
                    "left": 2,
                    "open": 1,
                    "concurrency": None,
                }
                await done(steering, "resume")
            batch.complete()
    assert await acts_in(store) == ["pause", "resume"]  # to look is no act


def test_a_crash_at_any_point_of_an_act_leaves_it_done_or_not() -> None:
    answered: list[World] = []

    async def program(world: World) -> None:
        async with begin_steered(world.store) as (run, steering):
            assert steering.run.stop.is_paused == bool(await acts_in(world.store))
            if not run.found.sessions:
                await done(steering, "pause")
                answered.append(world)

    async def check(world: World) -> None:
        acts, paused = await acts_in(world.store), await paused_in(world.store)
        assert acts in ([], ["pause"])
        assert bool(paused) == bool(acts)
        assert acts or not answered  # what was answered is on record
        answered.clear()

    found = explore_crashes(program, check, schedules=20)
    assert found.crash_points > 20
