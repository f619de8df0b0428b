"""The one seam for blocking calls.

Every blocking call of the library goes through here, and so does a function of the caller that the
library runs in a thread (`Aside`).  Two things happen at the seam:

* While a call is out, an autojump mock clock must not jump: trio counts a task that
  waits for a thread as idle (trio issue 456), so a call of 0.2 s would move virtual
  time by hours and fire every timeout there is.  The seam holds such a clock at the
  first call out and lets it go at the last.  It knows the clock by its attribute and
  never imports `trio.testing`.
* Under such a clock nothing else can notice a call that never ends, so the seam does,
  after `STUCK_AFTER_S` of real time.

Nothing crosses the seam in a forked child: threads and descriptors of the parent are not there, and
what the child did would be done to files of the parent (see `trio_ckpt._util.forks`).

Where nothing behind the seam blocks, because store and files are in memory, threads would
only make a program slow and its order a matter of luck: `runs_inline` leaves them out.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, TypeVar, TypeVarTuple, cast

import attrs
import outcome
import trio

from .errors import ForkedProcessError, NoThreadError, TrioCkptError
from .forks import need_process, this_process
from .uninterrupted import uninterrupted

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STUCK_AFTER_S = 60.0  # real seconds that one call may take under a mock clock
LOOK_AGAIN_S = 1.0  # more of them, in case this process was stopped for all of that time


NOT_BEGUN = (ForkedProcessError, NoThreadError)
"""What a call raises that was never made, so that nothing came of it."""


class _JumpingClock(Protocol):
    autojump_threshold: float


@attrs.define
class _HeldClock:
    """How many calls are out in this trio run, and what to restore after the last."""

    calls_out: int = 0
    threshold: float = math.inf


_held: trio.lowlevel.RunVar[_HeldClock] = trio.lowlevel.RunVar("trio_ckpt held clock")


@contextmanager
def hold_clock() -> Generator[bool, None, None]:
    """Keep an autojump clock from jumping while the block runs; yields whether there is one."""
    clock = trio.lowlevel.current_clock()
    if not hasattr(clock, "autojump_threshold"):
        yield False
        return
    jumping = cast("_JumpingClock", clock)
    try:
        held = _held.get()
    except LookupError:
        held = _HeldClock()
        _held.set(held)
    if held.calls_out == 0:
        held.threshold = jumping.autojump_threshold
        jumping.autojump_threshold = math.inf
    held.calls_out += 1
    try:
        yield True
    finally:
        held.calls_out -= 1
        if held.calls_out == 0:
            jumping.autojump_threshold = held.threshold


runs_inline: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trio_ckpt inline", False)
"""Whether calls are made right here, without threads, in this trio run: for `trio_ckpt.testing`."""


_begun_in: trio.lowlevel.RunVar[int | None] = trio.lowlevel.RunVar("trio_ckpt process", None)


def _need_own_run() -> None:
    """Refuse the trio run of a forked child, which is its parent's."""
    process = _begun_in.get()
    if process is None:
        _begun_in.set(this_process())
    else:
        need_process(process)


