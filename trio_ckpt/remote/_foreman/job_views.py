"""Jobs and their work items as they are shown, in the words of the REST interface."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeAlias

import attrs

from ..._journal.record import ErrorInfo, Status
from .task_checkpoints import Delta, TaskFacts

DONE_PERCENT = 100.0


class TaskStatus(enum.Enum):
    """Where a job or a work item stands, in the words of the REST interface."""

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
"""Ours -> that.  Two have no counterpart: an item is ASSIGNED when a worker has it that has not
saved anything yet, and CANCELLED when it was not done as its job was cancelled."""


@attrs.frozen
class LiveTask:
    """What a foreman's memory knows of an item that a worker has.

    Attributes:
        worker: Who.
        since: Since when; Unix time, s.
        is_running: Whether it has said anything of it.
        progress_percent: What it said last.
    """

    worker: str
    since: float
    is_running: bool = False
    progress_percent: float | None = None


@attrs.frozen
class TaskView:
    """A work item as the store has it.

    Attributes:
        task_id: Its name.
        job_id: Its job.
        index: Its place there.
        status: Where it stands.
        attempts: How often its function was tried and that was recorded.
        progress_percent: 0 to 100, as far as is known.
        checkpoint_count: How often its state was saved.
        last_checkpoint_at: When that was the last time; Unix time, s.
        base_checkpoint_data: The digest of the saved state that the newest one builds on, hex;
            None: there is none, or it was removed when the item was done.
        base_checkpoint_size: Of that, in bytes.
        delta_checkpoints: The states that build on it, the oldest first.
        checkpoint_storage_path: Where the arrays of the base are, relative to the store's
            folder; None: in its records.
        inline_bytes: Of the newest saved state and what it builds on, in the store's records.
        file_bytes: The same in files.
        worker: Who has it, if that is known.
        error: What went wrong the last time.
        problem: What was gone on with all the same: why its state could not be saved; empty:
            nothing.
        completed_at: When it was done; Unix time, s.
        is_detailed: False: it was done so long ago that its record was not read, so attempts,
            checkpoints, worker and `completed_at` are not known.
    """

    task_id: str
    job_id: str
    index: int
    status: TaskStatus
    attempts: int = 0
    progress_percent: float = 0.0
    checkpoint_count: int = 0
    last_checkpoint_at: float | None = None
    base_checkpoint_data: str | None = None
    base_checkpoint_size: int = 0
    delta_checkpoints: tuple[Delta, ...] = ()
    checkpoint_storage_path: str | None = None
    inline_bytes: int = 0
    file_bytes: int = 0
    worker: str | None = None
    error: ErrorInfo | None = None
    problem: str = ""
    completed_at: float | None = None
    is_detailed: bool = True

    @property
    def chain_length(self) -> int:
        """Saved states that a resume reads."""
        return len(self.delta_checkpoints) + bool(self.base_checkpoint_data)


@attrs.frozen
class JobView:
    """A job as the store has it.

    Attributes:
        job_id: Its name.
        status: Where it stands.
        function: What is done with each item.
        total_tasks: How many items there are.
        completed_tasks: How many are done.
        failed_tasks: How many were given up.
        tasks_with_checkpoints: How many have, or had, a saved state.
        average_progress_percent: Of all items.  Of those that are not done, the saved states of
            the first `MAX_STATES` are looked at, here and in the next one.
        total_checkpoints_taken: Of all items.
        checkpoint_interval_s: As it was submitted; None: it saves nothing.
        error: Why it failed.
        started_at: When it was taken; Unix time, s.
        ended_at: The same; None: it goes on.
        waits: Why its items wait for a worker that is not there, as the foreman has published;
            empty: they do not, or that is not known.
        tasks: The items that were asked for, by index: a page of them.
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


def with_facts(view: TaskView, facts: TaskFacts) -> TaskView:
    """An item with what is known of its saved states."""
    blob = facts.base_blob
    return attrs.evolve(
        view,
        checkpoint_count=facts.checkpoint_count,
        last_checkpoint_at=facts.last_checkpoint_at,
        base_checkpoint_data=facts.base_digest or None,
        base_checkpoint_size=facts.base_size,
        delta_checkpoints=facts.deltas,
        checkpoint_storage_path=f"blobs/{blob[:2]}/{blob}" if blob else None,
        inline_bytes=facts.inline_bytes,
        file_bytes=facts.file_bytes,
        problem=facts.problem,
    )


def without_states(view: TaskView) -> TaskView:
    """An item whose saved states were removed: how many there were stays, their sizes do not."""
    return attrs.evolve(
        view,
        base_checkpoint_data=None,
        base_checkpoint_size=0,
        delta_checkpoints=(),
        checkpoint_storage_path=None,
        inline_bytes=0,
        file_bytes=0,
    )
