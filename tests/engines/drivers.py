"""Drivers of jobs that end early: calls that are cancelled, and programs that are killed."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.engines import items
from tests.engines.items import Step, steps_in
from tests.hangs import PROGRAM_S
from trio_ckpt import remote
from trio_ckpt.engines import map_tasks
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
POLL_S = 0.01  # between two looks at the steps: other processes tell nothing
COUNTS = (items.SHORT, 100, 100, 100)  # steps of the items of a program
PAUSE_S = 0.02  # before each of them
PROGRAM_JOB = "job-driver"


def pool(workers: int = 2) -> ProcessPoolExecutor:
    """An executor whose processes can be killed without harm to this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context)


class TwiceExecutor(ThreadPoolExecutor):
    """Starts everything twice at once, as an engine does that takes a worker for lost."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        first = super().submit(fn, *args, **kwargs)
        super().submit(fn, *args, **kwargs)
        return first


def work(side: Path, count: int, n: int, pause_s: float = PAUSE_S) -> list[list[Any]]:
    """Items of `items.count_up`, of n steps each."""
    return [[n, pause_s, str(side)]] * count


def sum_to(n: int) -> int:
    """What `items.count_up` returns for an item of n steps."""
    return n * (n + 1) // 2


async def cancel_after(count: int, side: Path, call: Callable[[], Awaitable[object]]) -> None:
    """Cancel a call once its functions have made so many steps, and wait for their end.

    They are held until all have ended: none can come to the end of its work instead.
    """
    items.hold(side, count)
    with trio.fail_after(PROGRAM_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            while len(steps_in(side)) < count:  # noqa: ASYNC110  # another process tells nothing
                await trio.sleep(POLL_S)
            nursery.cancel_scope.cancel()
        while items.running(side):  # noqa: ASYNC110
            await trio.sleep(POLL_S)
    items.hold(side, None)


async def count_saved(store: str) -> int:
    """How many steps of the job of a program are saved, by its store."""
    async with aclosing(await open_store(store)) as opened:
        tasks = (await remote.read_job(opened, PROGRAM_JOB)).tasks
    return round(sum(COUNTS[task.index] * task.progress_percent / 100 for task in tasks))


@attrs.frozen
class DriverProgram:
    """A program that runs a job of four items, and can be killed and started again.

    Attributes:
        side: The file with the steps that were made.
        store: The address of the store.
        options: Of `map_tasks`, as JSON: the engine above all; "processes" is a `pool`.
    """

    side: Path
    store: str
    options: dict[str, object]

    @property
    def _command(self) -> list[str]:
        told = json.dumps({"store": self.store, **self.options})
        return [sys.executable, "-m", __name__, str(self.side), told]

    def kill_when(self, is_due: Callable[[list[Step]], bool]) -> float:
        """Start it, and kill it once its steps say so; return when, in Unix time.

        Its items wait for that, half way, and all steps are saved before it.
        """
        items.hold(self.side, sum(COUNTS) // 2)
        with subprocess.Popen(self._command, cwd=ROOT) as driver:
            deadline = time.monotonic() + PROGRAM_S
            while not is_due(steps := steps_in(self.side)) or len(steps) != trio.run(
                count_saved, self.store
            ):
                assert driver.poll() is None, "the driver has ended by itself"
                assert time.monotonic() < deadline, "the driver makes no steps"
                time.sleep(POLL_S)
            driver.send_signal(signal.SIGKILL)
        killed_at = time.time()
        items.hold(self.side, None)
        return killed_at

    def finish(self) -> None:
        """Start it again, and check its results once it has ended."""
        done = subprocess.run(
            self._command, cwd=ROOT, text=True, capture_output=True, timeout=PROGRAM_S, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [sum_to(n) for n in COUNTS]
        first = [step for step in steps_in(self.side) if step.item == 0]
        assert len(first) == COUNTS[0], "what was done was done again"


def main(side: str, told: str) -> None:
    """Run the job of a `DriverProgram`."""
    options = json.loads(told)
    if options["engine"] == "processes":
        options["engine"] = pool
    found = [[n, PAUSE_S, side] for n in COUNTS]
    call = partial(map_tasks, items.count_up, found, job_id=PROGRAM_JOB, **options)
    print(json.dumps(trio.run(call)))


if __name__ == "__main__":
    main(*sys.argv[1:])
