"""Running one work item to its end, across the workers that it needs."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, ExitStack

import attrs
import msgspec
import trio

from ..._journal.history import find_run
from ..._journal.store import RunKey, Store
from ..._maintenance.offline import open_maintenance
from ..._runs.run_lock import take_lock
from ..._util.errors import StoreDamagedError
from ..._util.log import get_logger
from ..._util.text import duration, printable
from .._wire.errors import ProtocolError
from .._wire.message import TaskMessage
from .._wire.task_messages import (
    NewLease,
    ReleaseTask,
    ResumeTask,
    TaskFailed,
    TaskResult,
)
from .attempt import ItemAttempt
from .lease import Ending, Lease, Lost
from .pool import Pool
from .renewal import keep_lock, lock_patience_s
from .store_proxy import StoreProxy
from .task_checkpoints import TaskCheckpoints, read_task_checkpoints
from .waiting import PendingItem

log = get_logger(__name__)

RECLAIM_S = 5.0  # after a start: items that were running wait for their former workers
SUSPECT_AFTER = 2  # losses: then the item may be what kills workers, and is tried alone
AGAIN_AFTER_S = 1.0  # when a worker could not continue: the next one may not either


@attrs.define(eq=False)
class WorkItem:
    """An attempt at a work item that the workers of a foreman carry out.

    Attributes:
        attempt: The attempt.
        pool: The workers.
        lost_at: When the last worker was lost with it, or the foreman saved last before it was
            started; Unix time, s; None: neither has happened.
    """

    attempt: ItemAttempt
    pool: Pool
    lost_at: float | None

    @property
    def pending(self) -> PendingItem:
        """The item, as the pool has it while it waits."""
        return self.attempt.pending

    @property
    def store(self) -> Store:
        """The foreman's store."""
        return self.attempt.store

    async def run(self) -> None:
        """Run the item to its end; its result is durable then.

        Raises:
            TaskFailedError: the item's function raised.
            TaskLostError: too many workers were lost with the item.
        """
        try:
            while not await self._run_once():
                pass
        finally:
            self.pool.touch()  # a worker may still hold it

    async def _run_once(self) -> bool:
        """Give the item to one worker; return whether it has a result."""
        pending = self.pending
        # Also after a worker was lost: it may have saved its result before it died.
        saved = await self._read_or_discard() if pending.is_saving else TaskCheckpoints()
        if saved.is_done:
            await self.attempt.settle(saved.result, saved, "")
            if not pending.options.keep_checkpoints:
                await prune_task(self.store, pending.task_id, lock_patience_s(self.store))
            return True
        lease = await self.pool.take(
            pending,
            self.pool.started + RECLAIM_S if saved.sequence else 0.0,
            is_alone=self.attempt.losses >= SUSPECT_AFTER,
            offer=None if pending.is_saving else self._offer,
        )
        ending = await self._run_lease(saved, lease)
        match ending:
            case TaskResult():
                return True
            case TaskFailed(error=error):
                raise error.to_exception(pending.index, pending.job_id)
            case Lost.MESSAGE:
                pass
            case Lost.LEFT:
                self.lost_at = lease.lost_at
            case ReleaseTask(is_trouble=False, reason=reason):
                log.info("%s was handed back: %s", pending.task_id, reason, extra=pending.place)
                self.lost_at = time.time()
            case ReleaseTask(reason=reason):
                await trio.sleep(AGAIN_AFTER_S)
                await self._count_loss(lease, reason)
            case Lost.WORKER:
                await self._count_loss(lease, ending.value)
        return False

    async def _count_loss(self, lease: Lease, reason: str) -> None:
        """Count a worker that was lost with the item; the item fails if it was one too many."""
        self.lost_at = lease.lost_at or time.time()
        await self.attempt.count_loss(lease.holder.name, reason)

    # -- one lease ----------------------------------------------------------------------------

    async def _run_lease(self, saved: TaskCheckpoints, lease: Lease) -> Ending:
        """Lease the item to one worker; return how the lease ended."""
        store, task_id = self.store, self.pending.task_id
        with ExitStack() as held:
            held.callback(self.pool.end, lease)
            if not self.pending.is_saving:
                ending = await lease.run(self._note_of_worker)
                if isinstance(ending, TaskResult):
                    await self.attempt.settle(ending.value, saved, lease.holder.name)
                return ending
            if saved.sequence:  # else no former lease has saved anything
                saved = await self._reset_if_stale(is_held=lease.was is not None)
            async with AsyncExitStack() as lock:
                wait_s = lock_patience_s(store)
                number, owned_at = await take_lock(lock, store, task_id, wait_s)
                proxy = StoreProxy(store, task_id, number, owned_at)
                is_new = not saved.sequence and await _is_new(store, task_id)
                message = self._assignment(lease, number, None if is_new else saved)
                if not lease.offer(number, proxy, message):
                    return Lost.MESSAGE
                async with keep_lock(proxy):
                    ending = await lease.run(self._note_of_worker)
                if isinstance(ending, TaskResult):
                    saved = await read_task_checkpoints(store, task_id)
                    await self.attempt.settle(ending.value, saved, lease.holder.name)
                    held.close()  # its worker gets another item while the states are removed
                    if not self.pending.options.keep_checkpoints:
                        await remove_run(store, task_id, lease.number)
            return ending

    def _offer(self, lease: Lease) -> None:
        """Send the assignment of an item that saves nothing: its lease has a number of its own."""
        number = next(self.pool.numbers)
        try:
            is_sent = lease.offer(number, None, self._assignment(lease, number, None))
        except ProtocolError as error:  # of this item alone: `Pool.match` is for all
            lease.fail(error)
            return
        if not is_sent:
            lease.lose(Lost.MESSAGE)

    def _assignment(self, lease: Lease, number: int, saved: TaskCheckpoints | None) -> TaskMessage:
        """Return the message that begins a lease under its number; `saved`: None for a new run."""
        pending = self.pending
        if lease.was is not None:
            return NewLease(pending.task_id, number, lease.was)
        assigned = pending.assignment(number)
        if saved is None:
            return assigned
        return ResumeTask(
            **msgspec.structs.asdict(assigned),
            sequence=saved.sequence,
            captured_at=saved.last_checkpoint_at,
        )

    async def _note_of_worker(self, text: str) -> None:
        """Record a worker's note in the job's history."""
        pending = self.pending
        log.warning("%s: %s", pending.task_id, printable(text), extra=pending.place)
        await self.attempt.note(text)

    # -- what is saved ------------------------------------------------------------------------

    async def _reset_if_stale(self, *, is_held: bool) -> TaskCheckpoints:
        """Read what is saved of the item; discard it if it is too old and no worker holds it."""
        pending, saved = self.pending, await self._read_or_discard()
        if is_held or saved.last_checkpoint_at is None or self.lost_at is None:
            return saved
        age_s = self.lost_at - saved.last_checkpoint_at
        if age_s <= pending.options.max_age_s:
            return saved
        text = (
            f"its state was {duration(age_s)} old when its worker was lost, over "
            f"{duration(pending.options.max_age_s)}: it starts from the beginning"
        )
        log.warning("%s: %s", pending.task_id, text, extra=pending.place)
        async with open_maintenance(
            self.store, pending.task_id, wait_for_lock_s=lock_patience_s(self.store)
        ) as maintenance:
            await maintenance.reset(text)
        await self.attempt.note(text)
        return TaskCheckpoints()

    async def _read_or_discard(self) -> TaskCheckpoints:
        """Read what is saved of the item; damaged records are removed, and the history says so.

        If only arrays are damaged, the worker resumes from the newest state that is whole.
        """
        pending = self.pending
        try:
            return await read_task_checkpoints(self.store, pending.task_id)
        except StoreDamagedError as error:
            text = f"its records are damaged, so it starts from the beginning: {error}"
            log.error("%s: %s", pending.task_id, text, extra=pending.place)
            await prune_task(self.store, pending.task_id, lock_patience_s(self.store))
            await self.attempt.note(text)
            return TaskCheckpoints()


