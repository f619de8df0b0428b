"""Jobs and their work items as a store has them, for whoever watches.

Nothing here needs a connection, or owns anything: it works beside a running foreman, and when
there is none.  What only the foreman's memory knows (who has an item that saves nothing) it can
be given as `live`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from contextlib import aclosing

import attrs

from .._history import read_pages
from .._progress import Progress
from .._records import ErrorInfo, Kind, Record, Status
from .._values import JOB_STREAM
from ..abc import RunView, Store
from ._errors import JobCancelledError, UnknownJobError
from ._facts import Delta, TaskFacts, read_facts
from ._names import (
    ITEMS_STREAM,
    check_job_id,
    is_job_id,
    split_task_id,
    task_id_of,
)
from ._submission import Submission, read_submission

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
        base_checkpoint_data: The digest of the saved state that the newest one builds on, hex.
        base_checkpoint_size: Of that, in bytes.
        delta_checkpoints: The states that build on it, the oldest first.
        checkpoint_storage_path: Where the arrays of the base are, relative to the store's
            folder; None: in its records.
        inline_bytes: Of the newest saved state and what it builds on, in the store's records.
        file_bytes: The same in files.
        worker: Who has it, if that is known.
        error: What went wrong the last time.
        completed_at: When it was done or given up; Unix time, s.
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
    completed_at: float | None = None

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
        average_progress_percent: Of all items.
        total_checkpoints_taken: Of all items.
        checkpoint_interval_s: As it was submitted; None: it saves nothing.
        error: Why it failed.
        started_at: Unix time, s.
        ended_at: The same.
        tasks: The items that were asked for, by index.
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
    tasks: tuple[TaskView, ...]


Live = Mapping[str, LiveTask]
NOBODY: Live = {}


async def list_jobs(store: Store) -> tuple[str, ...]:
    """The ids of all jobs of a store, sorted."""
    return tuple(run.run_id for run in await store.list_runs() if is_job_id(run.run_id))


async def read_job(store: Store, job_id: str, *, live: Live = NOBODY) -> JobView:
    """A job with all its items.

    Args:
        store: The foreman's.
        job_id: The job.
        live: What the foreman's memory knows, by item.

    Raises:
        UnknownJobError: there is no such job.
        StoreDamagedError: a record is not what was saved.

    Cancellation: a cancellation point between reads.
    """
    job = await _Job.read(store, job_id)
    tasks = [await job.task(index, live) for index in range(len(job.submission.items))]
    saved = [task for task in tasks if task.checkpoint_count]
    percents = [task.progress_percent for task in tasks]
    progress = job.progress
    return JobView(
        job_id=job_id,
        status=await job.status(),
        function=job.submission.function,
        total_tasks=len(tasks),
        completed_tasks=len(progress.confirmed),
        failed_tasks=sum(task.status is TaskStatus.FAILED for task in tasks),
        tasks_with_checkpoints=len(saved),
        average_progress_percent=sum(percents) / len(percents) if percents else DONE_PERCENT,
        total_checkpoints_taken=sum(task.checkpoint_count for task in tasks),
        checkpoint_interval_s=job.submission.options.checkpoint_interval_s,
        error=progress.error,
        started_at=progress.started_at,
        ended_at=progress.completed_at or progress.failed_at,
        tasks=tuple(tasks),
    )


async def read_task(store: Store, task_id: str, *, live: Live = NOBODY) -> TaskView:
    """A work item.

    Args, Raises, Cancellation: as for `read_job`.
    """
    job_id, index = split_task_id(task_id)
    job = await _Job.read(store, job_id, only=index)
    if index >= len(job.submission.items):
        raise UnknownJobError(
            f"job {job_id!r} has {len(job.submission.items)} items, none of index {index}"
        )
    return await job.task(index, live)


@attrs.define
class _Job:
    """What of a job is read once, whatever is asked of its items."""

    store: Store
    job_id: str
    submission: Submission
    progress: Progress
    done: dict[int, Record]  # the newest record of each item that is confirmed

    @classmethod
    async def read(cls, store: Store, job_id: str, *, only: int | None = None) -> _Job:
        try:
            check_job_id(job_id)
        except ValueError as error:
            raise UnknownJobError(str(error)) from error
        submission = await read_submission(store, job_id)
        view = None if submission is None else await store.load_run(job_id)
        if submission is None or view is None:
            raise UnknownJobError(f"there is no job {job_id!r} in {store.url}", run_id=job_id)
        progress = items_progress(view)
        job = cls(store, job_id, submission, progress, {})
        if len(progress.confirmed) and (only is None or only in progress.confirmed):
            await job._read_done(view.generation, only)
        return job

    async def _read_done(self, generation: int, only: int | None) -> None:
        wanted = 1 if only is not None else len(self.progress.confirmed)
        pages = read_pages(self.store, self.job_id, generation, ITEMS_STREAM)
        async with aclosing(pages):
            async for records in pages:
                for _, record in records:
                    index = record.index
                    if record.kind is Kind.BATCH and index is not None and only in (None, index):
                        self.done.setdefault(index, record)
                if len(self.done) >= wanted:
                    return

    async def status(self) -> TaskStatus:
        is_owned = await self.store.read_owner(self.job_id) is not None
        if is_cancelled(self.progress):
            return TaskStatus.CANCELLED
        status = self.progress.status
        if is_owned and status in (Status.INTERRUPTED, Status.PENDING):
            status = Status.IN_PROGRESS
        return STATUSES[status]

    async def task(self, index: int, live: Live) -> TaskView:
        task_id = task_id_of(self.job_id, index)
        if index in self.progress.confirmed:
            return self._done_task(task_id, index)
        failure = self.progress.failures.get(index)
        facts = TaskFacts()
        if self.submission.options.checkpoint_interval_s is not None:
            facts = await read_facts(self.store, task_id)
        now = live.get(task_id)
        percent = facts.progress_percent
        if now is not None and now.progress_percent is not None:
            percent = now.progress_percent
        view = _with_facts(TaskView(task_id, self.job_id, index, TaskStatus.PENDING), facts)
        return attrs.evolve(
            view,
            status=await self._status_of(task_id, index, facts, now),
            attempts=0 if failure is None else failure.attempts,
            progress_percent=percent or 0.0,
            worker=None if now is None else now.worker,
            error=None if failure is None else failure.error,
        )

    def _done_task(self, task_id: str, index: int) -> TaskView:
        record = self.done[index]
        facts = TaskFacts.from_plain(record.metadata.get("task", {}))
        view = _with_facts(TaskView(task_id, self.job_id, index, TaskStatus.COMPLETED), facts)
        worker = record.metadata.get("worker")
        return attrs.evolve(
            view,
            attempts=record.attempts,
            progress_percent=DONE_PERCENT,
            worker=worker if isinstance(worker, str) else None,
            completed_at=record.at,
        )

    async def _status_of(
        self, task_id: str, index: int, facts: TaskFacts, now: LiveTask | None
    ) -> TaskStatus:
        if index in self.progress.skipped:
            return TaskStatus.FAILED
        if is_cancelled(self.progress):
            return TaskStatus.CANCELLED
        error = self.progress.error
        if error is not None and error.batch_index == index:
            return TaskStatus.FAILED
        if now is not None:
            return TaskStatus.RUNNING if now.is_running else TaskStatus.ASSIGNED
        if await self.store.read_owner(task_id) is None:
            return TaskStatus.PENDING
        return TaskStatus.RUNNING if facts.sequence else TaskStatus.ASSIGNED


def _with_facts(view: TaskView, facts: TaskFacts) -> TaskView:
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
    )


def items_progress(view: RunView) -> Progress:
    """How far the items of a job are."""
    entry = view.streams.get(ITEMS_STREAM)
    return Progress() if entry is None else entry.progress


def is_cancelled(progress: Progress) -> bool:
    """Whether a job was cancelled, by the progress of its items."""
    error = progress.error
    return error is not None and error.type == JobCancelledError.__qualname__


def has_submission(view: RunView) -> bool:
    """Whether a job's run says what the job is."""
    entry = view.streams.get(JOB_STREAM)
    return entry is not None and entry.progress.status is Status.COMPLETE
