"""The end of a driver: functions end with a call that is cancelled; one that is killed goes on."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.engines import items
from tests.engines.drivers import DriverProgram, cancel_after, sum_to, work
from tests.engines.items import durable_again, steps_in
from trio_ckpt.engines import _job, map_tasks


async def test_a_cancelled_call_ends_functions_at_their_next_point(
    tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of that point is saved: the next call goes on there, and repeats nothing."""
    monkeypatch.setattr(_job, "WATCH_S", 0.1)
    side = tmp_path / "side"
    call = partial(
        map_tasks,
        items.count_up,
        work(side, 2, 300),
        engine=threads,
        store=tmp_path / "s",
        job_id="job-cancelled",
        checkpoint_interval_s=1_000.0,
    )
    await cancel_after(10, side, call)
    assert await call() == [sum_to(300)] * 2
    assert len(steps_in(side)) == 600


async def test_a_function_that_saves_nothing_ends_too(
    tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "WATCH_S", 0.1)
    side = tmp_path / "side"
    call = partial(
        map_tasks, items.count_up, work(side, 1, 5_000), engine=threads, store=tmp_path / "s"
    )
    await cancel_after(10, side, call)


def test_a_driver_that_is_killed_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    side = tmp_path / "side"
    program = DriverProgram(
        side,
        str(tmp_path / "s"),
        {"engine": "processes", "checkpoint_interval_s": 0.1},
    )
    program.kill_when(lambda steps: len(steps) >= 100)
    for pid in {step.pid for step in steps_in(side)}:  # a pool's processes outlive its program
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    program.finish()
    assert durable_again(side) == []
