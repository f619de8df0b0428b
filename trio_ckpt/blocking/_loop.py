"""The trio loop of a run whose program is synchronous; it has a thread of its own."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVarTuple

import attrs
import outcome
import trio

from .._runs.open_run import OpenRun
from .._runs.run import Run, open_run_of
from .._util.forks import need_process, this_process
from .._util.threads import Portal

Ts = TypeVarTuple("Ts")


class _Ends(Protocol):
    def end(self) -> None:
        """Leave all blocks: the run is closed."""
        ...


@attrs.define(eq=False)
class Loop:
    """One trio loop, which serves the threads of one run.

    Attributes:
        nursery: For the tasks of threads.
        portal: The way to its thread.
        process: The process that it runs in.
        tasks: The tasks of threads that have not ended.
        open_run: The run; None: it is not open yet.
        closed: Ends the loop.
    """

    nursery: trio.Nursery
    portal: Portal = attrs.field(factory=Portal.here, init=False)
    process: int = attrs.field(factory=this_process, init=False)
    tasks: set[_Ends] = attrs.field(factory=set[_Ends], init=False)
    open_run: OpenRun | None = attrs.field(default=None, init=False)
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
        """The error of a call that comes after the end of the run."""
        run_id = "" if self.open_run is None else f" {self.open_run.run_id!r}"
        return trio.ClosedResourceError(
            f"run{run_id} is closed, so this call did nothing: make it in the block of open_run"
        )

    # -- in the thread of the loop --------------------------------------------------------------

    def own(self, run: Run) -> None:
        """Serve a run that was opened in this loop."""
        self.open_run = open_run_of(run)

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
    async def stoppable(self) -> AsyncGenerator[None]:
        """Open a block that is in no stream's scope, and that a stop cancels with the streams.

        Raises:
            RunStoppedError: a stop has cancelled it.
        """
        if self.open_run is None:
            yield
            return
        stop = self.open_run.stop
        with trio.CancelScope() as scope:
            if stop.exit_code:
                scope.cancel()
            stop.scopes.add(scope)
            try:
                yield
            finally:
                stop.scopes.discard(scope)
        if scope.cancelled_caught:
            raise self.open_run.stopped()

    def as_stop(self, result: outcome.Outcome[object]) -> outcome.Outcome[object]:
        """An answer for a thread: during a stop, RunStoppedError in place of a cancellation."""
        is_cancelled = isinstance(result, outcome.Error) and isinstance(
            result.error, trio.Cancelled
        )
        if is_cancelled and self.open_run is not None and self.open_run.stop.exit_code:
            return outcome.Error(self.open_run.stopped())
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
