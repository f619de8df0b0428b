"""Jobs and work items, in the words and by the fields of the REST interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import attrs

from .._errors import UnknownRunError
from .._maintain import open_maintenance
from ..abc import Store
from ..remote import (
    JobView,
    LiveTask,
    TaskStatus,
    TaskView,
    UnknownJobError,
    read_job,
    read_task,
)
from ._records import Answer, Done, ErrorLine
from ._views import error_line, iso, iso_now

TaskWord = Literal["pending", "assigned", "running", "completed", "failed", "cancelled"]

NOT_FOUND, CONFLICT = 404, 409  # what a foreman answers with
_OVER = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


class NotPossibleError(Exception):
    """An action does not fit how things stand; the message says why."""


class TaskControl(Protocol):
    """What a foreman in this process lets the monitor do."""

    @property
    def live(self) -> Mapping[str, LiveTask]:
        """What its memory knows of the items that workers have."""
        ...

    def cancel(self, job_id: str) -> None:
        """End a job, and its functions; nothing happens if it is over."""
        ...

    async def control(
        self, action: Literal["force-checkpoint", "release", "cleanup"], task_id: str
    ) -> tuple[int, str]:
        """Do something to a work item; a status of HTTP, and why."""
        ...


class JobTask(Answer, frozen=True):
    """A work item, on one line of its job."""

    task_id: str
    status: TaskWord
    progress_percent: float
    checkpoint_count: int
    last_checkpoint_at: str | None
    base_checkpoint_size: int
    worker: str | None
    error: ErrorLine | None


class JobAnswer(Answer, frozen=True):
    """A job.

    Attributes:
        tasks: Its items, by index: a page of them.
        next: Give it as ``after`` for the next page; null: that was the last.
    """

    job_id: str
    job_status: TaskWord
    function: str
    total_tasks: int
    completed_tasks: int
    failed_tasks: int
    tasks_with_checkpoints: int
    average_progress_percent: float
    total_checkpoints_taken: int
    checkpoint_interval_s: float | None
    started_at: str | None
    ended_at: str | None
    error: ErrorLine | None
    tasks: list[JobTask]
    next: int | None


class DeltaLine(Answer, frozen=True):
    """A saved state that is a difference to the one before it."""

    sequence: int
    size: int
    digest: str
    created_at: str


class TaskAnswer(Answer, frozen=True):
    """A work item, with its checkpoints."""

    task_id: str
    job_id: str
    index: int
    status: TaskWord
    attempts: int
    progress_percent: float
    checkpoint_count: int
    last_checkpoint_at: str | None
    base_checkpoint_data: str | None
    base_checkpoint_size: int
    delta_checkpoints: list[DeltaLine]
    checkpoint_storage_path: str | None
    worker: str | None
    error: ErrorLine | None
    completed_at: str | None


class StorageInfo(Answer, frozen=True):
    """Where the checkpoints of a work item are.

    Attributes:
        task_id: The item.
        kind: ``none``, ``inline`` (in the records), ``file``, or ``hybrid`` (both).
        inline_bytes: In the records.
        file_bytes: In files.
        path: Of the base's file, relative to the store; null: it has none.
        chain_length: How many saved states a resume reads.
        checkpoint_count: How many were taken.
    """

    task_id: str
    kind: Literal["none", "inline", "file", "hybrid"]
    inline_bytes: int
    file_bytes: int
    path: str | None
    chain_length: int
    checkpoint_count: int


@attrs.frozen
class Jobs:
    """The jobs of a store.

    Attributes:
        store: Where they are.
        control: The foreman, if it is in this process.
    """

    store: Store
    control: TaskControl | None = None

    @property
    def _live(self) -> Mapping[str, LiveTask]:
        return {} if self.control is None else self.control.live

    async def job(self, job_id: str, *, after: int, limit: int) -> JobAnswer:
        """A job, with a page of its items."""
        return job_answer(await read_job(self.store, job_id, live=self._live), after, limit)

    async def task(self, task_id: str) -> TaskAnswer:
        """A work item."""
        return task_answer(await read_task(self.store, task_id, live=self._live))

    async def storage_info(self, task_id: str) -> StorageInfo:
        """Where the checkpoints of an item are."""
        return storage_info(await read_task(self.store, task_id, live=self._live))

    async def force_checkpoint(self, task_id: str) -> Done:
        """Have a running item saved now.

        Raises:
            NotPossibleError: nobody runs it, or the foreman is another process.
        """
        return await self._control("force-checkpoint", task_id)

    async def release(self, task_id: str) -> Done:
        """Have a running item saved and handed back, so that it goes on elsewhere.

        Raises:
            NotPossibleError: nobody runs it, or the foreman is another process.
        """
        return await self._control("release", task_id)

    async def _control(
        self, action: Literal["force-checkpoint", "release", "cleanup"], task_id: str
    ) -> Done:
        await read_task(self.store, task_id, live=self._live)
        if self.control is None:
            raise NotPossibleError(
                "only the monitor in the foreman's own process can ask a worker for that"
            )
        status, reason = await self.control.control(action, task_id)
        if status == NOT_FOUND:
            raise UnknownJobError(reason)
        if status == CONFLICT:
            raise NotPossibleError(reason)
        return Done(done=reason, count=1)

    async def cancel(self, job_id: str) -> Done:
        """End a job, and its functions.

        Raises:
            NotPossibleError: it is over, or the foreman is another process.
        """
        view = await read_job(self.store, job_id, live=self._live)
        if view.status in _OVER:
            raise NotPossibleError(f"the job is {view.status.value} already")
        if self.control is None:
            raise NotPossibleError("only the monitor in the foreman's own process can end a job")
        self.control.cancel(job_id)
        return Done(done="the job is being cancelled", count=1)

    async def cleanup(self, task_id: str) -> Done:
        """Free the checkpoints of an item that is over.

        Raises:
            NotPossibleError: it is not.
            RunLockedError: a worker has it.
        """
        if self.control is not None:
            return await self._control("cleanup", task_id)
        view = await read_task(self.store, task_id, live=self._live)
        if view.status not in _OVER:
            raise NotPossibleError(
                f"the item is {view.status.value}: its checkpoints are needed to go on"
            )
        try:
            async with open_maintenance(self.store, task_id) as desk:
                pruned = await desk.prune(keep=0)
        except UnknownRunError:  # it saved nothing, or this was done before
            return Done(done="bytes freed", count=0)
        return Done(done="bytes freed", count=pruned.bytes)


def job_answer(view: JobView, after: int, limit: int) -> JobAnswer:
    """A job, for programs."""
    page = view.tasks[after : after + limit]
    return JobAnswer(
        job_id=view.job_id,
        job_status=view.status.value,
        function=view.function,
        total_tasks=view.total_tasks,
        completed_tasks=view.completed_tasks,
        failed_tasks=view.failed_tasks,
        tasks_with_checkpoints=view.tasks_with_checkpoints,
        average_progress_percent=round(view.average_progress_percent, 2),
        total_checkpoints_taken=view.total_checkpoints_taken,
        checkpoint_interval_s=view.checkpoint_interval_s,
        started_at=iso(view.started_at),
        ended_at=iso(view.ended_at),
        error=error_line(view.error),
        tasks=[_job_task(task) for task in page],
        next=after + limit if len(view.tasks) > after + limit else None,
    )


def _job_task(view: TaskView) -> JobTask:
    return JobTask(
        task_id=view.task_id,
        status=view.status.value,
        progress_percent=round(view.progress_percent, 2),
        checkpoint_count=view.checkpoint_count,
        last_checkpoint_at=iso(view.last_checkpoint_at),
        base_checkpoint_size=view.base_checkpoint_size,
        worker=view.worker,
        error=error_line(view.error),
    )


def task_answer(view: TaskView) -> TaskAnswer:
    """A work item, for programs."""
    return TaskAnswer(
        task_id=view.task_id,
        job_id=view.job_id,
        index=view.index,
        status=view.status.value,
        attempts=view.attempts,
        progress_percent=round(view.progress_percent, 2),
        checkpoint_count=view.checkpoint_count,
        last_checkpoint_at=iso(view.last_checkpoint_at),
        base_checkpoint_data=view.base_checkpoint_data,
        base_checkpoint_size=view.base_checkpoint_size,
        delta_checkpoints=[
            DeltaLine(
                sequence=delta.sequence,
                size=delta.size,
                digest=delta.digest,
                created_at=iso_now(delta.created_at),
            )
            for delta in view.delta_checkpoints
        ],
        checkpoint_storage_path=view.checkpoint_storage_path,
        worker=view.worker,
        error=error_line(view.error),
        completed_at=iso(view.completed_at),
    )


def storage_info(view: TaskView) -> StorageInfo:
    """Where the checkpoints of an item are, for programs."""
    kinds: dict[tuple[bool, bool], Literal["none", "inline", "file", "hybrid"]] = {
        (False, False): "none",
        (True, False): "inline",
        (False, True): "file",
        (True, True): "hybrid",
    }
    return StorageInfo(
        task_id=view.task_id,
        kind=kinds[view.inline_bytes > 0, view.file_bytes > 0],
        inline_bytes=view.inline_bytes,
        file_bytes=view.file_bytes,
        path=view.checkpoint_storage_path,
        chain_length=view.chain_length,
        checkpoint_count=view.checkpoint_count,
    )
