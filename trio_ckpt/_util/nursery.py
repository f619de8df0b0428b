"""Nurseries for background tasks that serve a block, and end with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from .exceptions import failures_in
from .uninterrupted import uninterrupted


@asynccontextmanager
@uninterrupted
async def open_service_nursery() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery for tasks that serve the block: they are cancelled when the block ends.

    The block's exception leaves as the same object, not in a group.  A failure of a task cancels
    the block and leaves alone, with the block's exception as its context; where several tasks
    fail, their failures leave as one group.

    Cancellation: leaving waits until the tasks have ended.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            try:
                yield nursery
            except BaseException as error:
                raised = error
                if not failures_in(error):
                    raise  # if a task has cancelled the block, the scope of the nursery ends that
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failures = [failure for failure in group.exceptions if failures_in(failure)]
        if len(failures) > 1:
            raised = BaseExceptionGroup("several background tasks failed", failures)
        elif failures:
            raised = failures[0]
        elif raised is None:
            raised = group
    else:
        if raised is not None and not failures_in(raised):
            raised = None
    if raised is not None:
        raise raised
