"""The messages between a client and a foreman about jobs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from ..._util.plain import Plain
from .errors import TaskFailedError
from .message import (
    MAX_ERROR_BYTES,
    MAX_JOB_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_STEPS,
    MAX_TRACE_BYTES,
    MAX_TRACEBACK_CHARS,
    MIB,
    Count,
    Id,
    JobMessage,
    Message,
    MessageKind,
    Name,
    Text,
)


class TaskError(msgspec.Struct, frozen=True, array_like=True):
    """An exception that a function raised.

    Attributes:
        type: The name of the exception's class.
        message: The text of the exception.
        traceback: The traceback, to read.
    """

    type: Name
    message: Text = ""
    traceback: Annotated[str, msgspec.Meta(max_length=MAX_TRACEBACK_CHARS)] = ""

    def to_exception(self, index: int, run_id: str) -> TaskFailedError:
        """Return the error that is raised for it, with the item's index and its job or run."""
        return TaskFailedError(
            self.type, self.message, index=index, remote_traceback=self.traceback, run_id=run_id
        )


ControlAction = Literal["force-checkpoint", "release", "cleanup"]  # on a work item

MAX_ATTEMPTS = 1_000  # at an item; more would be an endless loop
MAX_LOSSES = 1_000  # workers lost with one item; more would take all of them down


class JobOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a job is run; stored with it.

    Attributes:
        checkpoint_interval_s: How often a running item saves its state, at most; None: never.
        errors: "raise": the first item that fails for good fails the job.  "collect": its error
            is recorded, and the other items continue.
        attempts: How often an item is tried when its function raises.
        backoff_s: The pause before the second attempt, in seconds; doubled before each further one.
        losses: How many workers may be lost with an item.
        max_age_s: An item does not resume from a saved state that was older than this, in seconds,
            when its worker was lost.
        keep_checkpoints: Whether saved states are kept after their item is done.
        trace: Passed on to workers unchanged: a trace context, for example.
    """

    checkpoint_interval_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    errors: Literal["raise", "collect"] = "raise"
    attempts: Annotated[int, msgspec.Meta(ge=1, le=MAX_ATTEMPTS)] = 1
    backoff_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0
    losses: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOSSES)] = 5
    max_age_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 3_600.0
    keep_checkpoints: bool = False
    trace: Annotated[dict[Name, Text], msgspec.Meta(max_length=16)] = {}


class SubmitJob(JobMessage, frozen=True, array_like=True):
    """Submit a job; its items follow.

    Attributes:
        function: ``module:function``.
        options: How the job is run.
        total: The number of items.
    """

    KIND: ClassVar[MessageKind] = MessageKind.SUBMIT_JOB
    MAX_BYTES: ClassVar[int] = MAX_TRACE_BYTES
    function: Name
    options: JobOptions
    total: Annotated[int, msgspec.Meta(ge=0, le=MAX_JOB_ITEMS)]


class JobItems(JobMessage, frozen=True, array_like=True):
    """Some items of the job that is being submitted, in order.

    Attributes:
        first: The index of the first of them.
        items: JSON-like values.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_ITEMS
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    first: Count
    items: list[Plain]


class JobAccepted(JobMessage, frozen=True, array_like=True):
    """The job is durable."""

    KIND: ClassVar[MessageKind] = MessageKind.JOB_ACCEPTED


class JobRefused(JobMessage, frozen=True, array_like=True):
    """The job is refused, or does not exist."""

    KIND: ClassVar[MessageKind] = MessageKind.JOB_REFUSED
    code: Name
    reason: Text


class AttachJob(JobMessage, frozen=True, array_like=True):
    """Request the results of a job, existing and future.

    Attributes:
        call: The answers repeat this number; a later request replaces this one.
        have: The items whose results the client has; a set of indexes in its stored form.
    """

    KIND: ClassVar[MessageKind] = MessageKind.ATTACH_JOB
    MAX_BYTES: ClassVar[int] = 2 * MIB
    call: Count
    have: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()


class JobResult(JobMessage, frozen=True, array_like=True):
    """One item is done, and that is durable.

    Attributes:
        call: The number of the `AttachJob`.
        index: The item's index.
        value: The return value of its function.
        error: Why the item failed for good, if it did.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_RESULT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    index: Count
    value: Plain = None
    error: TaskError | None = None


class JobDone(JobMessage, frozen=True, array_like=True):
    """A job has ended, and all its results were sent.

    Attributes:
        call: The number of the `AttachJob`.
        status: The final status.
        error: Why the job failed, if it did.
        index: The index of the item that failed it, if one did.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_DONE
    MAX_BYTES: ClassVar[int] = MAX_ERROR_BYTES
    call: Count
    status: Literal["completed", "failed", "cancelled", "interrupted"]
    error: TaskError | None = None
    index: Count | None = None


class JobWaits(JobMessage, frozen=True, array_like=True):
    """Why the items of a job wait, possibly for long: no worker runs their function.

    Attributes:
        call: The number of the `AttachJob`.
        reason: The reason, as text; empty: the items do not wait for that any more.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_WAITS
    call: Count
    reason: Text = ""


class CancelJob(JobMessage, frozen=True, array_like=True):
    """End a job, also on the workers."""

    KIND: ClassVar[MessageKind] = MessageKind.CANCEL_JOB


class Control(Message, frozen=True, array_like=True):
    """Request an action on a work item.

    Attributes:
        call: The answer repeats this number.
        action: The action.
        task_id: The item.
    """

    KIND: ClassVar[MessageKind] = MessageKind.CONTROL
    call: Count
    action: ControlAction
    task_id: Id


class ControlReply(Message, frozen=True, array_like=True):
    """The answer to a `Control`.

    Attributes:
        call: The number of the `Control`.
        code: 202: requested; 404: no such item; 409: not possible in the item's status.
        reason: The reason, as text.
    """

    KIND: ClassVar[MessageKind] = MessageKind.CONTROL_REPLY
    call: Count
    code: Count
    reason: Text = ""
