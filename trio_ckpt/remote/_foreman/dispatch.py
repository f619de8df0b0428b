"""Running one work item to its end, across the workers that it needs."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from ..._journal.store import RunKey, Store
from ..._maintenance.offline import open_maintenance
from ..._util.errors import StoreDamagedError
from ..._util.log import get_logger
from ..._util.text import duration, plural, printable
from .._wire.errors import TaskFailedError, TaskLostError
from .._wire.messages import (
    AssignTask,
    NewLease,
    ReleaseTask,
    ResumeTask,
    TaskFailed,
    TaskMessage,
    TaskResult,
)
from .lease import Ending, Lease, Lost
from .pool import PendingItem, Pool
from .store_proxy import StoreProxy
from .task_checkpoints import TaskFacts, read_facts

log = get_logger(__name__)

RECLAIM_S = 5.0  # after a start: items that were running wait for their former workers
SUSPECT_AFTER = 2  # losses: then the item may be what kills workers, and is tried alone
AGAIN_AFTER_S = 1.0  # when a worker could not continue: the next one may not either


Settle = Callable[[Any, TaskFacts, str], Awaitable[None]]  # value, saved states, worker's name
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

    async def do(self, wanted: PendingItem, settle: Settle, note: Note) -> None:
        """Run an item to its end, by one worker after the other if necessary.

        Args:
            wanted: The item.
            settle: Makes the item's result durable; the worker may then forget it.
            note: Records an event in the job's history.

        Raises:
            TaskFailedError: the item's function raised.
            TaskLostError: too many workers were lost with the item.
        """
        try:
            await self._do(wanted, settle, note)
        finally:
            self.pool.touch()  # a worker may still hold it

    async def _do(self, wanted: PendingItem, settle: Settle, note: Note) -> None:
        losses, lost_at = 0, wanted.down_at
        while True:
            # Also after a worker was lost: it may have saved its result before it died.
            facts = await self._read_or_discard(wanted, note) if wanted.is_saving else TaskFacts()
            if facts.is_done:
                await settle(facts.result, facts, "")
                await self._clean_up(wanted)
                return
            claims_until = self._started + RECLAIM_S if facts.sequence else 0.0
            is_suspect = losses >= SUSPECT_AFTER
            lease = await self.pool.take(wanted, claims_until, is_alone=is_suspect)
            ending = await self._lend(wanted, lease, lost_at, settle, note)
            match ending:
                case TaskResult():
                    return
                case TaskFailed(error=error):
                    raise TaskFailedError(
                        error.type,
                        error.message,
                        index=wanted.index,
                        remote_traceback=error.traceback,
                        run_id=wanted.job_id,
                    )
                case Lost.MESSAGE:
                    continue
                case Lost.LEFT:
                    lost_at = lease.lost_at
                    continue
                case ReleaseTask(is_trouble=False):
                    log.info(
                        "%s was handed back: %s", wanted.task_id, ending.reason, extra=wanted.place
                    )
                    lost_at = time.time()
                    continue
                case ReleaseTask(reason=reason):
                    await trio.sleep(AGAIN_AFTER_S)
                case Lost.WORKER:
                    reason = ending.value
            lost_at = lease.lost_at or time.time()
            losses += 1
            log.warning("%s was lost (%d): %s", wanted.task_id, losses, reason, extra=wanted.place)
            await note(wanted.index, f"lost by {lease.holder.name}: {reason}")
            if losses >= wanted.options.losses:
                raise TaskLostError(
                    f"work item {wanted.index} of {wanted.job_id} was lost by "
                    f"{plural(losses, 'worker')}, the last time because {reason}",
                    run_id=wanted.job_id,
                    batch_index=wanted.index,
                )

    # -- one lease ----------------------------------------------------------------------------

    async def _lend(
        self, wanted: PendingItem, lease: Lease, lost_at: float | None, settle: Settle, note: Note
    ) -> Ending:
        """Lease the item to one worker; return how the lease ended."""
        try:
            facts = TaskFacts()
            if wanted.is_saving:
                facts = await self._reset_if_stale(
                    wanted, lost_at if lease.was is None else None, note
                )
            async with self._own(wanted) as (number, relay):
                if lease.was is None:
                    message = _assignment(wanted, number, facts)
                else:
                    message = NewLease(wanted.task_id, number, lease.was)
                if not lease.offer(number, relay, message):
                    return Lost.MESSAGE
                ending = await lease.run(partial(self._note, wanted, note))
                if isinstance(ending, TaskResult):
                    if wanted.is_saving:
                        facts = await read_facts(self.store, wanted.task_id)
                    await settle(ending.value, facts, lease.holder.name)
                    await self._prune(wanted, lease)
            return ending
        finally:
            self.pool.end(lease)

    @asynccontextmanager
    async def _own(self, wanted: PendingItem) -> AsyncGenerator[tuple[int, StoreProxy | None]]:
        """Own the item's run for a lease; an item that saves nothing gets a number of its own."""
        if not wanted.is_saving:
            yield next(self._counter), None
            return
        async with self.store.lock_run(wanted.task_id) as number:
            yield number, StoreProxy(self.store, wanted.task_id, number)

    async def _note(self, wanted: PendingItem, note: Note, text: str) -> None:
        """Record a worker's note in the job's history."""
        log.warning("%s: %s", wanted.task_id, printable(text), extra=wanted.place)
        await note(wanted.index, text)

    async def _reset_if_stale(
        self, wanted: PendingItem, lost_at: float | None, note: Note
    ) -> TaskFacts:
        """Read what is saved of an item; discard it if it is too old."""
        facts = await self._read_or_discard(wanted, note)
        saved_at = facts.last_checkpoint_at
        if saved_at is None or lost_at is None:
            return facts
        age_s = lost_at - saved_at
        if age_s <= wanted.options.max_age_s:
            return facts
        text = (
            f"its state was {duration(age_s)} old when its worker was lost, over "
            f"{duration(wanted.options.max_age_s)}: it starts from the beginning"
        )
        log.warning("%s: %s", wanted.task_id, text, extra=wanted.place)
        async with open_maintenance(self.store, wanted.task_id) as maintenance:
            await maintenance.reset(text)
        await note(wanted.index, text)
        return TaskFacts()

    async def _read_or_discard(self, wanted: PendingItem, note: Note) -> TaskFacts:
        """Read what is saved of an item; damaged records are removed, and the history says so.

        If only arrays are damaged, the worker resumes from the newest state that is whole.
        """
        try:
            return await read_facts(self.store, wanted.task_id)
        except StoreDamagedError as error:
            text = f"its records are damaged, so it starts from the beginning: {error}"
            log.error("%s: %s", wanted.task_id, text, extra=wanted.place)
            await prune_task(self.store, wanted.task_id)
            await note(wanted.index, text)
            return TaskFacts()

    async def _prune(self, wanted: PendingItem, lease: Lease) -> None:
        """Remove the saved states of an item that is done, best effort."""
        if not wanted.is_saving or wanted.options.keep_checkpoints:
            return
        await _remove(self.store, wanted.task_id, lease.number)

    async def _clean_up(self, wanted: PendingItem) -> None:
        """Remove the saved states of an item that no worker has, best effort."""
        if not wanted.options.keep_checkpoints:
            await prune_task(self.store, wanted.task_id)