@uninterrupted
async def run_blocking(func: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a blocking function in one of trio's threads.

    Cancellation: not while it runs; a call that has begun is waited for.

    Raises:
        ForkedProcessError: this is a forked child, in the trio run of its parent.
        NoThreadError: the system starts no more threads.
    """
    _need_own_run()
    if runs_inline.get():
        await trio.lowlevel.checkpoint_if_cancelled()
        await trio.lowlevel.cancel_shielded_checkpoint()  # others run before it, as with a thread
        return await _call_inline(func, *args)
    begun: list[bool] = []
    with hold_clock():
        try:
            return await trio.to_thread.run_sync(_note_and_call, begun, func, *args)
        except RuntimeError as error:
            if begun:
                raise  # of the function itself
            raise NoThreadError(error) from error


def _note_and_call(begun: list[bool], func: Callable[[*Ts], T], *args: *Ts) -> T:
    begun.append(True)
    return func(*args)


async def _call_inline(func: Callable[[*Ts], T], *args: *Ts) -> T:
    try:
        return func(*args)
    finally:
        await trio.lowlevel.cancel_shielded_checkpoint()  # and between its effect and its answer


@attrs.define(eq=False)
class Aside:
    """One function of the caller's, run beside trio: in a thread or in a process.

    Such a function may ask trio for something while it runs, and it is abandoned when it is
    cancelled.  It holds an autojump clock like any other call, except while trio does what the
    function has asked for, which may be to wait.
    """

    _hold: AbstractContextManager[bool] | None = attrs.field(default=None, init=False)
    _is_out: bool = attrs.field(default=False, init=False)

    async def run(self, start: Callable[[], Awaitable[T]]) -> T:
        """Wait for a function that is run beside trio.

        Args:
            start: Starts it, and waits for it.

        Cancellation: that of `start`.
        """
        self._is_out = True
        self._take()
        try:
            return await start()
        finally:
            self._is_out = False
            self._release()

    @contextmanager
    def asking(self) -> Generator[None]:
        """Do in the block what the function asks trio for: the clock may jump."""
        self._release()
        try:
            yield
        finally:
            if self._is_out:  # else it was cancelled, and is not waited for
                self._take()

    def _take(self) -> None:
        self._hold = hold_clock()
        self._hold.__enter__()

    def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.__exit__(None, None, None)


class CallStuckError(TrioCkptError):
    """A blocking call has been out for `STUCK_AFTER_S` of real time under a mock clock."""


@attrs.define(eq=False)
class _ThreadCall:
    func: Callable[[], Any]
    task: trio.lowlevel.Task
    trio_token: trio.lowlevel.TrioToken
    is_over: bool = False  # decided on trio's side only

    def finish(self, result: outcome.Outcome[Any]) -> None:
        """Give the caller its result, unless it went away (trio's side)."""
        if not self.is_over:
            self.is_over = True
            trio.lowlevel.reschedule(self.task, result)


@uninterrupted
class WorkerThread:
    """One long-lived daemon thread that runs blocking calls in the order they came.

    Cheaper than a hop into trio's pool (by half) and bound to one thread, as a database
    connection likes it.  It is a daemon because a call that hangs in the kernel must not
    keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_ThreadCall | Callable[[], object]] = queue.SimpleQueue()
        self._name = name
        self._process = this_process()
        self._thread: threading.Thread | None = None

    async def run(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run ``func(*args)`` in the thread and return what it returns.

        Cancellation: gives up waiting at once; the call itself goes on, and its result is
        dropped.  Callers that must know the outcome shield this.

        Raises:
            CallStuckError: under a mock clock, when the call takes forever.
            ForkedProcessError: this is a forked child of the process that made the thread.
            NoThreadError: the system starts no more threads.
        """
        need_process(self._process)
        if runs_inline.get():
            await trio.lowlevel.checkpoint_if_cancelled()
            return await _call_inline(func, *args)  # at once: calls keep the order they came in
        call = _ThreadCall(
            functools.partial(func, *args),
            trio.lowlevel.current_task(),
            trio.lowlevel.current_trio_token(),
        )
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._thread is None:
            self._thread = start_thread(self._work, self._name)

        def give_up(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            call.is_over = True
            return trio.lowlevel.Abort.SUCCEEDED

        with hold_clock() as is_mock:
            alarm = self._set_alarm(call) if is_mock else None
            self._calls.put(call)
            try:
                return cast("T", await trio.lowlevel.wait_task_rescheduled(give_up))
            finally:
                if alarm is not None:
                    alarm.cancel()

    def stop(self, last: Callable[[], object] = int) -> None:
        """Let the thread end when it has done what was asked of it, and `last` after that.

        The caller does not wait for `last`, so it may stand behind a call that hangs.
        """
        if self._thread is not None:
            self._calls.put(last)
            self._thread = None
        else:  # no call was ever made in it, or all are made inline
            last()

    def _set_alarm(self, call: _ThreadCall) -> threading.Timer:
        stuck = CallStuckError(
            f"{call.func.func.__qualname__} in thread {self._name!r} has not returned after "  # type: ignore[attr-defined]  # a partial
            f"{STUCK_AFTER_S:g} s of real time"
        )

        def ring() -> None:
            if not alarm.finished.wait(LOOK_AGAIN_S):  # this process may have been stopped
                _deliver(call, outcome.Error(stuck))

        alarm = threading.Timer(STUCK_AFTER_S, ring)
        alarm.daemon = True
        _start(alarm)
        return alarm

    def _work(self) -> None:
        while isinstance(call := self._calls.get(), _ThreadCall):
            _deliver(call, outcome.capture(call.func))
            del call  # or the thread keeps the last call's data alive while it waits
        call()


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread: a call that hangs in the kernel must not keep the process.

    Raises:
        NoThreadError: the system starts no more threads.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    _start(thread)
    return thread


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThreadError(error) from error


def _deliver(call: _ThreadCall, result: outcome.Outcome[Any]) -> None:
    with suppress(trio.RunFinishedError):  # the program ended; nobody is left to tell
        call.trio_token.run_sync_soon(call.finish, result)
