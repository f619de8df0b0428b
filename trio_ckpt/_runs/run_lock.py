"""Waiting for the lock of a run that another process still owns."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from .._journal.store import Store
from .._util.errors import RunLockedError
from .._util.log import at, get_logger

log = get_logger(__name__)

MIN_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0  # a run that became free is found so late at most; each attempt asks the store


async def take_lock(
    stack: AsyncExitStack, store: Store, run_id: str, wait_s: float
) -> tuple[int, float]:
    """Own a run until an exit stack is closed; wait for its present owner to end.

    The store is asked again after a pause of 50 ms, then of twice as much, up to a second; where
    it says when a lease ends, also then.

    Args:
        stack: Its closing releases the run.
        store: The store of the run.
        run_id: The run.
        wait_s: How long to wait, in seconds.

    Returns:
        The owner number, and when the store was asked for it, on trio's clock.

    Raises:
        RunLockedError: another live process owns it, still after `wait_s`.

    Durability: see `Store.lock_run`.
    Cancellation: a cancellation point; no lock is held then.
    """
    ends_at, pause_s = trio.current_time() + wait_s, MIN_PAUSE_S
    while True:
        asked_at = trio.current_time()
        try:
            return await stack.enter_async_context(store.lock_run(run_id)), asked_at
        except RunLockedError as error:
            left_s = ends_at - trio.current_time()
            if left_s <= 0:
                raise
            if pause_s == MIN_PAUSE_S:
                log.info("%s; waiting for it (wait_for_lock_s=%g)", error, wait_s, extra=at(run_id))
            if error.lease_left_s is not None:
                left_s = min(left_s, max(error.lease_left_s, MIN_PAUSE_S))
        await trio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
