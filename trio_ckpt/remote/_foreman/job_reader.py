"""Jobs and their work items as a store has them, for monitors and programs.

Reading needs no connection and owns no run: it works while a foreman runs and while none does.
What only the foreman's memory has (which worker has an item that saves nothing) the foreman
publishes besides its records, or the caller passes it as `live`.

Theory of operation.  The cost of a read does not grow with the job.  The job's own records hold the
sums over all items (`Progress.totals`), and a page of items reads the records of these items: the
own run of an item that is not done, a record in the job's run of an item that is done.  Those
records are found by reading from the newest one back, at most `MAX_SCANNED`; a `JobReader`
remembers what it has found, because an item that is done does not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from contextlib import aclosing
from typing import Any

import attrs
import msgspec

from ..._journal.history import list_all_runs, read_pages
from ..._journal.progress import Progress
from ..._journal.record import Record, RecordKind, Status
from ..._journal.store import RunView, Store
from ..._journal.summary import RunStatus, read_run_status
from ..._util.plain import JOB_STREAM
from ..._util.text import plural
from .._wire.errors import JobCancelledError, UnknownJobError
from .._wire.names import (
    ITEMS_STREAM,
    JOB_PREFIX,
    check_job_id,
    is_job_id,
    split_task_id,
    task_id_of,
)
from .._wire.submission import JobHead, head_of
from .job_views import (
    DONE_PERCENT,
    STATUSES,
    JobView,
    Live,
    LiveTask,
    TaskStatus,
    TaskView,
)
from .live import read_live_job, tasks_of
from .task_checkpoints import SavedStates, TaskCheckpoints, read_task_checkpoints

MAX_STATES = 1_000  # items that are not done, read for the sums of a job
MAX_SCANNED = 50_000  # records of a job, read for one page of its items: a second or more
MAX_REMEMBERED = 20_000  # items that are done: about ten MiB

CHECKPOINTS = "checkpoints"  # the names, in records, of the sums over the items that are done
WITH_CHECKPOINTS = "tasks_with_checkpoints"


async def list_jobs(store: Store) -> tuple[str, ...]:
    """Return the ids of all jobs of a store, sorted.

    Cancellation: as for `Store.list_runs`.
    """
    return tuple(
        run.run_id for run in await list_all_runs(store, JOB_PREFIX) if is_job_id(run.run_id)
    )


async def read_job(
    store: Store,
    job_id: str,
    *,
    live: Live | None = None,
    after: int = 0,
    limit: int | None = None,
) -> JobView:
    """Read a job with its items, or a page of them.

    Args:
        store: The foreman's store.
        job_id: The job.
        live: The foreman's live state, by item; default: what it has published.
        after: How many items to skip.
        limit: How many items to return at most; default: all.

    Raises:
        UnknownJobError: there is no such job.
        StoreDamagedError: a record is damaged.

    Cancellation: a cancellation point between reads.
    """
    return await JobReader(store).job(job_id, live, after=after, limit=limit)


async def read_task(store: Store, task_id: str, *, live: Live | None = None) -> TaskView:
    """Read a work item.

    Args, Raises, Cancellation: as for `read_job`.
    """
    return await JobReader(store).task(task_id, live)


@attrs.define(eq=False)
class JobReader:
    """Reads jobs repeatedly; items that are done are read only once.

    Attributes:
        store: The foreman's store.
    """

    store: Store
    _done: OrderedDict[tuple[str, int], TaskView] = attrs.field(
        factory=OrderedDict[tuple[str, int], TaskView], init=False
    )

    async def job(
        self, job_id: str, live: Live | None, *, after: int = 0, limit: int | None = None
    ) -> JobView:
        """Read a job; see `read_job`."""
        job = await self._open(job_id, live)
        runs = await list_all_runs(self.store, f"{job_id}.")
        job.saved = frozenset(run.run_id for run in runs)
        stop = job.total if limit is None else min(job.total, after + limit)
        page = range(min(after, job.total), stop)
        await self._read_done(job, page, MAX_SCANNED)
        tasks = [await self._task(job, index) for index in page]
        with_states, percents, checkpoints = await job.sums()
        progress = job.progress
        return JobView(
            job_id=job_id,
            status=job.status,
            function=job.head.function,
            total_tasks=job.total,
            completed_tasks=len(progress.confirmed),
            failed_tasks=len(progress.skipped) + (job.failed_index is not None),
            tasks_with_checkpoints=with_states,
            average_progress_percent=percents / job.total if job.total else DONE_PERCENT,
            total_checkpoints_taken=checkpoints,
            checkpoint_interval_s=job.head.options.checkpoint_interval_s,
            error=progress.error,
            started_at=progress.started_at,
            ended_at=progress.completed_at or progress.failed_at,
            waits=job.waits,
            tasks=tuple(tasks),
        )

    async def task(self, task_id: str, live: Live | None) -> TaskView:
        """Read a work item; see `read_task`."""
        job_id, index = split_task_id(task_id)
        job = await self._open(job_id, live)
        if index >= job.total:
            raise UnknownJobError(
                f"job {job_id!r} has {plural(job.total, 'item')}, none with index {index}",
                run_id=job_id,
            )
        if await self.store.read_run(task_id) is not None:
            job.saved = frozenset({task_id})
        await self._read_done(job, [index], None)
        return await self._task(job, index)

    async def _open(self, job_id: str, live: Live | None) -> _Job:
        try:
            check_job_id(job_id)
        except ValueError as error:
            raise UnknownJobError(str(error)) from error
        run_status = await read_run_status(self.store, job_id)
        head = None if run_status is None else head_of(run_status.view)
        if run_status is None or head is None:
            raise UnknownJobError(f"there is no job {job_id!r} in {self.store.url}", run_id=job_id)
        shown = None
        if run_status.owner is not None:
            shown = await read_live_job(self.store, job_id, run_status.view.owner)
        waits = "" if shown is None else shown.waits
        return _Job(
            self.store, run_status, head, tasks_of(job_id, shown) if live is None else live, waits
        )

    async def _task(self, job: _Job, index: int) -> TaskView:
        if index not in job.progress.confirmed:
            return await job.open_task(index)
        task_id = task_id_of(job.job_id, index)
        found = self._done.get((task_id, job.generation))
        if found is None:  # it was done too long ago
            return job.done(index, TaskCheckpoints(), is_detailed=False)
        return found if task_id in job.saved else _without_states(found)

    async def _read_done(self, job: _Job, page: Iterable[int], limit: int | None) -> None:
        """Read the records of a page's items that are done and not known yet."""
        generation, confirmed = job.generation, job.progress.confirmed
        missing = {
            index
            for index in page
            if index in confirmed and (task_id_of(job.job_id, index), generation) not in self._done
        }
        if not missing:
            return
        scanned = 0
        pages = read_pages(self.store, job.job_id, generation, ITEMS_STREAM)
        async with aclosing(pages):
            async for records in pages:
                scanned += len(records)
                self._remember(job, missing, records)
                if not missing or (limit is not None and scanned >= limit):
                    return

    def _remember(
        self, job: _Job, missing: set[int], records: Collection[tuple[int, Record]]
    ) -> None:
        for _, record in records:
            index = record.index
            if record.kind is RecordKind.BATCH and index is not None and index in missing:
                missing.discard(index)  # newest first: an earlier record of it was reverted
                view = _done_view(job, index, record)
                self._done[view.task_id, job.generation] = view
                if len(self._done) > MAX_REMEMBERED:
                    self._done.popitem(last=False)


