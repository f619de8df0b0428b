"""Frames: how messages are fragmented and reassembled.

Theory of operation
===================

A message is split into frames of at most `FRAME_BYTES`, so that no message waits behind more than
one frame of another: a heartbeat never waits behind 8 MiB.  Frames of several messages may be
interleaved; each frame names its message, the message's size and its own offset, so a reader
knows whether the message is over a limit before it keeps any byte.

Each frame has a checksum, CRC-32: Python has it built in, it runs at a gigabyte per second, and it
detects every burst of up to 32 bits.  It protects against damage; TLS protects against an
attacker.
"""

from __future__ import annotations

import struct
import zlib

import attrs

from .codec import MESSAGES
from .errors import RemoteProtocolError
from .message import MAX_SMALL_BYTES, MessageKind

FRAME_VERSION = 1
FRAME_BYTES = MAX_SMALL_BYTES  # of payload
HEADER = struct.Struct("<BBHIIII")  # version, kind, 0, number, size, offset, checksum
MAX_FRAME_BYTES = HEADER.size + FRAME_BYTES
MAX_PARTIAL = 256  # messages of which only some frames have arrived
_CHECKED = HEADER.size - 4  # bytes of the header under the checksum; the payload follows
_NUMBERS = 2**32  # message numbers wrap around


@attrs.frozen
class WireFrame:
    """One frame.

    Attributes:
        kind: The kind of its message.
        number: The number of its message: the same in all its frames, another in the next messages.
        size: Size of the whole message, in bytes.
        offset: Offset of the payload in the message, in bytes.
        payload: The bytes of this fragment.
    """

    kind: MessageKind
    number: int
    size: int
    offset: int
    payload: bytes | memoryview

    @property
    def is_first(self) -> bool:
        """Whether this is the first frame of its message."""
        return self.offset == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the last frame of its message."""
        return self.offset + len(self.payload) == self.size


def encode_frame(frame: WireFrame) -> bytes:
    """Return the bytes of a frame."""
    head = HEADER.pack(FRAME_VERSION, frame.kind, 0, frame.number, frame.size, frame.offset, 0)[
        :_CHECKED
    ]
    checksum = zlib.crc32(frame.payload, zlib.crc32(head))
    return b"".join((head, checksum.to_bytes(4, "little"), frame.payload))


def decode_frame(data: bytes) -> WireFrame:
    """The inverse of `encode_frame`; the sizes in the frame are checked against each other.

    Raises:
        RemoteProtocolError: the bytes are not a frame.
    """
    if not HEADER.size <= len(data) <= MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"{len(data):,} bytes are not a frame: the size is wrong")
    version, kind, zero, number, size, offset, checksum = HEADER.unpack_from(data)
    if version != FRAME_VERSION:
        raise RemoteProtocolError(f"a frame has version {version}, not {FRAME_VERSION}")
    if zlib.crc32(memoryview(data)[HEADER.size :], zlib.crc32(data[:_CHECKED])) != checksum:
        raise RemoteProtocolError("a frame was damaged in transit: its checksum does not match")
    if kind not in MESSAGES or zero:
        raise RemoteProtocolError(f"a frame has an unknown kind {kind} or flags {zero}")
    payload = memoryview(data)[HEADER.size :]
    if size > MESSAGES[MessageKind(kind)].MAX_BYTES:
        raise RemoteProtocolError(f"a {MessageKind(kind).name} of {size:,} bytes is over its limit")
    if offset + len(payload) > size or (not payload and size):
        raise RemoteProtocolError(f"a frame of a {MessageKind(kind).name} is outside its message")
    return WireFrame(MessageKind(kind), number, size, offset, payload)


@attrs.define(eq=False)
class Fragmenter:
    """Splits one message into frames."""

    kind: MessageKind
    number: int
    body: bytes
    _offset: int = attrs.field(default=0, init=False)
    is_over: bool = attrs.field(default=False, init=False)

    def next(self) -> bytes:
        """Return the next frame."""
        offset = self._offset
        payload = memoryview(self.body)[offset : offset + FRAME_BYTES]
        self._offset += len(payload)
        self.is_over = self._offset == len(self.body)
        return encode_frame(WireFrame(self.kind, self.number, len(self.body), offset, payload))


@attrs.define(eq=False)
class _Partial:
    kind: MessageKind
    size: int
    have: int = 0
    parts: list[bytes | memoryview] = attrs.field(factory=list[bytes | memoryview])


@attrs.define(eq=False)
class Reassembler:
    """Reassembles messages; its owner limits their total size."""

    _partial: dict[int, _Partial] = attrs.field(factory=dict[int, _Partial])

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, frame: WireFrame) -> bytes | None:
        """Add a frame; return the message's body if this frame completes it.

        Raises:
            RemoteProtocolError: the frame does not follow the one before; nothing has changed.
        """
        if frame.is_first and frame.is_last and frame.number not in self._partial:
            return bytes(frame.payload)
        partial = self._partial.get(frame.number)
        if partial is None:
            if not frame.is_first:
                raise RemoteProtocolError("the first frame of a message has an offset above 0")
            if len(self._partial) >= MAX_PARTIAL:
                raise RemoteProtocolError(f"more than {MAX_PARTIAL} messages are unfinished")
            partial = self._partial[frame.number] = _Partial(frame.kind, frame.size)
        if (frame.kind, frame.size, frame.offset) != (partial.kind, partial.size, partial.have):
            raise RemoteProtocolError("a frame does not follow the previous frame of its message")
        partial.parts.append(frame.payload)
        partial.have += len(frame.payload)
        if not frame.is_last:
            return None
        del self._partial[frame.number]
        return b"".join(partial.parts)


def next_number(number: int) -> int:
    """Return the number of the message after this one."""
    return (number + 1) % _NUMBERS
