"""The items that wait for a worker, in the order in which workers get them."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import attrs
import trio

from ..._util.log import Place, at
from ..._util.plain import Plain
from .._wire.job_messages import JobOptions
from .._wire.names import ITEMS_STREAM
from .._wire.task_messages import AssignTask
from .lease import Lease, WorkerHandle


@attrs.frozen
class PendingItem:
    """A work item that is to be done.

    Attributes:
        job_id: The item's job.
        index: The item's index in the job.
        task_id: The item's id.
        function: The function to call.
        item: The function's argument.
        attempt: 1 for the first attempt.
        options: The options of the job.
    """

    job_id: str
    index: int
    task_id: str
    function: str
    item: Plain
    attempt: int
    options: JobOptions

    @property
    def is_saving(self) -> bool:
        """Whether the item takes checkpoints."""
        return self.options.checkpoint_interval_s is not None

    def assignment(self, lease: int) -> AssignTask:
        """The message that begins the item under a lease."""
        return AssignTask(
            self.task_id,
            lease,
            self.job_id,
            self.index,
            self.function,
            self.item,
            self.attempt,
            self.options.checkpoint_interval_s,
            self.options.trace,
        )

    @property
    def place(self) -> Place:
        """The context of log lines about the item."""
        return at(self.job_id, ITEMS_STREAM, self.index)


@attrs.define(eq=False)
class WaitingItem:
    """An item that waits for a worker.

    Attributes:
        pending: The item.
        may_begin: Whether any worker may have it; False: only one that already holds it.
        is_alone: Whether it gets a worker for itself.
        offer: Called with the promise of a slot, and sends the assignment; None: the task that
            waits sends it.
        ready: Set when a slot is promised, or when the lease that was offered has changed.
        lease: The promise.
    """

    pending: PendingItem
    may_begin: bool
    is_alone: bool = False
    offer: Callable[[Lease], None] | None = None
    ready: trio.Event = attrs.field(factory=trio.Event)
    lease: Lease | None = None


@attrs.define(eq=False)
class WaitingItems:
    """The items of one job that wait; a worker gets the one with the lowest index.

    Attributes:
        function: The function of the job.
        items: The items, by id.
    """

    function: str
    items: dict[str, WaitingItem] = attrs.field(factory=dict[str, WaitingItem], init=False)
    _free: list[str] = attrs.field(factory=list[str], init=False)
    # a heap of the ids of items that any worker may have; those that do not wait any more are in it
    # until they are the first

    def add(self, waiter: WaitingItem) -> None:
        """Add an item."""
        self.items[waiter.pending.task_id] = waiter
        if waiter.may_begin:
            self.let_begin(waiter)

    def let_begin(self, waiter: WaitingItem) -> None:
        """Let any worker have an item from now on."""
        waiter.may_begin = True
        if not waiter.is_alone:
            heapq.heappush(self._free, waiter.pending.task_id)

    def choose(self, able: list[WorkerHandle]) -> tuple[str, WorkerHandle] | None:
        """Choose the next item that any worker may have, and the worker with most free slots.

        Args:
            able: Workers that have a free slot and run the function.

        Returns:
            The id of the item and its worker; None: none of these workers can have an item now.
        """
        passed_over: list[str] = []
        found: tuple[str, WorkerHandle] | None = None
        while self._free:
            task_id = self._free[0]
            waiter = self.items.get(task_id)
            if waiter is not None and waiter.may_begin and not waiter.is_alone:
                fit = [worker for worker in able if task_id not in worker.tasks]
                if fit:
                    found = task_id, max(fit, key=lambda worker: worker.free)
                    break
                passed_over.append(task_id)  # they have it in another state
            heapq.heappop(self._free)
        for task_id in passed_over:
            heapq.heappush(self._free, task_id)
        return found