@attrs.frozen
class WorkerRunner:
    """The workers of a foreman, as what runs the items of its jobs.

    Attributes:
        pool: The workers.
    """

    pool: Pool

    def begin_job(self, job_id: str) -> None:
        """Let workers take items of a job that is ready."""
        self.pool.touch()

    def forget_job(self, job_id: str) -> None:
        """Drop what is kept of a job that has ended."""
        self.pool.forget_job(job_id)

    async def run_item(self, attempt: ItemAttempt, lost_at: float | None) -> None:
        """Run an item to its end; see `WorkItem.run`."""
        await WorkItem(attempt, self.pool, lost_at).run()


async def _is_new(store: Store, task_id: str) -> bool:
    """Whether a run that is owned has no records, and never had any."""
    stored = await store.read_run(task_id)
    return stored is None or (stored.generation == 0 and not stored.streams)


async def prune_task(store: Store, task_id: str, wait_s: float = 0.0) -> int:
    """Remove the saved states of an item that no worker has.

    Args:
        store: The foreman's store.
        task_id: The item.
        wait_s: How long to wait for another owner of its run, in seconds.

    Returns:
        The size of the removed states, in bytes.

    Raises:
        RunLockedError: another owner has the item's run.
        StoreError: the states cannot be removed.

    Durability: removed states do not come back.
    """
    if await find_run(store, task_id) is None:
        return 0
    async with AsyncExitStack() as lock:
        number, _ = await take_lock(lock, store, task_id, wait_s)
        return await remove_run(store, task_id, number)


async def remove_run(store: Store, task_id: str, number: int) -> int:
    """Remove an owned run of an item, even a damaged one; return its size in bytes."""
    found = await find_run(store, task_id)
    if found is None:
        return 0
    return (await store.prune(RunKey(task_id, found.generation, number), keep=0)).bytes
