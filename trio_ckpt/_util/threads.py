"""The two seams between trio and threads: blocking calls, and portals into a trio run.

Every blocking call of the library goes through here, and so does a function of the caller that the
library runs in a thread (`Aside`).  Two things happen at the seam:

* During a call, an autojump mock clock must not jump: trio counts a task that waits for a
  thread as idle (trio issue 456), so a call of 0.2 s would move virtual time by hours and
  fire every timeout.  The seam holds such a clock from the first of concurrent calls to
  the end of the last.  It recognizes the clock by its attribute and never imports
  `trio.testing`.
* Under such a clock no timeout can notice a call that never ends, so the seam does, after
  `STUCK_AFTER_S` of real time.

In a forked child the seam refuses calls: the child does not have the threads and descriptors of
the parent, and would change the parent's files (see `trio_ckpt._util.forks`).

Where no call blocks, because store and files are in memory, threads would only make a program
slow and its order random: `runs_inline` makes the calls without threads.

A `Portal` is the way back.  Tokens, batches and runs change only in the thread of their trio run,
so their state machines need no locks, and waiting tasks wake in their own thread.  A call from
another thread is executed in that thread and waits for its result; so of two threads that settle
one batch, the first wins.  In trio's own thread it costs one comparison.
"""

# Objects with methods for any thread have their portal in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextvars
import functools
import math
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple, cast

import attrs
import msgspec
import outcome
import sniffio
import trio

from .errors import ForkedProcessError, NoThreadError, TrioCkptError
from .forks import need_process, this_process
from .uninterrupted import uninterrupted

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_THREADS = 40  # as many as trio's own pool: parallel fsyncs share commits of the file system
STUCK_AFTER_S = 60.0  # real seconds that one call may take under a mock clock
LOOK_AGAIN_S = 1.0  # more real seconds, in case this process was stopped for all of that time


NOT_BEGUN = (ForkedProcessError, NoThreadError)
"""The errors of a call that did not begin, and so had no effect."""


class _JumpingClock(Protocol):
    autojump_threshold: float


class _HeldClock(msgspec.Struct):
    """How many calls are running in this trio run, and the threshold to restore after the last."""

    calls_out: int = 0
    threshold: float = math.inf


_held: trio.lowlevel.RunVar[_HeldClock] = trio.lowlevel.RunVar("trio_ckpt held clock")


_NOT_MOCK = nullcontext(False)
_NO_ALARM = nullcontext()


def hold_clock() -> AbstractContextManager[bool]:
    """Keep an autojump clock from jumping while the block runs; yields whether there is one."""
    clock = trio.lowlevel.current_clock()
    return _hold(clock) if hasattr(clock, "autojump_threshold") else _NOT_MOCK


@contextmanager
def _hold(clock: trio.abc.Clock) -> Generator[bool, None, None]:
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
"""Whether this trio run makes calls in its own thread: for `trio_ckpt.testing`."""


@attrs.define(eq=False, repr=False)
class _Slots:
    """The threads of `run_blocking` in one trio run.

    Attributes:
        free: How many more calls may run.
        waiting: The calls that wait for a thread.
        process: The process in which the trio run has begun.
    """

    free: int = attrs.field(factory=lambda: MAX_THREADS)
    waiting: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    process: int = attrs.field(factory=this_process)


_slots: trio.lowlevel.RunVar[_Slots | None] = trio.lowlevel.RunVar("trio_ckpt threads", None)


def _begin_slots() -> _Slots:
    slots = _Slots()
    _slots.set(slots)
    return slots


