"""A synchronous program with an open run: its threads, and their ways into the trio loop."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar, cast

import attrs
import outcome
import trio

from .._util.arguments import shown
from .._util.errors import NoThreadError
from .._util.forks import this_process
from ._loop import Loop, Stoppable
from ._thread_task import ThreadTask

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
O = TypeVar("O")  # noqa: E741  # the object that a block of trio gives
W = TypeVar("W")  # what the block of the thread gives


@attrs.define(eq=False)
class Program:
    """The threads of a program that share a run, or a collection.

    Attributes:
        loop: The trio loop.
    """

    loop: Loop
    _inner: Stoppable | None = None
    _local: threading.local = attrs.field(factory=threading.local)

    @property
    def opened(self) -> Stoppable | None:
        """What its calls are made to, and is stopped; None: it is not open yet."""
        return self._inner or self.loop.opened

    def inside(self, opened: Stoppable) -> Program:
        """The same threads, with a run that is open inside of what the loop serves."""
        return attrs.evolve(self, inner=opened)

    # -- from any thread but trio's -------------------------------------------------------------

    def call(self, func: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call an async function in the trio task of the calling thread, and wait for it.

        Raises:
            RunStoppedError: a stop has cancelled it.
            trio.Cancelled: it was cancelled for another reason: another handler of the same
                `run_batches` has failed, or a part of the library has.
            trio.ClosedResourceError: the run is closed.
            ForkedProcessError: this is a forked child.
            RuntimeError: the caller is a function that runs in trio's thread.
        """
        work = partial(func, *args, **kwargs)
        return cast("R", self._task().call(self.opened, work))

    def read(self, func: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function in trio's thread, where nothing changes meanwhile, and wait for it."""
        call = partial(func, *args, **kwargs)
        try:
            return self.loop.portal.run(call)
        except trio.RunFinishedError:
            return call()  # nothing changes any more

    def enter(
        self,
        block: object,
        make: Callable[[], AbstractAsyncContextManager[object]],
        take: Callable[[ThreadTask, object], W],
    ) -> W:
        """Enter a block in the trio task of the calling thread, which keeps the task until then.

        Args:
            block: The block of the thread.
            make: Makes the block of the task.
            take: Called with the task, and what the block gave; what it returns is returned.  The
                block is left if an exception is raised.
        """
        task = self._task()

        def keep(entered: object) -> W:
            self._local.task = task
            return take(task, entered)

        return task.enter(self.opened, block, make, keep)

    def leave(self, task: ThreadTask, block: object, error: BaseException | None) -> None:
        """Leave a block, and raise what leaves it.

        In a forked child nothing is left: the block is the parent's.

        Raises:
            RuntimeError: another thread has entered the block, and it is open.
        """
        if this_process() != self.loop.process:
            left_by = error
        elif task.is_over:  # it has left the block, as the run or the thread has ended
            left_by = error or self.loop.ended()
        elif getattr(self._local, "task", None) is not task:
            left_by = RuntimeError("a block must be left by the thread that entered it")
        else:
            task.leave(self.opened, block, error)
            return
        if left_by is not None:
            raise left_by

    def _task(self) -> ThreadTask:
        """The task of the calling thread; a new one where the thread has no block open."""
        if threading.get_ident() == self.loop.portal.thread:
            raise RuntimeError(
                "a function that the library calls in trio's thread, such as an observer or the "
                "function that makes the items, cannot wait for it: return first"
            )
        task: ThreadTask | None = getattr(self._local, "task", None)
        return ThreadTask(self.loop) if task is None or task.is_over else task

    # -- in trio's thread -----------------------------------------------------------------------

    async def run_in_thread(self, func: Callable[[T], object], argument: T) -> None:
        """Run a function in a thread whose trio task is the calling task.

        Raises:
            NoThreadError: the system starts no more threads.
            TypeError: the function is async.

        Cancellation: none of its own; the next call of the function is cancelled.
        """
        task = ThreadTask(self.loop, is_lent=True)

        def work() -> None:
            self._local.task = task
            try:
                if inspect.isawaitable(returned := func(argument)):
                    if inspect.iscoroutine(returned):
                        returned.close()
                    raise TypeError(
                        f"handler must be a plain function: it returned {shown(returned)}"
                    )
            finally:
                del self._local.task

        def tell(result: outcome.Outcome[None]) -> None:
            with suppress(trio.RunFinishedError):  # no task waits for it
                self.loop.send(task.finish, result)

        await trio.lowlevel.checkpoint_if_cancelled()
        context = contextvars.copy_context()
        try:
            trio.lowlevel.start_thread_soon(partial(context.run, work), tell)
        except RuntimeError as error:
            raise NoThreadError(error) from error
        await task.serve()


class Block(AbstractContextManager[W], Generic[O, W]):
    """A block of a thread, behind which its trio task holds one open."""

    def __init__(
        self,
        program: Program,
        make: Callable[[], AbstractAsyncContextManager[O]],
        wrap: Callable[[O], W],
    ) -> None:
        """Make one that is not entered.

        Args:
            program: The program that the thread belongs to.
            make: Makes the block of the task; called in trio's thread.
            wrap: Makes what the body gets from what the task got.
        """
        self._program = program
        self._make = make
        self._wrap = wrap
        self._task: ThreadTask | None = None

    def __enter__(self) -> W:
        return self._program.enter(self, self._make, self._take)

    def _take(self, task: ThreadTask, entered: object) -> W:
        self._task = task
        return self._wrap(cast("O", entered))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._task is not None, "it was entered"
        try:
            self._program.leave(self._task, self, error)
        except BaseException as left_by:
            if left_by is not error:
                raise
            return False
        return True
