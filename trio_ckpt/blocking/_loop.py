"""The trio loop of a synchronous program's run, or collection; it has a thread of its own."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVarTuple

import attrs
import outcome
import trio

from .._commit.shutdown import Stop
from .._util.errors import RunStoppedError
from .._util.forks import need_process, this_process
from .._util.threads import Portal

Ts = TypeVarTuple("Ts")


class Stoppable(Protocol):
    """What a program has open: a run, or a collection."""

    @property
    def run_id(self) -> str:
        """Its name."""
        ...

    @property
    def stop(self) -> Stop:
        """Whether it is being stopped."""
        ...

    @property
    def resume_command(self) -> str | None:
        """The command that the log shows for a resume."""
        ...

    def stopped(self) -> RunStoppedError:
        """The error of one that was stopped."""
        ...


class _Ends(Protocol):
    def end(self) -> None:
        """Leave all blocks: the run is closed."""
        ...


@attrs.define(eq=False)
class Loop:
    """One trio loop, which serves the threads of one run, or of one collection.

    Attributes:
        nursery: For the tasks of threads.
        portal: The way to its thread.
        process: The process that it runs in.
        tasks: The tasks of threads that have not ended.
        opened: The run, or the collection; None: it is not open yet.
        closed: Ends the loop.
    """

    nursery: trio.Nursery
    portal: Portal = attrs.field(factory=Portal.here, init=False)
    process: int = attrs.field(factory=this_process, init=False)
    tasks: set[_Ends] = attrs.field(factory=set[_Ends], init=False)
    opened: Stoppable | None = attrs.field(default=None, init=False)
    closed: trio.Event = attrs.field(factory=trio.Event, init=False)

    # -- from any thread ------------------------------------------------------------------------

    def send(self, func: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function in the thread of the loop, and do not wait for it.

        Raises:
            trio.RunFinishedError: the loop has ended; nothing was called.
            ForkedProcessError: this is a forked child, which the loop does not serve.
        """
        need_process(self.process)
        self.portal.trio_token.run_sync_soon(func, *args)

    def ended(self) -> trio.ClosedResourceError:
        """The error of a call that comes after the end of what is served."""
        name = "" if self.opened is None else f" {self.opened.run_id!r}"
        return trio.ClosedResourceError(
            f"run{name} is closed, so this call did nothing: make it in the block that opened it"
        )

    # -- in the thread of the loop --------------------------------------------------------------

    def own(self, opened: Stoppable) -> None:
        """Serve what was opened in this loop."""
        self.opened = opened

    def start(
        self,
        context: contextvars.Context,
        func: Callable[[*Ts], Awaitable[None]],
        *args: *Ts,
    ) -> bool:
        """Start the task of a thread, with the context variables of the thread.

        Returns:
            Whether it was started: not after the end of the run.
        """
        if not self.closed.is_set():
            context.run(partial(self.nursery.start_soon, func, *args))
        return not self.closed.is_set()


@asynccontextmanager
async def stoppable(opened: Stoppable | None) -> AsyncGenerator[None]:
    """Open a block that is in no stream's scope, and that a stop cancels with the streams.

    Args:
        opened: What is stopped; None: it is not open yet.

    Raises:
        RunStoppedError: a stop has cancelled it.
    """
    if opened is None:
        yield
        return
    stop = opened.stop
    with trio.CancelScope() as scope:
        if stop.exit_code:
            scope.cancel()
        stop.scopes.add(scope)
        try:
            yield
        finally:
            stop.scopes.discard(scope)
    if scope.cancelled_caught:
        raise opened.stopped()


def as_stop(opened: Stoppable | None, result: outcome.Outcome[object]) -> outcome.Outcome[object]:
    """An answer for a thread: during a stop, RunStoppedError in place of a cancellation."""
    is_cancelled = isinstance(result, outcome.Error) and isinstance(result.error, trio.Cancelled)
    if is_cancelled and opened is not None and opened.stop.exit_code:
        return outcome.Error(opened.stopped())
    return result


async def serve_loop(*, task_status: trio.TaskStatus[Loop]) -> None:
    """Serve the threads of a run until it is closed; gives its starter the loop.

    Cancellation: ends it; tasks of threads that have not left their blocks leave them.
    """
    async with trio.open_nursery() as nursery:
        loop = Loop(nursery)
        task_status.started(loop)
        try:
            await loop.closed.wait()
        finally:
            loop.closed.set()
            for task in tuple(loop.tasks):
                task.end()
            nursery.cancel_scope.cancel()
