"""The foreman: jobs, workers, and requests of people about both; without its sockets."""

# The jobs and workers of a foreman are in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

import attrs
import trio
import trio.lowlevel

from ..._journal.store import Store
from ..._journal.summary import is_over
from ..._util.errors import RunLockedError, StoreDamagedError, StoreError
from ..._util.log import at, get_logger
from ..._util.patience import sleep_awake
from ..._util.text import one_line, plural, printable
from .._wire.errors import JobRefusedError, UnknownJobError
from .._wire.job_messages import ControlAction
from .._wire.link import Link
from .._wire.message import Hello
from .._wire.names import check_job_id, split_task_id
from .._wire.submission import JobSubmission
from .dispatch import WorkerRunner, prune_task
from .job import Job, check_work_left, name_is_taken
from .job_reader import has_submission, items_progress, list_jobs, read_task
from .job_views import OVER, LiveTask
from .lease import Lost, WorkerHandle
from .live import ACCEPTED, CONFLICT, NOT_FOUND, Action
from .pool import Pool

log = get_logger(__name__)

DEFAULT_GRACE_S = 2.0  # a live worker is back 0.1 s after its connection was closed
WATCH_EVERY_S = 1.0


@attrs.frozen(eq=False)
class Foreman:
    """A running foreman; `serve_foreman` starts its task status with it.

    Attributes:
        store: The store with jobs and checkpoints.
        port: The port that the foreman listens on.
        url: The URL for workers and clients on this machine.
    """

    store: Store
    port: int
    url: str
    _core: ForemanCore

    @property
    def live(self) -> Mapping[str, LiveTask]:
        """The items that workers have, by their ids."""
        return self._core.live

    async def control(self, action: ControlAction, task_id: str) -> tuple[int, str]:
        """Carry out an action on a work item.

        Args:
            action: "force-checkpoint": its worker saves at the next point.  "release": its worker
                saves and hands the item back.  "cleanup": the saved states of an ended item are
                removed.
            task_id: The item.

        Returns:
            202: requested; 404: there is no such item; 409: not possible in the item's status.
            With it the reason, as text.

        Cancellation: a cancellation point; the action may or may not be carried out.
        """
        return await self._core.control(action, task_id)


def core_of(foreman: Foreman) -> ForemanCore:
    """The jobs and workers of a foreman: for the library's own engines, out of reach of users."""
    return foreman._core


