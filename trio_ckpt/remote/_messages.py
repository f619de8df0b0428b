"""What a foreman and its peers say to each other: one struct per kind of message.

A message is a MessagePack array, the fields in the order of the struct.  A reader passes over
fields that it does not know at the end, so a later version may add some; what a field means
never changes.  What cannot be decoded, or is over a limit, is refused before anybody sees it.

docs/reference/wire-protocol.md has every field; a test compares it with this file.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from .._values import MAX_RUN_ID_CHARS
from ..abc import Checkpoint, Fold
from ._errors import ProtocolError

VERSIONS = (1,)  # of the protocol, that this library speaks

MAX_SECRET_BYTES = 1_024
MAX_NAME_CHARS = 200  # of a worker, a function, a module
MAX_TEXT_CHARS = 4_000  # of a reason or a message: enough to see what happened
MAX_TRACEBACK_CHARS = 20_000
MAX_ALLOWED = 100  # modules in a worker's list
MAX_SLOTS = 128  # work items of one worker at a time; all of them fit into its HELLO
MAX_JOB_ITEMS = 1_000_000
MAX_GROUP = 4_096  # checkpoints in one message; as the saver groups them
MAX_SEQUENCES = 100_000  # of one call
MAX_STEPS = 200_000  # of a set of indexes

MIB = 2**20
MAX_SMALL_BYTES = 64 * 1024  # one frame: all that a peer may send before it is let in
MAX_MESSAGE_BYTES = 8 * MIB  # larger things go in parts

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_RUN_ID_CHARS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Lease = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class Kind(enum.IntEnum):
    """The kinds of messages; the numbers never change."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    GOODBYE = 4
    HEARTBEAT = 5
    CREDIT = 6

    SUBMIT_JOB = 16
    JOB_ITEMS = 17
    JOB_ACCEPTED = 18
    JOB_REFUSED = 19
    ATTACH_JOB = 20
    JOB_RESULT = 21
    JOB_DONE = 22
    CANCEL_JOB = 23
    CONTROL = 24
    CONTROL_REPLY = 25

    ASSIGN_TASK = 32
    RESUME_TASK = 33
    LEASE = 34
    CANCEL = 35
    RELEASE_TASK = 36
    FORCE_CHECKPOINT = 37
    TASK_CHECKPOINT = 38
    CHECKPOINT_ACK = 39
    STORE_CALL = 40
    STORE_REPLY = 41
    TASK_PROGRESS = 42
    TASK_RESULT = 43
    TASK_FAILED = 44
    TASK_ACK = 45


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message.

    Attributes:
        KIND: Which.
        MAX_BYTES: How large its body may be.
    """

    KIND: ClassVar[Kind]
    MAX_BYTES: ClassVar[int] = MAX_SMALL_BYTES

    @property
    def lane(self) -> str:
        """What it is about: messages of one lane arrive in order; the empty one overtakes."""
        return ""


class JobMessage(Message, frozen=True, array_like=True):
    """One about a job."""

    job_id: Id

    @property
    def lane(self) -> str:
        return self.job_id


class TaskMessage(Message, frozen=True, array_like=True):
    """One about a work item that a worker has.

    Attributes:
        task_id: The item.
        lease: The number under which the worker has it: the fence.
    """

    task_id: Id
    lease: Lease

    @property
    def lane(self) -> str:
        return self.task_id


# ---------------------------------------------------------------------------------------
# Any peer
# ---------------------------------------------------------------------------------------


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A work item that a worker has when it connects again."""

    task_id: Id
    lease: Lease


class Hello(Message, frozen=True, array_like=True):
    """The first message of a peer.

    Attributes:
        versions: Of the protocol, that it speaks.
        role: What it is.
        secret: What lets it in.
        name: What people call it.
        peer_id: Random; the same for all connections of one process.
        slots: How many work items it takes at a time.
        allow: The modules whose functions it runs.
        held: What it is working at.
    """

    KIND: ClassVar[Kind] = Kind.HELLO
    versions: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=16)]
    role: Literal["worker", "client"]
    secret: Annotated[bytes, msgspec.Meta(max_length=MAX_SECRET_BYTES)]
    name: Name
    peer_id: Name
    slots: Annotated[int, msgspec.Meta(ge=0, le=MAX_SLOTS)] = 0
    allow: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_ALLOWED)] = ()
    held: Annotated[tuple[Held, ...], msgspec.Meta(max_length=MAX_SLOTS)] = ()


