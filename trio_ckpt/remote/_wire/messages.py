"""The messages between a foreman and its peers: one struct per kind.

A message that cannot be decoded, or is over a limit, is refused before it is handled.

docs/reference/wire-protocol.md describes every field; a test compares it with these structs.
"""

from __future__ import annotations

import msgspec

from .errors import ProtocolError
from .job_messages import (
    MAX_ATTEMPTS as MAX_ATTEMPTS,
    MAX_LOSSES as MAX_LOSSES,
    AttachJob as AttachJob,
    CancelJob as CancelJob,
    Control as Control,
    ControlReply as ControlReply,
    JobAccepted as JobAccepted,
    JobDone as JobDone,
    JobItems as JobItems,
    JobOptions as JobOptions,
    JobRefused as JobRefused,
    JobResult as JobResult,
    JobWaits as JobWaits,
    SubmitJob as SubmitJob,
    TaskError as TaskError,
)
from .message import (
    MAX_ALLOW_BYTES as MAX_ALLOW_BYTES,
    MAX_ALLOWED as MAX_ALLOWED,
    MAX_FOLLOWED as MAX_FOLLOWED,
    MAX_GROUP as MAX_GROUP,
    MAX_JOB_ITEMS as MAX_JOB_ITEMS,
    MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS as MAX_NAME_CHARS,
    MAX_SECRET_BYTES as MAX_SECRET_BYTES,
    MAX_SEQUENCES as MAX_SEQUENCES,
    MAX_SLOTS as MAX_SLOTS,
    MAX_SMALL_BYTES as MAX_SMALL_BYTES,
    MAX_STEPS as MAX_STEPS,
    MAX_SUBMISSIONS as MAX_SUBMISSIONS,
    MAX_TEXT_CHARS as MAX_TEXT_CHARS,
    MAX_TRACEBACK_CHARS as MAX_TRACEBACK_CHARS,
    MIB as MIB,
    VERSIONS as VERSIONS,
    Count as Count,
    Credit as Credit,
    Goodbye as Goodbye,
    Heartbeat as Heartbeat,
    HeldItem as HeldItem,
    Hello as Hello,
    Id as Id,
    JobMessage as JobMessage,
    Lease as Lease,
    Message as Message,
    MessageKind as MessageKind,
    Name as Name,
    Refused as Refused,
    Seconds as Seconds,
    Slots as Slots,
    TaskMessage as TaskMessage,
    Text as Text,
    Welcome as Welcome,
)
from .task_messages import (
    BEGIN_AGAIN as BEGIN_AGAIN,
    AnyCall as AnyCall,
    AssignTask as AssignTask,
    Cancel as Cancel,
    CheckpointAck as CheckpointAck,
    DropBlobs as DropBlobs,
    Fault as Fault,
    ForceCheckpoint as ForceCheckpoint,
    NewLease as NewLease,
    PutBlob as PutBlob,
    ReadBlob as ReadBlob,
    ReadHistory as ReadHistory,
    ReadRun as ReadRun,
    ReleaseTask as ReleaseTask,
    ResumeTask as ResumeTask,
    StoreCall as StoreCall,
    StoreReply as StoreReply,
    TaskAck as TaskAck,
    TaskCheckpoint as TaskCheckpoint,
    TaskFailed as TaskFailed,
    TaskProgress as TaskProgress,
    TaskResult as TaskResult,
)

MESSAGES: dict[MessageKind, type[Message]] = {
    struct.KIND: struct
    for struct in (
        *(Hello, Welcome, Refused, Goodbye, Heartbeat, Credit, Slots),
        *(SubmitJob, JobItems, JobAccepted, JobRefused, AttachJob, JobResult, JobDone),
        *(CancelJob, Control, ControlReply, JobWaits),
        *(AssignTask, ResumeTask, NewLease, Cancel, ReleaseTask, ForceCheckpoint),
        *(TaskCheckpoint, CheckpointAck, StoreCall, StoreReply),
        *(TaskProgress, TaskResult, TaskFailed, TaskAck),
    )
}

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(struct) for kind, struct in MESSAGES.items()}


def encode_message(message: Message) -> bytes:
    """Return the body of a message.

    Raises:
        ProtocolError: the body is over its limit, or has a value that MessagePack cannot hold.
    """
    try:
        body = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"{message.KIND.name} cannot be sent: {error}") from error
    if len(body) > message.MAX_BYTES:
        raise ProtocolError(
            f"{message.KIND.name} has {len(body):,} bytes, over its limit of {message.MAX_BYTES:,}"
        )
    return body


def decode_message(kind: MessageKind, body: bytes) -> Message:
    """The inverse of `encode_message`.

    Raises:
        ProtocolError: the bytes are not a message of this kind.
    """
    try:
        return _decoders[kind].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"a {kind.name} message cannot be decoded: {error}") from error
