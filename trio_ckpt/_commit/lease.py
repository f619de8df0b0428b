"""The lease of a run: it proves to the store that this process lives, or ends the run.

Theory of operation
===================

A store that several machines reach cannot see whether an owner lives.  So a lock holds for
`Store.lease_s` seconds, and each save renews it.

- *Safety* is the fence alone: the store compares the owner number in each save.  That holds
  whatever clocks do, and however long a process was stopped.
- *Liveness* is the lease.  Where nothing was saved for a third of it, an empty group is saved,
  which compares the owner and renews.

The store counts the lease by its own clock, from when it took the save.  This process counts on
trio's clock, which is monotonic, from before it sent the save.  So this process expects the end of
the lease before the store does, and only the rates of the two clocks matter, not what they show.

    0          1/3                         0.8       1      of the lease, since the last proof
    |-----------|---------------------------|--------|
     saves renew  empty saves, until one is   the run  another process may take the run over
                  answered                    is lost

A run that is lost is poisoned, and its streams are cancelled: the last fifth of the lease is for
them to end, so that two processes do not work on one run.

A process that was itself stopped (SIGSTOP, a paused container, a body that does not let trio run)
may wake after that.  Its clock does not say whether another process has taken the run over, but the
store does.  So it asks once more, for a fifth of the lease, and goes on if the run is still its
own.  Meanwhile nothing is confirmed without an answer of the store.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import trio

from .._journal.progress import Progress
from .._journal.store import RunKey, Store
from .._util.errors import LeaseLostError
from .._util.exceptions import text_of
from .._util.nursery import open_service_nursery
from .._util.plain import StreamKey
from .._util.text import duration
from .._util.uninterrupted import uninterrupted
from .group_commit import DEFAULT_SAVE_TIMEOUT_S, LOST_AFTER, GroupCommitter
from .ownership import Ownership

RENEW_AFTER = 1 / 3  # of the lease: there is time for more questions if one fails
ASK_AGAIN_AFTER = 1 / 30  # of the lease: the pause after a question that failed
LAST_QUESTION = 1 - LOST_AFTER  # of the lease: how long a process that wakes too late may ask
CLOSING_QUESTION = 1 / 10  # of the lease: how long a run that ends waits for an answer


def start_saving(nursery: trio.Nursery, committer: GroupCommitter) -> None:
    """Start what saves the records that are submitted, and keeps the lease, until it is closed.

    In a store without a lease it is the committer's own task alone: its batches cost no more.
    """
    if committer.lease_s is None:
        nursery.start_soon(committer.run)
    else:
        nursery.start_soon(_save_and_renew, committer, committer.lease_s)


@uninterrupted
async def _save_and_renew(committer: GroupCommitter, lease_s: float) -> None:
    with trio.CancelScope(shield=True):
        async with open_service_nursery() as nursery:
            nursery.start_soon(_keep_lease, committer, lease_s)
            await committer.run()
            committer.ownership.hurry(lease_s * CLOSING_QUESTION)


async def _keep_lease(committer: GroupCommitter, lease_s: float) -> None:
    """Renew the lease where nothing was saved for a while, until the run is poisoned.

    Cancellation: ends it; a question to the store is waited for, see `Ownership.hurry`.
    """
    while committer.poison is None:
        now = trio.current_time()
        renew_at = committer.ownership.owned_at + lease_s * RENEW_AFTER
        if now < renew_at:
            await trio.sleep_until(renew_at)
        else:
            lost_at = committer.ownership.owned_at + lease_s * LOST_AFTER
            await _renew(committer, lease_s, max(lost_at, now + lease_s * LAST_QUESTION))


async def _renew(committer: GroupCommitter, lease_s: float, lost_at: float) -> None:
    """Renew the lease, also by the save of another task; poison the run if that takes too long."""
    ownership, problem = committer.ownership, None
    owned_at = ownership.owned_at
    while committer.poison is None and ownership.owned_at == owned_at:
        left_s = lost_at - trio.current_time()
        if left_s <= 0:
            committer.lose(_lost(committer, lease_s, problem))
            return
        try:
            await committer.ask_owner(left_s)
        except Exception as error:  # also of a bug of the store: it is not an answer
            problem = error
        if ownership.owned_at == owned_at:
            left_s = max(lost_at - trio.current_time(), 0)
            await trio.sleep(min(lease_s * ASK_AGAIN_AFTER, left_s))


def _lost(committer: GroupCommitter, lease_s: float, problem: Exception | None) -> LeaseLostError:
    run_id = committer.run_key.run_id
    why = "it has not answered" if problem is None else text_of(problem)
    lost = LeaseLostError(
        f"run {run_id!r}: its lease of {duration(lease_s)} could not be renewed in the store for "
        f"{LOST_AFTER:.0%} of that ({why}), so another process may take the run over; start it "
        "again",
        run_id=run_id,
    )
    lost.__cause__ = problem
    return lost


@asynccontextmanager
async def open_committer(
    store: Store,
    run_key: RunKey,
    *,
    known: Mapping[StreamKey, Progress] | None = None,
    ownership: Ownership | None = None,
) -> AsyncGenerator[GroupCommitter]:
    """Open a group committer for a block; an exception of the block leaves as it is."""
    committer = GroupCommitter(
        store,
        run_key,
        save_timeout_s=DEFAULT_SAVE_TIMEOUT_S,
        on_poison=lambda: None,
        known=known,
        ownership=ownership,
    )
    async with open_service_nursery() as nursery:
        start_saving(nursery, committer)
        try:
            yield committer
        finally:
            committer.close()
