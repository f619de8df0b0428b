"""A job as a client follows it: submitted until it is taken, attached to until it is over."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import attrs
import trio
import trio.lowlevel

from .._util.index_set import IndexSet
from ._wire.errors import JobCancelledError, JobFailedError, JobRefusedError, TaskFailedError
from ._wire.link import Link
from ._wire.messages import JobDone, JobRefused, JobResult, TaskError
from ._wire.submission import JobSubmission


@attrs.frozen
class ItemResult:
    """One item of a job is done.

    Attributes:
        index: Its place.
        value: What its function returned.
        error: Why it was given up, if it was.
    """

    index: int
    value: Any
    error: TaskFailedError | None = None


@attrs.define(eq=False)
class Submitting:
    """A job that is being submitted.

    Attributes:
        job_id: Its name.
        submission: What it is.
        sent_on: The connection on which that was said last.
        is_accepted: Whether the foreman has taken it.
        refusal: Why it was not.
    """

    job_id: str
    submission: JobSubmission
    sent_on: Link | None = None
    is_accepted: bool = False
    refusal: JobRefused | None = None
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)

    def end(self, refusal: JobRefused | None) -> None:
        """Take the foreman's answer."""
        self.is_accepted, self.refusal = refusal is None, refusal
        self._ended.set()

    async def wait(self) -> None:
        """Wait for it.

        Raises:
            JobRefusedError: it is no.
        """
        await self._ended.wait()
        if self.refusal is not None:
            raise JobRefusedError(self.refusal.reason, run_id=self.job_id)


@attrs.define(eq=False)
class Following:
    """A job that is attached to, for all that read its results.

    Attributes:
        job_id: Its name.
        call: The number under which results come.
        refusal: Why there is no such job.
        done: How it has ended.
        changed: Set and replaced when something has changed.
    """

    job_id: str
    call: int = 0
    refusal: JobRefused | None = None
    done: JobDone | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)
    readers: weakref.WeakSet[Results] = attrs.field(factory=weakref.WeakSet["Results"])

    @property
    def have(self) -> tuple[int, ...]:
        """The results that need not come again: each reader has them."""
        readers = list(self.readers)
        return tuple(readers[0].have.to_steps()) if len(readers) == 1 else ()

    def take(self, message: JobResult | JobDone | JobRefused) -> None:
        """Take what the foreman says, and wake what waits for it."""
        match message:
            case JobResult():
                for reader in list(self.readers):
                    reader.take(message)
            case JobDone():
                self.done = message
            case JobRefused():
                self.refusal = message
        self.touch()

    def touch(self) -> None:
        """Wake what waits for a change."""
        self.changed.set()
        self.changed = trio.Event()

    def check_end(self) -> bool:
        """Whether the job has ended well.

        Raises:
            TaskFailedError, JobFailedError, JobCancelledError, JobRefusedError: it has not.
        """
        if self.refusal is not None:
            raise JobRefusedError(self.refusal.reason, run_id=self.job_id)
        if self.done is None:
            return False
        _check_done(self.done)
        return True


@attrs.define(eq=False)
class Results:
    """The results of a job as they come: ``async for result in …``; holds no scope open."""

    _following: Following
    have: IndexSet = attrs.field(factory=IndexSet, init=False)
    _waiting: deque[ItemResult] = attrs.field(factory=deque[ItemResult], init=False)

    @property
    def job_id(self) -> str:
        """The job, to attach to it again."""
        return self._following.job_id

    def take(self, message: JobResult) -> None:
        """Take a result, unless it is here already."""
        if self.have.add(message.index):
            error = message.error
            failure = None if error is None else task_error(message.job_id, message.index, error)
            self._waiting.append(ItemResult(message.index, message.value, failure))

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> ItemResult:
        """The next one.

        Raises:
            TaskFailedError: the job failed with an item.
            JobFailedError, JobCancelledError, JobRefusedError: it ended otherwise.

        Cancellation: a cancellation point; nothing is lost, and the job goes on.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._following.check_end():
                raise StopAsyncIteration
            await self._following.changed.wait()
        return self._waiting.popleft()


def _check_done(done: JobDone) -> None:
    if done.status == "completed":
        return
    if done.status == "cancelled":
        raise JobCancelledError(f"job {done.job_id!r} was cancelled", run_id=done.job_id)
    if done.error is not None and done.index is not None:
        raise task_error(done.job_id, done.index, done.error)
    why = "" if done.error is None else f": {done.error.type}: {done.error.message}"
    raise JobFailedError(f"job {done.job_id!r} {done.status}{why}", run_id=done.job_id)


def task_error(job_id: str, index: int, error: TaskError) -> TaskFailedError:
    """What a function raised, as a client raises it."""
    return TaskFailedError(
        error.type, error.message, index=index, remote_traceback=error.traceback, run_id=job_id
    )
