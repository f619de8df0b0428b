"""A job at the foreman: a run whose batches are its work items."""

from __future__ import annotations

import time
from functools import partial
from typing import Protocol

import attrs
import trio

from ..._commit.batch import Batch
from ..._commit.open_stream import OpenStream
from ..._commit.retry import RetryRule, RetryTable, Then
from ..._commit.saves import save_record, save_records
from ..._commit.stream_log import StreamLog
from ..._journal.history import ended_at, list_all_runs
from ..._journal.progress import Progress
from ..._journal.record import ErrorInfo, Record, RecordKind, Status, describe_error
from ..._journal.store import Store
from ..._journal.summary import is_over
from ..._runs.lifecycle import open_run
from ..._runs.parallel import run_batches
from ..._runs.run import Run, open_run_of
from ..._runs.stream import Stream, loop_cursor_of
from ..._tokens.token import TokenRegistry, touch
from ..._util.errors import (
    RunLockedError,
    RunStoppedError,
    StoreError,
    TrioCkptError,
)
from ..._util.exceptions import failures_in, text_of
from ..._util.log import at, get_logger
from ..._util.plain import JOB_STREAM, Plain
from ..._util.text import one_line
from .._wire.errors import (
    JobCancelledError,
    JobRefusedError,
    TaskFailedError,
    TaskLostError,
)
from .._wire.job_messages import JobOptions
from .._wire.names import ITEMS_STREAM, task_id_of
from .._wire.submission import JobSubmission, head_record, job_records, read_submission
from .attempt import ItemAttempt
from .dispatch import prune_task
from .job_reader import has_submission, is_cancelled, items_progress
from .renewal import lock_patience_s
from .waiting import PendingItem

log = get_logger(__name__)

MAX_IN_FLIGHT = 2_000  # items of one job that wait for a worker or have one
REPORT_WAITING_AFTER_S = 3.0  # workers that start together with the client are connected by then
STORE_ATTEMPTS = 5  # of an item, where the foreman's store fails


def retries(options: JobOptions) -> RetryTable:
    """Decide what happens to an item that failed."""
    then = Then.FAIL_STREAM if options.errors == "raise" else Then.SKIP
    return RetryTable(
        (
            RetryRule(
                (TaskFailedError,),
                attempts=options.attempts,
                then=then,
                retryable=False,
                backoff_s=options.backoff_s,
            ),
            RetryRule((TaskLostError,), attempts=1, then=then, retryable=False),
            RetryRule((StoreError, RunLockedError), attempts=STORE_ATTEMPTS),
        )
    )


class ItemRunner(Protocol):
    """What runs the items of jobs: the workers of a foreman, or an engine."""

    def begin_job(self, job_id: str) -> None:
        """Let items of a job begin; called when its submission is durable."""
        ...

    def forget_job(self, job_id: str) -> None:
        """Drop what is kept of a job that has ended."""
        ...

    async def run_item(self, attempt: ItemAttempt, lost_at: float | None) -> None:
        """Run an item to its end; its result is durable then.

        Args:
            attempt: The item.
            lost_at: When the job was saved last before it was started; Unix time, s; None: it
                is new.

        Raises:
            TaskFailedError: the item's function raised.
            TaskLostError: too many workers were lost with the item.
        """
        ...


