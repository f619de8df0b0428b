"""What the workers of `tests.crash.far_owners` do: steps that say who makes them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from trio_ckpt.remote import Work

STEP_S = 0.01


def steps(item: list[Any], work: Work[Any]) -> int:
    """Add up the numbers of some steps; stop at one, once.

    Args:
        item: A file for a line of each step with the process that makes it; how many steps; at
            which one the first process stops; where: ``before`` or ``after`` its point, or empty.
        work: Its state has the sum.
    """
    path, count, stop_at, where = item
    state, me = work.state, str(os.getpid())
    while state.setdefault("done", 0) < count:
        time.sleep(STEP_S)
        state["done"] += 1
        state["sum"] = state.get("sum", 0) + state["done"]
        with Path(path).open("a") as file:
            file.write(f"{me} {state['done']}\n")
        is_here = state["done"] == stop_at and pids(Path(path)) == [me]
        if is_here and where == "before":
            _stop()
        work.point_sync(f"{me} {state['done']}")
        if is_here and where == "after":  # the save has begun, and is on its way
            _stop()
    return int(state["sum"])


def pids(path: Path) -> list[str]:
    """The processes that have made steps, in the order in which they began."""
    text = path.read_text() if path.exists() else ""
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if " " in line))


def _stop() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
