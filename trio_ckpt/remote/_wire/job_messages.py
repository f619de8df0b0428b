"""What a client and a foreman say to each other about jobs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec

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
    """What a function raised.

    Attributes:
        type: The name of its class.
        message: Its text.
        traceback: Where, for reading.
    """

    type: Name
    message: Text = ""
    traceback: Annotated[str, msgspec.Meta(max_length=MAX_TRACEBACK_CHARS)] = ""


MAX_ATTEMPTS = 1_000  # at an item; more is a loop without end
MAX_LOSSES = 1_000  # of workers by one item; more take all of them down


class JobOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a job is to be done; stored with it.

    Attributes:
        checkpoint_interval_s: How often a running item saves its state, at most; None: never.
        errors: "raise": the first item that fails for good fails the job.  "collect": it is
            recorded, and the others go on.
        attempts: How often an item is tried whose function raises.
        backoff_s: Before the second of them; doubled before each further one.
        losses: How many workers an item may take down.
        max_age_s: A saved state that was older than this when its worker was lost is not
            gone on from.
        keep_checkpoints: Whether saved states stay when their item is done.
        trace: Passed on to workers as it is: the context of a trace, say.
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
    """A job is to be done; its items follow.

    Attributes:
        function: ``module:function``.
        options: How.
        total: How many items there are.
    """

    KIND: ClassVar[MessageKind] = MessageKind.SUBMIT_JOB
    MAX_BYTES: ClassVar[int] = MAX_TRACE_BYTES
    function: Name
    options: JobOptions
    total: Annotated[int, msgspec.Meta(ge=0, le=MAX_JOB_ITEMS)]


class JobItems(JobMessage, frozen=True, array_like=True):
    """Some items of the job that is being submitted, in order.

    Attributes:
        first: The place of the first of them.
        items: JSON-like values.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_ITEMS
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    first: Count
    items: list[Any]


class JobAccepted(JobMessage, frozen=True, array_like=True):
    """The job is durable."""

    KIND: ClassVar[MessageKind] = MessageKind.JOB_ACCEPTED


class JobRefused(JobMessage, frozen=True, array_like=True):
    """The job is not taken, or is not there."""

    KIND: ClassVar[MessageKind] = MessageKind.JOB_REFUSED
    code: Name
    reason: Text


class AttachJob(JobMessage, frozen=True, array_like=True):
    """The results of a job are to be sent, those that are there and those that come.

    Attributes:
        call: What is sent because of this has the same number; a later one takes its place.
        have: The items whose results the client has; a set of indexes as it is stored.
    """

    KIND: ClassVar[MessageKind] = MessageKind.ATTACH_JOB
    MAX_BYTES: ClassVar[int] = 2 * MIB
    call: Count
    have: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()


class JobResult(JobMessage, frozen=True, array_like=True):
    """One item is done, and that is durable.

    Attributes:
        call: The number of the `AttachJob`.
        index: Its place.
        value: What its function returned.
        error: Why it was given up, if it was.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_RESULT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    index: Count
    value: Any = None
    error: TaskError | None = None


class JobDone(JobMessage, frozen=True, array_like=True):
    """A job has ended, and all its results are sent.

    Attributes:
        call: The number of the `AttachJob`.
        status: How.
        error: Why it failed, if it did.
        index: Of the item that it failed with, if with one.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_DONE
    MAX_BYTES: ClassVar[int] = MAX_ERROR_BYTES
    call: Count
    status: Literal["completed", "failed", "cancelled", "interrupted"]
    error: TaskError | None = None
    index: Count | None = None


class JobWaits(JobMessage, frozen=True, array_like=True):
    """Why the items of a job wait, where that may last: no worker runs its function.

    Attributes:
        call: The number of the `AttachJob`.
        reason: In words; empty: they wait for that no longer.
    """

    KIND: ClassVar[MessageKind] = MessageKind.JOB_WAITS
    call: Count
    reason: Text = ""


class CancelJob(JobMessage, frozen=True, array_like=True):
    """The job is to end, on the workers, too."""

    KIND: ClassVar[MessageKind] = MessageKind.CANCEL_JOB


class Control(Message, frozen=True, array_like=True):
    """Something is to be done to a work item.

    Attributes:
        call: The answer has the same number.
        action: What.
        task_id: The item.
    """

    KIND: ClassVar[MessageKind] = MessageKind.CONTROL
    call: Count
    action: Literal["force-checkpoint", "release", "cleanup"]
    task_id: Id


class ControlReply(Message, frozen=True, array_like=True):
    """Whether it is.

    Attributes:
        call: The number of the `Control`.
        code: 202: it was asked for; 404: no such item; 409: not as the item stands.
        reason: In words.
    """

    KIND: ClassVar[MessageKind] = MessageKind.CONTROL_REPLY
    call: Count
    code: Count
    reason: Text = ""
