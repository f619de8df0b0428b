"""Crashes are explored: right programs get through, wrong ones are caught and replayed."""

from __future__ import annotations

import gc
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

import trio_ckpt
from tests.testing import programs
from tests.testing.more_programs import collect
from tests.testing.programs import PAGES, check_good, explore_crashes, good, nothing_to_check
from trio_ckpt.testing import Crashed, CrashFoundError, World


def test_a_program_that_is_right_survives_every_crash() -> None:
    found = explore_crashes(good, check_good, schedules=20)
    assert found.points.keys() == {"store", "files", "cancellation"}
    assert min(found.points.values()) > 15
    assert found.crashes.keys() == {"kill", "power", "cancel"}
    singles = 2 * found.points["store"] + 2 * found.points["files"]
    assert found.crash_points >= singles + 3 * found.points["cancellation"]
    assert found.schedules == 20
    assert not found.left_out
    assert "nothing left out" in str(found)


BROKEN: dict[str, tuple[Any, Any, Any, Any]] = {
    "signal before durable": (
        programs.tells_before_it_is_durable,
        programs.tells_when_it_is_durable,
        nothing_to_check,
        programs.nothing_is_told_too_early,
    ),
    "output not synced": (
        programs.forgets_to_sync,
        programs.syncs,
        programs.every_page_has_its_file,
        None,
    ),
    "progress before output": (
        programs.saves_before_it_writes,
        programs.syncs,
        programs.every_page_has_its_file,
        None,
    ),
}


@pytest.mark.parametrize(("broken", "mended", "check", "always"), BROKEN.values(), ids=BROKEN)
def test_a_broken_program_is_caught_and_fails_again_when_replayed(
    broken: Any, mended: Any, check: Any, always: Any
) -> None:
    with pytest.raises(CrashFoundError) as caught:
        explore_crashes(broken, check, always=always)
    replay = caught.value.replay
    assert f'replay="{replay}"' in str(caught.value)
    for _ in range(2):
        with pytest.raises(CrashFoundError) as again:
            explore_crashes(broken, check, always=always, replay=replay)
        assert str(again.value) == str(caught.value)
    assert explore_crashes(mended, check, always=always, schedules=10).crash_points > 100


def test_the_manner_of_the_crash_is_what_the_mistake_needs() -> None:
    """A kill loses nothing that was written, so only a power cut shows a missing fsync."""
    with pytest.raises(CrashFoundError) as caught:
        explore_crashes(programs.forgets_to_sync, programs.every_page_has_its_file)
    assert ",power," in caught.value.replay
    assert "lost power" in str(caught.value)
    with pytest.raises(CrashFoundError) as caught:
        explore_crashes(programs.saves_before_it_writes, programs.every_page_has_its_file)
    assert ",kill," in caught.value.replay
    assert "killed" in str(caught.value)
    assert isinstance(caught.value.__cause__, AssertionError)
    assert isinstance(caught.value, AssertionError)


def test_the_place_is_told_in_words_without_chance_in_them() -> None:
    def check(world: World) -> None:
        assert not world.crashes

    with pytest.raises(CrashFoundError) as caught:
        explore_crashes(good, check, points=("files",), replay="files:8,kill,seed 0")
    assert "killed before it could" in str(caught.value)
    assert "ckpt-tmp" not in str(caught.value)
    assert "the temporary file of 0.json" in str(caught.value)


def test_the_same_seed_explores_the_same() -> None:
    first, second = (
        explore_crashes(good, check_good, seed=7, points=("store",), schedules=5) for _ in range(2)
    )
    assert first.crashes == second.crashes
    assert first.points == second.points
    assert first.sessions == second.sessions


# ------------------------------------------------------------------------- what it does not do


def test_what_a_budget_leaves_out_is_said() -> None:
    found = explore_crashes(good, check_good, crashes=40, schedules=10)
    assert found.crash_points >= 40
    assert sum(found.left_out.values()) + 40 == sum(
        (2 * found.points["store"], 2 * found.points["files"], 3 * found.points["cancellation"], 10)
    )
    assert "LEFT OUT" in str(found)
    assert found.schedules >= 1, "spread evenly, not the first ones"


def test_what_the_time_limit_leaves_out_is_said() -> None:
    found = explore_crashes(good, check_good, time_limit_s=0, schedules=3)
    assert found.crash_points == 0
    assert found.left_out["random schedules"] == 3
    assert found.left_out["store points"] == 2 * found.points["store"]


