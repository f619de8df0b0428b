"""The foreman: jobs, workers, and what people ask of both; without its sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

import attrs
import trio

from .._errors import RunLockedError, StoreError
from .._groups import is_over
from .._words import printable
from ..abc import Store
from ._dispatch import Dispatcher, prune_task
from ._errors import JobRefusedError, UnknownJobError
from ._job import Job
from ._jobs import LiveTask, has_submission, items_progress, list_jobs
from ._link import Link
from ._messages import Cancel, Hello, NewLease, TaskAck
from ._names import check_job_id, split_task_id
from ._pool import Desk, Pool
from ._submission import Submission, read_submission

log = logging.getLogger("trio_ckpt.remote.foreman")

DEFAULT_GRACE_S = 30.0  # a worker whose connection was lost may come back for so long

Action = Literal["force-checkpoint", "release", "cleanup"]

ACCEPTED, NOT_FOUND, CONFLICT = 202, 404, 409  # as in HTTP


@attrs.define(eq=False)
class Foreman:
    """Jobs and workers; made by `serve_foreman`.

    Attributes:
        store: Where jobs and checkpoints are.
        grace_s: How long a worker whose connection was lost may take to come back.
        pool: The workers.
        jobs: Those that are being done.
        port: Where it listens.
        url: The same, for workers and clients on this machine.
    """

    store: Store
    grace_s: float = DEFAULT_GRACE_S
    is_rebalancing: bool = False
    pool: Pool = attrs.field(init=False)
    dispatcher: Dispatcher = attrs.field(init=False)
    jobs: dict[str, Job] = attrs.field(factory=dict[str, Job], init=False)
    port: int = attrs.field(default=0, init=False)
    url: str = attrs.field(default="", init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = Pool(self.is_rebalancing)
        self.dispatcher = Dispatcher(self.store, self.pool)

    async def begin(self, nursery: trio.Nursery) -> None:
        """Take up the jobs that are not over.

        Raises:
            StoreError: the store cannot be read.
        """
        self._nursery = nursery
        for job_id in await list_jobs(self.store):
            view = await self.store.load_run(job_id)
            if view is None or is_over(items_progress(view)):
                continue
            if not has_submission(view):  # nobody was ever told that it was taken
                with suppress(RunLockedError):
                    await prune_task(self.store, job_id)
                continue
            log.info("going on with %s", job_id)
            self._start(Job(job_id, self.dispatcher), None)

    def _start(self, job: Job, submission: Submission | None) -> None:
        if self._nursery is None:
            raise RuntimeError("the foreman has not begun")
        self.jobs[job.job_id] = job
        self._nursery.start_soon(self._run_job, job, submission)

    async def _run_job(self, job: Job, submission: Submission | None) -> None:
        try:
            await job.run(self.store, submission)
        finally:
            if self.jobs.get(job.job_id) is job:
                del self.jobs[job.job_id]

    # -- jobs ---------------------------------------------------------------------------------

    async def submit(self, job_id: str, submission: Submission) -> None:
        """Take a job; the same one again is fine.

        Raises:
            JobRefusedError: there is another one of that name, or it cannot be stored.

        Durability: when this returns it is done, whatever happens to this process.
        """
        check_job_id(job_id)
        job = self.jobs.get(job_id)
        if job is not None:
            await job.accepted.wait()
            if job.submission is not None:
                if job.submission.to_plain() != submission.to_plain():
                    raise _exists(job_id)
                return
        view = await self.store.load_run(job_id)
        if view is not None and has_submission(view) and is_over(items_progress(view)):
            await self._check_same(job_id, submission)
            return
        job = Job(job_id, self.dispatcher)
        self._start(job, submission)
        await job.accepted.wait()
        if job.refusal is not None:
            raise job.refusal
        if job.submission is None:
            reason = "it was not stored" if job.problem is None else job.problem.message
            raise JobRefusedError(f"job {job_id!r} is not taken: {reason}", run_id=job_id)

    async def _check_same(self, job_id: str, submission: Submission) -> None:
        stored = await read_submission(self.store, job_id)
        if stored is None or stored.to_plain() != submission.to_plain():
            raise _exists(job_id)

    def cancel(self, job_id: str) -> None:
        """End a job, and its functions; nothing happens if it is over."""
        job = self.jobs.get(job_id)
        if job is not None:
            job.cancel()

    # -- workers ------------------------------------------------------------------------------

    def connect(self, hello: Hello, link: Link) -> Desk:
        """Take a worker in, a new one or one that came back."""
        desk = self.pool.desks.get(hello.peer_id)
        if desk is None:
            desk = Desk(hello.peer_id, printable(hello.name), hello.slots, hello.allow)
            self.pool.desks[hello.peer_id] = desk
        elif desk.link is not None:
            self.disconnect(desk, desk.link, is_leaving=False)
        desk.link = link
        desk.slots, desk.allow = hello.slots, hello.allow
        log.info("worker %s is here, with %d items", desk.name, len(hello.held))
        for held in hello.held:
            lease = desk.leases.get(held.task_id)
            if lease is not None and lease.number == held.lease:
                if lease.ending is None:
                    desk.send(NewLease(held.task_id, held.lease, held.lease))
            elif self._nursery is not None:
                self._nursery.start_soon(self._settle_claim, desk, link, held.task_id, held.lease)
        for task_id in set(desk.leases) - {held.task_id for held in hello.held}:
            desk.leases[task_id].lose(time.time())  # it was assigned, and that never arrived
        self.pool.match()
        return desk

    async def _settle_claim(self, desk: Desk, link: Link, task_id: str, number: int) -> None:
        """Find out what becomes of an item that a worker says it has."""
        verdict: Cancel | TaskAck | None = None
        try:
            job_id, index = split_task_id(task_id)
        except UnknownJobError:
            job_id, index = "", 0
        job = self.jobs.get(job_id)
        if job is None:
            verdict = Cancel(task_id, number, "its job is over")
        else:
            await job.ready.wait()
            if job.is_done(index):
                verdict = TaskAck(task_id, number)
            elif job.over.is_set():
                verdict = Cancel(task_id, number, "its job is over")
            elif task_id in self.dispatcher.leases:
                verdict = Cancel(task_id, number, "another worker has it")
        if desk.link is not link:
            return
        if verdict is None:
            desk.claims[task_id] = number
            self.pool.match()
        else:
            desk.send(verdict)

    def disconnect(self, desk: Desk, link: Link, *, is_leaving: bool) -> None:
        """Take note that a worker's connection is gone.

        Args:
            desk: The worker.
            link: The connection; of an older one nothing is noted.
            is_leaving: Whether it said goodbye: it will not come back.
        """
        if desk.link is not link:
            return
        desk.link = None
        desk.claims.clear()
        for lease in desk.leases.values():
            lease.forget_calls()
        at = time.time()
        if is_leaving or self._nursery is None:
            self._lose(desk, at)
        else:
            self._nursery.start_soon(self._wait_for, desk, at)

    async def _wait_for(self, desk: Desk, at: float) -> None:
        """Give a worker the time to come back."""
        await trio.sleep(self.grace_s if desk.leases else 0)
        if desk.link is None:
            self._lose(desk, at)

    def _lose(self, desk: Desk, at: float) -> None:
        log.info("worker %s is gone, with %d items", desk.name, len(desk.leases))
        if self.pool.desks.get(desk.peer_id) is desk:
            del self.pool.desks[desk.peer_id]
        for lease in tuple(desk.leases.values()):
            lease.lose(at)

    # -- for people ---------------------------------------------------------------------------

    @property
    def live(self) -> Mapping[str, LiveTask]:
        """What is known of the items that workers have, by their names."""
        return {
            task_id: LiveTask(lease.holder.name, lease.since, lease.is_running, lease.percent)
            for task_id, lease in self.dispatcher.leases.items()
        }

    async def control(self, action: Action, task_id: str) -> tuple[int, str]:
        """Do something to a work item.

        Args:
            action: "force-checkpoint": its worker saves at the next point.  "release": it saves
                and hands the item back.  "cleanup": the saved states of one that has ended are
                removed.
            task_id: The item.

        Returns:
            202: it was asked for; 404: there is no such item; 409: not as the item stands.  And
            why, in words.
        """
        lease = self.dispatcher.leases.get(task_id)
        if action == "cleanup":
            return await self._clean_up(task_id, is_running=lease is not None)
        if lease is None:
            return await self._not_running(task_id)
        if action == "force-checkpoint":
            if lease.relay is None:
                return CONFLICT, "it saves nothing: its job has no checkpoint_interval_s"
            is_asked = lease.force()
        else:
            is_asked = lease.ask_back("it is to go on elsewhere")
        return (ACCEPTED, "its worker was asked") if is_asked else (CONFLICT, "it is not running")

    async def _not_running(self, task_id: str) -> tuple[int, str]:
        try:
            job_id, _ = split_task_id(task_id)
        except UnknownJobError as error:
            return NOT_FOUND, str(error)
        if job_id in self.jobs or await self.store.read_run(job_id) is not None:
            return CONFLICT, "it is not running"
        return NOT_FOUND, f"there is no job {job_id!r}"

    async def _clean_up(self, task_id: str, *, is_running: bool) -> tuple[int, str]:
        code, reason = await self._not_running(task_id)
        if code == NOT_FOUND:
            return code, reason
        job_id, index = split_task_id(task_id)
        job = self.jobs.get(job_id)
        if is_running or (job is not None and not job.is_done(index)):
            return CONFLICT, "it has not ended"
        try:
            await prune_task(self.store, task_id)
        except (StoreError, RunLockedError) as error:
            return CONFLICT, str(error)
        return ACCEPTED, "its saved states are removed"


def _exists(job_id: str) -> JobRefusedError:
    return JobRefusedError(
        f"job {job_id!r} is there already, with another function, other items or options: give "
        "it another id",
        run_id=job_id,
    )
