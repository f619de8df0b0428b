"""Frames: how messages travel, and how they are put together again.

Theory of operation
===================

A message is cut into frames of at most `FRAME_BYTES`, so that nothing that is sent waits behind
more than one of them: a heartbeat never behind 8 MiB.  Frames of several messages may come
mixed; each says whose it is, how large its message is and where in it it belongs, so a reader
knows before it keeps anything whether the message is over a limit.

Each frame has a checksum, CRC-32: it is in Python itself, runs at a gigabyte a second, and finds
every error of up to 32 bits in a row.  It is there against damage, not against an enemy; against
those there is TLS.
"""

from __future__ import annotations

import struct
import zlib

import attrs

from .errors import RemoteProtocolError
from .messages import MAX_SMALL_BYTES, MESSAGES, MessageKind

FRAME_VERSION = 1
FRAME_BYTES = MAX_SMALL_BYTES  # of payload
HEADER = struct.Struct("<BBHIIII")  # version, kind, 0, number, size, offset, checksum
MAX_FRAME_BYTES = HEADER.size + FRAME_BYTES
MAX_PARTIAL = 256  # messages of which some frames have come, and others not
_CHECKED = HEADER.size - 4  # of the header, what the checksum is of; the payload follows
_NUMBERS = 2**32  # message numbers begin again


@attrs.frozen
class WireFrame:
    """One frame.

    Attributes:
        kind: Of its message.
        number: Of its message: the same in all its frames, another in the next messages.
        size: Of the whole message, in bytes.
        offset: Of the payload in it.
        payload: The part.
    """

    kind: MessageKind
    number: int
    size: int
    offset: int
    payload: bytes | memoryview

    @property
    def is_first(self) -> bool:
        """Whether a message begins with it."""
        return self.offset == 0

    @property
    def is_last(self) -> bool:
        """Whether the message is whole with it."""
        return self.offset + len(self.payload) == self.size


def encode_frame(frame: WireFrame) -> bytes:
    """The bytes of a frame."""
    head = HEADER.pack(FRAME_VERSION, frame.kind, 0, frame.number, frame.size, frame.offset, 0)[
        :_CHECKED
    ]
    checksum = zlib.crc32(frame.payload, zlib.crc32(head))
    return b"".join((head, checksum.to_bytes(4, "little"), frame.payload))


def decode_frame(data: bytes) -> WireFrame:
    """The inverse of `encode_frame`; what it says of sizes is sound by itself.

    Raises:
        RemoteProtocolError: they are not the bytes of a frame.
    """
    if not HEADER.size <= len(data) <= MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame of {len(data):,} bytes is none")
    version, kind, zero, number, size, offset, checksum = HEADER.unpack_from(data)
    if version != FRAME_VERSION:
        raise RemoteProtocolError(f"a frame is of version {version}, not {FRAME_VERSION}")
    if zlib.crc32(memoryview(data)[HEADER.size :], zlib.crc32(data[:_CHECKED])) != checksum:
        raise RemoteProtocolError("a frame was damaged on the way: its checksum is another")
    if kind not in MESSAGES or zero:
        raise RemoteProtocolError(f"there are no messages of kind {kind}, flags {zero}")
    payload = memoryview(data)[HEADER.size :]
    if size > MESSAGES[MessageKind(kind)].MAX_BYTES:
        raise RemoteProtocolError(f"a {MessageKind(kind).name} of {size:,} bytes is over its limit")
    if offset + len(payload) > size or (not payload and size):
        raise RemoteProtocolError(f"a frame of a {MessageKind(kind).name} does not fit into it")
    return WireFrame(MessageKind(kind), number, size, offset, payload)


@attrs.define(eq=False)
class Fragmenter:
    """Cuts one message into frames."""

    kind: MessageKind
    number: int
    body: bytes
    _offset: int = attrs.field(default=0, init=False)
    is_over: bool = attrs.field(default=False, init=False)

    def next(self) -> bytes:
        """The next frame."""
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
    """Puts messages together; how much that may be is the affair of its owner."""

    _partial: dict[int, _Partial] = attrs.field(factory=dict[int, _Partial])

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, frame: WireFrame) -> bytes | None:
        """Take a frame; the body of its message if that is whole with it.

        Raises:
            RemoteProtocolError: it does not follow what came before; nothing has changed.
        """
        if frame.is_first and frame.is_last and frame.number not in self._partial:
            return bytes(frame.payload)
        partial = self._partial.get(frame.number)
        if partial is None:
            if not frame.is_first:
                raise RemoteProtocolError("a message begins in its middle")
            if len(self._partial) >= MAX_PARTIAL:
                raise RemoteProtocolError(f"over {MAX_PARTIAL} messages are unfinished")
            partial = self._partial[frame.number] = _Partial(frame.kind, frame.size)
        if (frame.kind, frame.size, frame.offset) != (partial.kind, partial.size, partial.have):
            raise RemoteProtocolError("a frame does not follow the one before it")
        partial.parts.append(frame.payload)
        partial.have += len(frame.payload)
        if not frame.is_last:
            return None
        del self._partial[frame.number]
        return b"".join(partial.parts)


def next_number(number: int) -> int:
    """The number of the message after this one."""
    return (number + 1) % _NUMBERS
