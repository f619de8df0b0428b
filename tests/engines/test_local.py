"""`map_tasks`: real processes on this machine, and nothing left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engines import jobs
from tests.hangs import HANG_S, PROGRAM_S
from trio_ckpt import remote
from trio_ckpt.engines import map_tasks
from trio_ckpt.remote import NotAllowedError, RemoteError, TaskFailedError
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]


def children() -> set[int]:
    """The processes that this one has started and that run."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            _state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                found.add(int(process.name))
    return found


async def test_functions_run_in_other_processes_and_nothing_is_left(tmp_path: Path) -> None:
    before, sockets = children(), open_files()
    found = await map_tasks(jobs.where, list(range(8)), workers=2, store=tmp_path / "s")
    assert [item for item, _pid in found] == list(range(8))
    assert os.getpid() not in {pid for _item, pid in found}
    assert not children() - before
    assert open_files() <= sockets + 1  # trio keeps one that it has made


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_an_error_is_raised_and_nothing_is_left() -> None:
    before = children()
    with pytest.raises(TaskFailedError, match="ValueError: 3"):
        await map_tasks(jobs.fail, [3], workers=1)
    assert not children() - before


async def test_cancelling_ends_processes_whose_function_goes_on(tmp_path: Path) -> None:
    before = children()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(map_tasks, jobs.hang, [str(tmp_path / name) for name in "ab"])
        with trio.fail_after(HANG_S):
            while not any(tmp_path.iterdir()):  # noqa: ASYNC110, ASYNC240  # no event reports it
                await trio.sleep(0.05)
        assert children() - before
        started = time.monotonic()
        nursery.cancel_scope.cancel()
    assert not children() - before
    assert time.monotonic() - started < HANG_S  # the function takes longer


async def test_a_cancelled_call_leaves_its_job_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message ends the job: the block that is cancelled has its foreman in it."""
    monkeypatch.setenv("MARKS", str(tmp_path))
    call = partial(map_tasks, jobs.slow, [1, 2, 3], workers=1, store=tmp_path / "s", job_id="job-c")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        with trio.fail_after(HANG_S):
            while not list(tmp_path.glob("2-*")):  # noqa: ASYNC110, ASYNC240  # no event reports it
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    async with aclosing(await open_store(tmp_path / "s")) as store:
        view = await remote.read_job(store, "job-c")
    assert view.status is remote.TaskStatus.PENDING
    assert await call() == [1, 4, 9]


async def test_a_worker_that_is_killed_is_replaced_and_its_item_goes_on(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    found: list[Any] = await map_tasks(
        jobs.count_and_die,
        [str(marks)],
        workers=1,
        store=tmp_path / "s",
        checkpoint_interval_s=0.0,
    )
    assert found == [[1, 2, 3, 4, 5, 6]]
    begun = sorted(int(path.name) for path in marks.iterdir())
    assert begun == [0, 3], "it began again, or was not killed"


@pytest.mark.parametrize("func", [lambda item, work: item, print, "no name"])
async def test_what_no_process_could_import_is_refused(func: Any) -> None:
    with pytest.raises(NotAllowedError):
        await map_tasks(func, [1], workers=1)


async def test_a_bad_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="engine"):
        await map_tasks(jobs.where, [1], engine="slurm")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="workers"):
        await map_tasks(jobs.where, [1], workers=5_000)


PROGRAM = """
import sys, trio
from tests.engines import jobs
from trio_ckpt.engines import map_tasks

async def main():
    print("started", flush=True)
    print(await map_tasks(jobs.slow, list(range(6)), workers=2, store=sys.argv[1],
                          job_id="job-k"), flush=True)

trio.run(main)
"""


def test_a_killed_program_leaves_no_process_and_resumes_next_time(
    tmp_path: Path,
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "s")]
    env = {**os.environ, "MARKS": str(marks), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE) as program:
        deadline = time.monotonic() + PROGRAM_S
        while len(list(marks.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = {int(path.name.partition("-")[2]) for path in marks.iterdir()}
        program.send_signal(signal.SIGKILL)
        program.wait()
    deadline = time.monotonic() + HANG_S
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers)), "a worker has outlived its parent"
    done = subprocess.run(
        command, env=env, cwd=ROOT, text=True, capture_output=True, timeout=PROGRAM_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "[0, 1, 4, 9, 16, 25]"
    ran = [int(path.name.partition("-")[0]) for path in marks.iterdir()]
    assert set(ran) == set(range(6))
    assert len(ran) <= 6 + 2, "what was done was done again"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
async def test_job_whose_store_is_removed_ends_with_an_error(tmp_path: Path, scheme: str) -> None:
    """The one who waits for it is told, though nothing of it can be read any more."""
    store, marks = tmp_path / "store", tmp_path / "marks"
    marks.mkdir()

    async def remove() -> None:
        while not os.listdir(marks):  # noqa: ASYNC110  # another process tells nothing
            await trio.sleep(0.01)
        store.rename(tmp_path / "removed")  # at once: a writer may be in the folder
        shutil.rmtree(tmp_path / "removed", ignore_errors=True)

    async def work() -> None:
        await map_tasks(
            "tests.engines.jobs:count_slowly",
            [str(marks)],
            store=f"{scheme}:{store}",
            workers=1,
            checkpoint_interval_s=0.1,
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remove)
        with trio.fail_after(HANG_S), pytest.raises(RemoteError):
            await work()
