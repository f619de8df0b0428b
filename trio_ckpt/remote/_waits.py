"""Waits in which the time that this process did not run does not count.

A process that is stopped (a lid that is closed, `docker pause`, SIGSTOP) finds all its timeouts
over when it goes on, and what it was waiting for not read yet.  So a timeout that ends much later
than it should have says nothing: the wait begins again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

STOPPED_S = 0.5  # so much too late: the process was stopped, or the machine is very busy


async def wait_awake(event: trio.Event, seconds: float) -> bool:
    """Wait for an event; False: it was not set in so many seconds in which this process ran.

    Cancellation: a cancellation point.
    """
    while True:
        deadline = trio.current_time() + seconds
        with trio.move_on_at(deadline):
            await event.wait()
            return True
        if trio.current_time() - deadline < STOPPED_S:
            return event.is_set()


async def sleep_awake(seconds: float) -> None:
    """Sleep for so many seconds in which this process runs.

    Cancellation: a cancellation point.
    """
    await wait_awake(trio.Event(), seconds)


async def end_awake(func: Callable[[], Awaitable[None]], seconds: float) -> bool:
    """Run something, for so many seconds in which this process runs at most.

    Args:
        func: It is cancelled after that; it raises nothing.
        seconds: How long it may take.

    Returns:
        Whether it has ended by itself.

    Cancellation: shielded; it ends in bounded time.
    """
    ended = trio.Event()

    async def run() -> None:
        await func()
        ended.set()

    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            if not await wait_awake(ended, seconds):
                nursery.cancel_scope.cancel()
    return ended.is_set()
