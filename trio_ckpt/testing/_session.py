"""One session of a program: from its start to its end, or to the crash that is planned for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import trio

from .._desk import watch_handed_out
from .._stop import take_signals
from .._threads import runs_inline
from ._points import Fuse, Point
from ._scheduler import ThreadTurns, ThreadWatch, make_watched_clock, seeded_scheduler
from ._world import Machine, World

Program = Callable[[World], Awaitable[object]]

HANGS_AFTER_S = 30 * 86_400  # of trio's clock: longer than any backoff, so nobody wakes any more
MAX_STEPS = 1_000_000  # of tasks; a session that a test can afford has some thousand
MAX_IDLE = 1_000  # looks for something to do in a row, without a step and without a thread


class HangsError(Exception):
    """A session that would never end."""


@attrs.frozen
class End:
    """How a session ended.

    Attributes:
        fuse: What it passed, and where it died.
        is_done: Whether the program has ended by itself.
        error: What left the program, if that is a fault of it.
    """

    fuse: Fuse
    is_done: bool
    error: BaseException | None = None


@attrs.define(eq=False)
class _Meter(trio.abc.Instrument):
    """Counts steps of tasks as points, and notices a session that does not end."""

    fuse: Fuse
    clock: Any  # a MockClock; its last resort is not public
    watch: ThreadWatch
    scope: trio.CancelScope | None = None
    nursery: trio.Nursery | None = None  # of trio's own tasks, whose steps are no points
    is_cancelled: bool = False
    is_done: bool = False
    hangs: bool = False
    gave_up: int = 0
    steps: int = 0
    idle: int = 0

    def begin(self, scope: trio.CancelScope) -> None:
        """Count from here on."""
        root = trio.lowlevel.current_root_task()
        self.nursery = root.child_nurseries[0] if root is not None else None
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        self.idle = 0
        if self.scope is None or task.parent_nursery is self.nursery:
            return
        self.steps += 1
        if self.steps % MAX_STEPS == 0:
            self.give_up()
        fuse = self.fuse
        if fuse.is_blown or self.is_cancelled:
            return
        if fuse.is_next("cancellation") and fuse.point is not None:
            where = f"at a step of task {task.name}"
            if fuse.point.manner == "cancel":
                fuse.where, self.is_cancelled = f"cancelled {where}", True
            else:
                fuse.blow(where)
            self.scope.cancel()
        fuse.counts["cancellation"] += 1

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio."""
        self.idle += 1
        if self.idle > MAX_IDLE and timeout == 0 and not self.watch.is_out:
            self.idle = 0
            self.give_up()

    def give_up(self) -> None:
        """End the session, by one means more each time that it does not help."""
        self.gave_up += 1
        self.hangs = True
        if self.scope is not None:
            self.scope.cancel()
        if self.gave_up == 2:
            take_shields_away()
        elif self.gave_up > 2:  # the coroutines are left as they are, and Python will complain
            self.clock._real_clock = _stop_trio


def take_shields_away() -> None:
    """Let cancellation reach every task, whatever shields it."""
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


def run_session(program: Program, machine: Machine, seed: int, point: Point | None) -> End:
    """Run a program until it ends, or until its crash.

    Args:
        program: What to run.
        machine: Where; it is left as the next session finds it.
        seed: Of trio's scheduler.
        point: Where it crashes; None: nowhere.
    """
    machine.sessions += 1
    clock, watch = make_watched_clock()
    fuse = Fuse(point)
    meter = _Meter(fuse, clock, watch)
    instruments = [meter, ThreadTurns()]
    fuse.on_blow = partial(_blow, machine, fuse, meter)
    world = World(machine, fuse, seed)
    error: BaseException | None = None
    with seeded_scheduler(seed):
        try:
            trio.run(_run, program, world, meter, machine, clock=clock, instruments=instruments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as problem:
            error = problem
    if fuse.is_blown:
        machine.crashes += 1
        machine.ledger.bury()
        return End(fuse, is_done=False)  # whatever a dying program says
    machine.crashes += meter.is_cancelled
    machine.end_session()
    fuse.is_blown = True  # who has kept the world must not change the next one
    if meter.hangs:
        error = HangsError("it does not end: every task waits for what never comes")
    return End(fuse, is_done=meter.is_done, error=error)


def _blow(machine: Machine, fuse: Fuse, meter: _Meter) -> None:
    """Take down what the next session finds, and let this one come to its end."""
    if fuse.point is not None:
        machine.crash(fuse.point.manner, fuse.point.seed)
    if meter.scope is not None:
        meter.scope.cancel()


async def _run(program: Program, world: World, meter: _Meter, machine: Machine) -> None:
    runs_inline.set(True)
    watch_handed_out.set(machine.ledger.handed_out)
    take_signals(True)  # so that no run does: Ctrl-C is for whoever explores
    with trio.CancelScope() as scope:
        meter.begin(scope)
        with trio.move_on_after(HANGS_AFTER_S) as patience:
            await program(world)
        meter.hangs = meter.hangs or patience.cancelled_caught
    meter.scope = None
    meter.is_done = not scope.cancelled_caught
    if not meter.fuse.is_blown:
        await machine.check_given_back()
