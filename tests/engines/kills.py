"""Killing the processes that run items, as the items' own lines tell which they are."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import attrs

from tests.engines.items import hold, steps_in
from tests.hangs import HANG_S, PROGRAM_S

PAUSE_S = 0.05  # between two looks
MARGIN = 8  # steps that are made after a kill is due, at most, before it comes


@attrs.define(eq=False)
class Killer:
    """Kills one process after the other while a job runs, in a thread of its own.

    The job waits for each kill that is due, so there are as many as are wanted.

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
        hold(self.side, self._due + MARGIN)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        assert self._thread is not None
        self._thread.join()

    @property
    def _due(self) -> int:
        """After how many steps the next one is killed."""
        return (len(self.killed) + 1) * self.total // (self.wanted + 2)

    def _run(self) -> None:
        deadline = time.monotonic() + PROGRAM_S
        try:
            while len(self.killed) < self.wanted and time.monotonic() < deadline:
                if self._is_over.wait(PAUSE_S):
                    return
                self._kill_if_due()
        finally:
            hold(self.side, None)

    def _kill_if_due(self) -> None:
        steps = steps_in(self.side)
        if len(steps) < self._due:
            return
        for step in reversed(steps):
            if step.pid != os.getpid() and step.kill():
                self.killed.append(step.pid)
                hold(self.side, self._due + MARGIN)
                return


def kill_one(side: Path, after: int) -> None:
    """Kill the process that has made the newest step, once there are so many.

    Args:
        side: The file with the steps that were made, which are held at that number.
        after: How many steps there have to be.
    """
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        steps = steps_in(side)
        if len(steps) >= after and steps[-1].kill():
            break
        time.sleep(0.005)
    hold(side, None)
