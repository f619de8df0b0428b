"""The messages between a worker and a foreman about work items."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from ..._journal.store import Checkpoint, Fold
from ..._util.errors import (
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
    StoreVersionError,
)
from ..._util.exceptions import class_name, text_of
from ..._util.plain import Plain
from .job_messages import TaskError
from .message import (
    MAX_ERROR_BYTES,
    MAX_GROUP,
    MAX_MESSAGE_BYTES,
    MAX_SEQUENCES,
    MAX_TEXT_CHARS,
    MIB,
    Count,
    Id,
    Lease,
    MessageKind,
    Name,
    TaskMessage,
    Text,
)


class AssignTask(TaskMessage, frozen=True, array_like=True):
    """A work item to start; an item that saves has a new run, of generation 0.

    Attributes:
        job_id: The item's job.
        index: The item's index in the job.
        function: ``module:function``, in a module that the worker allows.
        item: The argument of the function.
        attempt: 1 for the first attempt.
        interval_s: How often to save, at most; None: never.
        trace: The trace context that the job was submitted with.
    """

    KIND: ClassVar[MessageKind] = MessageKind.ASSIGN_TASK
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    job_id: Id
    index: Count
    function: Name
    item: Plain
    attempt: Count = 1
    interval_s: float | None = None
    trace: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class ResumeTask(AssignTask, frozen=True, array_like=True):
    """A work item to resume from its saved state in the foreman's store.

    Attributes:
        sequence: The sequence number of the newest record of its stream; 0: it has none yet.
        captured_at: When that record was saved; Unix time, s.
    """

    KIND: ClassVar[MessageKind] = MessageKind.RESUME_TASK
    sequence: Count = 0
    captured_at: float | None = None


class NewLease(TaskMessage, frozen=True, array_like=True):
    """A worker that reconnected continues an item, under this lease number.

    Attributes:
        was: The lease number that the worker named in its HELLO.
    """

    KIND: ClassVar[MessageKind] = MessageKind.LEASE
    was: Lease


class Cancel(TaskMessage, frozen=True, array_like=True):
    """The function is to end; its result does not count any more."""

    KIND: ClassVar[MessageKind] = MessageKind.CANCEL
    reason: Text = ""


class ReleaseTask(TaskMessage, frozen=True, array_like=True):
    """From the foreman: save and hand the item back.  From the worker: the item is handed back.

    Attributes:
        reason: The reason, as text.
        is_trouble: Whether the worker could not continue, rather than being asked to stop.
    """

    KIND: ClassVar[MessageKind] = MessageKind.RELEASE_TASK
    reason: Text = ""
    is_trouble: bool = False


class ForceCheckpoint(TaskMessage, frozen=True, array_like=True):
    """Save at the next point, however recent the last save is."""

    KIND: ClassVar[MessageKind] = MessageKind.FORCE_CHECKPOINT


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An error of a store.

    Attributes:
        code: The kind of error, see `FAULTS`.
        message: The text of the error.
    """

    code: Name
    message: Text


FAULTS: dict[str, type[Exception]] = {
    "conflict": StoreConflictError,
    "unknown": SaveOutcomeUnknownError,
    "damaged": StoreDamagedError,
    "version": StoreVersionError,
    "store": StoreError,
    "type": TypeError,
    "value": ValueError,
}
"""Code -> error class; the first match names an error, so leaves come before their root."""


def fault_of(error: Exception, *, chars: int = MAX_TEXT_CHARS) -> Fault:
    """Describe an error for the other side; an unexpected error is described by its class only.

    Args:
        error: The error.
        chars: The limit on the length of the text.
    """
    for code, kind in FAULTS.items():
        if isinstance(error, kind):
            return Fault(code, text_of(error)[:chars])
    return Fault("store", f"the foreman's store raised {class_name(error)}")


def error_of(fault: Fault) -> Exception:
    """Return the error that a fault describes."""
    return FAULTS.get(fault.code, StoreError)(fault.message)


