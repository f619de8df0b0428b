"""What a worker and a foreman say to each other about work items."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from ..._journal.store import Checkpoint, Fold
from .job_messages import (
    TaskError,
)
from .message import (
    MAX_ERROR_BYTES,
    MAX_GROUP,
    MAX_MESSAGE_BYTES,
    MAX_SEQUENCES,
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
    """A work item, to be begun.

    Attributes:
        job_id: Its job.
        index: Its place there.
        function: ``module:function``, one that the worker allows.
        item: What the function gets.
        attempt: 1 for the first try.
        interval_s: How often to save, at most; None: never.
        trace: As the job was submitted with.
    """

    KIND: ClassVar[MessageKind] = MessageKind.ASSIGN_TASK
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    job_id: Id
    index: Count
    function: Name
    item: Any
    attempt: Count = 1
    interval_s: float | None = None
    trace: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class ResumeTask(AssignTask, frozen=True, array_like=True):
    """The same, to be gone on with from what the foreman's store has.

    Attributes:
        sequence: Of the newest record of its stream.
        captured_at: When that was saved; Unix time, s.
    """

    KIND: ClassVar[MessageKind] = MessageKind.RESUME_TASK
    sequence: Count = 0
    captured_at: float | None = None


class NewLease(TaskMessage, frozen=True, array_like=True):
    """A worker that came back goes on, under this number.

    Attributes:
        was: The number that it named in its HELLO.
    """

    KIND: ClassVar[MessageKind] = MessageKind.LEASE
    was: Lease


class Cancel(TaskMessage, frozen=True, array_like=True):
    """The function is to end; nothing of it counts any more."""

    KIND: ClassVar[MessageKind] = MessageKind.CANCEL
    reason: Text = ""


class ReleaseTask(TaskMessage, frozen=True, array_like=True):
    """From the foreman: save and hand back.  From the worker: that it did, or has ended it.

    Attributes:
        reason: Why, in words.
        is_trouble: The worker could not go on; it was not asked to.
    """

    KIND: ClassVar[MessageKind] = MessageKind.RELEASE_TASK
    reason: Text = ""
    is_trouble: bool = False


class ForceCheckpoint(TaskMessage, frozen=True, array_like=True):
    """Save at the next point, however long ago the last one was."""

    KIND: ClassVar[MessageKind] = MessageKind.FORCE_CHECKPOINT


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An error of a store.

    Attributes:
        code: Which; see `trio_ckpt.remote._wire.faults`.
        message: Its text.
    """

    code: Name
    message: Text


class TaskCheckpoint(TaskMessage, frozen=True, array_like=True):
    """Checkpoints of a work item, to be made durable: `Store.save`.

    Attributes:
        call: The answer has the same number; unique in a connection.
        generation: Of the item's run.
        checkpoints: In order.
        folds: See `Store.save`.
    """

    KIND: ClassVar[MessageKind] = MessageKind.TASK_CHECKPOINT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    generation: Count
    checkpoints: Annotated[tuple[Checkpoint, ...], msgspec.Meta(max_length=MAX_GROUP)]
    folds: Annotated[tuple[Fold, ...], msgspec.Meta(max_length=MAX_GROUP)] = ()


class CheckpointAck(TaskMessage, frozen=True, array_like=True):
    """They are durable, or why not.

    Attributes:
        call: The number of the `TaskCheckpoint`.
        outcomes: One for each checkpoint; None: it is durable.
        fault: Nothing was saved, because of this.
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


BEGIN_AGAIN = msgspec.msgpack.encode(False)  # the answer to a part whose predecessor is not there


class PutBlob(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A part of a `Store.put_blob`; the parts come in order.

    Attributes:
        digest: Of the whole, hexadecimal.
        size: Of the whole.
        offset: Of this part.
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
    """A question to the foreman's store, about the item's run.

    Attributes:
        call: The answers have the same number; unique in a connection.
        verb: What is asked.
    """

    KIND: ClassVar[MessageKind] = MessageKind.STORE_CALL
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    call: Count
    verb: AnyCall


class StoreReply(TaskMessage, frozen=True, array_like=True):
    """A part of the answer.

    Attributes:
        call: The number of the `StoreCall`.
        data: The part; MessagePack, all parts together.
        is_last: Whether it was the last one.
        fault: Instead of an answer.
    """

    KIND: ClassVar[MessageKind] = MessageKind.STORE_REPLY
    MAX_BYTES: ClassVar[int] = 2 * MIB
    call: Count
    data: bytes = b""
    is_last: bool = True
    fault: Fault | None = None


class TaskProgress(TaskMessage, frozen=True, array_like=True):
    """What a worker says of a running item.

    Attributes:
        percent: How far it is, 0 to 100.
        note: For the job's history.
    """

    KIND: ClassVar[MessageKind] = MessageKind.TASK_PROGRESS
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    note: Text | None = None


class TaskResult(TaskMessage, frozen=True, array_like=True):
    """The function has returned; its checkpoints are acknowledged.

    Attributes:
        value: What it returned, JSON-like.
    """

    KIND: ClassVar[MessageKind] = MessageKind.TASK_RESULT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    value: Any = None


class TaskFailed(TaskMessage, frozen=True, array_like=True):
    """The function has raised."""

    KIND: ClassVar[MessageKind] = MessageKind.TASK_FAILED
    MAX_BYTES: ClassVar[int] = MAX_ERROR_BYTES
    error: TaskError


class TaskAck(TaskMessage, frozen=True, array_like=True):
    """The last word on an item was taken: the worker may forget it."""

    KIND: ClassVar[MessageKind] = MessageKind.TASK_ACK
