"""Getting one work item done, whatever becomes of the workers that have it."""

from __future__ import annotations

import itertools
import logging
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

log = logging.getLogger("trio_ckpt.remote.foreman")

RECLAIM_S = 5.0  # after a start: items that were begun wait for who has them
SUSPECT_AFTER = 2  # losses: then an item may be what takes workers down, and is tried alone
AGAIN_AFTER_S = 1.0  # when a worker could not go on: the next may not either


Settle = Callable[[Any, TaskFacts, str], Awaitable[None]]  # the value, what was saved, by whom
Note = Callable[[int, str], Awaitable[None]]  # for the job's history, about an item


@attrs.define(eq=False)
class Dispatcher:
    """Gives work items to workers.

    Attributes:
        store: The foreman's.
        pool: The workers.
    """

    store: Store
    pool: Pool
    _started: float = attrs.field(factory=trio.current_time, init=False)
    _counter: itertools.count[int] = attrs.field(
        factory=lambda: itertools.count(time.time_ns() // 1_000), init=False
    )

    async def do(self, wanted: PendingItem, settle: Settle, note: Note) -> None:
        """Have an item done, by one worker after the other if need be.

        Args:
            wanted: The item.
            settle: Makes its result durable; the worker may forget it then.
            note: Writes down what happened to it.

        Raises:
            TaskFailedError: its function raised.
            TaskLostError: it has taken down too many workers.
        """
        try:
            await self._do(wanted, settle, note)
        finally:
            self.pool.touch()  # a worker may hold it still

    async def _do(self, wanted: PendingItem, settle: Settle, note: Note) -> None:
        losses, lost_at = 0, wanted.down_at
        while True:
            # Also after a worker was lost: it may have saved its result and not lived to say so.
            facts = await self._read(wanted, note) if wanted.is_saving else TaskFacts()
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
        """Let one worker have the item; how that ended."""
        try:
            facts = TaskFacts()
            if wanted.is_saving:
                facts = await self._look(wanted, lost_at if lease.was is None else None, note)
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
        """Own the item's run for a lease; one that saves nothing has a number of its own."""
        if not wanted.is_saving:
            yield next(self._counter), None
            return
        async with self.store.lock_run(wanted.task_id) as number:
            yield number, StoreProxy(self.store, wanted.task_id, number)

    async def _note(self, wanted: PendingItem, note: Note, text: str) -> None:
        """Take what a worker says for the history of the job."""
        log.warning("%s: %s", wanted.task_id, printable(text), extra=wanted.place)
        await note(wanted.index, text)

    async def _look(self, wanted: PendingItem, lost_at: float | None, note: Note) -> TaskFacts:
        """What is saved of an item, after what is too old was set aside."""
        facts = await self._read(wanted, note)
        saved_at = facts.last_checkpoint_at
        if saved_at is None or lost_at is None:
            return facts
        age_s = lost_at - saved_at
        if age_s <= wanted.options.max_age_s:
            return facts
        text = (
            f"its state was {duration(age_s)} old when its worker was lost, over "
            f"{duration(wanted.options.max_age_s)}: it begins again"
        )
        log.warning("%s: %s", wanted.task_id, text, extra=wanted.place)
        async with open_maintenance(self.store, wanted.task_id) as maintenance:
            await maintenance.reset(text)
        await note(wanted.index, text)
        return TaskFacts()

    async def _read(self, wanted: PendingItem, note: Note) -> TaskFacts:
        """What is saved of an item; if its records are damaged they are removed, and said so.

        Where only arrays are, the worker goes back to the newest state that is whole.
        """
        try:
            return await read_facts(self.store, wanted.task_id)
        except StoreDamagedError as error:
            text = f"its records are damaged, so it begins again: {error}"
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
        """The same, of one that nobody has."""
        if not wanted.options.keep_checkpoints:
            await prune_task(self.store, wanted.task_id)


async def prune_task(store: Store, task_id: str) -> int:
    """Remove the saved states of an item that nobody has.

    Returns:
        How many bytes they had.

    Raises:
        RunLockedError: somebody has it.
        StoreError: they cannot be removed.

    Durability: what is removed does not come back.
    """
    if not any(run.run_id == task_id for run in await store.list_runs()):
        return 0
    async with store.lock_run(task_id) as number:
        return await _remove(store, task_id, number)


async def _remove(store: Store, task_id: str, number: int) -> int:
    """Remove the run of an item that is owned, what is damaged included; its size in bytes.

    Its blobs are dropped first: a store removes those at once, and what else a pruned run had
    when nobody owns any run, which may be never while a foreman has jobs.
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
