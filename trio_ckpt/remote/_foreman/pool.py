"""Workers, the items that wait for one, and the one place that matches them.

Theory of operation
===================

A work item waits in the `Pool` until a worker has a free slot and runs functions of its module;
jobs take turns.  A worker that reconnects names the items that it still holds: a waiting item goes
to the worker that holds it before any other.

`Pool.match` is the only place that gives items to workers, and the only one that settles what a
worker holds.  It does not react to events; it compares the state of each item on a worker's
connection with the foreman's view of it, and acts as the table `DUE` says.  All code that may
change one of the two calls `Pool.touch`, and one task (`Pool.run`) then matches.  So the order in
which connections, results, saves and jobs come and go does not matter, and a free slot or a waiting
item cannot be overlooked: a slot becomes free only by a TASK_ACK, which only `match` sends, or with
a connection.

An item that may kill workers is to be alone on a worker.  Where all workers are busy, one of them
gets nothing more until it is idle: otherwise a worker with several slots would never be idle while
items wait, and the item would wait for the end of all jobs.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable

import attrs
import trio

from ..._util.patience import wait_awake
from .._wire.message import HeldItem
from .._wire.tables import TaskPhase
from .._wire.task_messages import Cancel, NewLease, TaskAck
from .lease import Lease, Lost, WorkerHandle
from .waiting import PendingItem, WaitingItem, WaitingItems

MAX_NAMED = 5  # modules in one line
NOT_WANTED = "its result is not wanted any more"


class ItemOnConnection(enum.Enum):
    """The foreman's view of an item on a worker's connection."""

    LEASED = "the worker has it under a lease that goes on"
    CHANGING = "a promise to the worker is being kept, or its final message is being made durable"
    WAITING = "it waits for a worker, and this one may go on with it"
    OPEN = "it is wanted, and does not wait for a worker now"
    UNWANTED = "it is done, its job is over, another worker has it, or it was ended here"

    __hash__ = object.__hash__


class Due(enum.Enum):
    """The action that is due for an item on a worker's connection."""

    NOTHING = enum.auto()
    LEASE = enum.auto()
    TAKE = enum.auto()
    CANCEL = enum.auto()
    ACK = enum.auto()


DUE: dict[TaskPhase, dict[ItemOnConnection, Due]] = {
    TaskPhase.HELD: {
        ItemOnConnection.LEASED: Due.LEASE,
        ItemOnConnection.CHANGING: Due.NOTHING,
        ItemOnConnection.WAITING: Due.TAKE,
        ItemOnConnection.OPEN: Due.NOTHING,
        ItemOnConnection.UNWANTED: Due.CANCEL,
    },
    TaskPhase.RUNNING: {
        ItemOnConnection.LEASED: Due.NOTHING,
        ItemOnConnection.CHANGING: Due.NOTHING,
        ItemOnConnection.WAITING: Due.CANCEL,
        ItemOnConnection.OPEN: Due.CANCEL,
        ItemOnConnection.UNWANTED: Due.CANCEL,
    },
    TaskPhase.STOPPING: dict.fromkeys(ItemOnConnection, Due.NOTHING),
    TaskPhase.ENDED: {
        ItemOnConnection.LEASED: Due.NOTHING,
        ItemOnConnection.CHANGING: Due.NOTHING,
        ItemOnConnection.WAITING: Due.ACK,
        ItemOnConnection.OPEN: Due.ACK,
        ItemOnConnection.UNWANTED: Due.ACK,
    },
}
"""State of an item on a worker's connection, the foreman's view of it -> action.

An item that is RUNNING without a lease has lost it (its result could not be stored, for example):
its calls would never be answered, so it is cancelled.  A HELD item is answered as soon as it is
known whether the worker may continue."""


