"""All kinds of messages, and their bytes.

A message that cannot be decoded, or is over a limit, is refused before it is handled.

docs/reference/wire-protocol.md describes every field; a test compares it with the structs.
"""

from __future__ import annotations

import msgspec

from . import job_messages, message as messages, task_messages
from .errors import ProtocolError
from .message import Message, MessageKind

_FOUND = {
    struct.KIND: struct
    for module in (messages, job_messages, task_messages)
    for struct in vars(module).values()
    if isinstance(struct, type) and issubclass(struct, Message) and hasattr(struct, "KIND")
}
MESSAGES: dict[MessageKind, type[Message]] = {kind: _FOUND[kind] for kind in MessageKind}
"""The struct of each kind, as one of the three files defines it."""

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
