"""Trio's scheduler and clock for tests: an order that follows from a seed, and jumping time."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from .._util.threads import Portal, hold_clock

# Trio's flag that makes the schedule follow from its own random numbers is not public:
# `_core._run._hypothesis_plugin_setup` is where it is used.
_trio_run: Any = sys.modules["trio._core._run"]


@contextmanager
def seeded_scheduler(seed: int) -> Generator[None]:
    """Make the order in which trio runs tasks follow from a seed while the block runs.

    The same program with the same seed takes the same steps, unless it has threads of its own,
    real time, or chance of its own.  What the `random` module gives follows from the seed, too:
    the waits of a `RetryTable` are lengthened by it.
    """
    state, chance = _trio_run._r.getstate(), random.getstate()
    was, _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = _trio_run._ALLOW_DETERMINISTIC_SCHEDULING, True
    _trio_run._r.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was
        _trio_run._r.setstate(state)
        random.setstate(chance)


@attrs.define(eq=False)
class ThreadWatch(trio.abc.Instrument):
    """Keeps an autojump clock from jumping while a thread of trio's pool is out.

    Trio takes a task that waits for a thread for an idle one (trio issue 456).  The library's
    own calls hold the clock themselves; this is for a program's `trio.to_thread.run_sync`.
    Threads under a limiter of their own are not counted.
    """

    _limiter: trio.CapacityLimiter | None = attrs.field(default=None, init=False)
    _hold: AbstractContextManager[bool] | None = attrs.field(default=None, init=False)

    @property
    def is_out(self) -> bool:
        """Whether a thread is running."""
        return self._limiter is not None and self._limiter.borrowed_tokens > 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        if self._limiter is None:
            self._limiter = trio.to_thread.current_default_thread_limiter()
        if self._limiter.borrowed_tokens:
            if self._hold is None:
                self._hold = hold_clock()
                self._hold.__enter__()
        elif self._hold is not None:
            hold, self._hold = self._hold, None
            hold.__exit__(None, None, None)


def make_clock() -> MockClock:
    """A clock for one `trio.run`: it jumps when all tasks sleep, but not while a thread is out.

    Threads under a limiter of their own are not counted.
    """
    return make_watched_clock()[0]


def make_watched_clock() -> tuple[MockClock, ThreadWatch]:
    """An autojump clock, and the instrument that watches it."""
    clock, watch = MockClock(autojump_threshold=0), ThreadWatch()
    start = clock.start_clock

    def start_watched() -> None:
        start()
        trio.lowlevel.add_instrument(watch)

    # The class is final, and a fixture that is a clock can bring nothing else into the run.
    clock.start_clock = start_watched  # type: ignore[method-assign]  # of this one clock
    return clock, watch


POLL_S = 20e-6  # a turn takes some 50 µs
MAX_POLLS = 10_000  # 0.7 s; a thread that takes longer goes on beside the tasks.  They are counted,
# not timed: on a machine that is too busy to run the thread they take longer, too.


class ThreadTurns(trio.abc.Instrument):
    """Lets one of trio's cached threads run at a time, and no task beside it.

    When a task has started a thread, or answered one, trio waits here until that thread has
    posted its next message: that it is done, or a call to trio.  So threads take turns with
    tasks, and a program with threads takes the same steps each time.
    """

    def __init__(self) -> None:
        self._queue: Any = None  # of the messages of threads
        self._said = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        if self._queue is None:
            self._queue = _queue_of(trio.lowlevel.current_trio_token())
            Portal.here().wake = self._wake
        self._said = len(self._queue)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        if self._queue is not None and _waits_for_thread(task):
            self._wait_for_more_than(self._said)

    def _wake(self, wake: Callable[[], None]) -> None:
        """Answer a thread's call to the library, in a step of trio's own."""
        said = len(self._queue)
        wake()
        self._wait_for_more_than(said)

    def _wait_for_more_than(self, said: int) -> None:
        for _ in range(MAX_POLLS):
            if len(self._queue) > said:
                return
            time.sleep(POLL_S)


def _queue_of(token: Any) -> Any:
    """Messages of threads that trio has not handled yet."""
    return token._reentry_queue.queue


def _waits_for_thread(task: trio.lowlevel.Task) -> bool:
    """Whether a task waits for its thread, and not for a call of that thread."""
    at: Any = task.coro
    while at is not None and (code := getattr(at, "cr_code", None)) is not None:
        at = at.cr_await
        if code.co_name in ("to_thread_run_sync", "run_blocking"):
            inner = getattr(at, "cr_code", None)
            return inner is not None and inner.co_name == "wait_task_rescheduled"
    return False