class Welcome(Message, frozen=True, array_like=True):
    """The peer is let in.

    Attributes:
        version: Of the protocol, from now on.
        heartbeat_s: Each side says something at least this often.
        silence_s: Who is silent for longer is gone.
        window_bytes: What may be on its way to the other side, not yet handled there.
    """

    KIND: ClassVar[Kind] = Kind.WELCOME
    version: Count
    heartbeat_s: Seconds
    silence_s: Seconds
    window_bytes: Annotated[int, msgspec.Meta(ge=MAX_MESSAGE_BYTES, le=2**31 - 1)]


class Refused(Message, frozen=True, array_like=True):
    """The peer is not let in; the connection ends."""

    KIND: ClassVar[Kind] = Kind.REFUSED
    code: Name
    reason: Text


class Goodbye(Message, frozen=True, array_like=True):
    """The last message of a side that leaves on purpose."""

    KIND: ClassVar[Kind] = Kind.GOODBYE
    reason: Text = ""


class Heartbeat(Message, frozen=True, array_like=True):
    """This side is there."""

    KIND: ClassVar[Kind] = Kind.HEARTBEAT


class Credit(Message, frozen=True, array_like=True):
    """So many bytes of messages are handled: as many more may come."""

    KIND: ClassVar[Kind] = Kind.CREDIT
    size: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


# ---------------------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------------------


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
    attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1
    backoff_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 1.0
    losses: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 5
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

    KIND: ClassVar[Kind] = Kind.SUBMIT_JOB
    function: Name
    options: JobOptions
    total: Annotated[int, msgspec.Meta(ge=0, le=MAX_JOB_ITEMS)]


class JobItems(JobMessage, frozen=True, array_like=True):
    """Some items of the job that is being submitted, in order.

    Attributes:
        first: The place of the first of them.
        items: JSON-like values.
    """

    KIND: ClassVar[Kind] = Kind.JOB_ITEMS
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    first: Count
    items: list[Any]


class JobAccepted(JobMessage, frozen=True, array_like=True):
    """The job is durable."""

    KIND: ClassVar[Kind] = Kind.JOB_ACCEPTED


class JobRefused(JobMessage, frozen=True, array_like=True):
    """The job is not taken, or is not there."""

    KIND: ClassVar[Kind] = Kind.JOB_REFUSED
    code: Name
    reason: Text


class AttachJob(JobMessage, frozen=True, array_like=True):
    """The results of a job are to be sent, those that are there and those that come.

    Attributes:
        call: What is sent because of this has the same number; a later one takes its place.
        have: The items whose results the client has; a set of indexes as it is stored.
    """

    KIND: ClassVar[Kind] = Kind.ATTACH_JOB
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

    KIND: ClassVar[Kind] = Kind.JOB_RESULT
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

    KIND: ClassVar[Kind] = Kind.JOB_DONE
    call: Count
    status: Literal["completed", "failed", "cancelled", "interrupted"]
    error: TaskError | None = None
    index: Count | None = None


class CancelJob(JobMessage, frozen=True, array_like=True):
    """The job is to end, on the workers, too."""

    KIND: ClassVar[Kind] = Kind.CANCEL_JOB


class Control(Message, frozen=True, array_like=True):
    """Something is to be done to a work item.

    Attributes:
        call: The answer has the same number.
        action: What.
        task_id: The item.
    """

    KIND: ClassVar[Kind] = Kind.CONTROL
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

    KIND: ClassVar[Kind] = Kind.CONTROL_REPLY
    call: Count
    code: Count
    reason: Text = ""


# ---------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------


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

    KIND: ClassVar[Kind] = Kind.ASSIGN_TASK
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    job_id: Id
    index: Count
    function: Name
    item: Any
    attempt: Count = 1
    interval_s: float | None = None
    trace: dict[str, str] = {}