@attrs.define(eq=False)
class ForemanCore:
    """Jobs and workers.

    Attributes:
        store: The store with jobs and checkpoints.
        grace_s: How long a worker whose connection was lost may take to reconnect, in seconds.
        pool: The workers.
        jobs: The jobs that are running.
    """

    store: Store
    grace_s: float = DEFAULT_GRACE_S
    is_rebalancing: bool = False
    pool: Pool = attrs.field(init=False)
    jobs: dict[str, Job] = attrs.field(factory=dict[str, Job], init=False)
    _runner: WorkerRunner = attrs.field(init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _has_lost: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = Pool(self.is_open, self.is_rebalancing)
        self._runner = WorkerRunner(self.pool)

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start the jobs that are not over.

        Raises:
            StoreError: the store cannot be read.

        Cancellation: a cancellation point; the jobs that have started go on in the nursery.
        """
        self._nursery = nursery
        nursery.start_soon(self.pool.run)
        nursery.start_soon(self._watch_waiting)
        for job_id in await list_jobs(self.store):
            try:
                view = await self.store.load_run(job_id)
            except StoreDamagedError as error:  # the others go on
                log.error("%s cannot be read: %s", job_id, one_line(str(error)), extra=at(job_id))
                continue
            if view is None or is_over(items_progress(view)):
                continue
            if not has_submission(view):  # no client was told that it is accepted
                with suppress(RunLockedError):
                    await prune_task(self.store, job_id)
                continue
            log.info("resuming %s", job_id, extra=at(job_id))
            self._start(Job(job_id, self.store, self._runner), None)

    def _start(self, job: Job, submission: JobSubmission | None) -> None:
        if self._nursery is None:
            raise RuntimeError("the foreman is not started: use serve_foreman")
        self.jobs[job.job_id] = job
        self._nursery.start_soon(self._run_job, job, submission)

    async def _run_job(self, job: Job, submission: JobSubmission | None) -> None:
        try:
            await job.run(submission)
        finally:
            if self.jobs.get(job.job_id) is job:
                del self.jobs[job.job_id]
        if job.lost is not None and not self._has_lost:
            self._has_lost = True  # one error ends the foreman, also where all its jobs are lost
            raise job.lost

    async def _watch_waiting(self) -> None:
        """Log and publish why items wait that no worker can take."""
        while True:
            await trio.sleep(WATCH_EVERY_S)
            for job in tuple(self.jobs.values()):
                job.note_waiting(self.pool.why_waiting(job.job_id))

    # -- jobs ---------------------------------------------------------------------------------

    async def submit(self, job_id: str, submission: JobSubmission) -> None:
        """Accept a job, or continue it with other options.

        The same function and items under the same name are the same job, and its newest options
        count.  If the options differ, failed items of a job that is over are tried again.

        Raises:
            JobRefusedError: another job has this name, or the job cannot be stored.

        Durability: when this returns the job is durable, whatever happens to this process.
        Cancellation: a cancellation point; the job may or may not be durable then.
        """
        check_job_id(job_id)
        while True:
            while (job := self.jobs.get(job_id)) is not None:
                if await self._join(job, submission):
                    return
                await job.over.wait()
                await trio.lowlevel.checkpoint()  # its task removes it from `jobs`
            is_left, is_again = await check_work_left(self.store, job_id, submission)
            if not is_left:
                return
            if job_id not in self.jobs:  # otherwise another client was faster
                break
        job = Job(job_id, self.store, self._runner, is_again)
        self._start(job, submission)
        await job.accepted.wait()
        if job.refusal is not None:
            raise job.refusal
        if job.submission is None:
            reason = "it was not stored" if job.problem is None else job.problem.message
            raise JobRefusedError(f"job {job_id!r} is refused: {reason}", run_id=job_id)

    async def _join(self, job: Job, submission: JobSubmission) -> bool:
        """Continue a job that is running; False: it is about to end."""
        await job.accepted.wait()
        if job.submission is None:
            return False
        if not job.submission.is_same_work(submission):
            raise name_is_taken(job.job_id)
        return await job.change(submission.options)

    def cancel(self, job_id: str) -> None:
        """End a job, and its functions; does nothing if the job is over.

        Durability: none yet; the job records its end when its functions have ended.
        """
        job = self.jobs.get(job_id)
        if job is not None:
            job.cancel()

    # -- workers ------------------------------------------------------------------------------

    def is_open(self, task_id: str) -> bool:
        """Whether an item may still be wanted: neither the item nor its job is over."""
        try:
            job_id, index = split_task_id(task_id)
        except UnknownJobError:
            return False
        job = self.jobs.get(job_id)
        return job is not None and job.is_open(index)

    def connect(self, hello: Hello, link: Link) -> WorkerHandle:
        """Add a worker, a new one or one that reconnects."""
        worker = self.pool.workers.get(hello.peer_id)
        if worker is None:
            worker = WorkerHandle(hello.peer_id, printable(hello.name), hello.slots, hello.allow)
            self.pool.workers[hello.peer_id] = worker
        elif worker.link is not None:
            worker.link.end("the worker has reconnected on another connection")
            worker.disconnect()
        worker.connect(link, hello)
        log.info("worker %s connected, with %s", worker.name, plural(len(hello.held), "item"))
        self.pool.touch(worker)
        return worker

    def disconnect(self, worker: WorkerHandle, link: Link, *, is_leaving: bool) -> None:
        """Mark a worker's connection as lost.

        Args:
            worker: The worker.
            link: The connection; an older one changes nothing.
            is_leaving: Whether the worker said goodbye: it will not reconnect.
        """
        if worker.link is not link:
            return
        worker.disconnect()
        at = time.time()
        if is_leaving:
            self._lose(worker, Lost.LEFT, at)
        elif link.is_silent or self._nursery is None:
            self._lose(worker, Lost.WORKER, at)
        else:
            self._nursery.start_soon(self._wait_for, worker, worker.connections, at)

    async def _wait_for(self, worker: WorkerHandle, connections: int, at: float) -> None:
        """Give a worker time to reconnect.

        `connections` is counted when the connection is lost.  This task may begin only after the
        worker has reconnected; counted here, the new connection would pass for the lost one.
        """
        await sleep_awake(self.grace_s if worker.leases else 0)
        if worker.connections == connections:
            self._lose(worker, Lost.WORKER, at)

    def _lose(self, worker: WorkerHandle, how: Lost, at: float) -> None:
        log.info("worker %s is gone, with %s", worker.name, plural(len(worker.leases), "item"))
        if self.pool.workers.get(worker.peer_id) is worker:
            del self.pool.workers[worker.peer_id]
        for lease in tuple(worker.leases.values()):
            lease.lose(how, at)

    # -- for people ---------------------------------------------------------------------------

    @property
    def live(self) -> Mapping[str, LiveTask]:
        """The items that workers have, by their ids."""
        return {
            task_id: LiveTask(lease.holder.name, lease.since, lease.is_running, lease.percent)
            for task_id, lease in self.pool.leases.items()
            if lease.is_offered
        }

    async def control(self, action: ControlAction | Action, target: str) -> tuple[int, str]:
        """See `Foreman.control`; "cancel" is for a job."""
        if action == "cancel":
            if target not in self.jobs:
                return CONFLICT, "the job is over"
            self.cancel(target)
            return ACCEPTED, "the job is being cancelled"
        lease = self.pool.leases.get(target)
        if action == "cleanup":
            return await self._clean_up(target, is_running=lease is not None)
        if lease is None:
            return await self._not_running(target)
        if action == "force-checkpoint":
            if lease.proxy is None:
                return CONFLICT, "it saves nothing: its job has no checkpoint_interval_s"
            is_asked = lease.force()
        else:
            is_asked = lease.request_release("it is to go on elsewhere")
        return (ACCEPTED, "its worker was asked") if is_asked else (CONFLICT, "it is not running")

    async def _not_running(self, task_id: str) -> tuple[int, str]:
        """Say why an action on an item without a worker is not possible."""
        try:
            view = await read_task(self.store, task_id, live=self.live)
        except UnknownJobError as error:
            return NOT_FOUND, str(error)
        if view.status in OVER:
            return CONFLICT, f"the item is {view.status.value} already"
        if view.job_id not in self.jobs:
            return CONFLICT, "its job has ended"
        return CONFLICT, "no worker has the item now"

    async def _clean_up(self, task_id: str, *, is_running: bool) -> tuple[int, str]:
        try:
            job_id, index = split_task_id(task_id)
        except UnknownJobError as error:
            return NOT_FOUND, str(error)
        job = self.jobs.get(job_id)
        if job is None and await self.store.read_run(job_id) is None:
            return NOT_FOUND, f"there is no job {job_id!r}"
        if is_running or (job is not None and not job.is_done(index)):
            return CONFLICT, "it has not ended"
        try:
            size = await prune_task(self.store, task_id)
        except (StoreError, RunLockedError) as error:
            return CONFLICT, str(error)
        return ACCEPTED, f"its saved states are removed: {plural(size, 'byte')}"
