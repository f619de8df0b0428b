"""Functions that run in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.engines.items import Saves
from trio_ckpt.remote import Work

AnyWork = Work[Any]


def where(item: int, _work: AnyWork) -> list[int]:
    time.sleep(0.01)
    return [item, os.getpid()]


def fail(item: int, _work: AnyWork) -> None:
    raise ValueError(item)


def hang(item: str, _work: AnyWork) -> None:
    """Say so in a file, and run for longer than a test waits."""
    Path(item).touch()
    time.sleep(300)


def slow(item: int, _work: AnyWork) -> int:
    (Path(os.environ["MARKS"]) / f"{item}-{os.getpid()}").touch()
    time.sleep(0.4)
    return item * item


def count_and_die(item: str, work: AnyWork) -> list[int]:
    """Count to 6; the first time the process dies at 4."""
    done: list[int] = work.state.setdefault("done", [])
    (Path(item) / str(len(done))).touch()
    while len(done) < 6:
        if len(done) == 3 and len(list(Path(item).iterdir())) == 1:
            for _ in range(2):  # a save begins when the one before it is durable
                while not work.point_sync():
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(len(done) + 1)
        work.point_sync()
        time.sleep(0.05)
    return done


def count_slowly(item: str, work: AnyWork) -> list[int]:
    """Count to 40, a tenth of a second each."""
    done: list[int] = work.state.setdefault("done", [])
    (Path(item) / f"{len(done)}-{os.getpid()}").touch()
    while len(done) < 40:
        time.sleep(0.1)
        done.append(len(done) + 1)
        work.report(progress_percent=len(done) / 0.4)
        work.point_sync()
    return done


def hold(folder: Path, count: int | None) -> None:
    """Let the items of `steps` make so many steps each; then they wait.  None: to their end."""
    path = Path(f"{folder}.hold")
    if count is None:
        path.unlink()
    else:
        path.write_text(str(count))


def _is_held(folder: Path, done: int) -> bool:
    path = Path(f"{folder}.hold")
    return path.exists() and done >= int(path.read_text())


def steps(item: list[Any], work: AnyWork) -> int:
    """So many steps; what it begins with, and each step, leave a line in the item's file."""
    folder, number, count = item
    state = work.state
    done = state.setdefault("done", 0)
    saves = Saves(done, done)
    marks = Path(folder) / str(number)
    _mark(marks, f"begun {done}")
    while state["done"] < count:
        while _is_held(Path(folder), state["done"]):
            saves.point(work)  # it may be told to end
            time.sleep(0.01)
        time.sleep(0.05)
        state["done"] += 1
        state["sum"] = state.get("sum", 0) + state["done"]
        _mark(marks, f"step {state['done']} {saves.durable}")
        saves.point(work)
    return int(state["sum"]) + number


def _mark(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")