class ResumeTask(AssignTask, frozen=True, array_like=True):
    """The same, to be gone on with from what the foreman's store has.

    Attributes:
        sequence: Of the newest record of its stream.
        captured_at: When that was saved; Unix time, s.
    """

    KIND: ClassVar[Kind] = Kind.RESUME_TASK
    sequence: Count = 0
    captured_at: float | None = None


class NewLease(TaskMessage, frozen=True, array_like=True):
    """A worker that came back goes on, under this number.

    Attributes:
        was: The number that it named in its HELLO.
    """

    KIND: ClassVar[Kind] = Kind.LEASE
    was: Lease


class Cancel(TaskMessage, frozen=True, array_like=True):
    """The function is to end; nothing of it counts any more."""

    KIND: ClassVar[Kind] = Kind.CANCEL
    reason: Text = ""


class ReleaseTask(TaskMessage, frozen=True, array_like=True):
    """From the foreman: save and hand back.  From the worker: that it did, or has ended it.

    Attributes:
        reason: Why, in words.
        is_trouble: The worker could not go on; it was not asked to.
    """

    KIND: ClassVar[Kind] = Kind.RELEASE_TASK
    reason: Text = ""
    is_trouble: bool = False


class ForceCheckpoint(TaskMessage, frozen=True, array_like=True):
    """Save at the next point, however long ago the last one was."""

    KIND: ClassVar[Kind] = Kind.FORCE_CHECKPOINT


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """An error of a store.

    Attributes:
        code: Which; see `trio_ckpt.remote._faults`.
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

    KIND: ClassVar[Kind] = Kind.TASK_CHECKPOINT
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

    KIND: ClassVar[Kind] = Kind.CHECKPOINT_ACK
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

    KIND: ClassVar[Kind] = Kind.STORE_CALL
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

    KIND: ClassVar[Kind] = Kind.STORE_REPLY
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

    KIND: ClassVar[Kind] = Kind.TASK_PROGRESS
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    note: Text | None = None


class TaskResult(TaskMessage, frozen=True, array_like=True):
    """The function has returned; its checkpoints are acknowledged.

    Attributes:
        value: What it returned, JSON-like.
    """

    KIND: ClassVar[Kind] = Kind.TASK_RESULT
    MAX_BYTES: ClassVar[int] = MAX_MESSAGE_BYTES
    value: Any = None


class TaskFailed(TaskMessage, frozen=True, array_like=True):
    """The function has raised."""

    KIND: ClassVar[Kind] = Kind.TASK_FAILED
    error: TaskError


class TaskAck(TaskMessage, frozen=True, array_like=True):
    """The last word on an item was taken: the worker may forget it."""

    KIND: ClassVar[Kind] = Kind.TASK_ACK


MESSAGES: dict[Kind, type[Message]] = {
    struct.KIND: struct
    for struct in (
        *(Hello, Welcome, Refused, Goodbye, Heartbeat, Credit),
        *(SubmitJob, JobItems, JobAccepted, JobRefused, AttachJob, JobResult, JobDone),
        *(CancelJob, Control, ControlReply),
        *(AssignTask, ResumeTask, NewLease, Cancel, ReleaseTask, ForceCheckpoint),
        *(TaskCheckpoint, CheckpointAck, StoreCall, StoreReply),
        *(TaskProgress, TaskResult, TaskFailed, TaskAck),
    )
}

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(struct) for kind, struct in MESSAGES.items()}


def encode_message(message: Message) -> bytes:
    """The body of a message.

    Raises:
        ProtocolError: it is over its limit, or holds what MessagePack does not.
    """
    try:
        body = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"{message.KIND.name} cannot be sent: {error}") from error
    if len(body) > message.MAX_BYTES:
        raise ProtocolError(
            f"{message.KIND.name} has {len(body):,} bytes, over {message.MAX_BYTES:,}"
        )
    return body


def decode_message(kind: Kind, body: bytes) -> Message:
    """The inverse of `encode_message`.

    Raises:
        ProtocolError: it is no message of this kind.
    """
    try:
        return _decoders[kind].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"a {kind.name} cannot be read: {error}") from error