def test_crashes_that_no_start_comes_to_are_said() -> None:
    starts: list[World] = []

    async def changing(world: World) -> None:
        starts.append(world)
        if len(starts) == 1:
            world.files.write("f", b"x")

    found = explore_crashes(changing, nothing_to_check, points=("files",), schedules=3)
    assert found.crash_points == 0
    assert found.left_out == {
        "files points that no start came to": 2 * found.points["files"],
        "random schedules that no start came to": 3,
    }
    assert "LEFT OUT" in str(found)


def test_every_crash_of_a_schedule_is_met() -> None:
    """A start after a crash has fewer points than the first: it is crashed at one it has."""
    found = explore_crashes(good, check_good, points=("store",), crashes=1000, schedules=40)
    assert found.schedules == 40
    assert found.not_reached == 0
    assert not found.left_out


def test_only_the_points_that_are_asked_for() -> None:
    found = explore_crashes(good, check_good, points=("store",), schedules=5)
    assert found.crashes.keys() == {"kill", "power"}
    with pytest.raises(ValueError, match="not a kind of point"):
        explore_crashes(good, check_good, points=("stores",))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "store:1", "store:1,cancel,seed 0", "disk:1,kill,seed 0"])
def test_a_replay_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"crash|cancelled"):
        explore_crashes(good, check_good, replay=text)


def test_a_replay_of_another_program_is_noticed() -> None:
    with pytest.raises(ValueError, match="another one than the plan was found for"):
        explore_crashes(good, check_good, replay="store:9999,kill,seed 0")


def test_what_fails_without_a_crash_is_raised_as_it_is() -> None:
    def refuse(world: World) -> None:
        raise KeyError("never right")

    with pytest.raises(KeyError, match="never right"):
        explore_crashes(good, refuse)

    async def fails(world: World) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explore_crashes(fails, nothing_to_check)


def test_a_stop_of_the_explored_program_is_an_error_as_any() -> None:
    """It is a SystemExit, too, but it ends the explored program and not the exploration."""

    async def stops(world: World) -> None:
        async with trio_ckpt.open_run("r", store=world.store, output_dir=world.output_dir) as run:
            run.request_stop()
            async with run.open_stream("s") as stream:
                async for _ in stream.batches(range(3)):
                    raise AssertionError("a stop hands out nothing")

    with pytest.raises(trio_ckpt.RunStoppedError):
        explore_crashes(stops, nothing_to_check)


def test_an_async_check_may_ask_the_store() -> None:
    seen = []

    async def check(world: World) -> None:
        view = await world.store.load_run("run")
        assert view is not None
        seen.append(len(view.streams["pages",].progress.confirmed))

    found = explore_crashes(good, check, points=("store",), schedules=0)
    assert seen == [PAGES] * (found.crash_points + 1)


# ----------------------------------------------------------------------------- the world itself


def test_a_dying_program_changes_nothing_any_more() -> None:
    kept: list[World] = []
    answers: list[object] = []  # errors of a dying program are dropped

    def ask(call: Callable[[], object]) -> None:
        try:
            answers.append(call())
        except BaseException as error:
            answers.append(type(error))

    async def program(world: World) -> None:
        kept.append(world)
        world.note("began")
        try:
            async with trio_ckpt.open_run("run", store=world.store):
                pass
        except BaseException:
            ask(lambda: world.note("still here"))
            ask(lambda: world.files.write("f", b"x"))
            ask(lambda: world.files.read("f"))
            ask(world.files.names)
            with trio.CancelScope(shield=True):
                try:
                    answers.append(await world.store.list_runs())
                except BaseException as error:
                    answers.append(type(error))
            raise

    def check(world: World) -> None:
        assert {what for (what,) in world.notes} == {"began"}
        assert world.files.tree() == {}

    found = explore_crashes(program, check, points=("store",), schedules=0)
    assert answers == [Crashed] * 5 * found.crash_points
    with pytest.raises(Crashed):
        kept[0].note("after the end")


def test_a_program_that_sleeps_for_ever_after_a_crash_is_caught() -> None:
    async def program(world: World) -> None:
        if world.crashes:
            await trio.sleep_forever()
        await good(world)

    with pytest.raises(CrashFoundError, match="waits for what never comes"):
        explore_crashes(program, check_good, points=("store",))


