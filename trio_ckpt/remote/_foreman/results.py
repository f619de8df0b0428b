"""The results of a job on their way to a client: existing ones first, then new ones.

A result is read back from the store before it is sent, so a client receives only durable results,
and a client that attaches late, or again, receives the same results as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from ..._journal.history import iter_records
from ..._journal.progress import Progress
from ..._journal.record import ErrorInfo, Record, RecordKind, Status, describe_error
from ..._journal.store import Store
from ..._tokens.token import TokenRegistry
from ..._util.errors import StoreDamagedError, StoreError
from ..._util.index_set import IndexSet
from ..._util.plain import Plain, check_run_id
from .._wire.errors import TaskFailedError, split_failure
from .._wire.job_messages import AttachJob, JobDone, JobRefused, JobResult, JobWaits, TaskError
from .._wire.link import Link
from .._wire.message import MAX_NAME_CHARS, MAX_TEXT_CHARS, MAX_TRACEBACK_CHARS
from .._wire.names import ITEMS_STREAM
from .foreman import ForemanCore
from .job import Job
from .job_reader import has_submission, is_cancelled, items_progress

NO_DETAILS: Mapping[str, Plain] = {}
PAGE = 1_000  # records, at most


async def feed_results(foreman: ForemanCore, link: Link, attach: AttachJob) -> None:
    """Send the results that a client does not have, until the job is over.

    If the store cannot be read, the job ends for this client as interrupted, with the reason.

    Args:
        foreman: The foreman.
        link: The connection to the client.
        attach: The client's request.

    Raises:
        ConnectionLostError: the client is gone.
    """
    try:
        await _feed(foreman, link, attach)
    except StoreError as error:
        reason = task_error(describe_error(error))
        link.send(JobDone(attach.job_id, attach.call, "interrupted", reason))


async def _feed(foreman: ForemanCore, link: Link, attach: AttachJob) -> None:
    job_id, sent = attach.job_id, _indexes(attach.have)
    reported = ""
    while True:
        job = foreman.jobs.get(job_id)
        if job is not None:
            await job.ready.wait()
        registry = None if job is None else job.registry
        version = 0 if registry is None else registry.version
        is_over = job is None or job.over.is_set()
        found = None if job is None else job.live_progress
        if found is None:
            view = await foreman.store.load_run(check_run_id(job_id))
            if view is None or not has_submission(view):
                link.send(JobRefused(job_id, "unknown", f"there is no job {job_id!r}"))
                return
            found = view.generation, items_progress(view)
        generation, progress = found
        await _send_new(foreman, link, attach, generation, progress, sent)
        if is_over:
            problem = None if job is None else job.problem
            link.send(await job_done(foreman.store, attach, generation, progress, problem))
            return
        if registry is not None and job is not None:
            if job.waits != reported:
                reported = job.waits
                link.send(JobWaits(job_id, attach.call, reported[:MAX_TEXT_CHARS]))
            await _wait_for_more(registry, version, job, progress, sent, reported)


async def _wait_for_more(
    registry: TokenRegistry,
    version: int,
    job: Job,
    progress: Progress,
    sent: IndexSet,
    reported: str,
) -> None:
    """Wait until there is a new result, the job is over, or the reason for waiting changes."""
    while not job.over.is_set() and len(progress.done) <= len(sent) and job.waits == reported:
        version = await registry.wait_changed(version)


def _indexes(have: tuple[int, ...]) -> IndexSet:
    try:
        return IndexSet.from_steps(list(have))
    except ValueError:
        return IndexSet()  # the client's set is invalid: it gets all results


async def _send_new(
    foreman: ForemanCore,
    link: Link,
    attach: AttachJob,
    generation: int,
    progress: Progress,
    sent: IndexSet,
) -> None:
    strangers = sent.copy()
    strangers.subtract(progress.done)
    sent.subtract(strangers)  # items that the client claims to have and that are not done
    missing = len(progress.done) - len(sent)
    if missing <= 0:
        return
    for few in (missing + 1, 0):  # what is missing is most often the newest; if not, all is read
        records = iter_records(
            foreman.store, attach.job_id, generation, ITEMS_STREAM, limit=min(PAGE, few or PAGE)
        )
        async with aclosing(records):
            async for _, record in records:
                index = record.index
                is_final = record.kind in (RecordKind.BATCH, RecordKind.SKIP)
                if index is not None and is_final and progress.is_done(index) and sent.add(index):
                    link.send(_result(attach, index, record))
                    missing -= 1
                    await link.drain()
                    if missing <= 0:
                        return
                few -= 1
                if few == 0:
                    break
    raise StoreDamagedError(f"{missing} results of {attach.job_id} are not in its history")


def _result(attach: AttachJob, index: int, record: Record) -> JobResult:
    if record.kind is RecordKind.BATCH:
        return JobResult(attach.job_id, attach.call, index, record.metadata.get("result"))
    error = task_error(record.error, record.metadata)
    return JobResult(attach.job_id, attach.call, index, None, error)


def task_error(
    info: ErrorInfo | None, details: Mapping[str, Plain] = NO_DETAILS
) -> TaskError | None:
    """Return an error in its wire form.

    Args:
        info: The error.
        details: The details that were stored with the attempt.
    """
    if info is None:
        return None
    kind, message = info.type, info.message
    if kind == TaskFailedError.__qualname__:
        kind, message = split_failure(message)
    traceback = str(details.get("traceback", ""))[-MAX_TRACEBACK_CHARS:]
    return TaskError(kind[:MAX_NAME_CHARS] or "Error", message[:MAX_TEXT_CHARS], traceback)


async def _details_of(
    store: Store, job_id: str, generation: int, index: int | None
) -> Mapping[str, Plain]:
    """Read what was stored with the newest failed attempt at an item."""
    if index is None:
        return NO_DETAILS
    async with aclosing(iter_records(store, job_id, generation, ITEMS_STREAM)) as records:
        async for _, record in records:
            if record.kind in (RecordKind.ATTEMPT, RecordKind.SKIP) and record.index == index:
                return record.metadata
    return NO_DETAILS


async def job_done(
    store: Store,
    attach: AttachJob,
    generation: int,
    progress: Progress,
    problem: ErrorInfo | None,
) -> JobDone:
    """Return how a job that is not running any more has ended.

    Args:
        store: The store of the job.
        attach: The request that it answers.
        generation: The generation of the job's run.
        progress: The progress of its items.
        problem: Why it ended early, if it did.
    """
    head = attach.job_id, attach.call
    if progress.status is Status.COMPLETE:
        return JobDone(*head, "completed")
    if is_cancelled(progress):
        return JobDone(*head, "cancelled", task_error(progress.error))
    if progress.status is Status.FAILED:
        info = progress.error
        index = None if info is None else info.batch_index
        details = await _details_of(store, attach.job_id, generation, index)
        return JobDone(*head, "failed", task_error(info, details), index)
    return JobDone(*head, "interrupted", task_error(problem))