@attrs.define(eq=False)
class Job:
    """A job that is running.

    Attributes:
        job_id: The job's name.
        store: The foreman's store.
        runner: What runs its items.
        accepted: Set when the job is durable, or cannot be.
        ready: Set when its items are being handed out, or it is over.
        over: Set when it has ended.
        is_again: Whether the job was over, and its failed items are tried again.
        submission: The function, items and options.
        refusal: Why the job was refused.
        problem: Why the job ended early.
        raised: The exception of that.
        waits: Why its items wait for a worker that is not there; empty: they do not.
    """

    job_id: str
    store: Store
    runner: ItemRunner
    is_again: bool = False
    accepted: trio.Event = attrs.field(factory=trio.Event, init=False)
    ready: trio.Event = attrs.field(factory=trio.Event, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)
    submission: JobSubmission | None = attrs.field(default=None, init=False)
    refusal: JobRefusedError | None = attrs.field(default=None, init=False)
    problem: ErrorInfo | None = attrs.field(default=None, init=False)
    raised: BaseException | None = attrs.field(default=None, init=False)
    waits: str = attrs.field(default="", init=False)
    _waits_since: float | None = attrs.field(default=None, init=False)
    _open_stream: OpenStream | None = attrs.field(default=None, init=False)
    _stream_log: StreamLog | None = attrs.field(default=None, init=False)  # of the submission
    _registry: TokenRegistry | None = attrs.field(default=None, init=False)
    _down_at: float | None = attrs.field(default=None, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    @property
    def live_progress(self) -> tuple[int, Progress] | None:
        """The generation of its run, and its progress, live; None: not known yet."""
        if self._open_stream is None:
            return None
        return (
            self._open_stream.committer.run_key.generation,
            self._open_stream.stream_log.progress,
        )

    @property
    def owner(self) -> int | None:
        """The number under which its run is owned; None: not known yet."""
        return None if self._open_stream is None else self._open_stream.committer.run_key.owner

    @property
    def lost(self) -> RunStoppedError | None:
        """How it ended, if another process may have taken its run over; None: it did not."""
        error = self.raised
        if self.store.lease_s is None or not isinstance(error, RunStoppedError):
            return None
        return error if isinstance(error.__cause__, StoreError) else None

    @property
    def registry(self) -> TokenRegistry | None:
        """A counter that moves with each item."""
        return self._registry

    def is_done(self, index: int) -> bool:
        """Whether an item has a result, or failed for good."""
        stream = self._open_stream
        return stream is not None and stream.stream_log.progress.is_done(index)

    def is_open(self, index: int) -> bool:
        """Whether an item may still be wanted, as far as is known."""
        if not self.ready.is_set() or self.submission is None:
            return not self.over.is_set()
        is_one = index < len(self.submission.items)
        return is_one and not self.over.is_set() and not self.is_done(index)

    def cancel(self) -> None:
        """End the job, and its functions."""
        self._scope.cancel()

    async def change(self, options: JobOptions) -> bool:
        """Continue the job with other options.

        Returns:
            False: the job is over, or is about to be.

        Raises:
            StoreError: the options cannot be stored.

        Durability: when this returns True the options are durable.
        """
        await self.ready.wait()
        stream, stream_log, submission = self._open_stream, self._stream_log, self.submission
        if self.over.is_set() or stream is None or stream_log is None or submission is None:
            return False
        if options == submission.options:
            return True
        changed = attrs.evolve(submission, options=options)
        try:
            await save_record(stream.committer, stream_log, head_record(changed, time.time()))
        except StoreError:
            raise
        except TrioCkptError:  # the run is closed
            return False
        self.submission = changed
        stream.change_policy(retry=retries(options))
        return True

    def note_waiting(self, reason: str) -> None:
        """Record what `Pool.why_waiting` returns; a reason that lasts is logged and published."""
        now = trio.current_time()
        if not reason:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        is_long = (
            self._waits_since is not None and now - self._waits_since >= REPORT_WAITING_AFTER_S
        )
        lasting = one_line(reason) if is_long else ""
        if lasting == self.waits:
            return
        self.waits = lasting
        if lasting:
            log.warning("%s: %s", self.job_id, lasting, extra=at(self.job_id))
        if self._registry is not None:
            touch(self._registry)

    async def run(self, new: JobSubmission | None) -> None:
        """Run the job, or continue it; an error is logged, and ends this job alone.

        Args:
            new: The job, if it was submitted just now.

        Cancellation: items in progress continue at their workers.
        """
        try:
            view = await self.store.load_run(self.job_id)
            self._down_at = None if view is None else ended_at(view)
            async with (
                open_run(
                    self.job_id,
                    store=self.store,
                    handle_signals=False,
                    wait_for_lock_s=lock_patience_s(self.store),
                ) as run,
                run.open_stream(
                    *ITEMS_STREAM, on_fail="record", retry_failed=self.is_again
                ) as stream,
            ):
                self.submission = await self._submit(run, stream, new)
                if self.submission is None:
                    return
                self.accepted.set()
                await self._work(run, stream, self.submission)
            if not self.submission.options.keep_checkpoints:
                await self._sweep()
        except (Exception, BaseExceptionGroup) as error:
            if not failures_in(error):  # it was cancelled
                raise
            self.raised, self.problem = error, describe_error(error)
            log.error("%s: %s", self.job_id, one_line(text_of(error)), extra=at(self.job_id))
        finally:
            for event in (self.accepted, self.ready, self.over):
                event.set()
            self.runner.forget_job(self.job_id)
            if self._registry is not None:
                touch(self._registry)

    async def _submit(
        self, run: Run, stream: Stream[None], new: JobSubmission | None
    ) -> JobSubmission | None:
        """Make the submission durable; None: this run has never had one."""
        open_stream, view = loop_cursor_of(stream).open_stream, open_run_of(run).view()
        if not has_submission(view):
            if new is not None:
                self._stream_log = open_stream.committer.add_stream_log(JOB_STREAM, Progress())
                await _save(open_stream, self._stream_log, new)
            return new
        self._stream_log = open_stream.committer.add_stream_log(
            JOB_STREAM, view.streams[JOB_STREAM].progress
        )
        stored = await read_submission(self.store, self.job_id)
        if new is None or stored is None:
            return stored
        if not new.is_same_work(stored):
            self.refusal = name_is_taken(self.job_id)
            return stored
        if new.options != stored.options:
            await save_record(
                open_stream.committer, self._stream_log, head_record(new, time.time())
            )
        return new

    async def _work(self, run: Run, stream: Stream[None], submission: JobSubmission) -> None:
        self._open_stream = loop_cursor_of(stream).open_stream
        self._registry = run.coordinator.registry
        self.ready.set()
        self.runner.begin_job(self.job_id)
        with self._scope:
            await run_batches(
                stream,
                submission.items,
                partial(self._do, self._open_stream),
                concurrency=max(1, min(len(submission.items), MAX_IN_FLIGHT)),
                retry=retries(submission.options),
            )
        if self._scope.cancelled_caught:
            await stream.fail(JobCancelledError("it was cancelled"), retryable=False)

    async def _do(self, stream: OpenStream, batch: Batch[Plain]) -> None:
        submission = self.submission
        if submission is None:
            raise RuntimeError("a job without a submission has no items")
        pending = PendingItem(
            self.job_id,
            batch.index,
            task_id_of(self.job_id, batch.index),
            submission.function,
            batch.item,
            batch.attempt,
            submission.options,
        )
        attempt = ItemAttempt(pending, batch, stream, self.store)
        await self.runner.run_item(attempt, self._down_at)

    async def _sweep(self) -> None:
        """Remove the saved states of ended items that a crash left behind."""
        for run in await list_all_runs(self.store, f"{self.job_id}."):
            try:
                await prune_task(self.store, run.run_id)
            except (StoreError, RunLockedError) as error:
                log.warning(
                    "the states of %s stay: %s",
                    run.run_id,
                    one_line(text_of(error)),
                    extra=at(self.job_id),
                )


async def _save(open_stream: OpenStream, stream_log: StreamLog, submission: JobSubmission) -> None:
    """Save a submission, and before it the number of items: none of them is done.

    Both are in one group, so a reader of the job knows the number of items from the moment that the
    job is accepted.
    """
    now = time.time()
    total = Record(kind=RecordKind.SAVE, at=now, expected=len(submission.items))
    await save_records(
        open_stream.committer,
        [
            (open_stream.stream_log, open_stream.introduce(total)),
            *((stream_log, record) for record in job_records(submission, now)),
        ],
    )


async def check_work_left(
    store: Store, job_id: str, submission: JobSubmission
) -> tuple[bool, bool]:
    """Whether a job that no process runs has work left, and whether it was over before.

    Raises:
        JobRefusedError: another job has this name.
    """
    view = await store.load_run(job_id)
    if view is None or not has_submission(view) or not is_over(items_progress(view)):
        return True, False
    stored = await read_submission(store, job_id)
    if stored is None or not stored.is_same_work(submission):
        raise name_is_taken(job_id)
    items = items_progress(view)
    has_failed = items.status is Status.FAILED or bool(items.skipped)
    is_other = stored.options != submission.options
    return has_failed and is_other and not is_cancelled(items), True


def name_is_taken(job_id: str) -> JobRefusedError:
    """Say why a job is refused whose name another job has."""
    return JobRefusedError(
        f"job {job_id!r} is there already, with another function or other items: give it another "
        "id",
        run_id=job_id,
    )
