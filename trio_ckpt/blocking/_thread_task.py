"""The trio task of a thread: it carries out what the thread calls, and holds its blocks open.

Theory of operation.  A synchronous program is a trio program whose bodies run in threads.  Each
thread that has a block open, such as ``with run.open_stream(...)``, has one trio task.  The task
enters the block by ``async with``, waits for what the thread asks next, does that, and leaves the
block as the thread does: an exception of the thread's body is raised in the task's.  So a stream
belongs to one task, blocks nest, and the cancel scopes around a body are where a trio program has
them: the library below does not know that the body runs elsewhere.  A handler of `run_batches`
runs in a thread whose task is the worker.

A thread asks for one thing at a time, and waits for the answer.  While its body runs, the task
waits.  A cancellation does not end that wait: it ends the next call.  Only what Python runs in the
thread during its wait, a signal handler or a finalizer, may ask for more: that has its turn next.

What interrupts the waiting thread, such as KeyboardInterrupt, cancels what the task does, and is
raised when the task has answered.  Requests and cancellations arrive in the order in which they
were sent, so each request is answered once: one that the interrupt kept from being sent is answered
when its cancellation arrives.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from typing import TypeAlias, TypeVar

import attrs
import outcome
import trio

from .._util.errors import ForkedProcessError
from .._util.threads import refuse_to_abort
from ._loop import Loop, Stoppable, as_stop, stoppable

Work: TypeAlias = Callable[[], Awaitable[object]]
AnyBlock: TypeAlias = AbstractAsyncContextManager[object]
W = TypeVar("W")  # what the block of the thread gives


LOOK_AGAIN_S = 1.0  # a signal that arrives right before the main thread waits does not wake it


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@attrs.define(eq=False)
class _Request:
    """What a thread asks of its task.

    Attributes:
        opened: The run, or the collection, that it is a request to; None: it is not open yet.
        result: The answer; None: there is none yet.
        is_received: It has arrived in trio's thread.
        is_given_up: The thread waits for its end only.
        scope: What is cancelled when it is given up; None: it has not begun, or has ended.
    """

    opened: Stoppable | None
    result: outcome.Outcome[object] | None = attrs.field(default=None, init=False)
    is_received: bool = attrs.field(default=False, init=False)
    is_given_up: bool = attrs.field(default=False, init=False)
    scope: trio.CancelScope | None = attrs.field(default=None, init=False)
    _unanswered: threading.Lock = attrs.field(factory=_held_lock, init=False)

    def wait(self) -> outcome.Outcome[object]:
        """Wait for the answer, in the thread; an interrupted wait may be repeated."""
        while self.result is None:
            self._unanswered.acquire(timeout=LOOK_AGAIN_S)
        return self.result

    def begin(self, scope: trio.CancelScope) -> None:
        """Let the thread cancel a scope by giving the request up."""
        self.scope = scope
        if self.is_given_up:
            scope.cancel()

    def answer(self, result: outcome.Outcome[object]) -> None:
        """Wake the thread; once."""
        self.scope, self.result = None, result
        self._unanswered.release()


@attrs.define(eq=False)
class _CallRequest(_Request):
    work: Work


@attrs.define(eq=False)
class _EnterRequest(_Request):
    block: object
    make: Callable[[], AnyBlock]
    is_entered: bool = attrs.field(default=False, init=False)


@attrs.define(eq=False)
class _LeaveRequest(_Request):
    block: object
    error: BaseException | None


ALL = object()
"""Stands for the blocks of a thread that ends."""


@attrs.define(eq=False)
class ThreadTask:
    """The trio task of one thread.

    Attributes:
        is_lent: It is a task of the library that serves the thread until the thread ends.
        is_over: It serves no more.
    """

    _loop: Loop
    is_lent: bool = False
    is_over: bool = attrs.field(default=False, init=False)
    _is_started: bool = attrs.field(default=False, init=False)  # the thread's own
    _blocks: list[object] = attrs.field(factory=lambda: [ALL], init=False)
    _asked: deque[_Request] = attrs.field(factory=deque["_Request"], init=False)
    _sleeper: trio.lowlevel.Task | None = attrs.field(default=None, init=False)

    # -- in the thread --------------------------------------------------------------------------

    def call(self, opened: Stoppable | None, work: Work) -> object:
        """Call an async function in the task, and wait for it.

        Args:
            opened: What the call is one of.
            work: The function.
        """
        return self._ask(_CallRequest(opened, work))

    def enter(
        self,
        opened: Stoppable | None,
        block: object,
        make: Callable[[], AnyBlock],
        take: Callable[[object], W],
    ) -> W:
        """Enter a block in the task, and wait for that; returns what `take` returns.

        Args:
            opened: What the block is one of.
            block: The block of the thread, which `leave` is given again.
            make: Makes the block of the task.
            take: Called with what the block gave.  The block is left if an exception is raised.
        """
        request = _EnterRequest(opened, block, make)
        try:
            return take(self._ask(request))
        except BaseException as error:
            if request.is_entered:  # also where the interrupt came too late to prevent it
                with suppress(BaseException):
                    self._ask(_LeaveRequest(opened, block, error))
            raise

    def leave(self, opened: Stoppable | None, block: object, error: BaseException | None) -> None:
        """Leave a block in the task as the thread leaves it, and wait for that.

        Args:
            opened: What the block is one of.
            block: The block.  Those inside of it are left first: a generator that is not closed
                may hold some.
            error: The exception that leaves the body; None: the body ends normally.
        """
        self._ask(_LeaveRequest(opened, block, error))

    def _ask(self, request: _Request) -> object:
        """Send a request, and wait for its answer."""
        interrupt: BaseException | None = None
        try:
            self._send(request)
            request.wait()
        except trio.RunFinishedError:
            raise self._loop.ended() from None
        except BaseException as error:
            interrupt = error
        if interrupt is not None:
            self._give_up(request)
            raise interrupt
        return request.wait().unwrap()

    def _send(self, request: _Request) -> None:
        if self._is_started or self.is_lent:
            self._loop.send(self.receive, request)
        else:
            self._is_started = True
            self._loop.send(self._start, contextvars.copy_context(), request)

    def _give_up(self, request: _Request) -> None:
        """Cancel a request, and wait for its end; further interrupts change nothing."""
        while True:
            try:
                self._loop.send(self._cancel, request)
                request.wait()
            except (trio.RunFinishedError, ForkedProcessError):
                return
            except BaseException:  # noqa: S112  # the first one is raised in the end
                continue
            return

    # -- in trio's thread -----------------------------------------------------------------------

    def receive(self, request: _Request) -> None:
        """Take a request of the thread, or refuse it after the end of the run."""
        request.is_received = True
        if self.is_over:
            request.answer(outcome.Error(self._loop.ended()))
        else:
            self._asked.append(request)
            self._wake()

    def _cancel(self, request: _Request) -> None:
        """Cancel a request; this arrives after the request."""
        if request.result is not None:
            return
        request.is_given_up = True
        if not request.is_received:
            request.answer(outcome.Value(None))  # the interrupt came before it was sent
        elif request in self._asked and not isinstance(request, _LeaveRequest):
            self._asked.remove(request)  # the thread cannot give up the one before it until then
            request.answer(outcome.Value(None))
        elif request.scope is not None:
            request.scope.cancel()

    def finish(self, result: outcome.Outcome[None]) -> None:
        """Take the end of a thread whose task this serves."""
        opened = self._loop.opened
        self.receive(
            _LeaveRequest(opened, ALL, result.error if isinstance(result, outcome.Error) else None)
        )

    def end(self) -> None:
        """Leave all blocks, as the run is closed; the thread learns it from its next call."""
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    def _start(self, context: contextvars.Context, request: _Request) -> None:
        request.is_received = True
        if not self._loop.start(context, self._run, request):
            request.answer(outcome.Error(self._loop.ended()))

    async def _run(self, request: _Request) -> None:
        """Carry out one request, and what the thread asks inside of the block that it enters."""
        with self._known():
            await self._carry_out(request, is_in_block=False)
            while self._asked:  # while the block was left
                await self._carry_out(self._asked.popleft(), is_in_block=False)

    async def serve(self) -> None:
        """Do what a thread asks until it ends; raises the exception that it ends with."""
        with self._known():
            left = await self._until_left()
        if left.error is not None:
            raise left.error

    @contextmanager
    def _known(self) -> Generator[None]:
        """Let the end of the run end the task while the block runs."""
        self._loop.tasks.add(self)
        try:
            yield
        finally:
            self.is_over = True
            self._loop.tasks.discard(self)

    async def _until_left(self) -> _LeaveRequest:
        """Do what the thread asks until it leaves a block that is open."""
        while True:
            request = await self._next()
            if isinstance(request, _LeaveRequest) and request.block in self._blocks:
                return request
            await self._carry_out(request, is_in_block=True)

    async def _next(self) -> _Request:
        """Wait for a request.

        Cancellation: none; the end of the run ends the wait.
        """
        while not self._asked:
            if self.is_over:
                return _LeaveRequest(self._loop.opened, ALL, self._loop.ended())
            self._sleeper = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)
        return self._asked.popleft()

    async def _carry_out(self, request: _Request, *, is_in_block: bool) -> None:
        if isinstance(request, _EnterRequest):
            await self._hold(request)
        elif isinstance(request, _CallRequest):
            await self._call(request, is_in_block=is_in_block)
        elif isinstance(request, _LeaveRequest):  # the block was left with one around it
            error = request.error
            request.answer(outcome.Value(None) if error is None else outcome.Error(error))

    async def _call(self, request: _CallRequest, *, is_in_block: bool) -> None:
        result: outcome.Outcome[object] = outcome.Value(None)
        with trio.CancelScope() as scope:
            request.begin(scope)
            work = request.work if is_in_block else partial(_until_stopped, request)
            result = await outcome.acapture(work)
        request.answer(as_stop(request.opened, result))

    async def _hold(self, entering: _EnterRequest) -> None:
        """Enter a block, do what the thread asks in it, and leave it as the thread does."""
        leaving: _LeaveRequest | None = None
        result: outcome.Outcome[object] = outcome.Value(None)
        self._blocks.append(entering.block)
        try:
            with trio.CancelScope() as scope:
                entering.begin(scope)
                async with entering.make() as entered:
                    entering.is_entered = True
                    entering.answer(outcome.Value(entered))
                    leaving = await self._until_left()
                    leaving.begin(scope)
                    if leaving.block is not entering.block and leaving.error is None:
                        leaving.error = RuntimeError(
                            "a block was left while a block inside of it was open: close the "
                            "generator that holds that one first"
                        )
                    if leaving.error is not None:
                        raise leaving.error
        except BaseException as error:
            result = as_stop((leaving or entering).opened, outcome.Error(error))
        self._blocks.pop()
        if leaving is None:
            entering.answer(result)
        elif leaving.block is entering.block:
            leaving.answer(result)
        else:  # a block around this one is left: it is next
            if isinstance(result, outcome.Error):
                leaving.error = result.error
            self._asked.appendleft(leaving)


async def _until_stopped(request: _CallRequest) -> object:
    """Do something that is in no block of a stream, whose scope a stop would cancel."""
    async with stoppable(request.opened):
        return await request.work()