async def prune_task(store: Store, task_id: str) -> int:
    """Remove the saved states of an item that no worker has.

    Returns:
        The size of the removed states, in bytes.

    Raises:
        RunLockedError: another owner has the item's run.
        StoreError: the states cannot be removed.

    Durability: removed states do not come back.
    """
    if not any(run.run_id == task_id for run in await store.list_runs()):
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
        generations = [run.generation for run in await store.list_runs() if run.run_id == task_id]
        pruned = [
            await store.prune(RunKey(task_id, generation, number), keep=0)
            for generation in generations
        ]
        return sum(one.bytes for one in pruned)
    run = RunKey(task_id, stored.generation, number)
    size = 0
    for entry in stored.streams:
        size += await store.drop_blobs(run, entry.stream, range(1, entry.sequence + 1))
    return size + (await store.prune(run, keep=0)).bytes


def _assignment(wanted: PendingItem, number: int, facts: TaskFacts) -> TaskMessage:
    head = (
        wanted.task_id,
        number,
        wanted.job_id,
        wanted.index,
        wanted.function,
        wanted.item,
        wanted.attempt,
        wanted.options.checkpoint_interval_s,
        wanted.options.trace,
    )
    if not facts.sequence:
        return AssignTask(*head)
    return ResumeTask(*head, facts.sequence, facts.last_checkpoint_at)