@attrs.define
class _Job:
    """The part of a job that is read once, for any of its items.

    Attributes:
        store: The foreman's store.
        run_status: The status of its run.
        head: The function and the options.
        live: What the foreman published of the items that workers have.
        waits: Why items wait for a worker that is not there.
        saved: The items that have saved states.
    """

    store: Store
    run_status: RunStatus
    head: JobHead
    live: Live
    waits: str
    saved: frozenset[str] = frozenset()
    _checkpoints: dict[str, TaskCheckpoints] = attrs.field(
        factory=dict[str, TaskCheckpoints], init=False
    )

    @property
    def job_id(self) -> str:
        return self.run_status.run_id

    @property
    def generation(self) -> int:
        return self.run_status.view.generation

    @property
    def progress(self) -> Progress:
        return items_progress(self.run_status.view)

    @property
    def total(self) -> int:
        """The number of items, which is saved when the job is accepted."""
        return self.progress.expected or 0

    @property
    def status(self) -> TaskStatus:
        """The job's status: that of its run, in the terms of the REST interface."""
        if is_cancelled(self.progress):
            return TaskStatus.CANCELLED
        return STATUSES[self.run_status.status_of(self.run_status.summary())]

    @property
    def failed_index(self) -> int | None:
        """The index of the item that failed the job."""
        error = self.progress.error
        return None if error is None else error.batch_index

    async def checkpoints_of(self, task_id: str) -> TaskCheckpoints:
        """Read the saved states of an item that is not done."""
        if task_id not in self.saved:
            return TaskCheckpoints()
        if task_id not in self._checkpoints:
            self._checkpoints[task_id] = await read_task_checkpoints(self.store, task_id)
        return self._checkpoints[task_id]

    async def sums(self) -> tuple[int, float, int]:
        """Count items with saved states, sum percents and checkpoints, over all items."""
        done = self.progress.confirmed
        with_states, checkpoints = self._sum(WITH_CHECKPOINTS), self._sum(CHECKPOINTS)
        percents = DONE_PERCENT * len(done)
        known = [*self.live, *sorted(self.saved - self.live.keys())]
        left = [task_id for task_id in known if split_task_id(task_id)[1] not in done]
        for task_id in left[:MAX_STATES]:
            saved = await self.checkpoints_of(task_id)
            with_states += saved.checkpoint_count > 0
            checkpoints += saved.checkpoint_count
            percents += _percent(saved, self.live.get(task_id))
        return with_states, percents, checkpoints

    def _sum(self, name: str) -> int:
        found = self.progress.totals.get(name)
        return 0 if found is None else int(found.value)

    def view(
        self, index: int, status: TaskStatus, saved: TaskCheckpoints, **fields: Any
    ) -> TaskView:
        """Return an item with its saved states, and with fields that differ from their defaults."""
        states = {name: getattr(saved, name) for name in SavedStates.__struct_fields__}
        return TaskView(
            task_id=task_id_of(self.job_id, index),
            job_id=self.job_id,
            index=index,
            status=status,
            **states,
            **fields,
        )

    def done(self, index: int, saved: TaskCheckpoints, **fields: Any) -> TaskView:
        """Return an item that is done."""
        status = TaskStatus.COMPLETED
        return self.view(index, status, saved, progress_percent=DONE_PERCENT, **fields)

    async def open_task(self, index: int) -> TaskView:
        """Return an item that is not done."""
        task_id = task_id_of(self.job_id, index)
        failure = self.progress.failures.get(index)
        saved, now = await self.checkpoints_of(task_id), self.live.get(task_id)
        return self.view(
            index,
            await self._status_of(index, saved, now),
            saved,
            attempts=0 if failure is None else failure.attempts,
            progress_percent=_percent(saved, now),
            worker=None if now is None else now.worker,
            error=None if failure is None else failure.error,
        )

    async def _status_of(
        self, index: int, saved: TaskCheckpoints, now: LiveTask | None
    ) -> TaskStatus:
        if index in self.progress.skipped or index == self.failed_index:
            return TaskStatus.FAILED
        if is_cancelled(self.progress):
            return TaskStatus.CANCELLED
        if now is not None:
            return TaskStatus.RUNNING if now.is_running else TaskStatus.ASSIGNED
        task_id = task_id_of(self.job_id, index)
        if task_id not in self.saved or await self.store.read_owner(task_id) is None:
            return TaskStatus.PENDING
        return TaskStatus.RUNNING if saved.sequence else TaskStatus.ASSIGNED


