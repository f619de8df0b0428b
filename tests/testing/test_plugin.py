"""The fixtures of the pytest plugin, in test runs of their own and in this one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from tests.hangs import PROGRAM_S
from tests.testing.programs import PAGES, check_good, good
from trio_ckpt.abc import Store
from trio_ckpt.testing import seeded_scheduler

ROOT = Path(__file__).parents[2]

CRASH_TEST = """
import trio_ckpt

async def program(world):
    async with (
        trio_ckpt.open_run("run", store=world.store) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(2)):
            batch.complete()
            if IS_BROKEN:
                await batch.confirm()
            world.files.write(f"{batch.index}", b"x")
            for path in (f"{batch.index}", "", "/"):
                world.files.fsync(path)
            if not IS_BROKEN:
                await batch.confirm()

def check(world):
    assert world.files.names() == ["0", "1"], f"there are only {world.files.names()}"

def test_it(ckpt_crashes):
    ckpt_crashes(program, check, schedules=2)
"""


def run_pytest(folder: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "trio_ckpt_pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-q", "--tb=short", *words, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )


def test_a_program_is_proven_in_one_line_and_the_summary_says_so(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, f"IS_BROKEN = False\n{CRASH_TEST}")
    assert done.returncode == 0, done.stdout
    assert "test_it.py::test_it: " in done.stdout
    assert "nothing left out" in done.stdout
    done = run_pytest(tmp_path, f"IS_BROKEN = False\n{CRASH_TEST}", "--ckpt-crashes", "9")
    assert "LEFT OUT" in done.stdout


def test_a_failure_names_the_command_that_fails_again(tmp_path: Path) -> None:
    source = f"IS_BROKEN = True\n{CRASH_TEST}"
    first = run_pytest(tmp_path, source)
    assert first.returncode == 1
    line = next(line for line in first.stdout.splitlines() if "see it again:" in line)
    command = line.partition("see it again: ")[2]
    assert command.startswith('pytest "test_it.py::test_it" --ckpt-replay "store:')
    replay = command.split('"')[3]
    again = run_pytest(tmp_path, source, "--ckpt-replay", replay)
    assert again.returncode == 1
    assert line in again.stdout
    mended = run_pytest(tmp_path, f"IS_BROKEN = False\n{CRASH_TEST}", "--ckpt-replay", replay)
    assert mended.returncode == 0, mended.stdout


def test_a_test_run_that_uses_no_fixture_imports_nothing(tmp_path: Path) -> None:
    source = "import sys\ndef test_it(): assert 'trio_ckpt' not in sys.modules\n"
    done = run_pytest(tmp_path, source)
    assert done.returncode == 0, done.stdout


def test_it_is_the_same_function_here(ckpt_crashes: Callable[..., Any]) -> None:
    found = ckpt_crashes(good, check_good, points=("store",), schedules=0, time_limit_s=math.inf)
    assert found.crash_points == 2 * found.points["store"]


async def collect(store: Store | str) -> int:
    async with trio_ckpt.open_run("run", store=store) as run:
        assert run.found.sessions == 0, "the store is not fresh"
        async with run.open_stream("pages") as stream:
            async for batch in stream.batches(range(PAGES)):
                batch.complete()
        return run.exit_code


async def test_a_store_is_fresh(ckpt_store: Store | str) -> None:
    assert await collect(ckpt_store) == 0


@pytest.mark.parametrize("ckpt_store", ["memory", "sqlite", "json"], indirect=True)
async def test_a_store_may_be_another(ckpt_store: Store | str) -> None:
    assert await collect(ckpt_store) == 0


async def test_the_clock_does_not_jump_over_a_thread(ckpt_clock: MockClock) -> None:
    with trio.move_on_after(10_000) as scope:
        await trio.to_thread.run_sync(time.sleep, 0.05)
        await trio.lowlevel.checkpoint()
    assert not scope.cancelled_caught
    assert trio.current_time() == 0
    await trio.sleep(1_000)
    assert trio.current_time() == 1_000


async def order_of_tasks() -> list[int]:
    order: list[int] = []

    async def take_turns(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(take_turns, number)
    return order


def test_a_seed_is_an_order(ckpt_scheduler: int) -> None:
    with seeded_scheduler(ckpt_scheduler):
        wanted = trio.run(order_of_tasks)
    assert trio.run(order_of_tasks) == wanted, "the fixture's own order"
    others = []
    for seed in range(10):
        with seeded_scheduler(seed):
            others.append(trio.run(order_of_tasks))
    assert wanted in others
    assert others.count(wanted) < len(others), "another seed is another order"
