"""All kinds of messages, and their bytes.

A message that cannot be decoded, or is over a limit, is refused before it is handled.

docs/reference/wire-protocol.md describes every field; a test compares it with the structs.
"""

from __future__ import annotations

import msgspec

from .errors import ProtocolError
from .job_messages import (
    AttachJob,
    CancelJob,
    Control,
    ControlReply,
    JobAccepted,
    JobDone,
    JobItems,
    JobRefused,
    JobResult,
    JobWaits,
    SubmitJob,
)
from .message import (
    Credit,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    MessageKind,
    Refused,
    Slots,
    Welcome,
)
from .task_messages import (
    AssignTask,
    Cancel,
    CheckpointAck,
    ForceCheckpoint,
    NewLease,
    ReleaseTask,
    ResumeTask,
    StoreCall,
    StoreReply,
    TaskAck,
    TaskCheckpoint,
    TaskFailed,
    TaskProgress,
    TaskResult,
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
