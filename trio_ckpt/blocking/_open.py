"""`open_run` of synchronous programs: the trio loop in its thread, the run in it, the signals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    contextmanager,
    suppress,
)
from functools import partial
from signal import Signals
from typing import ParamSpec, cast

import trio

from .._commit.shutdown import STOP_SIGNALS
from .._runs.lifecycle import open_run as open_run_in_trio
from .._runs.run import Run
from .._util.arguments import signals
from .._util.extras import needs_extra
from .._util.forks import leave_open, this_process
from ._loop import Loop, serve_loop
from ._objects import BlockingRun
from ._program import Block, Program
from ._signals import StopOnSignals, handle, takes_signals

with needs_extra("blocking", "trio_ckpt.blocking"):
    from anyio.from_thread import start_blocking_portal

P = ParamSpec("P")


def _in_a_thread(
    open_run_of_trio: Callable[P, AbstractAsyncContextManager[Run]],
) -> Callable[P, AbstractContextManager[BlockingRun]]:
    """Make `open_run` of trio one for synchronous programs, with its arguments."""

    @contextmanager
    def open_run(*args: P.args, **kwargs: P.kwargs) -> Generator[BlockingRun]:
        """Own a run for a block of a synchronous program: begin it, or resume it.

        Arguments, errors and promises are those of `trio_ckpt.open_run`.  The run is served by
        trio in a thread of its own, which ends with the block.  Functions that the run is given,
        such as observers, are called in that thread.

        In the main thread signals are handled as there.  The second signal also ends a body that
        makes no call: it raises `RunStoppedError` in it.

        Raises:
            ValueError: `coordinator` is given: this run's is one of its own trio loop.

        Durability: confirmed batches survive kill -9 and power loss, as the store promises.
        """
        given = dict(kwargs)
        if given.get("coordinator") is not None:
            raise ValueError(
                "coordinator must be None: each synchronous run has a trio loop of its own, and a "
                "coordinator belongs to one loop; share it between runs of one trio program"
            )
        wanted = cast("bool | None", given.get("handle_signals"))
        if wanted is True:
            given["handle_signals"] = None  # not in trio's thread, which receives none
        numbers: tuple[Signals, ...] = STOP_SIGNALS
        if "stop_signals" in given:
            numbers = signals("stop_signals", cast("Collection[str]", given["stop_signals"]))
            given["stop_signals"] = [number.name for number in numbers]
        is_handling = takes_signals(wanted, numbers)
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("trio", name="trio_ckpt"))
            loop = cast("Loop", portal.start_task(serve_loop)[1])
            stack.callback(_close, loop)
            program = Program(loop)
            handlers = stack.enter_context(ExitStack())  # it is left after the run
            make = cast("Callable[..., AbstractAsyncContextManager[Run]]", open_run_of_trio)
            run = stack.enter_context(
                Block(program, partial(make, *args, **given), partial(_own, program))
            )
            if is_handling:
                handle(handlers, StopOnSignals(loop), numbers)
            try:
                yield run
            finally:
                if this_process() != loop.process:  # a forked child has nothing to leave
                    leave_open(stack.pop_all())

    signature = inspect.signature(open_run_of_trio).replace(
        return_annotation="AbstractContextManager[BlockingRun]"
    )
    open_run.__signature__ = signature  # type: ignore[attr-defined]
    return open_run


def _own(program: Program, run: Run) -> BlockingRun:
    program.loop.own(run)
    return BlockingRun(program, run)


def _close(loop: Loop) -> None:
    """End the loop: threads that have not left their blocks learn it from their next call."""
    with suppress(trio.RunFinishedError):
        loop.send(loop.closed.set)


open_run = _in_a_thread(open_run_in_trio)
