"""Trio's scheduler and clock, as tests want them: an order that a seed names, time that jumps."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from .._threads import hold_clock

# Trio says which flag makes its schedule follow from its own random numbers, but not in public:
# `_core._run._hypothesis_plugin_setup` is where it is used.
_trio_run: Any = sys.modules["trio._core._run"]


@contextmanager
def seeded_scheduler(seed: int) -> Generator[None]:
    """Make the order in which trio runs tasks follow from a seed while the block runs.

    The same program with the same seed takes the same steps, unless it has threads of its own,
    real time, or chance of its own.
    """
    state = _trio_run._r.getstate()
    was, _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = _trio_run._ALLOW_DETERMINISTIC_SCHEDULING, True
    _trio_run._r.seed(seed)
    try:
        yield
    finally:
        _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was
        _trio_run._r.setstate(state)


@attrs.define(eq=False)
class ThreadWatch(trio.abc.Instrument):
    """Keeps an autojump clock from jumping while a thread of trio's pool is out.

    Trio takes a task that waits for a thread for an idle one (trio issue 456).  The library's
    own calls hold the clock themselves; this is for a program's `trio.to_thread.run_sync`.
    Threads under a limiter of their own are not seen.
    """

    _limiter: trio.CapacityLimiter | None = attrs.field(default=None, init=False)
    _hold: AbstractContextManager[bool] | None = attrs.field(default=None, init=False)

    @property
    def is_out(self) -> bool:
        """Whether a thread is out."""
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

    Threads under a limiter of their own are not seen.
    """
    return make_watched_clock()[0]


def make_watched_clock() -> tuple[MockClock, ThreadWatch]:
    """The same, and what watches over it."""
    clock, watch = MockClock(autojump_threshold=0), ThreadWatch()
    start = clock.start_clock

    def start_watched() -> None:
        start()
        trio.lowlevel.add_instrument(watch)

    # The class is final, and a fixture that is a clock can bring nothing else into the run.
    clock.start_clock = start_watched  # type: ignore[method-assign]  # of this one clock
    return clock, watch