class TaskCheckpoint(TaskMessage, frozen=True, array_like=True):
    """Checkpoints of a work item, to be made durable: `Store.save`.

    Attributes:
        call: The call number, repeated in the answer; unique in a connection.
        generation: The generation of the item's run.
        checkpoints: The checkpoints, in order.
        folds: See `Store.save`.
    """

    KIND: ClassVar[MessageKind] = MessageKind.TASK_CHECKPOINT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    generation: Count
    checkpoints: Annotated[tuple[Checkpoint, ...], msgspec.Meta(max_length=MAX_GROUP)]
    folds: Annotated[tuple[Fold, ...], msgspec.Meta(max_length=MAX_GROUP)] = ()


class CheckpointAck(TaskMessage, frozen=True, array_like=True):
    """Checkpoints are durable, or were not saved.

    Attributes:
        call: The number of the `TaskCheckpoint`.
        outcomes: One for each checkpoint; None: that checkpoint is durable.
        fault: Why nothing was saved; None: see `outcomes`.
    """

    KIND: ClassVar[MessageKind] = MessageKind.CHECKPOINT_ACK
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    outcomes: Annotated[tuple[Fault | None, ...], msgspec.Meta(max_length=MAX_GROUP)] = ()
    fault: Fault | None = None


class ReadRun(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """`Store.read_run`, of the item's run."""

    generation: Count | None = None


class ReadHistory(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """`Store.history`, of the item's run."""

    stream: str
    generation: Count | None = None
    cursor: Text | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000


BEGIN_AGAIN = msgspec.msgpack.encode(False)  # answers a part whose predecessor is missing


class PutBlob(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A part of a `Store.put_blob`; the parts come in order.

    Attributes:
        digest: SHA-256 of the whole blob, hexadecimal.
        size: Size of the whole blob, in bytes.
        offset: Where this part begins, in bytes.
        data: The part.
    """

    digest: Name
    size: Count
    offset: Count
    data: bytes


class ReadBlob(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """`Store.read_blob`."""

    digest: Name
    offset: Count
    size: Count | None


class DropBlobs(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """`Store.drop_blobs`, of the item's run."""

    generation: Count
    stream: str
    sequences: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_SEQUENCES)]


AnyCall = ReadRun | ReadHistory | PutBlob | ReadBlob | DropBlobs


class StoreCall(TaskMessage, frozen=True, array_like=True):
    """A call to the foreman's store, about the item's run.

    Attributes:
        call: The call number, repeated in the answers; unique in a connection.
        verb: The operation.
    """

    KIND: ClassVar[MessageKind] = MessageKind.STORE_CALL
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    verb: AnyCall


class StoreReply(TaskMessage, frozen=True, array_like=True):
    """A part of the answer to a call.

    Attributes:
        call: The number of the `StoreCall`.
        data: The part; all parts together are MessagePack.
        is_last: Whether this is the last part.
        fault: The error, instead of an answer.
    """

    KIND: ClassVar[MessageKind] = MessageKind.STORE_REPLY
    MAX_BYTES: ClassVar[int] = 2 * MIB
    call: Count
    data: bytes = b""
    is_last: bool = True
    fault: Fault | None = None


class TaskProgress(TaskMessage, frozen=True, array_like=True):
    """A worker's report on a running item.

    Attributes:
        percent: Progress of the item, 0 to 100.
        note: A line for the job's history.
    """

    KIND: ClassVar[MessageKind] = MessageKind.TASK_PROGRESS
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    note: Text | None = None


class TaskResult(TaskMessage, frozen=True, array_like=True):
    """The function has returned; its checkpoints are acknowledged.

    Attributes:
        value: The return value, JSON-like.
    """

    KIND: ClassVar[MessageKind] = MessageKind.TASK_RESULT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    value: Plain = None


class TaskFailed(TaskMessage, frozen=True, array_like=True):
    """The function raised an exception."""

    KIND: ClassVar[MessageKind] = MessageKind.TASK_FAILED
    MAX_BYTES: ClassVar[int] = MAX_ERROR_BYTES
    error: TaskError


class TaskAck(TaskMessage, frozen=True, array_like=True):
    """The foreman has handled the end of an item: the worker may forget it."""

    KIND: ClassVar[MessageKind] = MessageKind.TASK_ACK
