"""Running one work item to its end, across the workers that it needs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

import attrs
import trio

from ..._journal.history import find_run
from ..._journal.store import RunKey, Store
from ..._maintenance.offline import open_maintenance
from ..._util.errors import StoreDamagedError
from ..._util.log import get_logger
from ..._util.plain import Plain
from ..._util.text import duration, plural, printable
from .._wire.errors import ProtocolError, TaskLostError
from .._wire.message import TaskMessage
from .._wire.task_messages import (
    AssignTask,
    NewLease,
    ReleaseTask,
    ResumeTask,
    TaskFailed,
    TaskResult,
)
from .lease import Ending, Lease, Lost
from .pool import Pool
from .store_proxy import StoreProxy
from .task_checkpoints import TaskCheckpoints, read_task_checkpoints
from .waiting import PendingItem

log = get_logger(__name__)

RECLAIM_S = 5.0  # after a start: items that were running wait for their former workers
SUSPECT_AFTER = 2  # losses: then the item may be what kills workers, and is tried alone
AGAIN_AFTER_S = 1.0  # when a worker could not continue: the next one may not either


Settle = Callable[
    [Plain, TaskCheckpoints, str], Awaitable[None]
]  # value, saved states, worker's name
Note = Callable[[int, str], Awaitable[None]]  # item's index, text; for the job's history


@attrs.define(eq=False)
class Dispatcher:
    """Gives work items to workers.

    Attributes:
        store: The foreman's store.
        pool: The workers.
    """

    store: Store
    pool: Pool
    _started: float = attrs.field(factory=trio.current_time, init=False)
    _counter: itertools.count[int] = attrs.field(
        factory=lambda: itertools.count(time.time_ns() // 1_000), init=False
    )

    async def do(self, pending: PendingItem, settle: Settle, note: Note) -> None:
        """Run an item to its end, by one worker after the other if necessary.

        Args:
            pending: The item.
            settle: Makes the item's result durable; the worker may then forget it.
            note: Records an event in the job's history.

        Raises:
            TaskFailedError: the item's function raised.
            TaskLostError: too many workers were lost with the item.
        """
        try:
            await self._do(pending, settle, note)
        finally:
            self.pool.touch()  # a worker may still hold it

    async def _do(self, pending: PendingItem, settle: Settle, note: Note) -> None:
        losses, lost_at = 0, pending.down_at
        while True:
            # Also after a worker was lost: it may have saved its result before it died.
            saved = (
                await self._read_or_discard(pending, note)
                if pending.is_saving
                else TaskCheckpoints()
            )
            if saved.is_done:
                await settle(saved.result, saved, "")
                await self._clean_up(pending)
                return
            claims_until = self._started + RECLAIM_S if saved.sequence else 0.0
            is_suspect = losses >= SUSPECT_AFTER
            offer = None if pending.is_saving else partial(self._offer, pending)
            lease = await self.pool.take(pending, claims_until, is_alone=is_suspect, offer=offer)
            ending = await self._run_lease(pending, saved, lease, lost_at, settle, note)
            match ending:
                case TaskResult():
                    return
                case TaskFailed(error=error):
                    raise error.to_exception(pending.index, pending.job_id)
                case Lost.MESSAGE:
                    continue
                case Lost.LEFT:
                    lost_at = lease.lost_at
                    continue
                case ReleaseTask(is_trouble=False):
                    log.info(
                        "%s was handed back: %s",
                        pending.task_id,
                        ending.reason,
                        extra=pending.place,
                    )
                    lost_at = time.time()
                    continue
                case ReleaseTask(reason=reason):
                    await trio.sleep(AGAIN_AFTER_S)
                case Lost.WORKER:
                    reason = ending.value
            lost_at = lease.lost_at or time.time()
            losses += 1
            log.warning(
                "%s was lost (%d): %s", pending.task_id, losses, reason, extra=pending.place
            )
            await note(pending.index, f"lost by {lease.holder.name}: {reason}")
            if losses >= pending.options.losses:
                raise TaskLostError(
                    f"work item {pending.index} of {pending.job_id} was lost by "
                    f"{plural(losses, 'worker')}, the last time because {reason}",
                    run_id=pending.job_id,
                    batch_index=pending.index,
                )

    # -- one lease ----------------------------------------------------------------------------

    async def _run_lease(
        self,
        pending: PendingItem,
        saved: TaskCheckpoints,
        lease: Lease,
        lost_at: float | None,
        settle: Settle,
        note: Note,
    ) -> Ending:
        """Lease the item to one worker; return how the lease ended."""
        with ExitStack() as held:
            held.callback(self.pool.end, lease)
            if not pending.is_saving:
                ending = await lease.run(partial(self._note, pending, note))
                if isinstance(ending, TaskResult):
                    await settle(ending.value, saved, lease.holder.name)
                return ending
            if saved.sequence:  # else no former lease has saved anything
                saved = await self._reset_if_stale(
                    pending, lost_at if lease.was is None else None, note
                )
            async with self.store.lock_run(pending.task_id) as number:
                proxy = StoreProxy(self.store, pending.task_id, number)
                is_new = not saved.sequence and await _is_new(self.store, pending.task_id)
                message = _assignment(pending, lease, number, None if is_new else saved)
                if not lease.offer(number, proxy, message):
                    return Lost.MESSAGE
                ending = await lease.run(partial(self._note, pending, note))
                if isinstance(ending, TaskResult):
                    saved = await read_task_checkpoints(self.store, pending.task_id)
                    await settle(ending.value, saved, lease.holder.name)
                    held.close()  # its worker gets another item while the states are removed
                    if not pending.options.keep_checkpoints:
                        await _remove(self.store, pending.task_id, lease.number)
            return ending

    def _offer(self, pending: PendingItem, lease: Lease) -> None:
        """Send the assignment of an item that saves nothing: its lease has a number of its own."""
        number = next(self._counter)
        try:
            is_sent = lease.offer(number, None, _assignment(pending, lease, number, None))
        except ProtocolError as error:  # of this item alone: `Pool.match` is for all
            lease.fail(error)
            return
        if not is_sent:
            lease.lose(Lost.MESSAGE)

    async def _note(self, pending: PendingItem, note: Note, text: str) -> None:
        """Record a worker's note in the job's history."""
        log.warning("%s: %s", pending.task_id, printable(text), extra=pending.place)
        await note(pending.index, text)

    async def _reset_if_stale(
        self, pending: PendingItem, lost_at: float | None, note: Note
    ) -> TaskCheckpoints:
        """Read what is saved of an item; discard it if it is too old."""
        saved = await self._read_or_discard(pending, note)
        saved_at = saved.last_checkpoint_at
        if saved_at is None or lost_at is None:
            return saved
        age_s = lost_at - saved_at
        if age_s <= pending.options.max_age_s:
            return saved
        text = (
            f"its state was {duration(age_s)} old when its worker was lost, over "
            f"{duration(pending.options.max_age_s)}: it starts from the beginning"
        )
        log.warning("%s: %s", pending.task_id, text, extra=pending.place)
        async with open_maintenance(self.store, pending.task_id) as maintenance:
            await maintenance.reset(text)
        await note(pending.index, text)
        return TaskCheckpoints()

    async def _read_or_discard(self, pending: PendingItem, note: Note) -> TaskCheckpoints:
        """Read what is saved of an item; damaged records are removed, and the history says so.

        If only arrays are damaged, the worker resumes from the newest state that is whole.
        """
        try:
            return await read_task_checkpoints(self.store, pending.task_id)
        except StoreDamagedError as error:
            text = f"its records are damaged, so it starts from the beginning: {error}"
            log.error("%s: %s", pending.task_id, text, extra=pending.place)
            await prune_task(self.store, pending.task_id)
            await note(pending.index, text)
            return TaskCheckpoints()

    async def _clean_up(self, pending: PendingItem) -> None:
        """Remove the saved states of an item that no worker has, best effort."""
        if not pending.options.keep_checkpoints:
            await prune_task(self.store, pending.task_id)


async def _is_new(store: Store, task_id: str) -> bool:
    """Whether a run that is owned has no records, and never had any."""
    stored = await store.read_run(task_id)
    return stored is None or (stored.generation == 0 and not stored.streams)


async def prune_task(store: Store, task_id: str) -> int:
    """Remove the saved states of an item that no worker has.

    Returns:
        The size of the removed states, in bytes.

    Raises:
        RunLockedError: another owner has the item's run.
        StoreError: the states cannot be removed.

    Durability: removed states do not come back.
    """
    if await find_run(store, task_id) is None:
        return 0
    async with store.lock_run(task_id) as number:
        return await _remove(store, task_id, number)


async def _remove(store: Store, task_id: str, number: int) -> int:
    """Remove an owned run of an item, even a damaged one; return its size in bytes.

    Its blobs are dropped first: a store removes those at once, but the rest of a pruned run only
    when no process owns a run, which may be never while a foreman has jobs.
    """
    try:
        stored = await store.read_run(task_id)
    except StoreDamagedError:
        stored = None
    if stored is None:
        found = await find_run(store, task_id)
        if found is None:
            return 0
        return (await store.prune(RunKey(task_id, found.generation, number), keep=0)).bytes
    run = RunKey(task_id, stored.generation, number)
    size = 0
    for entry in stored.streams:
        size += await store.drop_blobs(run, entry.stream, range(1, entry.sequence + 1))
    return size + (await store.prune(run, keep=0)).bytes


def _assignment(
    pending: PendingItem, lease: Lease, number: int, saved: TaskCheckpoints | None
) -> TaskMessage:
    """Return the message that begins a lease under its number; `saved` is None for a new run."""
    if lease.was is not None:
        return NewLease(pending.task_id, number, lease.was)
    head = (
        pending.task_id,
        number,
        pending.job_id,
        pending.index,
        pending.function,
        pending.item,
        pending.attempt,
        pending.options.checkpoint_interval_s,
        pending.options.trace,
    )
    if saved is None:
        return AssignTask(*head)
    return ResumeTask(*head, saved.sequence, saved.last_checkpoint_at)
