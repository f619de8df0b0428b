"""The lock of an item's run at the foreman, where the store has a lease: kept, and waited for.

Theory of operation.  A foreman locks the run of an item for each lease that a worker has of it.
In a store with leases of its own the lock ends `Store.lease_s` after the last save, and the worker
may save much less often.  So the foreman renews it as a run does, see `trio_ckpt._commit.lease`.
A lock that is lost ends the worker's lease: what the worker saves later is refused by the store.

A foreman that was killed leaves such locks behind.  The next one waits for their end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from ..._commit.group_commit import LOST_AFTER
from ..._commit.lease import ASK_AGAIN_AFTER, LAST_QUESTION, RENEW_AFTER
from ..._journal.store import Store
from ..._util.errors import LeaseLostError, StoreConflictError, StoreError
from ..._util.exceptions import text_of
from ..._util.nursery import open_service_nursery
from ..._util.patience import give_up_after
from ..._util.text import duration
from .store_proxy import StoreProxy

LEASES_WAITED = 2  # an owner that was killed leaves one of them at most


def lock_patience_s(store: Store) -> float:
    """How long to wait for a lock that a killed foreman may have left behind, in seconds."""
    return LEASES_WAITED * (store.lease_s or 0.0)


@asynccontextmanager
async def keep_lock(proxy: StoreProxy) -> AsyncGenerator[None]:
    """Renew the lease of an item's run during a block.

    Raises:
        StoreConflictError: another foreman has the run, or may take it over.
    """
    async with open_service_nursery() as nursery:
        if proxy.store.lease_s is not None:
            nursery.start_soon(_keep, proxy, proxy.store.lease_s)
        yield


async def _keep(proxy: StoreProxy, lease_s: float) -> None:
    while True:
        await trio.sleep_until(proxy.owned_at + lease_s * RENEW_AFTER)
        if trio.current_time() >= proxy.owned_at + lease_s * RENEW_AFTER:  # no save meanwhile
            await _renew(proxy, lease_s)


async def _renew(proxy: StoreProxy, lease_s: float) -> None:
    """Renew the lease once.

    Raises:
        StoreConflictError: it is lost.
    """
    owned_at, problem = proxy.owned_at, "it has not answered"
    last_s = lease_s * LAST_QUESTION  # also for a process that was stopped, and wakes too late
    lost_at = max(proxy.owned_at + lease_s * LOST_AFTER, trio.current_time() + last_s)
    while proxy.owned_at == owned_at:  # else a save of the worker has renewed it
        left_s = lost_at - trio.current_time()
        if left_s <= 0:
            raise LeaseLostError(
                f"run {proxy.run_id!r}: its lease of {duration(lease_s)} could not be renewed in "
                f"the store ({problem}), so another foreman may take the item over",
                run_id=proxy.run_id,
            )
        # A store may keep a lock after a question that was abandoned, so its answer is waited for.
        with give_up_after(left_s):
            try:
                await proxy.renew()
                return
            except StoreConflictError:
                raise
            except StoreError as error:
                problem = text_of(error)
        await trio.sleep(lease_s * ASK_AGAIN_AFTER)