@uninterrupted
async def run_blocking(func: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a blocking function in one of trio's cached threads.

    It has the context variables of the caller.  It calls trio with the token of the trio run:
    this is not `trio.to_thread.run_sync`, which costs twice as much.

    Cancellation: not while it runs; a call that has begun is waited for.

    Raises:
        ForkedProcessError: this is a forked child, in the trio run of its parent.
        NoThreadError: the system starts no more threads.
    """
    slots = _slots.get() or _begin_slots()
    need_process(slots.process)
    await trio.lowlevel.checkpoint_if_cancelled()
    if runs_inline.get():
        await trio.lowlevel.cancel_shielded_checkpoint()  # others run before it, as with a thread
        return await _call_inline(func, *args)
    if slots.free:
        slots.free -= 1
    else:
        await slots.waiting.park()  # a call that ends hands its thread over
    try:
        with hold_clock():
            context = contextvars.copy_context()
            context.run(sniffio.current_async_library_cvar.set, None)  # none runs in the thread
            work = functools.partial(context.run, func, *args)
            task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
            deliver = functools.partial(_deliver, _ThreadCall(work, task, token))
            try:
                trio.lowlevel.start_thread_soon(work, deliver)
            except RuntimeError as error:
                raise NoThreadError(error) from error
            return cast("T", await trio.lowlevel.wait_task_rescheduled(refuse_to_abort))
    finally:
        if not slots.waiting.unpark():
            slots.free += 1


def refuse_to_abort(_raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    """Let a task wait on although it is cancelled."""
    return trio.lowlevel.Abort.FAILED


async def _call_inline(func: Callable[[*Ts], T], *args: *Ts) -> T:
    try:
        return func(*args)
    finally:
        await trio.lowlevel.cancel_shielded_checkpoint()  # and between its effect and its answer


@attrs.define(eq=False, repr=False)
class Aside:
    """A function of the caller that runs beside trio, in a thread or in a process.

    Such a function may make calls into trio while it runs, and it is abandoned when it is
    cancelled.  It holds an autojump clock like any other call, except during such a call into
    trio, which may be a wait.
    """

    _hold: AbstractContextManager[bool] | None = attrs.field(default=None, init=False)
    _is_out: bool = attrs.field(default=False, init=False)

    async def run(self, start: Callable[[], Awaitable[T]]) -> T:
        """Run a function beside trio, and wait for it.

        Args:
            start: Starts the function, and waits for it.

        Cancellation: as that of `start`.
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
        """Open a block for a call of the function into trio, in which the clock may jump."""
        self._release()
        try:
            yield
        finally:
            if self._is_out:  # else it was cancelled, and no task waits for it
                self._take()

    def _take(self) -> None:
        self._hold = hold_clock()
        self._hold.__enter__()

    def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.__exit__(None, None, None)


class CallStuckError(TrioCkptError, is_internal=True):
    """Under a mock clock a blocking call has not returned after `STUCK_AFTER_S` of real time."""


@attrs.define(eq=False, repr=False)
class _ThreadCall:
    func: Callable[[], object]
    task: trio.lowlevel.Task
    trio_token: trio.lowlevel.TrioToken
    is_over: bool = False  # decided on trio's side only

    def give_up(self, _raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        """Drop the result; called on trio's side, when the caller is cancelled."""
        self.is_over = True
        return trio.lowlevel.Abort.SUCCEEDED

    def finish(self, result: outcome.Outcome[object]) -> None:
        """Give the caller its result, unless it was cancelled; called on trio's side."""
        if not self.is_over:
            self.is_over = True
            trio.lowlevel.reschedule(self.task, result)


class _LateCall(msgspec.Struct, frozen=True):
    func: Callable[[], object]


@uninterrupted
class WorkerThread:
    """One long-lived daemon thread that runs blocking calls in the order they came.

    It costs half of a call in trio's pool and is bound to one thread, as a database connection
    needs it.  It is a daemon because a call that hangs in the kernel must not keep the process
    from ending.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_ThreadCall | _LateCall | Callable[[], object]] = (
            queue.SimpleQueue()
        )
        self._name = name
        self._process = this_process()
        self._thread: threading.Thread | None = None

    async def run(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run ``func(*args)`` in the thread and return what it returns.

        Cancellation: the wait ends at once; the call itself continues, and its result is
        dropped.  Callers that must know the outcome shield this.

        Raises:
            CallStuckError: under a mock clock, the call takes longer than `STUCK_AFTER_S`.
            ForkedProcessError: this is a forked child of the process that made the thread.
            NoThreadError: the system starts no more threads.
        """
        need_process(self._process)
        if runs_inline.get():
            await trio.lowlevel.checkpoint_if_cancelled()
            return await _call_inline(func, *args)  # at once, so that calls keep their order
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        call = _ThreadCall(functools.partial(func, *args), task, token)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._thread is None:
            self._thread = start_thread(self._work, self._name)
        with hold_clock() as is_mock, self._alarm(call) if is_mock else _NO_ALARM:
            self._calls.put(call)
            return cast("T", await trio.lowlevel.wait_task_rescheduled(call.give_up))

    def run_late(self, func: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run a function after the calls that are queued; no caller waits for it.

        Args:
            func: The function, which must not raise.
            args: Its arguments.
        """
        if runs_inline.get():
            func(*args)
        elif self._thread is not None:
            self._calls.put(_LateCall(functools.partial(func, *args)))

    def stop(self, last: Callable[[], object] = int) -> None:
        """Let the thread end after its queued calls, and after a final call of `last`.

        The caller does not wait for `last`, so that it may be queued behind a call that hangs.
        """
        if self._thread is not None:
            self._calls.put(last)
            self._thread = None
        else:  # no call was made in it, or all were made inline
            last()

    @contextmanager
    def _alarm(self, call: _ThreadCall) -> Generator[None]:
        """Fail a call that does not return in time, while the block runs."""
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
        try:
            yield
        finally:
            alarm.cancel()

    def _work(self) -> None:
        while isinstance(call := self._calls.get(), _ThreadCall | _LateCall):
            if isinstance(call, _ThreadCall):
                _deliver(call, outcome.capture(call.func))
            else:
                call.func()
            del call  # else the thread keeps the last call's data alive while it waits
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


def _deliver(call: _ThreadCall, result: outcome.Outcome[object]) -> None:
    with suppress(trio.RunFinishedError):  # the program has ended: no task waits
        call.trio_token.run_sync_soon(call.finish, result)


def _call(wake: Callable[[], None]) -> None:
    wake()


@attrs.define(eq=False, repr=False)
class Portal:
    """A portal into one trio run, from any thread.

    Attributes:
        thread: The id of the thread that trio runs in.
        trio_token: The token of the trio run.
        clock: The clock of the trio run.
        wake: Called with a function that wakes the calling thread; for `trio_ckpt.testing`.
    """

    thread: int
    trio_token: trio.lowlevel.TrioToken
    clock: trio.abc.Clock
    wake: Callable[[Callable[[], None]], None] = attrs.field(default=_call, init=False)
    _process: int = attrs.field(factory=this_process, init=False)

    @classmethod
    def here(cls) -> Portal:
        """The portal of the trio run that the caller is in.

        Raises:
            RuntimeError: the caller is not in a trio run; the message says what to do.
        """
        try:
            return _portal.get()
        except LookupError:
            portal = cls(
                get_ident(),
                trio.lowlevel.current_trio_token(),
                trio.lowlevel.current_clock(),
            )
            _portal.set(portal)
            return portal
        except RuntimeError:  # trio's own message does not say what to do
            raise RuntimeError(_no_trio()) from None

    def run(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function in the thread of the trio run, and wait for it there.

        Raises:
            trio.RunFinishedError: the trio run has ended; nothing was called.
            ForkedProcessError: this is a forked child, which the trio run does not answer.
        """
        if get_ident() == self.thread:
            return func(*args)
        need_process(self._process)
        answers = queue.SimpleQueue[outcome.Outcome[T]]()

        def carry_out() -> None:
            answer = outcome.capture(func, *args)
            self.wake(lambda: answers.put(answer))

        try:
            self.trio_token.run_sync_soon(carry_out)
        except trio.RunFinishedError:
            raise trio.RunFinishedError(
                "the trio.run() that it belongs to has ended, so this call changed nothing: make "
                "the call before trio.run() returns"
            ) from None
        return answers.get().unwrap()


_portal: trio.lowlevel.RunVar[Portal] = trio.lowlevel.RunVar("trio_ckpt portal")


def _no_trio() -> str:
    asyncio = sys.modules.get("asyncio")
    is_asyncio = asyncio is not None and asyncio._get_running_loop() is not None
    where = "under asyncio" if is_asyncio else "outside of trio"
    bridge = (
        "await trio_ckpt.from_asyncio.run(main) in the asyncio program"
        if is_asyncio
        else "use trio_ckpt.blocking in a synchronous program"
    )
    return (
        f"trio_ckpt works in a trio program, and this call came {where}: start the program with "
        f"trio.run(main), or {bridge}; in a notebook, say %autoawait trio first"
    )


def check_trio() -> None:
    """Check that the caller is in a trio program.

    Raises:
        RuntimeError: the caller is not; the message says what to do.
    """
    if not trio.lowlevel.in_trio_task():  # asyncio code beside a guest run is in none either
        raise RuntimeError(_no_trio())


class _HasPortal(Protocol):
    @property
    def _portal(self) -> Portal: ...


S = TypeVar("S", bound=_HasPortal)


def from_any_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method run in the trio run that its object belongs to, from any thread."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        portal = self._portal
        if portal.thread == get_ident():
            return method(self, *args, **kwargs)
        return portal.run(functools.partial(method, self, *args, **kwargs))

    return call
