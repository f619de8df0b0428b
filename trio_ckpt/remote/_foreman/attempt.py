"""One attempt at a work item, as the job has it: what it leaves in the run of the job."""

from __future__ import annotations

import attrs

from ..._commit.batch import Batch
from ..._commit.open_stream import OpenStream
from ..._journal.record import trouble
from ..._journal.store import Store
from ..._util.log import get_logger
from ..._util.plain import Plain
from ..._util.text import plural
from .._wire.errors import TaskLostError
from .job_reader import sums_of
from .task_checkpoints import TaskCheckpoints
from .waiting import PendingItem

log = get_logger(__name__)


@attrs.define(eq=False)
class ItemAttempt:
    """One attempt at a work item, by one worker after the other until it has ended.

    Attributes:
        pending: The item.
        batch: The item, as the run of the job has it.
        stream: The stream of the job's items.
        store: The store of the job.
        losses: How many workers were lost with it.
    """

    pending: PendingItem
    batch: Batch[Plain]
    stream: OpenStream
    store: Store
    losses: int = attrs.field(default=0, init=False)

    async def settle(self, value: Plain, saved: TaskCheckpoints, worker: str) -> None:
        """Make the item's result durable.

        Args:
            value: The result.
            saved: The saved states of the item.
            worker: The name of the worker, which may then forget the item; empty: none has it.
        """
        metadata = {"result": value, "task": saved.to_plain(), "worker": worker}
        self.batch.complete(metadata=metadata, totals=sums_of(saved))
        await self.batch.confirm()

    async def note(self, text: str) -> None:
        """Write a note about the item into the job's history."""
        index = self.pending.index
        await self.stream.save_plain(trouble(f"item {index}: {text}", index=index))

    async def count_loss(self, worker: str, reason: str) -> None:
        """Count a worker that was lost with the item.

        Raises:
            TaskLostError: it was one too many.
        """
        pending = self.pending
        self.losses += 1
        log.warning(
            "%s was lost (%d): %s", pending.task_id, self.losses, reason, extra=pending.place
        )
        await self.note(f"lost by {worker}: {reason}" if worker else f"lost: {reason}")
        if self.losses >= pending.options.losses:
            raise TaskLostError(
                f"work item {pending.index} of {pending.job_id} was lost by "
                f"{plural(self.losses, 'worker')}, the last time because {reason}",
                run_id=pending.job_id,
                batch_index=pending.index,
            )