def _percent(saved: TaskCheckpoints, now: LiveTask | None) -> float:
    """Return the progress of an item that is not done: as its worker reports it, or as saved."""
    if now is not None and now.progress_percent is not None:
        return now.progress_percent
    return saved.progress_percent or 0.0


def _done_view(job: _Job, index: int, record: Record) -> TaskView:
    saved = TaskCheckpoints.from_plain(record.metadata.get("task", {}))
    worker = record.metadata.get("worker")
    return job.done(
        index,
        saved,
        attempts=record.attempts,
        worker=worker if isinstance(worker, str) else None,
        completed_at=record.at,
    )


def _without_states(view: TaskView) -> TaskView:
    """Return an item whose saved states were removed: their number stays, their sizes do not."""
    return msgspec.structs.replace(
        view,
        base_checkpoint_data=None,
        base_checkpoint_size=0,
        base_blob="",
        delta_checkpoints=(),
        inline_bytes=0,
        file_bytes=0,
    )


def items_progress(view: RunView) -> Progress:
    """Return the progress of a job's items."""
    entry = view.streams.get(ITEMS_STREAM)
    return Progress() if entry is None else entry.progress


def is_cancelled(progress: Progress) -> bool:
    """Whether a job was cancelled, judged by the progress of its items."""
    error = progress.error
    return error is not None and error.type == JobCancelledError.__qualname__


def has_submission(view: RunView) -> bool:
    """Whether a job's run has a submission."""
    entry = view.streams.get(JOB_STREAM)
    return entry is not None and entry.progress.status is Status.COMPLETE


def sums_of(saved: TaskCheckpoints) -> dict[str, int]:
    """Return what an item that is done adds to the sums of its job."""
    count = saved.checkpoint_count
    return {CHECKPOINTS: count, WITH_CHECKPOINTS: 1} if count else {}
