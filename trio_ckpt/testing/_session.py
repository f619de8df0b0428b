"""One session of a program: from its start to its end, or to the crash that is planned for it."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from .._commit.gate import watch_handed_out
from .._commit.shutdown import take_signals
from .._util.errors import RunStoppedError
from .._util.threads import Portal, hold_clock, runs_inline
from ._crash_points import CrashTrigger, Point
from ._world import SimulatedHost, World

Program = Callable[[World], Awaitable[object]]

HANGS_AFTER_S = 30 * 86_400  # of trio's clock: longer than any backoff, so no task wakes any more
MAX_STEPS = 200_000  # of tasks; a session of a usual test has some thousand
MAX_LAST_STEPS = 20_000  # after the session was told to end; only one that refuses takes so many
MAX_LAST_S = 2.0  # the same limit in real time, checked at steps:
EVERY_STEPS = 1_000  # this often; a thread that a dying task waits for takes no steps
MAX_IDLE = 1_000  # idle passes in a row, without a step and without a thread


class HangsError(Exception):
    """A session that would never end."""


@attrs.frozen
class End:
    """How a session ended.

    Attributes:
        trigger: The points that were passed, and where the program died.
        is_done: Whether the program has ended by itself.
        error: The exception that left the program, if it is a fault of the program.
    """

    trigger: CrashTrigger
    is_done: bool
    error: BaseException | None = None


@attrs.define(eq=False)
class _Meter(trio.abc.Instrument):
    """Counts steps of tasks as points, and detects a session that does not end."""

    trigger: CrashTrigger
    clock: Any  # a MockClock; its last resort is not public
    watch: ThreadWatch
    scope: trio.CancelScope | None = None
    nursery: trio.Nursery | None = None  # of trio's own tasks, whose steps are not points
    is_cancelled: bool = False
    is_done: bool = False
    hangs: bool = False
    gave_up: int = 0
    told_at: tuple[int, float] | None = None  # steps and time when the session was told to end
    steps: int = 0
    idle: int = 0

    def begin(self, scope: trio.CancelScope) -> None:
        """Start counting."""
        root = trio.lowlevel.current_root_task()
        self.nursery = root.child_nurseries[0] if root is not None else None
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        self.idle = 0
        if self.scope is None or task.parent_nursery is self.nursery:
            return
        self.steps += 1
        if self._is_overdue():
            self.give_up()
        trigger = self.trigger
        if trigger.has_fired or self.is_cancelled:
            return
        if trigger.is_next("cancellation") and trigger.point is not None:
            where = f"at a step of task {task.name}"
            if trigger.point.crash == "cancel":
                trigger.where, self.is_cancelled = f"cancelled {where}", True
            else:
                trigger.fire(where)
            self.scope.cancel()
        trigger.counts["cancellation"] += 1

    def _is_overdue(self) -> bool:
        if not (self.trigger.has_fired or self.is_cancelled or self.gave_up):
            return self.steps >= MAX_STEPS
        if self.told_at is None:
            self.told_at = (self.steps, time.perf_counter())
        steps, began = self.told_at
        taken = self.steps - steps
        return taken >= MAX_LAST_STEPS or (
            taken > 0 and taken % EVERY_STEPS == 0 and time.perf_counter() - began > MAX_LAST_S
        )

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio."""
        self.idle += 1
        if self.idle > MAX_IDLE and timeout == 0 and not self.watch.is_out:
            self.idle = 0
            self.give_up()

    def give_up(self) -> None:
        """End the session, by a stronger means each time."""
        self.gave_up += 1
        self.told_at = None
        self.hangs = True
        if self.scope is not None:
            self.scope.cancel()
        if self.gave_up == 2:
            take_shields_away()
        elif self.gave_up > 2:  # the coroutines stay as they are, and Python will complain
            self.trigger.has_fired = (
                True  # or code that Python runs to close them could loop forever
            )
            self.clock._real_clock = _stop_trio


def take_shields_away() -> None:
    """Let cancellation reach every task, even in shielded scopes."""
    left: list[Any] = [trio.lowlevel.current_root_task()]
    while left:
        task = left.pop()
        status = task._cancel_status  # trio has no public way from a task to its scopes
        while status is not None:  # from the innermost one out
            status._scope.shield = False
            status = status._parent
        left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def _stop_trio() -> float:
    raise HangsError("tasks that refuse to be cancelled wait for what never comes")


def run_session(program: Program, host: SimulatedHost, seed: int, point: Point | None) -> End:
    """Run a program until it ends, or until its crash.

    program: What to run.
    host: The simulated host; it is left as the next session finds it.
    seed: Seed of trio's scheduler.
    point: Where it crashes; None: nowhere.
    """
    host.sessions += 1
    clock, watch = make_watched_clock()
    trigger = CrashTrigger(point)
    meter = _Meter(trigger, clock, watch)
    instruments = [meter, ThreadTurns()]
    trigger.on_fire = partial(_take_down, host, trigger, meter)
    world = World(host, trigger, seed)
    error: BaseException | None = None
    with seeded_scheduler(seed):
        try:
            trio.run(_run, program, world, meter, host, clock=clock, instruments=instruments)
        except RunStoppedError as problem:  # a SystemExit, but one of the explored program
            error = problem
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as problem:
            error = problem
    if meter.gave_up > 2:
        error = HangsError(
            "the program does not end: it goes on when it is cancelled; see where it catches "
            "BaseException or trio.Cancelled, and raise it again there"
        )
        return End(trigger, is_done=False, error=error)
    if trigger.has_fired:
        host.crashes += 1
        host.invariants.bury()
        return End(trigger, is_done=False)  # a dying program's exceptions do not count
    host.crashes += meter.is_cancelled
    host.end_session()
    trigger.has_fired = True  # code that still has the world must not change the next one
    if meter.hangs:
        error = HangsError("it does not end: every task waits for what never comes")
    return End(trigger, is_done=meter.is_done, error=error)


def _take_down(host: SimulatedHost, trigger: CrashTrigger, meter: _Meter) -> None:
    """Take down what the next session finds, and let this one end."""
    if trigger.point is not None:
        host.crash(trigger.point.crash, trigger.point.seed)
    if meter.scope is not None:
        meter.scope.cancel()


async def _run(program: Program, world: World, meter: _Meter, host: SimulatedHost) -> None:
    runs_inline.set(True)
    watch_handed_out.set(host.invariants.handed_out)
    take_signals(True)  # so that no run takes them: Ctrl-C is for the user who explores
    with trio.CancelScope() as scope:
        meter.begin(scope)
        with trio.move_on_after(HANGS_AFTER_S) as patience:
            await program(world)
        meter.hangs = meter.hangs or patience.cancelled_caught
    meter.scope = None
    meter.is_done = not scope.cancelled_caught
    if not meter.trigger.has_fired:
        await host.check_given_back()


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
