"""What an append file gets, how it is written in a session, and whether that fits what it has."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import msgspec

from .._util.arguments import shown
from .._util.errors import OutputError
from .._util.threads import run_blocking
from .._util.uninterrupted import shielded
from ..outputs import AppendFile, Compression, compression_of
from .rotation import Rotation


class StagedPiece(msgspec.Struct):
    """What a batch appends to a file; not compressed yet.

    Attributes:
        data: The bytes.
        header: What comes before them where they are the first of their file.
        has_json: Whether they are lines of JSON.
    """

    data: bytearray
    header: bytes = b""
    has_json: bool = False

    def extend(self, more: StagedPiece) -> None:
        """Append what another call has staged; the first header is that of the batch."""
        self.data.extend(more.data)
        self.header = self.header or more.header


class SinkKind(msgspec.Struct, frozen=True):
    """How an append file is written in a session.

    Attributes:
        compress: How it is compressed; None: not here, though its bytes may be already.
        rotate_bytes: A part of so many bytes gets no further piece; None: it has no parts.
    """

    compress: Compression | None
    rotate_bytes: int | None


@attrs.define(eq=False, repr=False)
class SinkWriter:
    """An append file, or one in parts, in this session.

    Attributes:
        kind: How it is written.
        make: Makes a compressed member of bytes; None: they stay as they are.
        rotation: The part that is written to; None: it has no parts.
        has_json: Whether lines of JSON are appended.
        has_checked: Whether the newest of its parts was checked.
    """

    kind: SinkKind
    make: Callable[[bytes | bytearray], bytes] | None
    rotation: Rotation | None
    has_json: bool = False
    has_checked: bool = False

    async def piece(self, data: bytes | bytearray) -> bytes:
        """What is appended for staged bytes; nothing for none."""
        if self.make is None or not data:
            return bytes(data)
        return await shielded(run_blocking, self.make, data)

    def check(self, sink: AppendFile) -> None:
        """Check that an earlier session has compressed the file in the same way.

        Raises:
            OutputError: it has not.
        """
        compress = self.kind.compress
        if sink.beginning and (compress is not None or self.has_json):
            has = compression_of(sink.beginning)
            if has != compress:
                raise OutputError(
                    sink.path,
                    f"was begun with compress={has!r}, so compress={compress!r} would make "
                    "it unreadable: give it another name",
                )


def bytes_of(data: bytes | bytearray | memoryview, name: str = "data") -> bytes:
    """A copy of the bytes of a buffer, which may change later; TypeError: it is none."""
    if isinstance(data, bytes):
        return data
    try:
        return bytes(memoryview(data))
    except TypeError as error:
        problem = f"{name} must be bytes or a buffer of them, not {shown(data)}"
        raise TypeError(problem) from error
