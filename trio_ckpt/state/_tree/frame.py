"""One saved state: a frame, complete by itself or the difference to the previous frame.

Theory of operation
===================

A frame is saved with a checkpoint.  It holds the tree of the state (`format.py`) or the
changes in it (`delta.py`), the layout of the arrays in their buffers, and the new blocks of
each buffer.  A few blocks are in the frame itself, more of them in a blob that the frame
names.

The frames of a stream are a chain.  Each has the digest of the frame that it follows, so that a
foreign, stale or altered one is detected; the lineage distinguishes the chains of one stream.
A *full* frame follows none.  Buffers are identified by name, the path of their first array, so
that one may come, go or change its size while the others are not saved again.

A frame is MessagePack, an array whose first item is the version; see `StateFrame` for the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from ..._util.errors import StoreDamagedError
from .delta import patch_tree
from .format import Tree, decode_tree

FRAME_VERSION = 1
LINEAGE_BYTES = 8
DIGEST_BYTES = 16
NO_PARENT = b""


class Patch(msgspec.Struct, frozen=True, array_like=True):
    """New blocks of one buffer.

    Attributes:
        buffer: Its number in the layout of the frame.
        ranges: The blocks, see `trio_ckpt.state._arrays.block_ranges`.
        offset: The offset of the first piece in the data of the frame.
        stored: The stored size of each piece in bytes, one after the other.
        sizes: The unpacked size of each piece in bytes.
        digests: XXH3-128 of each stored piece, joined.
    """

    buffer: int
    ranges: bytes
    offset: int
    stored: tuple[int, ...]
    sizes: tuple[int, ...]
    digests: bytes


MAX_SIDES = 64  # NumPy's own limit
MAX_BYTES = 2**47  # more than any process can address on today's machines

Kind = Literal[
    "numpy",
    "torch",
    "torch.parameter",
    "jax",
    "tensorflow",
    "tensorflow.variable",
]
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]
_Stride = Annotated[int, msgspec.Meta(ge=-MAX_BYTES, le=MAX_BYTES)]
_Sides = msgspec.Meta(max_length=MAX_SIDES)


class View(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array as a part of a buffer; see `trio_ckpt.state._arrays.buffers.check_view`.

    Attributes:
        kind: The kind of object.
        buffer: The number of its buffer; None: it has no bytes.
        dtype: See `trio_ckpt.state._arrays.dtypes`; ``torch:float32`` for those of torch.
        shape: The length of each dimension.
        strides: In bytes; they may be negative or 0.
        offset: The offset of its first element in the buffer, in bytes.
        writeable: Whether it may be written (NumPy), whether it has gradients (torch).
        device: The device that it is on.
    """

    kind: Kind
    buffer: _Size | None
    dtype: str | list[object]
    shape: Annotated[tuple[_Size, ...], _Sides]
    strides: Annotated[tuple[_Stride, ...], _Sides]
    offset: _Size
    writeable: bool
    device: Annotated[str, msgspec.Meta(max_length=100)]


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """The buffers of a state, and the layout of its arrays in them.

    Attributes:
        names: The names of the buffers: the path of the first array in each.
        sizes: Their sizes in bytes.
        views: The arrays.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    views: tuple[View, ...] = ()


NO_ARRAYS = Layout()


class StateFrame(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One saved state.

    Attributes:
        version: The version of this format.
        lineage: Random bytes that all frames of a chain have in common.
        number: 0 for the first of a chain, then ascending by 1.
        parent: The digest of the frame that this one follows; empty: it is full.
        tree: The whole tree in a full frame, else its delta, or nothing.
        layout: The layout of its arrays; None: that of its parent.
        patches: New blocks, ascending by their offsets.
        data: The stored bytes of the patches, if they are not in a blob.
        blob: The SHA-256 of their blob, hexadecimal, or empty.
        data_bytes: The length of either.
    """

    version: int = FRAME_VERSION
    lineage: bytes
    number: int
    parent: bytes
    tree: bytes
    layout: Layout | None
    patches: tuple[Patch, ...] = ()
    data: bytes = b""
    blob: str = ""
    data_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is complete by itself."""
        return self.parent == NO_PARENT


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StateFrame)


def new_lineage() -> bytes:
    """Return a random lineage for a new chain."""
    return os.urandom(LINEAGE_BYTES)


def encode_frame(frame: StateFrame) -> bytes:
    """Encode a frame."""
    return _encoder.encode(frame)


def frame_digest(payload: bytes) -> bytes:
    """Return the digest by which the next frame names this one (BLAKE2b, RFC 7693)."""
    return hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest()


def decode_frame(payload: bytes) -> StateFrame:
    """Decode a frame; its offsets and sizes are checked for consistency.

    Raises:
        StoreDamagedError: the bytes are not a frame.
    """
    try:
        frame = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise StoreDamagedError(f"a saved state cannot be read: {error}") from error
    if frame.version != FRAME_VERSION:
        raise StoreDamagedError(f"a saved state is of version {FRAME_VERSION}, not {frame.version}")
    if not _is_sound(frame):
        raise StoreDamagedError("a saved state is inconsistent")
    return frame


def _is_sound(frame: StateFrame) -> bool:
    layout = frame.layout or NO_ARRAYS
    return (
        len(frame.lineage) == LINEAGE_BYTES
        and len(frame.parent) in (0, DIGEST_BYTES)
        and frame.number >= 0
        and frame.is_full is (frame.number == 0)
        and (not frame.is_full or (frame.layout is not None and bool(frame.tree)))
        and len(layout.names) == len(layout.sizes) == len(set(layout.names))
        and min(layout.sizes, default=0) >= 0
        and (frame.data_bytes == len(frame.data) if not frame.blob else not frame.data)
        and all(_is_inside(patch, frame.data_bytes) for patch in frame.patches)
    )


def _is_inside(patch: Patch, data_bytes: int) -> bool:
    return (
        patch.buffer >= 0
        and patch.offset >= 0
        and len(patch.stored) == len(patch.sizes)
        and len(patch.digests) == DIGEST_BYTES * len(patch.stored)
        and min(patch.stored, default=1) > 0
        and min(patch.sizes, default=1) > 0
        and patch.offset + sum(patch.stored) <= data_bytes
    )


def tree_of(frames: Sequence[StateFrame]) -> Tree:
    """Return the tree at the end of a chain.

    Args:
        frames: The newest first, the last one full.

    Raises:
        StoreDamagedError: a delta does not fit.
    """
    tree = decode_tree(frames[-1].tree)
    for frame in reversed(frames[:-1]):
        if frame.tree:
            tree = patch_tree(tree, decode_tree(frame.tree))
    return tree


def layouts_of(frames: Sequence[StateFrame]) -> list[Layout]:
    """Return the layout of each frame of a chain, the newest first."""
    found: list[Layout] = []
    layout = NO_ARRAYS
    for frame in reversed(frames):
        layout = layout if frame.layout is None else frame.layout
        found.append(layout)
    return found[::-1]