def test_a_program_that_cannot_even_be_cancelled_is_caught() -> None:
    async def program(world: World) -> None:
        with trio.CancelScope(shield=bool(world.crashes)):
            if world.crashes:
                await trio.sleep_forever()
        await good(world)

    with pytest.raises(CrashFoundError, match="waits for what never comes"):
        explore_crashes(program, check_good, points=("store",))


def test_the_log_of_the_library_is_kept_for_the_error(caplog: pytest.LogCaptureFixture) -> None:
    async def program(world: World) -> None:
        logging.getLogger("trio_ckpt.one").warning("a word about it")
        await good(world)

    def check(world: World) -> None:
        assert not world.crashes

    with pytest.raises(CrashFoundError, match=r"the log: trio_ckpt\.one: a word"):
        explore_crashes(program, check, points=("store",))
    assert not caplog.records


def test_the_lines_of_each_session_crowd_no_warning_out_of_the_error() -> None:
    async def program(world: World) -> None:
        await good(world)
        logging.getLogger("trio_ckpt.one").warning("a word about it")

    def check(world: World) -> None:
        assert not world.crashes

    with pytest.raises(CrashFoundError) as caught:
        explore_crashes(program, check, points=("store",))
    assert "a word about it" in str(caught.value)
    assert "resumes" not in str(caught.value)


async def run_in_threads(world: World) -> None:
    """Stage by stage, in threads of trio's pool, as a library for OCR would want it."""

    def work(batch: trio_ckpt.Batch[int]) -> None:
        path = trio.from_thread.run(batch.write_json, f"{batch.index}.json", batch.index)
        batch.spend(calls=1)
        batch.complete(outputs=[path])

    async def handle(batch: trio_ckpt.Batch[int]) -> None:
        with trio.fail_after(1):  # would fire if the clock jumped while the thread is out
            await trio.to_thread.run_sync(work, batch)

    async with (
        trio_ckpt.open_run("run", store=world.store, output_dir=world.output_dir) as run,
        run.open_stream("pages") as stream,
    ):
        await trio_ckpt.run_batches(stream, range(PAGES), handle, concurrency=2)


def test_a_program_with_threads_of_its_own_is_explored_too() -> None:
    def check(world: World) -> None:
        assert list(world.progress("pages").confirmed) == list(range(PAGES))

    found = explore_crashes(run_in_threads, check, crashes=100, schedules=0)
    assert found.crash_points > 80
    assert not found.not_reached


def test_threads_take_turns_so_a_replay_is_exact() -> None:
    """With two threads at once the program takes the same steps each time."""
    points = {
        tuple(explore_crashes(run_in_threads, nothing_to_check, time_limit_s=0).points.items())
        for _ in range(10)
    }
    assert len(points) == 1

    def refuse(world: World) -> None:
        assert world.crashes < 1

    with pytest.raises(CrashFoundError, match="see it again"):
        explore_crashes(run_in_threads, refuse, points=("files",))


def test_waits_that_chance_lengthens_follow_from_the_seed() -> None:
    """The library's own: whether a file asks the store who owns the run depends on the time."""
    points = {
        tuple(explore_crashes(collect, nothing_to_check, time_limit_s=0).points.items())
        for _ in range(6)
    }
    assert len(points) == 1
    before = random.getstate()
    explore_crashes(collect, nothing_to_check, time_limit_s=0)
    assert random.getstate() == before


def test_a_thread_that_waits_for_a_task_of_ours_stops_no_task() -> None:
    """Its turn is over after a while, and then it goes on beside the tasks."""

    async def program(world: World) -> None:
        told = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, told.wait)
            await trio.lowlevel.checkpoint()
            told.set()
        await good(world)

    explore_crashes(program, check_good, time_limit_s=0)


def test_a_program_that_does_not_repeat_itself_is_told_so() -> None:
    tries = iter(range(10**6))

    async def program(world: World) -> None:
        if next(tries) == 20:
            raise OSError("by chance")
        await good(world)

    with pytest.raises(CrashFoundError, match="did not fail again"):
        explore_crashes(program, check_good)


async def stubborn(world: World) -> None:
    while not world.files.exists("done"):
        try:
            await trio.sleep(1)
            world.files.write("done", b"")
        except BaseException:
            continue


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is abandoned
def test_a_program_that_swallows_its_end_is_stopped_with_that_error() -> None:
    with pytest.raises(CrashFoundError, match="the program does not end: it goes on when it is"):
        explore_crashes(stubborn, nothing_to_check, points=("cancellation",), schedules=0)
    gc.collect()  # its coroutines complain here, not in another test
