"""Killing the processes that run items, as the items' own lines tell which they are."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import attrs

from tests.engines.items import steps_in
from tests.hangs import HANG_S, PROGRAM_S

PAUSE_S = 0.05  # between two looks
RECENT_S = 2.0  # a process that has made no step for so long may have gone already


@attrs.define(eq=False)
class Killer:
    """Kills one process after the other while a job runs, in a thread of its own.

    Attributes:
        side: The file with the steps that were made.
        total: How many steps the job has.
        wanted: How many processes to kill.
        killed: The processes that were killed.
    """

    side: Path
    total: int
    wanted: int
    killed: list[int] = attrs.field(factory=list[int], init=False)
    _is_over: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    def __enter__(self) -> Killer:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        deadline = time.monotonic() + PROGRAM_S
        while len(self.killed) < self.wanted and time.monotonic() < deadline:
            if self._is_over.wait(PAUSE_S):
                return
            due = (len(self.killed) + 1) * self.total // (self.wanted + 2)
            steps = steps_in(self.side)
            if len(steps) < due:
                continue
            now = time.time()
            alive = [step.pid for step in steps if now - step.at < RECENT_S]
            for pid in reversed(alive):
                if pid not in self.killed and pid != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.killed.append(pid)
                    break


def kill_one(side: Path, after: int, before: int) -> None:
    """Kill the process that has made the newest step, once there are so many steps.

    Args:
        side: The file with the steps that were made.
        after: How many steps there have to be.
        before: The process is killed before it makes this step of its item.
    """
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        steps = steps_in(side)
        if len(steps) >= after and steps[-1].number < before:
            os.kill(steps[-1].pid, signal.SIGKILL)
            return
        time.sleep(0.005)
