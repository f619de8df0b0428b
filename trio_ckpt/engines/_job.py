"""A job whose items an engine runs: the same run, streams and records as at a foreman.

Theory of operation.  `Job` keeps the job's run, as a foreman does; only who runs the items differs.
`EngineRunner` gives each item to the engine and waits for its end.  A result goes into the run
of the job, in a group with others; when it is durable it is passed on, and then the item's own run
is removed.  What the engine reports instead of an end is a loss: a worker that died, a future that
was dropped, a machine without the library.  A lost item is given to the engine again; it resumes
from its saved state, or its result is found.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial

import attrs
import trio
from outcome import Error, Outcome

from .._journal.history import iter_records, session_metadata_of
from .._journal.progress import Progress
from .._journal.record import RecordKind, describe_error
from .._journal.store import Durability, RunKey, Store
from .._runs.run_lock import take_lock
from .._util.errors import StoreDamagedError, StoreError
from .._util.exceptions import class_name, text_of
from .._util.index_set import IndexSet
from .._util.log import get_logger
from .._util.nursery import open_service_nursery
from .._util.plain import Plain
from .._util.text import one_line
from .._util.threads import run_blocking
from ..remote import RemoteError, TaskFailedError
from ..remote._following import check_done
from ..remote._foreman.attempt import ItemAttempt
from ..remote._foreman.foreman import WATCH_EVERY_S
from ..remote._foreman.job import Job
from ..remote._foreman.job_reader import items_progress
from ..remote._foreman.job_views import LiveTask
from ..remote._foreman.live import ACCEPTED, CONFLICT, Action
from ..remote._foreman.publisher import ForemanPublisher
from ..remote._foreman.results import job_done, task_error
from ..remote._foreman.task_checkpoints import TaskCheckpoints
from ..remote._foreman.waiting import PendingItem
from ..remote._wire.job_messages import AttachJob, TaskError
from ..remote._wire.message import MAX_TEXT_CHARS
from ..remote._wire.names import ITEMS_STREAM
from ..remote._wire.submission import JobSubmission
from ..remote._wire.task_messages import AssignTask
from ._engine import EngineCalls
from ._errors import EngineLostError, OtherStoreError
from ._item import ItemEnd, ItemSpec, decode_end, encode_spec

log = get_logger(__name__)

WATCH_S = 5.0  # how often a running item asks whether its job is still wanted
AGAIN_AFTER_S = 1.0  # when an item was lost: what lost it may still be going on
CLEAN_UP_S = 5.0  # then the saved states of an item are removed with the last of the job
TOLD_S = 1.0  # for the process that has cancelled a job to read the answer
FEW_LOSSES = 1  # at once: most often another worker takes the item
UNKNOWN = TaskError("Error", "its record does not say why")

Deliver = Callable[[int, "Plain | TaskFailedError"], Awaitable[None]]
"""Passes the outcome of an item on: its result, or why it failed for good."""


@attrs.frozen
class JobSeat:
    """Where a job is kept, as the processes that run its items need to know it.

    Attributes:
        owner: The number under which this process owns the job's run.
        began: When its session began, Unix time, s.
        store: The address of the store; empty: other processes cannot open it.
        durability: What an acknowledged save survives.
        token: Tells the calls of this session from those of any other: a cluster may have jobs of
            one name in two stores, and takes two calls of one name for one call.
    """

    owner: int
    began: float
    store: str = attrs.field(repr=False)  # it may hold a password
    durability: Durability
    token: str = attrs.field(factory=partial(secrets.token_hex, 8), init=False)


@attrs.define(eq=False)
class EngineRunner:
    """Gives the items of one job to an engine.

    Attributes:
        store: The store of the job.
        calls: The calls that the engine has.
        deliver: Called when the result of an item is durable.
        failures: Items that have failed, which may not be recorded yet, or are tried again.
        has_failed: Set when there is one.
    """

    store: Store
    calls: EngineCalls
    deliver: Deliver
    failures: dict[int, TaskFailedError] = attrs.field(
        factory=dict[int, TaskFailedError], init=False
    )
    has_failed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _seat: JobSeat | None = attrs.field(default=None, init=False)
    _is_open: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stop: Callable[[Exception], None] = attrs.field(init=False)

    def open(self, seat: JobSeat, stop: Callable[[Exception], None]) -> None:
        """Let items begin.

        Args:
            seat: Where the job is kept.
            stop: Called with an error that ends this session of the job, but not the job.
        """
        self._seat, self._stop = seat, stop
        self._is_open.set()

    def begin_job(self, job_id: str) -> None:
        """See `ItemRunner.begin_job`.  Items wait until `open` is called."""

    def forget_job(self, job_id: str) -> None:
        """See `ItemRunner.forget_job`.  This one has one job."""

    async def run_item(self, attempt: ItemAttempt, lost_at: float | None) -> None:
        """Run an item to its end; see `ItemRunner.run_item`.

        Cancellation: the engine is asked to drop the item.
        """
        await self._is_open.wait()
        try:
            while not await self._run_once(attempt):
                if attempt.losses > FEW_LOSSES:
                    await trio.sleep(AGAIN_AFTER_S)
        except RemoteError as error:
            index = attempt.pending.index
            self.failures[index] = _as_failure(error, attempt.pending)
            self.has_failed.set()
            raise

    async def _run_once(self, attempt: ItemAttempt) -> bool:
        """Give an item to the engine; return whether it has a result."""
        pending = attempt.pending
        end = await self._call(pending, attempt.losses)
        for text in end.notes:
            await attempt.note(text)
        if end.how == "returned":
            await attempt.settle(end.value, TaskCheckpoints.from_plain(end.saved), end.worker)
            self.failures.pop(pending.index, None)
            await self.deliver(pending.index, end.value)
            await self._clean_up(pending, end.generation)
            return True
        if end.how == "raised" and end.error is not None:
            raise end.error.to_exception(pending.index, pending.job_id)
        if end.how == "elsewhere":
            self._stop(OtherStoreError(end.reason, run_id=pending.job_id))
            await trio.sleep_forever()
        await attempt.count_loss(end.worker, end.reason)
        return False

    async def _call(self, pending: PendingItem, losses: int) -> ItemEnd:
        """Let the engine run the item once."""
        seat = self._seat
        assert seat is not None
        assigned = pending.assignment(seat.owner)
        spec = ItemSpec(assigned, seat.store, seat.durability, seat.began, WATCH_S)
        key = f"{pending.task_id}-{seat.owner}.{pending.attempt}.{losses}-{seat.token}"
        return _end_of(await self.calls.call(key, encode_spec(spec)), assigned)

    async def _clean_up(self, pending: PendingItem, generation: int) -> None:
        """Remove the saved states of an item that is done, best effort."""
        if not pending.is_saving or pending.options.keep_checkpoints:
            return
        try:
            with trio.move_on_after(CLEAN_UP_S):  # another attempt may have it, to find its result
                async with AsyncExitStack() as stack:
                    number, _ = await take_lock(stack, self.store, pending.task_id, math.inf)
                    await self.store.prune(RunKey(pending.task_id, generation, number), keep=0)
        except StoreError as error:
            text = one_line(text_of(error))
            log.warning("the states of %s stay for now: %s", pending.task_id, text)


def _end_of(outcome: Outcome[object], assigned: AssignTask) -> ItemEnd:
    """Return how a call ended; an error of the engine is a loss, as is the end of another call."""
    if isinstance(outcome, Error):
        error = outcome.error
        reason = one_line(f"{class_name(error)}: {text_of(error)}")[:MAX_TEXT_CHARS]
        return ItemEnd("released", "", reason=reason)
    try:
        end = decode_end(outcome.unwrap())
    except ValueError as error:
        return ItemEnd("released", "", reason=one_line(str(error))[:MAX_TEXT_CHARS])
    if (end.task_id, end.attempt) == (assigned.task_id, assigned.attempt):
        return end
    reason = f"the engine returned the end of attempt {end.attempt} at {end.task_id or 'no item'}"
    return ItemEnd("released", end.worker, reason=one_line(reason)[:MAX_TEXT_CHARS])


def _as_failure(error: RemoteError, pending: PendingItem) -> TaskFailedError:
    """Return an error of an item as its outcome, the same as is read from the history."""
    details: Mapping[str, Plain] = dict(error.details)
    found = task_error(describe_error(error), details)
    assert found is not None
    return found.to_exception(pending.index, pending.job_id)


# -- one session of a job --------------------------------------------------------------------------


@attrs.define(eq=False)
class DriverJobs:
    """The one job of a driver, as other processes see it and ask for it through the store.

    Attributes:
        store: The store of the job.
        job: The job.
        is_cancelled: Whether another process has cancelled it.
    """

    store: Store
    job: Job
    is_cancelled: bool = attrs.field(default=False, init=False)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """The job, while it runs."""
        return {} if self.job.over.is_set() else {self.job.job_id: self.job}

    @property
    def live(self) -> Mapping[str, LiveTask]:
        """Nothing: the engine alone knows where its items run."""
        return {}

    async def control(self, action: Action, target: str) -> tuple[int, str]:
        """Cancel the job; its items are the engine's.

        Cancellation: a cancellation point.
        """
        await trio.lowlevel.checkpoint()
        if action != "cancel":
            return CONFLICT, "an engine runs the item, which cannot be asked"
        if target not in self.jobs:
            return CONFLICT, "the job is over"
        self.is_cancelled = True
        self.job.cancel()
        return ACCEPTED, "the job is being cancelled"


@attrs.define(eq=False)
class JobDriver:
    """Runs a job with an engine, in this process.

    Attributes:
        store: The store of the job.
        job_id: The job.
        submission: The function, items and options.
        calls: The calls that the engine has; None: the job has no work left.
        deliver: Called with each outcome that is durable, existing ones included.
        is_again: Whether the job was over, and its failed items are tried again.
    """

    store: Store
    job_id: str
    submission: JobSubmission
    calls: EngineCalls | None
    deliver: Deliver
    is_again: bool = False
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _error: Exception | None = attrs.field(default=None, init=False)
    _delivering: trio.Lock = attrs.field(factory=trio.Lock, init=False)  # of failures

    async def run(self) -> None:
        """Run the job to its end, or continue it.

        Raises:
            TaskFailedError: an item failed the job.
            JobFailedError, JobCancelledError: the job ended without all results.
            JobRefusedError: another job has this name.
            EngineLostError, OtherStoreError, RunLockedError, StoreError: the job was interrupted.

        Cancellation: interrupts the job; items that run end at their next point.
        """
        if self.calls is None:
            view = await self.store.load_run(self.job_id)
            assert view is not None
            progress = items_progress(view)
            await self._deliver_existing(view.generation, progress.done)
            await self._check_end(view.generation, progress, None)
            return
        runner = EngineRunner(self.store, self.calls, self.deliver)
        job = Job(self.job_id, self.store, runner, self.is_again)
        jobs = DriverJobs(self.store, job)
        async with open_service_nursery() as nursery:
            nursery.start_soon(self._run_job, job)
            await job.ready.wait()
            if job.refusal is not None:
                self._interrupt(job.refusal)
            elif job.live_progress is not None:
                generation, progress = job.live_progress
                existing = progress.done.copy()
                nursery.start_soon(self._deliver_failures, job, runner)
                nursery.start_soon(self._watch_waiting, job, self.calls)
                nursery.start_soon(ForemanPublisher(jobs).run)
                runner.open(await self._take_seat(), self._interrupt)
                await self._deliver_existing(generation, existing)
            await job.over.wait()
            await self._deliver_recorded(job, runner)
            if jobs.is_cancelled:
                await trio.sleep(TOLD_S)
        await self._end(job)

    async def _run_job(self, job: Job) -> None:
        with self._scope:
            await job.run(self.submission)

    def _interrupt(self, error: Exception) -> None:
        self._error = self._error or error
        self._scope.cancel()

    async def _end(self, job: Job) -> None:
        """Raise what ended the job early."""
        if self._error is not None:
            raise self._error
        if job.live_progress is None or job.raised is not None:
            raise job.raised or EngineLostError(f"job {self.job_id!r} was not begun")
        generation, progress = job.live_progress
        await self._check_end(generation, progress, job)

    async def _check_end(self, generation: int, progress: Progress, job: Job | None) -> None:
        problem = None if job is None else job.problem
        attach = AttachJob(self.job_id, 0)
        check_done(await job_done(self.store, attach, generation, progress, problem))

    async def _take_seat(self) -> JobSeat:
        view = await self.store.load_run(self.job_id)
        assert view is not None
        began = session_metadata_of(view).get("began", time.time())
        is_reached = not self.store.url.startswith("memory:")
        address = self.store.address if is_reached else ""
        return JobSeat(view.owner, began, address, self.store.durability)

    async def _deliver_existing(self, generation: int, done: IndexSet) -> None:
        """Pass on the outcomes of items that were done before this session.

        Raises:
            StoreDamagedError: the history lacks one of them.
        """
        left = done.copy()
        if not left:
            return
        records = iter_records(self.store, self.job_id, generation, ITEMS_STREAM)
        async with aclosing(records):
            async for _, record in records:
                index = record.index
                is_final = record.kind in (RecordKind.BATCH, RecordKind.SKIP)
                if not is_final or index is None or index not in left:
                    continue
                left.discard(index)
                if record.kind is RecordKind.BATCH:
                    await self.deliver(index, record.metadata.get("result"))
                else:
                    error = task_error(record.error, record.metadata) or UNKNOWN
                    await self.deliver(index, error.to_exception(index, self.job_id))
                if not left:
                    return
        raise StoreDamagedError(f"{len(left)} results of {self.job_id} are not in its history")

    async def _deliver_failures(self, job: Job, runner: EngineRunner) -> None:
        """Pass on failures once they are recorded, where the job goes on without these items."""
        await runner.has_failed.wait()
        registry = job.registry
        while registry is not None:
            version = registry.version
            await self._deliver_recorded(job, runner)
            await registry.wait_changed(version)

    async def _deliver_recorded(self, job: Job, runner: EngineRunner) -> None:
        """Pass on the failures that are recorded; when it returns, none of them is on its way."""
        async with self._delivering:
            for index in [index for index in runner.failures if job.is_done(index)]:
                await self.deliver(index, runner.failures.pop(index))

    async def _watch_waiting(self, job: Job, calls: EngineCalls) -> None:
        """Log why no item can begin, while none has ended; the engine is asked in a thread."""
        ended = -1
        while True:
            await trio.sleep(WATCH_EVERY_S)
            reason = ""
            if ended == calls.ended_count:
                try:
                    reason = await run_blocking(calls.adapter.why_waiting)
                except Exception as error:
                    log.debug("the engine does not say whether items wait: %r", error)
            ended = calls.ended_count
            job.note_waiting(reason)