@attrs.define(eq=False)
class Pool:
    """All workers, and all items that wait.

    Attributes:
        is_open: Whether an item may still be wanted, by its id.
        is_rebalancing: Whether a busy worker is asked to hand an item back when another one is
            idle.
        workers: The workers, by the ids of their processes.
        leases: All promises and leases, by item.
        started: When the foreman was started; trio's time, s.
        numbers: The numbers of leases of items that save nothing.
    """

    is_open: Callable[[str], bool]
    is_rebalancing: bool = False
    workers: dict[str, WorkerHandle] = attrs.field(factory=dict[str, WorkerHandle])
    leases: dict[str, Lease] = attrs.field(factory=dict[str, Lease], init=False)
    started: float = attrs.field(factory=trio.current_time, init=False)
    numbers: itertools.count[int] = attrs.field(
        factory=lambda: itertools.count(time.time_ns() // 1_000), init=False
    )
    _holders: dict[str, WorkerHandle] = attrs.field(factory=dict[str, WorkerHandle], init=False)
    _waiting: OrderedDict[str, WaitingItems] = attrs.field(
        factory=OrderedDict[str, WaitingItems], init=False
    )
    _newest: dict[str, dict[str, int]] = attrs.field(factory=dict[str, dict[str, int]], init=False)
    # by job and item: the newest lease if its worker may continue it, or 0 if it may not
    _lone: dict[WaitingItem, None] = attrs.field(factory=dict[WaitingItem, None], init=False)
    _kept: WorkerHandle | None = attrs.field(default=None, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _touched: dict[WorkerHandle, None] = attrs.field(factory=dict[WorkerHandle, None], init=False)

    @property
    def waiting(self) -> int:
        """The number of items that wait."""
        return sum(len(waiting.items) for waiting in self._waiting.values())

    # -- what changes -------------------------------------------------------------------------

    def touch(self, worker: WorkerHandle | None = None) -> None:
        """Schedule another pass of `match`.

        Args:
            worker: The worker whose items or slots have changed; None: the foreman's view has.
        """
        if worker is not None:
            self._touched[worker] = None
        self._changed.set()

    async def run(self) -> None:
        """Match whenever something has changed; a background task of the foreman.

        Cancellation: ends it; a foreman that ends does not take items from its workers.
        """
        while True:
            await self._changed.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
            self._changed = trio.Event()
            self.match()

    async def take(
        self,
        pending: PendingItem,
        claims_until: float,
        *,
        is_alone: bool = False,
        offer: Callable[[Lease], None] | None = None,
    ) -> Lease:
        """Wait for a worker.

        Args:
            pending: The item.
            claims_until: Until then only a worker that already holds the item gets it; trio's time,
                s.
            is_alone: Whether the item needs an idle worker, which then gets no other item.
            offer: Called with the promise as soon as there is one; sends the assignment, or ends
                the lease.

        Returns:
            The promise of a slot of a worker; with `offer` the lease, when it has ended or has
            something to handle.  Release it with `end`.

        Cancellation: no slot is promised; with `offer` the function may have begun, and is then
            cancelled.
        """
        may_begin = trio.current_time() >= claims_until
        waiter = WaitingItem(pending, may_begin, is_alone, offer)
        waiting = self._waiting.get(pending.job_id)
        if waiting is None:
            waiting = self._waiting[pending.job_id] = WaitingItems(pending.function)
        waiting.add(waiter)
        if is_alone:
            self._lone[waiter] = None
        self.touch()
        try:
            if not may_begin:
                await wait_awake(waiter.ready, claims_until - trio.current_time())
                if waiter.lease is None:
                    waiting.let_begin(waiter)
                    self.touch()
            await waiter.ready.wait()
        except BaseException:
            if waiter.lease is not None:
                self.end(waiter.lease)
            raise
        finally:
            self._forget_waiter(waiter)
        if waiter.lease is None:
            raise RuntimeError("a waiter was woken without a worker")
        return waiter.lease

    def end(self, lease: Lease) -> None:
        """End a lease: the foreman has handled it, or has dropped it."""
        task_id = lease.task_id
        worker = self._holders.pop(task_id)
        del worker.leases[task_id], self.leases[task_id]
        if lease.is_offered:
            may_go_on = lease.ending is None or isinstance(lease.ending, Lost)
            self._newest.setdefault(job_of(task_id), {})[task_id] = lease.number if may_go_on else 0
        self.touch(worker)

    def why_waiting(self, job_id: str) -> str:
        """Say why no connected worker will ever take the items of a job; empty: one will."""
        waiting = self._waiting.get(job_id)
        if waiting is None:
            return ""
        function = waiting.function
        workers = [worker for worker in self.workers.values() if worker.is_connected]
        if any(worker.runs(function) for worker in workers):
            return ""
        if not workers:
            return f"no worker is connected, so {function} waits"
        modules = sorted({module for worker in workers for module in worker.allow})
        shown = ", ".join(modules[:MAX_NAMED]) + (", …" if len(modules) > MAX_NAMED else "")
        return f"no worker that is connected runs {function}: they run functions of {shown}"

    def forget_job(self, job_id: str) -> None:
        """Forget a job that is over."""
        self._newest.pop(job_id, None)
        for worker in self.workers.values():
            self.touch(worker)

    # -- matching -----------------------------------------------------------------------------

    def match(self) -> None:
        """Settle what workers hold, then give free slots to waiting items."""
        touched, self._touched = self._touched, {}
        for worker in touched:
            if self._settle(worker):
                self._touched[worker] = None  # check it again at the next change
        self._give_slots()
        if self.is_rebalancing and not self._waiting:
            self._rebalance()

    def _settle(self, worker: WorkerHandle) -> bool:
        """Do what is due for each item of a worker; return whether some of it is undecided."""
        if not worker.is_connected:
            return False
        for lease in tuple(worker.leases.values()):
            held = worker.held.get(lease.task_id)
            if lease.is_live and (held is None or not lease.is_of(held.lease)):
                lease.lose(Lost.MESSAGE)  # the assignment was lost with the previous connection
        is_undecided = False
        for task_id, phase in tuple(worker.tasks.items()):
            held = worker.held[task_id]
            view = self._view_of(worker, held)
            match DUE[phase][view]:
                case Due.LEASE:
                    worker.send(NewLease(task_id, self.leases[task_id].number, held.lease))
                case Due.TAKE:
                    self._promise(task_id, worker, was=held.lease)
                    is_undecided = True
                case Due.CANCEL:
                    self._refuse(held)
                    worker.send(Cancel(task_id, held.lease, NOT_WANTED))
                case Due.ACK:
                    worker.send(TaskAck(task_id, held.lease))
                case Due.NOTHING:
                    is_undecided |= view in (ItemOnConnection.CHANGING, ItemOnConnection.OPEN)
        return is_undecided

    def _view_of(self, worker: WorkerHandle, held: HeldItem) -> ItemOnConnection:
        """Return the foreman's view of an item that a worker has on its connection."""
        task_id = held.task_id
        lease = self.leases.get(task_id)
        if lease is not None and (self._holders[task_id] is worker or lease.ending is not None):
            return ItemOnConnection.LEASED if lease.is_live else ItemOnConnection.CHANGING
        newest = self._newest.get(job_of(task_id), {}).get(task_id, held.lease)
        if lease is not None or newest != held.lease or not self.is_open(task_id):
            return ItemOnConnection.UNWANTED
        waiter = self._waiter_of(task_id)
        if waiter is None:
            return ItemOnConnection.OPEN
        is_same = waiter.pending.attempt == held.attempt
        return ItemOnConnection.WAITING if is_same else ItemOnConnection.UNWANTED

    def _refuse(self, held: HeldItem) -> None:
        """Bar a cancelled item from continuing, even if the CANCEL is lost."""
        newest = self._newest.get(job_of(held.task_id), {})
        if newest.get(held.task_id) == held.lease:
            newest[held.task_id] = 0

    def _give_slots(self) -> None:
        """Give free slots to waiting items, one job after the other."""
        self._give_idle_workers()
        self._keep_one()
        is_moving = bool(self._waiting)
        while is_moving:
            is_moving = False
            free = [
                worker
                for worker in self.workers.values()
                if worker.free > 0 and worker is not self._kept
            ]
            if not free:
                return
            for job_id in tuple(self._waiting):
                is_moving = self._give_slot(job_id, free) or is_moving

    def _give_idle_workers(self) -> None:
        """Give an idle worker to each item that must be alone, while there are idle workers."""
        for waiter in tuple(self._lone):
            idle = [worker for worker in self._able_alone(waiter) if worker.is_idle]
            if idle:
                self._promise(waiter.pending.task_id, idle[0])

    def _keep_one(self) -> None:
        """Stop giving items to one worker, so that it becomes idle for an item that must be alone.

        The worker with the fewest items is chosen, so the item waits no longer than those items
        take.  Only one worker is reserved; the others continue.
        """
        able = list[WorkerHandle]()
        for waiter in self._lone:
            able = able or self._able_alone(waiter)
        if self._kept not in able:
            self._kept = min(able, key=lambda worker: worker.slots - worker.free, default=None)

    def _able_alone(self, waiter: WaitingItem) -> list[WorkerHandle]:
        """Workers that an item which must be alone may have once they are idle."""
        if not waiter.may_begin:
            return []
        return [
            worker
            for worker in self.workers.values()
            if worker.takes_items and worker.runs(waiter.pending.function)
        ]

    def _give_slot(self, job_id: str, free: list[WorkerHandle]) -> bool:
        waiting = self._waiting[job_id]
        able = [worker for worker in free if worker.free > 0 and worker.runs(waiting.function)]
        chosen = waiting.choose(able) if able else None
        if chosen is None:
            return False
        self._promise(*chosen)
        return True

    def _waiter_of(self, task_id: str) -> WaitingItem | None:
        waiting = self._waiting.get(job_of(task_id))
        return None if waiting is None else waiting.items.get(task_id)

    def _promise(self, task_id: str, worker: WorkerHandle, was: int | None = None) -> None:
        """Give a waiting item to a worker."""
        job_id = job_of(task_id)
        waiter = self._waiting[job_id].items[task_id]
        lease = waiter.lease = Lease(
            task_id, waiter.pending.function, worker, was, changed=waiter.ready
        )
        lease.is_alone = waiter.is_alone and was is None
        self._holders[task_id] = worker
        worker.leases[task_id] = self.leases[task_id] = lease
        self._forget_waiter(waiter)
        if job_id in self._waiting:
            self._waiting.move_to_end(job_id)
        if waiter.offer is not None:
            waiter.offer(lease)
        else:
            waiter.ready.set()

    def _forget_waiter(self, waiter: WaitingItem) -> None:
        job_id, task_id = waiter.pending.job_id, waiter.pending.task_id
        self._lone.pop(waiter, None)
        waiting = self._waiting.get(job_id)
        if waiting is not None and waiting.items.get(task_id) is waiter:
            del waiting.items[task_id]
            if not waiting.items:
                del self._waiting[job_id]

    def _rebalance(self) -> None:
        """Ask the busiest worker for an item if another one could start it at once."""
        workers = [worker for worker in self.workers.values() if worker.is_connected]
        idle = [worker for worker in workers if worker.free > 0]
        if not idle:
            return
        least = min(idle, key=lambda worker: worker.running)
        most = max(workers, key=lambda worker: worker.running)
        if most.running - least.running < 2 or any(
            lease.is_release_requested for lease in self.leases.values()
        ):
            return
        able = [lease for lease in most.leases.values() if least.runs(lease.function)]
        if able:
            able[-1].request_release("another worker is idle")


def job_of(task_id: str) -> str:
    """Return the job id of a work item."""
    return task_id.rpartition(".")[0]
