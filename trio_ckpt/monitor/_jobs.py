"""Jobs and work items, in the words and by the fields of the REST interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from .._journal.store import Store
from ..remote import Foreman, JobView, LiveTask, TaskView, UnknownJobError
from ..remote._foreman.dispatch import prune_task
from ..remote._foreman.foreman import core_of
from ..remote._foreman.job_reader import JobReader
from ..remote._foreman.job_views import OVER
from ..remote._foreman.live import CONFLICT, NOT_FOUND, Action, request_action
from ..remote._wire.names import split_task_id
from ._answers import ApiRecord, Done, ErrorLine, Moment, make_answer

TaskWord = Literal["pending", "assigned", "running", "completed", "failed", "cancelled"]


class NotPossibleError(Exception):
    """An action does not fit the current status; the message says why."""


class JobTask(ApiRecord, frozen=True):
    """A work item, on one line of its job.

    Attributes:
        checkpoint_count: How often its state was saved; null: it was done so long ago that its
            record was not read for this page, see the item itself.
        problem: Why its state could not be saved, although the item continued; null: it could.
    """

    task_id: str
    status: TaskWord
    progress_percent: float
    checkpoint_count: int | None
    last_checkpoint_at: Moment | None
    base_checkpoint_size: int
    worker: str | None
    error: ErrorLine | None
    problem: str | None


class JobAnswer(ApiRecord, frozen=True):
    """A job.

    Attributes:
        waits: Why its items wait for a worker that is not there; null: they do not.
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
    started_at: Moment | None
    ended_at: Moment | None
    error: ErrorLine | None
    waits: str | None
    tasks: list[JobTask]
    next: int | None


class DeltaLine(ApiRecord, frozen=True):
    """A saved state that is a difference to the one before it."""

    sequence: int
    size: int
    digest: str
    created_at: Moment


class TaskAnswer(JobTask, frozen=True):
    """A work item, with its checkpoints."""

    job_id: str
    index: int
    attempts: int
    base_checkpoint_data: str | None
    delta_checkpoints: list[DeltaLine]
    checkpoint_storage_path: str | None
    completed_at: Moment | None


class StorageInfo(ApiRecord, frozen=True):
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
        control: The foreman, if it is in this process; another process is asked by the store.
    """

    store: Store
    control: Foreman | None = None
    _reader: JobReader = attrs.field(
        default=attrs.Factory(lambda jobs: JobReader(jobs.store), takes_self=True), init=False
    )

    @property
    def _live(self) -> Mapping[str, LiveTask] | None:
        return None if self.control is None else self.control.live

    async def job(self, job_id: str, *, after: int, limit: int) -> JobAnswer:
        """A job, with a page of its items."""
        view = await self._reader.job(job_id, self._live, after=after, limit=limit)
        return job_answer(view, after + limit)

    async def task(self, task_id: str) -> TaskAnswer:
        """A work item."""
        view = await self._reader.task(task_id, self._live)
        return make_answer(TaskAnswer, view, **_task_fields(view))

    async def storage_info(self, task_id: str) -> StorageInfo:
        """Where the checkpoints of an item are."""
        return storage_info(await self._reader.task(task_id, self._live))

    async def force_checkpoint(self, task_id: str) -> Done:
        """Ask for a checkpoint of a running item.

        Raises:
            NotPossibleError: no worker runs it, or no foreman answers.
        """
        return await self._ask_item("force-checkpoint", task_id)

    async def release(self, task_id: str) -> Done:
        """Ask the worker to save a running item and hand it back, so that it goes on elsewhere.

        Raises:
            NotPossibleError: no worker runs it, or no foreman answers.
        """
        return await self._ask_item("release", task_id)

    async def cancel(self, job_id: str) -> Done:
        """End a job, and its functions.

        Raises:
            NotPossibleError: it is over, or no foreman answers.
        """
        await self._need_open(job_id)
        return await self._ask("cancel", job_id, job_id)

    async def _need_open(self, job_id: str) -> None:
        view = await self._reader.job(job_id, self._live, limit=0)
        if view.status in OVER:
            raise NotPossibleError(f"the job is {view.status.value} already")

    async def _ask_item(self, action: Action, task_id: str) -> Done:
        """Send the foreman a control request for an item that is not over."""
        view = await self._reader.task(task_id, self._live)
        if view.status in OVER:
            raise NotPossibleError(f"the item is {view.status.value} already")
        job_id = split_task_id(task_id)[0]
        await self._need_open(job_id)
        return await self._ask(action, job_id, task_id)

    async def _ask(self, action: Action, job_id: str, target: str) -> Done:
        """Send a control request to the foreman of a job."""
        if self.control is None:
            status, reason = await request_action(self.store, job_id, action, target)
        else:
            status, reason = await core_of(self.control).control(action, target)
        if status == NOT_FOUND:
            raise UnknownJobError(reason)
        if status == CONFLICT:
            raise NotPossibleError(reason)
        return Done(done=reason, count=1)

    async def cleanup(self, task_id: str) -> Done:
        """Free the checkpoints of an item that is over.

        Raises:
            NotPossibleError: it is not.
            RunLockedError: a worker has it.
        """
        view = await self._reader.task(task_id, self._live)
        if view.status not in OVER:
            raise NotPossibleError(
                f"the item is {view.status.value}: its checkpoints are needed to go on"
            )
        return Done(done="bytes freed", count=await prune_task(self.store, task_id))


def job_answer(view: JobView, stop: int) -> JobAnswer:
    """A job, for programs; `stop` is where the next page of its items begins."""
    return make_answer(
        JobAnswer,
        view,
        job_status=view.status.value,
        average_progress_percent=round(view.average_progress_percent, 2),
        waits=view.waits or None,
        tasks=[_job_task(task) for task in view.tasks],
        next=stop if view.total_tasks > stop else None,
    )


def _job_task(view: TaskView) -> JobTask:
    fields = _task_fields(view)
    if not view.is_detailed:
        fields["checkpoint_count"] = None
    return make_answer(JobTask, view, **fields)


def _task_fields(view: TaskView) -> dict[str, Any]:
    """The fields of a work item that read differently in an answer."""
    return {
        "status": view.status.value,
        "progress_percent": round(view.progress_percent, 2),
        "problem": view.problem or None,
    }


def storage_info(view: TaskView) -> StorageInfo:
    """Where the checkpoints of an item are, for programs."""
    kinds = ("none", "inline", "file", "hybrid")
    return make_answer(
        StorageInfo,
        view,
        kind=kinds[(view.inline_bytes > 0) + 2 * (view.file_bytes > 0)],
        path=view.checkpoint_storage_path,
    )
