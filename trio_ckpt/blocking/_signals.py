"""SIGINT and SIGTERM in the main thread, while the run is in another one.

The first signal stops the run in good order, the second one at once, as `receive_signals` does in
a trio program.  A body that only computes, or waits in a call of its own, would not notice the
second: where the main thread is in such a body, the handler raises RunStoppedError in it.  Where it
is in a call of this run, trio cancels the call.  A call of another run belongs to the body: its
loop knows nothing of this stop.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType

import trio

from .._commit.shutdown import obey_signal
from .._util.errors import RunStoppedError
from .._util.forks import in_children, this_process
from ._loop import Loop
from ._program import Program

HERE = os.path.dirname(__file__) + os.sep


class StopOnSignals:
    """The handler of the main thread for the signals that stop a run, or a collection."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._is_signalled = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Stop the run in good order, or at once; called by Python in the main thread."""
        if this_process() != self._loop.process:
            return  # a terminal sends SIGINT to forked children, too
        was_signalled, self._is_signalled = self._is_signalled, True
        opened = self._loop.opened
        assert opened is not None, "signals are handled while it is open"
        opened.stop.request(128 + number)
        with suppress(trio.RunFinishedError):
            # Without a wait: the interrupted code may hold a lock that trio's thread needs.
            self._loop.send(obey_signal, opened.stop, number)
        if was_signalled and not _is_in_call(self._loop, frame):
            raise RunStoppedError(
                opened.run_id,
                exit_code=opened.stop.forced_code,
                resume_command=opened.resume_command,
            )


def _is_in_call(loop: Loop, frame: FrameType | None) -> bool:
    """Whether the innermost call of this package that a thread is in is one into a loop."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(HERE):
            program, of_open_run = map(frame.f_locals.get, ("self", "loop"))
            called = program.loop if isinstance(program, Program) else of_open_run
            if called is not None:
                return called is loop
        frame = frame.f_back
    return False


def takes_signals(wanted: bool | None, numbers: Collection[signal.Signals]) -> bool:
    """Whether a run handles signals; by default the first run of the main thread does.

    Raises:
        RuntimeError: it is wanted in another thread, where Python calls no handlers.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if wanted and not is_main:
        raise RuntimeError("handle_signals=True needs the main thread, which receives the signals")
    if wanted is None:
        handlers = map(signal.getsignal, numbers)
        return is_main and not any(isinstance(handler, StopOnSignals) for handler in handlers)
    return wanted


def handle(stack: ExitStack, handler: StopOnSignals, numbers: Collection[signal.Signals]) -> None:
    """Set a handler of signals until a stack is left; forked children keep the former ones."""
    for number in numbers:
        former = signal.getsignal(number) or signal.SIG_DFL  # None: not one of Python's
        give_back: Callable[[], object] = partial(signal.signal, number, former)
        stack.callback(give_back)
        if number != signal.SIGINT:
            stack.enter_context(in_children(give_back))
        signal.signal(number, handler)
