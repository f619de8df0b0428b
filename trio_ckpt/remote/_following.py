"""A job on the client's side: submitted until it is accepted, attached to until it is over."""

# What a reader has is in private fields.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import weakref
from collections import deque

import attrs
import trio
import trio.lowlevel

from .._util.index_set import IndexSet
from .._util.plain import Plain
from ._wire.errors import JobCancelledError, JobFailedError, JobRefusedError, TaskFailedError
from ._wire.job_messages import JobDone, JobRefused, JobResult
from ._wire.link import Link
from ._wire.submission import JobSubmission


@attrs.frozen
class ItemResult:
    """The result of one item.

    Attributes:
        index: The item's index in the job.
        value: The return value of its function.
        error: Why the item failed for good, if it did.
    """

    index: int
    value: Plain
    error: TaskFailedError | None = None


@attrs.define(eq=False)
class Submitting:
    """A job that is being submitted.

    Attributes:
        job_id: The job's name.
        submission: The function, items and options.
        sent_on: The connection on which the submission was sent last.
        refusal: Why the foreman refused it.
    """

    job_id: str
    submission: JobSubmission
    sent_on: Link | None = None
    refusal: JobRefused | None = None
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)

    def end(self, refusal: JobRefused | None) -> None:
        """Record the foreman's answer."""
        self.refusal = refusal
        self._ended.set()

    async def wait(self) -> None:
        """Wait for the answer.

        Raises:
            JobRefusedError: the foreman refuses the job.
        """
        await self._ended.wait()
        if self.refusal is not None:
            raise JobRefusedError(self.refusal.reason, run_id=self.job_id)


@attrs.define(eq=False)
class Following:
    """A job that is attached to, for all readers of its results.

    Attributes:
        job_id: The job's name.
        call: The number under which results arrive.
        refusal: Why the job cannot be attached to.
        done: How the job ended.
        changed: Set and replaced at every change.
    """

    job_id: str
    call: int = 0
    refusal: JobRefused | None = None
    done: JobDone | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)
    readers: weakref.WeakSet[Results] = attrs.field(factory=weakref.WeakSet["Results"])

    @property
    def have(self) -> tuple[int, ...]:
        """The results that need not be sent again: each reader has them."""
        readers = list(self.readers)
        return tuple(readers[0]._have.to_steps()) if len(readers) == 1 else ()

    def take(self, message: JobResult | JobDone | JobRefused) -> None:
        """Record a message of the foreman, and wake the readers."""
        match message:
            case JobResult():
                for reader in list(self.readers):
                    reader._take(message)
            case JobDone():
                self.done = message
            case JobRefused():
                self.refusal = message
        self.touch()

    def touch(self) -> None:
        """Wake all readers that wait for a change."""
        self.changed.set()
        self.changed = trio.Event()

    def check_end(self) -> bool:
        """Whether the job has ended with all results.

        Raises:
            TaskFailedError, JobFailedError, JobCancelledError, JobRefusedError: it ended without.
        """
        if self.refusal is not None:
            raise JobRefusedError(self.refusal.reason, run_id=self.job_id)
        if self.done is None:
            return False
        check_done(self.done)
        return True


@attrs.define(eq=False)
class Results:
    """The results of a job as they arrive: ``async for result in …``; holds no scope open."""

    _following: Following
    _have: IndexSet = attrs.field(factory=IndexSet, init=False)
    _waiting: deque[ItemResult] = attrs.field(factory=deque[ItemResult], init=False)

    @property
    def job_id(self) -> str:
        """The job's name, to attach to it again."""
        return self._following.job_id

    def _take(self, message: JobResult) -> None:
        """Add a result, unless it is a duplicate."""
        if self._have.add(message.index):
            error = message.error
            failure = None if error is None else error.to_exception(message.index, message.job_id)
            self._waiting.append(ItemResult(message.index, message.value, failure))

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> ItemResult:
        """Return the next result.

        Raises:
            TaskFailedError: an item failed the job.
            JobFailedError, JobCancelledError, JobRefusedError: the job ended without all results.

        Cancellation: a cancellation point; no result is lost, and the job continues.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._following.check_end():
                raise StopAsyncIteration
            await self._following.changed.wait()
        return self._waiting.popleft()


def check_done(done: JobDone) -> None:
    """Check that a job has ended with all its results.

    Raises:
        TaskFailedError, JobFailedError, JobCancelledError: it ended without.
    """
    if done.status == "completed":
        return
    if done.status == "cancelled":
        raise JobCancelledError(f"job {done.job_id!r} was cancelled", run_id=done.job_id)
    if done.error is not None and done.index is not None:
        raise done.error.to_exception(done.index, done.job_id)
    why = "" if done.error is None else f": {done.error.type}: {done.error.message}"
    raise JobFailedError(f"job {done.job_id!r} {done.status}{why}", run_id=done.job_id)
