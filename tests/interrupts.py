"""Interrupts a program at any line of the library, and looks at what is left.

A run of the program counts the lines of the library that it passes.  Then each of them is
interrupted in a run of its own, on a machine in memory, and the program is started again.  The
lines that only the first run of a process passes, as of imports, are not interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import attrs
import trio

import trio_ckpt
from trio_ckpt.testing import World
from trio_ckpt.testing._crash_points import CrashTrigger
from trio_ckpt.testing._session import HangsError, run_session
from trio_ckpt.testing._world import SimulatedHost

PACKAGE = os.path.dirname(trio_ckpt.__file__) + os.sep
TESTING = os.path.join(PACKAGE, "testing") + os.sep
DISK = {
    PACKAGE + name for name in ("stores/memory.py", "testing/_crash_store.py", "testing/_faulty.py")
}

Program = Callable[[World], Awaitable[None]]
Line = tuple[CodeType, int]


def ctrl_c() -> None:
    """As a person does it: trio decides where KeyboardInterrupt is raised."""
    signal.raise_signal(signal.SIGINT)


def interrupt() -> None:
    """KeyboardInterrupt right here, protected or not."""
    raise KeyboardInterrupt


def no_memory() -> None:
    """What can be raised at any line, and what no protection keeps away."""
    raise MemoryError


@attrs.define(eq=False)
class Tracer:
    """Does something at one of the lines of the library.

    Attributes:
        at: Which; None: count them.
        again: Whether to count a line each time that it is passed, not the first alone.
        act: What to do there.
        only: Where to count: in this function and what it calls; None: everywhere.
    """

    at: int | None = None
    act: Callable[[], None] = interrupt
    only: CodeType | None = None
    again: bool = False
    seen: set[Line] = attrs.field(factory=set[Line])
    passed: int = 0
    where: str = ""

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While the block runs."""
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)

    def _called(self, frame: FrameType, _event: str, _arg: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or name.startswith(TESTING):
            return None
        if frame.f_code.co_name == "__del__":
            return None  # Python prints what a finalizer raises: it reaches no program
        return self._line if self._is_meant(frame) else None

    def _is_meant(self, frame: FrameType | None) -> bool:
        """Whether a frame is below the function, and not in the store, which is the disk here."""
        is_below = self.only is None
        while frame is not None:
            if frame.f_code.co_filename in DISK:
                return False
            is_below = is_below or frame.f_code is self.only
            frame = frame.f_back
        return is_below

    def _line(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line":
            line = (frame.f_code, frame.f_lineno)
            if self.again or line not in self.seen:
                self.seen.add(line)
                self.passed += 1
                if self.passed - 1 == self.at:
                    path = frame.f_code.co_filename.removeprefix(PACKAGE)
                    self.where = f"{path}:{frame.f_lineno} in {frame.f_code.co_qualname}"
                    sys.settrace(None)
                    frame.f_trace = None
                    self.act()
        return self._line


@attrs.frozen
class Ended:
    """How an interrupted session ended.

    Attributes:
        where: It was interrupted.
        problem: What is wrong; empty: nothing.
        error: What left it.
    """

    where: str
    problem: str
    error: BaseException | None


def count_lines(program: Program, *, only: CodeType | None = None, again: bool = False) -> int:
    """How many lines of the library a run of the program passes, but for those of a first run.

    What is imported or filled when it is first needed runs no more in the runs that follow.
    """
    _session(program, SimulatedHost(), Tracer())
    tracer = Tracer(only=only, again=again)
    _session(program, SimulatedHost(), tracer)
    return tracer.passed


def _session(program: Program, host: SimulatedHost, tracer: Tracer) -> BaseException | None:
    """Run the program once; returns what left it."""
    left: list[BaseException] = []

    async def traced(world: World) -> None:
        try:
            with tracer.tracing():
                await program(world)
        except trio.Cancelled:
            raise  # the session gives it up
        except BaseException as error:
            left.append(error)

    try:
        end = run_session(traced, host, 0, None)
    except KeyboardInterrupt as error:  # trio had none to give it to
        host.end_session()
        return error
    if isinstance(end.error, HangsError) or not left:
        return end.error
    return left[0]


def interrupt_at(
    program: Program,
    check: Callable[[World], None],
    at: int,
    act: Callable[[], None],
    *,
    only: CodeType | None = None,
    again: bool = False,
) -> Ended:
    """Interrupt a run of the program at one line, start it again, and look."""
    host, tracer = SimulatedHost(), Tracer(at, act, only, again)
    error = _session(program, host, tracer)

    def ended(problem: str) -> Ended:
        return Ended(tracer.where, problem, error)

    if isinstance(error, HangsError):
        return ended("it hangs")
    try:
        host.check()
    except AssertionError as broken:
        return ended(f"then: {broken}")
    again = _session(program, host, Tracer())
    if again is not None:
        return ended(f"the next start: {again!r}")
    try:
        host.check()
        check(World(host, CrashTrigger(), 0))
    except AssertionError as broken:
        return ended(f"in the end: {broken}")
    return ended("")
