"""Views of jobs and work items, with the terms of the REST interface."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import attrs
import msgspec

from ..._journal.record import ErrorInfo, Status
from ...stores._local.files import blob_path
from .task_checkpoints import SavedStates

DONE_PERCENT = 100.0


class TaskStatus(enum.Enum):
    """Status of a job or a work item, in the terms of the REST interface."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = object.__hash__


OVER = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)

STATUSES: dict[Status, TaskStatus] = {
    Status.PENDING: TaskStatus.PENDING,
    Status.IN_PROGRESS: TaskStatus.RUNNING,
    Status.COMPLETE: TaskStatus.COMPLETED,
    Status.FAILED: TaskStatus.FAILED,
    Status.INTERRUPTED: TaskStatus.PENDING,
}
"""Status of a token -> status here.  Two have no counterpart: an item is ASSIGNED when a worker
has it but has not saved anything, and CANCELLED when its job was cancelled before it was done."""


class LiveTask(msgspec.Struct, frozen=True, array_like=True):
    """What the foreman holds in memory about an item that a worker has.

    Attributes:
        worker: The name of the worker.
        since: When the worker got the item; Unix time, s.
        is_running: Whether the worker has sent anything about the item.
        progress_percent: The progress that the worker reported last.
    """

    worker: str
    since: float
    is_running: bool = False
    progress_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None


class TaskView(SavedStates, frozen=True, kw_only=True):
    """A work item as the store has it, with its `SavedStates`.

    Attributes:
        task_id: The item's id.
        job_id: The item's job.
        index: The item's index in the job.
        status: The status of the item.
        attempts: The number of attempts that were recorded.
        progress_percent: 0 to 100, as far as it is known.
        worker: The name of the worker that has the item, if known.
        error: The error of the last attempt.
        completed_at: When it was done; Unix time, s.
        is_detailed: False: the item was done so long ago that its record was not read, so
            attempts, checkpoints, worker and `completed_at` are not known.
    """

    task_id: str
    job_id: str
    index: int
    status: TaskStatus
    attempts: int = 0
    progress_percent: float = 0.0
    worker: str | None = None
    error: ErrorInfo | None = None
    completed_at: float | None = None
    is_detailed: bool = True

    @property
    def checkpoint_storage_path(self) -> str | None:
        """Where the arrays of the base are, relative to the store's folder; None: in its records,
        or removed."""
        return blob_path(self.task_id, self.base_blob) if self.base_blob else None

    @property
    def chain_length(self) -> int:
        """The saved states that a resume reads."""
        return len(self.delta_checkpoints) + bool(self.base_checkpoint_data)


@attrs.frozen
class JobView:
    """A job as the store has it.

    Attributes:
        job_id: The job's name.
        status: The status of the job.
        function: The function that is called with each item.
        total_tasks: The number of items.
        completed_tasks: The number of items that are done.
        failed_tasks: The number of items that failed for good.
        tasks_with_checkpoints: The number of items that have, or had, a saved state.
        average_progress_percent: Over all items.  Of the items that are not done, only the saved
            states of the first `MAX_STATES` count, here and in `total_checkpoints_taken`.
        total_checkpoints_taken: Over all items.
        checkpoint_interval_s: As submitted; None: the job saves nothing.
        error: Why the job failed.
        started_at: When the job was accepted; Unix time, s.
        ended_at: When the job ended; Unix time, s; None: it has not ended.
        waits: Why the items wait for a worker that is not there, as the foreman published it;
            empty: they do not wait, or it is not known.
        tasks: The requested page of items, by index.
    """

    job_id: str
    status: TaskStatus
    function: str
    total_tasks: int
    completed_tasks: int
    failed_tasks: int
    tasks_with_checkpoints: int
    average_progress_percent: float
    total_checkpoints_taken: int
    checkpoint_interval_s: float | None
    error: ErrorInfo | None
    started_at: float | None
    ended_at: float | None
    waits: str
    tasks: tuple[TaskView, ...]


Live: TypeAlias = Mapping[str, LiveTask]
