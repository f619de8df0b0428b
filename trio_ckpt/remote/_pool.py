"""Workers, and who waits for one.

Theory of operation.  A `Desk` is one worker over all its connections.  A work item waits in the
`Pool` until a worker has a free slot and runs functions of its module; jobs take turns.  A worker
that comes back from before the foreman was started *claims* what it is working at: an item that
waits goes to who claims it before anybody else.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import attrs
import trio

from ._lease import Lease
from ._link import Link
from ._messages import Cancel, TaskAck, TaskMessage
from ._protocol import Phase, TaskPhase
from ._work import is_allowed

log = logging.getLogger("trio_ckpt.remote.foreman")

LONELY_AFTER_S = 30.0  # then it is said that no worker runs a function


@attrs.define(eq=False)
class Desk:
    """One worker, over all its connections.

    Attributes:
        peer_id: Random; made by its process.
        name: What people call it.
        slots: How many items it takes at a time.
        allow: Modules whose functions it runs.
        link: The connection; None: it is lost, and may come back.
        leases: The items that it has, by name.
        claims: Items that it says it has, with the numbers it says.
        reserved: Slots for items that are about to be assigned.
    """

    peer_id: str
    name: str
    slots: int
    allow: tuple[str, ...]
    link: Link | None = None
    leases: dict[str, Lease] = attrs.field(factory=dict[str, Lease])
    claims: dict[str, int] = attrs.field(factory=dict[str, int])
    reserved: int = 0

    @property
    def free(self) -> int:
        """Slots that are free now."""
        link = self.link
        if link is None or link.is_lost or link.connection.phase is not Phase.OPEN:
            return 0
        return self.slots - len(link.connection.tasks) - self.reserved

    @property
    def running(self) -> int:
        """Items that it has."""
        return len(self.leases)

    def runs(self, function: str) -> bool:
        """Whether it runs functions of this one's module."""
        return is_allowed(function.partition(":")[0], self.allow)

    def phase_of(self, task_id: str) -> TaskPhase:
        """Where an item stands on its connection."""
        link = self.link
        if link is None or link.connection.phase is not Phase.OPEN:
            return TaskPhase.NONE
        return link.connection.tasks.get(task_id, TaskPhase.NONE)

    def send(self, message: TaskMessage) -> bool:
        """Send something if there is a connection; whether there is."""
        link = self.link
        if link is None or link.is_lost or link.connection.phase is not Phase.OPEN:
            return False
        link.send(message)
        return True

    def let_go(self, task_id: str, lease: int, reason: str | None) -> None:
        """End what this worker has to do with an item, as it stands.

        Args:
            task_id: The item.
            lease: Its number.
            reason: Why its function is to end; None: it may go on until it is seen again.
        """
        phase = self.phase_of(task_id)
        if phase is TaskPhase.ENDED:
            self.send(TaskAck(task_id, lease))
        elif phase in (TaskPhase.RUNNING, TaskPhase.HELD) and reason is not None:
            self.send(Cancel(task_id, lease, reason))


@attrs.define(eq=False)
class _Waiter:
    """An item that waits for a worker."""

    task_id: str
    function: str
    ready: trio.Event = attrs.field(factory=trio.Event)
    desk: Desk | None = None


@attrs.define(eq=False)
class Pool:
    """All workers, and all items that wait.

    Attributes:
        desks: By the ids of their processes.
        is_rebalancing: A worker with much to do is asked to hand an item back when another
            one is idle.
    """

    is_rebalancing: bool = False
    desks: dict[str, Desk] = attrs.field(factory=dict[str, Desk])
    _waiting: OrderedDict[str, dict[str, _Waiter]] = attrs.field(
        factory=OrderedDict[str, dict[str, _Waiter]], init=False
    )

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return sum(map(len, self._waiting.values()))

    async def take(self, job_id: str, task_id: str, function: str) -> Desk:
        """Wait for a worker; one of its slots is reserved, or it claims the item already.

        Cancellation: nothing is reserved.
        """
        waiter = _Waiter(task_id, function)
        self._waiting.setdefault(job_id, {})[task_id] = waiter
        try:
            await trio.lowlevel.checkpoint()  # those that begin together are taken in order
            self.match()
            with trio.move_on_after(LONELY_AFTER_S):
                await waiter.ready.wait()
            if not waiter.ready.is_set():
                self._tell_lonely(function)
                await waiter.ready.wait()
        except BaseException:
            if waiter.desk is not None and task_id not in waiter.desk.claims:
                waiter.desk.reserved -= 1
                self.match()
            raise
        finally:
            self._forget(job_id, task_id)
        if waiter.desk is None:
            raise RuntimeError("a waiter was woken without a worker")
        return waiter.desk

    def _forget(self, job_id: str, task_id: str) -> None:
        waiters = self._waiting.get(job_id, dict[str, _Waiter]())
        waiters.pop(task_id, None)
        if not waiters:
            self._waiting.pop(job_id, None)

    def _tell_lonely(self, function: str) -> None:
        if not any(desk.runs(function) for desk in self.desks.values() if desk.link is not None):
            log.warning("no worker is connected that runs %s", function)

    def match(self) -> None:
        """Give free slots to who waits, one job after the other; claims come first."""
        self._match_claims()
        is_moving = bool(self._waiting)
        while is_moving:
            is_moving = False
            free = [desk for desk in self.desks.values() if desk.free > 0]
            if not free:
                return
            for job_id in tuple(self._waiting):
                is_moving = self._match_job(job_id, free) or is_moving
        if self.is_rebalancing and not self._waiting:
            self._rebalance()

    def _match_claims(self) -> None:
        for desk in self.desks.values():
            if desk.link is None:
                continue
            for task_id in desk.claims:
                for waiters in self._waiting.values():
                    waiter = waiters.pop(task_id, None)
                    if waiter is not None:
                        waiter.desk = desk
                        waiter.ready.set()
        for job_id in [job_id for job_id, waiters in self._waiting.items() if not waiters]:
            del self._waiting[job_id]

    def _match_job(self, job_id: str, free: list[Desk]) -> bool:
        waiters = self._waiting.get(job_id)
        if not waiters:
            return False
        first = waiters[min(waiters)]  # the items of a job have one function, and an order
        able = [desk for desk in free if desk.free > 0 and desk.runs(first.function)]
        if not able:
            return False
        del waiters[first.task_id]
        self._waiting.move_to_end(job_id)
        if not waiters:
            del self._waiting[job_id]
        first.desk = max(able, key=lambda desk: desk.free)
        first.desk.reserved += 1
        first.ready.set()
        return True

    def _rebalance(self) -> None:
        """Ask the busiest worker for an item if another one could begin it at once."""
        desks = [desk for desk in self.desks.values() if desk.link is not None]
        idle = [desk for desk in desks if desk.free > 0]
        if not idle:
            return
        least = min(idle, key=lambda desk: desk.running)
        most = max(desks, key=lambda desk: desk.running)
        if most.running - least.running < 2 or any(
            lease.is_asked_back for desk in desks for lease in desk.leases.values()
        ):
            return
        able = [lease for lease in most.leases.values() if least.runs(lease.function)]
        if able:
            able[-1].ask_back("another worker is idle")
