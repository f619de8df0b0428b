"""Waits between the tasks of asyncio and those of trio.

Trio runs as a guest of asyncio's loop (`trio.lowlevel.start_guest_run`), in the same thread, so
that the tasks of both take turns.  A wait for a task of the other side hands a cancellation on to
that task, and returns when the task has ended.  This ensures that a cancelled task leaves nothing
behind that still runs.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import outcome
import trio

from .._util.arguments import function

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_host: trio.lowlevel.RunVar[asyncio.AbstractEventLoop | None] = trio.lowlevel.RunVar(
    "trio_ckpt host loop", None
)


async def run(func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Run an async function of trio in an asyncio program: ``await from_asyncio.run(collect)``.

    The function may open runs and use all of trio; `call` calls asyncio from there.  A program
    has one such call at a time: what runs side by side belongs into a nursery of the function.

    Args:
        func: The function.
        args: Its arguments.

    Returns:
        What it returns.

    Raises:
        Exception: its exception, as the same object.
        RuntimeError: the caller is not in an asyncio task, or another call is running.

    Cancellation: cancels the function, and returns when it has ended.
    """
    function("func", func)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "from_asyncio.run() is awaited in an asyncio program: in a trio program, await the "
            "function itself"
        ) from None
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "from_asyncio.run() is running in this thread: start what runs side by side in a "
            "nursery of one function"
        )
    scope = trio.CancelScope()
    ended: asyncio.Future[outcome.Outcome[T]] = loop.create_future()

    async def guest() -> T:
        _host.set(loop)
        with scope:
            return await func(*args)
        raise asyncio.CancelledError  # the scope has been cancelled

    trio.lowlevel.start_guest_run(
        guest,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=ended.set_result,
        host_uses_signal_set_wakeup_fd=True,
    )
    cancelled: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait([ended])  # which leaves the future alone where it is cancelled
        except asyncio.CancelledError as error:
            cancelled = error
            scope.cancel()
    result = ended.result()
    if cancelled is not None and (scope.cancelled_caught or isinstance(result, outcome.Value)):
        raise cancelled
    return result.unwrap()


async def call(func: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Call an async function of asyncio in a function that `run` runs, and wait for it.

    It runs in an asyncio task of its own, with the context variables of the caller.

    Args:
        func: The function.
        args: Its arguments.

    Returns:
        What it returns.

    Raises:
        Exception: its exception, as the same object.
        asyncio.CancelledError: its task was cancelled by another than the caller.
        RuntimeError: the caller is not in a function that `run` runs.

    Cancellation: cancels the task, and returns when it has ended.
    """
    function("func", func)
    loop = _host.get() if trio.lowlevel.in_trio_run() else None
    if loop is None:
        raise RuntimeError(
            "from_asyncio.call() is for functions that from_asyncio.run() runs in an asyncio "
            "program: there is no loop of asyncio here"
        )
    await trio.lowlevel.checkpoint_if_cancelled()

    async def awaited() -> T:
        return await func(*args)

    waiting = trio.lowlevel.current_task()
    has_begun = False
    task: asyncio.Task[T] | None = None
    raise_cancel: trio.lowlevel.RaiseCancelT | None = None

    def start() -> None:
        nonlocal has_begun, task
        has_begun = True
        try:
            task = loop.create_task(awaited())
        except BaseException as error:  # of the program's task factory
            trio.lowlevel.reschedule(waiting, outcome.Error(error))
        else:
            task.add_done_callback(
                lambda ended: trio.lowlevel.reschedule(waiting, outcome.Value(ended))
            )
            if raise_cancel is not None:  # its own first step has cancelled the caller
                task.cancel()

    def cancel(of_trio: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        nonlocal raise_cancel
        if not has_begun:
            starting.cancel()
            return trio.lowlevel.Abort.SUCCEEDED
        raise_cancel = of_trio
        if task is not None:
            task.cancel()
        return trio.lowlevel.Abort.FAILED

    # Not in this turn of trio: an eager task takes its first step where it is made.
    starting = loop.call_soon(start, context=contextvars.copy_context())
    ended: asyncio.Task[T] = await trio.lowlevel.wait_task_rescheduled(cancel)
    if raise_cancel is not None and ended.cancelled():
        raise_cancel()
    return ended.result()
