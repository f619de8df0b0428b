"""`open_run` and `open_collection` of synchronous programs: the trio loop, and the signals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection as Container, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    contextmanager,
    suppress,
)
from functools import partial
from signal import Signals
from typing import Any, ParamSpec, TypeVar, cast

import trio

from .._commit.shutdown import STOP_SIGNALS
from .._runs.collection import Collection, opened_of
from .._runs.lifecycle import open_run as open_run_in_trio
from .._runs.open_collection import open_collection as open_collection_in_trio
from .._runs.run import Run, open_run_of
from .._util.arguments import signals
from .._util.extras import needs_extra
from .._util.forks import leave_open, this_process
from ._collections import BlockingCollection
from ._loop import Loop, serve_loop
from ._objects import BlockingRun
from ._program import Block, Program
from ._signals import StopOnSignals, handle, takes_signals

with needs_extra("blocking", "trio_ckpt.blocking"):
    from anyio.from_thread import start_blocking_portal

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W")

RUN = """Own a run for a block of a synchronous program: begin it, or resume it.

Arguments, errors and promises are those of `trio_ckpt.open_run`.  The run is served by
trio in a thread of its own, which ends with the block.  Functions that the run is given,
such as observers, are called in that thread.

In the main thread signals are handled as there.  The second signal also ends a body that
makes no call: it raises `RunStoppedError` in it.

Raises:
    ValueError: `coordinator` is given: this run's is one of its own trio loop.

Durability: confirmed batches survive kill -9 and power loss, as the store promises.
"""
COLLECTION = """Take part in a collection for a block of a synchronous program.

Arguments, errors and promises are those of `trio_ckpt.open_collection`.  The collection and
its partitions are served by trio in a thread of its own, which ends with the block.  Several
threads may claim partitions at the same time.

In the main thread signals are handled as there.  The second signal also ends a body that
makes no call: it raises `RunStoppedError` in it.

Raises:
    ValueError: `coordinator` is given: this collection's is one of its own trio loop.

Durability: the number of partitions is durable when the block begins.
"""


def _in_a_thread(
    open_in_trio: Callable[P, AbstractAsyncContextManager[T]],
    own: Callable[[Program, T], W],
    doc: str,
    yields: type[W],
) -> Callable[P, AbstractContextManager[W]]:
    """Make an opener of trio one for synchronous programs, with its arguments."""

    @contextmanager
    def opened(*args: P.args, **kwargs: P.kwargs) -> Generator[W]:
        given: dict[str, Any] = dict(kwargs)
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
            numbers = signals("stop_signals", cast("Container[str]", given["stop_signals"]))
            given["stop_signals"] = [number.name for number in numbers]
        is_handling = takes_signals(wanted, numbers)
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("trio", name="trio_ckpt"))
            loop = cast("Loop", portal.start_task(serve_loop)[1])
            stack.callback(_close, loop)
            program = Program(loop)
            handlers = stack.enter_context(ExitStack())  # it is left after the run
            make = cast("Callable[..., AbstractAsyncContextManager[T]]", open_in_trio)
            held = stack.enter_context(
                Block(program, partial(make, *args, **given), partial(own, program))
            )
            if is_handling:
                handle(handlers, StopOnSignals(loop), numbers)
            try:
                yield held
            finally:
                if this_process() != loop.process:  # a forked child has nothing to leave
                    leave_open(stack.pop_all())

    opened.__doc__ = doc
    opened.__name__ = opened.__qualname__ = open_in_trio.__name__
    signature = inspect.signature(open_in_trio).replace(
        return_annotation=f"AbstractContextManager[{yields.__name__}]"
    )
    opened.__signature__ = signature  # type: ignore[attr-defined]
    return opened


def _own_run(program: Program, run: Run) -> BlockingRun:
    program.loop.own(open_run_of(run))
    return BlockingRun(program, run)


def _own_collection(program: Program, collection: Collection) -> BlockingCollection:
    program.loop.own(opened_of(collection))
    return BlockingCollection(program, collection)


def _close(loop: Loop) -> None:
    """End the loop: threads that have not left their blocks learn it from their next call."""
    with suppress(trio.RunFinishedError):
        loop.send(loop.closed.set)


open_run = _in_a_thread(open_run_in_trio, _own_run, RUN, BlockingRun)
open_collection = _in_a_thread(
    open_collection_in_trio, _own_collection, COLLECTION, BlockingCollection
)
