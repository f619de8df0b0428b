"""Converts arrays to the memory that they are in, and back.

Theory of operation
===================

`collect` turns array objects into *buffers*, contiguous runs of bytes over the arrays' own
memory, and *views*, which describe each array as a part of a buffer.  Arrays whose memory
overlaps, which their addresses show, are views of one buffer: memory is stored once, and aliased
arrays are aliased again.  An array with holes that overlaps no other is copied without
them; one that overlaps others keeps them, so the bytes in the holes are stored, too.

`rebuild` makes the arrays again over buffers that were read: writeable memory of their own.

A view that comes from a store is checked completely before it is used (`View.from_plain`): every
byte that it reaches lies inside its buffer.

An array of a NumPy subclass is refused, since it would lose what the subclass adds (such as the
mask of a masked array).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast, get_args

import attrs
import numpy as np

from ..._util.errors import NotEncodableError, StoreDamagedError, text_of
from .dtypes import Plain, describe_dtype, restore_dtype
from .frameworks import (
    Kind,
    Strided,
    build_other,
    build_torch,
    kind_of,
    open_torch,
    to_numpy,
    torch_itemsize,
)
from .memory import Bytes, address_of, allocate, memory_at, owner_of

MAX_SIDES = 64  # NumPy's own limit
MAX_BYTES = 2**47  # more than any process can address on today's machines
_MAX_TEXT = 100

_KINDS = frozenset(get_args(Kind))


@attrs.frozen(eq=False)
class Buffer:
    """A contiguous run of bytes that arrays are views of.

    Attributes:
        data: The bytes: the arrays' own memory, or a copy.
        owner: The owner of the memory, for the dirty-page tracker; None: see `reason`.
        root: The object, if it is immutable (`bytes`, an array of jax, a tensor of
            TensorFlow), else None.
        reason: Why the tracker cannot watch the memory, such as a copy's; empty: it may.
        itemsize: The size of the first array's elements in bytes, for the compressor.
    """

    data: Bytes = attrs.field(repr=False)
    owner: object = attrs.field(repr=False)
    root: object = attrs.field(repr=False)
    reason: str
    itemsize: int


@attrs.frozen
class View:
    """An array as a part of a buffer.

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
    buffer: int | None
    dtype: Plain
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    writeable: bool
    device: str = "cpu"

    def to_plain(self) -> list[Any]:
        """Return the view as a list of plain values."""
        sides = [list(self.shape), list(self.strides)]
        return [
            self.kind,
            self.buffer,
            self.dtype,
            *sides,
            self.offset,
            self.writeable,
            self.device,
        ]

    @classmethod
    def from_plain(cls, plain: object, sizes: Sequence[int]) -> View:
        """Decode the result of `to_plain`, for buffers of these sizes.

        Raises:
            StoreDamagedError: it is not a view, or it reaches outside of its buffer.
        """
        if not isinstance(plain, list | tuple) or len(cast("list[Any]", plain)) != 8:
            raise StoreDamagedError("a saved view of a buffer is not a row of eight")
        kind, buffer, dtype, shape, strides, offset, writeable, device = cast("list[Any]", plain)
        is_sound = (
            isinstance(kind, str)
            and kind in _KINDS
            and (buffer is None or (type(buffer) is int and 0 <= buffer < len(sizes)))
            and _are_whole(shape, 0)
            and _are_whole(strides, -MAX_BYTES)
            and len(shape) == len(strides)
            and _are_whole([offset], 0)
            and type(writeable) is bool
            and isinstance(device, str)
            and len(device) <= _MAX_TEXT
        )
        if not is_sound:
            raise StoreDamagedError("a saved view of a buffer has a value of the wrong type")
        sides = (tuple[int, ...](shape), tuple[int, ...](strides))
        view = cls(cast("Kind", kind), buffer, dtype, *sides, offset, writeable, device)
        low, high = view._reach(view.itemsize)
        room = 0 if buffer is None else sizes[buffer]
        if offset + low < 0 or offset + high > room:
            raise StoreDamagedError("a saved view reaches outside of its buffer")
        return view

    @property
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        if self.kind in ("torch", "torch.parameter"):
            return torch_itemsize(self.dtype if isinstance(self.dtype, str) else "")
        return restore_dtype(self.dtype).itemsize

    def _reach(self, itemsize: int) -> tuple[int, int]:
        """Return its extent relative to its first element, in Python's integers."""
        if math.prod(self.shape) > MAX_BYTES:
            raise StoreDamagedError("a saved view has more elements than there can be")
        if math.prod(self.shape) * itemsize == 0:
            return 0, 0
        return reach(self.shape, self.strides, itemsize)


def _are_whole(values: object, least: int) -> bool:
    if not isinstance(values, list | tuple):
        return False
    row = cast("list[Any]", values)
    return len(row) <= MAX_SIDES and all(type(v) is int and least <= v <= MAX_BYTES for v in row)


def reach(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Return the first byte and the end of an array with elements, relative to its first one."""
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    return sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + itemsize


@attrs.frozen(eq=False)
class Collected:
    """The result of `collect`: views in the order of the arrays, and their buffers."""

    buffers: list[Buffer]
    views: list[View]


@attrs.define(eq=False)
class _Leaf:
    """An array that is being assigned to a buffer."""

    kind: Kind
    dtype: Plain
    strided: Strided
    array: Any  # the ndarray; None for torch
    writeable: bool
    device: str = "cpu"
    owner: object = None
    root: object = None
    low: int = 0
    high: int = 0

    def __attrs_post_init__(self) -> None:
        s = self.strided
        if math.prod(s.shape) * s.itemsize:
            low, high = reach(s.shape, s.strides, s.itemsize)
            self.low, self.high = s.address + low, s.address + high

    def has_holes(self) -> bool:
        """Whether it skips bytes between its first and its last, and visits none twice."""
        s = self.strided
        if self.high - self.low <= math.prod(s.shape) * s.itemsize:
            return False
        inner = s.itemsize
        for stride, n in sorted((abs(st), n) for st, n in zip(s.strides, s.shape, strict=True)):
            if n > 1 and stride < inner:
                return False
            inner += (n - 1) * stride
        return True

    def view(self, number: int | None, offset: int, strides: tuple[int, ...]) -> View:
        shape = self.strided.shape
        return View(
            self.kind, number, self.dtype, shape, strides, offset, self.writeable, self.device
        )


def collect(arrays: Sequence[object], paths: Sequence[str] | None = None) -> Collected:
    """Return the buffers that arrays are in, and the arrays' views.

    Args:
        arrays: Arrays and tensors, not of objects.
        paths: The place of each one in the state, for messages.

    Raises:
        NotEncodableError: an array cannot be stored; the message has its path.
    """
    leaves: list[_Leaf] = []
    for number, value in enumerate(arrays):
        path = paths[number] if paths is not None else f"arrays[{number}]"
        try:
            leaves.append(_open(value))
        except ValueError as error:
            raise NotEncodableError(path, text_of(error)) from error
    views: dict[int, View] = {}
    buffers: list[Buffer] = []
    filled = [n for n, leaf in enumerate(leaves) if leaf.high > leaf.low]
    for cluster in _clusters(filled, leaves):
        buffers.append(_store(cluster, leaves, views, len(buffers)))
    empty = set(range(len(leaves))).difference(filled)
    views.update({n: leaves[n].view(None, 0, leaves[n].strided.strides) for n in empty})
    return Collected(buffers, [views[n] for n in range(len(leaves))])


def _open(value: Any) -> _Leaf:
    kind = kind_of(value)
    if kind in ("torch", "torch.parameter"):
        strided, dtype, device, has_gradient = open_torch(value)
        owner = strided.keep if device == "cpu" else None
        return _Leaf(kind, dtype, strided, None, has_gradient, device, owner)
    if kind is not None:
        found = to_numpy(value)
        root = value if kind in ("jax", "tensorflow") else None
        return _Leaf(kind, describe_dtype(found.dtype), _strided(found), found, False, root=root)
    if type(value) is not np.ndarray:
        name = type(value).__name__
        is_more = isinstance(value, np.ndarray)
        raise ValueError(f"a {name} is " + ("more than its elements" if is_more else "no array"))
    array: np.ndarray[Any, Any] = value
    owner = owner_of(array)
    return _Leaf(
        kind="numpy",
        dtype=describe_dtype(array.dtype),
        strided=_strided(array),
        array=array,
        writeable=bool(array.flags.writeable),
        owner=owner,
        root=owner if type(owner) is bytes else None,
    )


def _strided(array: np.ndarray[Any, Any]) -> Strided:
    return Strided(
        address=address_of(array),
        base=address_of(array),
        itemsize=array.dtype.itemsize,
        shape=array.shape,
        strides=array.strides,
        keep=array,
    )


def _clusters(numbers: list[int], leaves: list[_Leaf]) -> list[list[int]]:
    """Group leaves whose memory overlaps; in the order of the first leaf of each group."""
    found: list[list[int]] = []
    end = 0
    for number in sorted(numbers, key=lambda n: (leaves[n].low, n)):
        if found and leaves[number].low < end:
            found[-1].append(number)
            end = max(end, leaves[number].high)
        else:
            found.append([number])
            end = leaves[number].high
    return sorted(found, key=min)


def _store(cluster: list[int], leaves: list[_Leaf], views: dict[int, View], number: int) -> Buffer:
    """Return the buffer of overlapping leaves, and put their views into `views`."""
    first = leaves[min(cluster)]
    same = (first.strided.address, first.strided.shape, first.strided.strides)
    is_one = all(
        (leaves[n].strided.address, leaves[n].strided.shape, leaves[n].strided.strides) == same
        and leaves[n].strided.itemsize == first.strided.itemsize
        for n in cluster
    )
    if is_one and first.has_holes():
        data, strides = _without_holes(first.strided)
        for n in cluster:
            views[n] = leaves[n].view(number, 0, strides)
        reason = "it was copied without its holes"
        return Buffer(data, None, None, reason, first.strided.itemsize)
    low = min(leaves[n].low for n in cluster)
    # torch aligns elements to the beginning of the memory, so the buffer begins there, too.
    tensors = [leaves[n].strided for n in cluster if leaves[n].array is None]
    if any((strided.address - low) % strided.itemsize for strided in tensors):
        low = min(low, *(strided.base for strided in tensors))
    for n in cluster:
        strided = leaves[n].strided
        views[n] = leaves[n].view(number, strided.address - low, strided.strides)
    high = max(leaves[n].high for n in cluster)
    roots = {id(leaves[n].root): leaves[n].root for n in cluster}
    root = first.root if len(roots) == 1 else None
    data = memory_at(low, high - low, [leaves[n].strided.keep for n in cluster])
    reason = "its library copies it" if first.owner is None else ""
    return Buffer(data, first.owner, root, reason, first.strided.itemsize)


def _without_holes(strided: Strided) -> tuple[Bytes, tuple[int, ...]]:
    """Return the elements one after the other, axes in the order that they have in memory."""
    low, high = reach(strided.shape, strided.strides, strided.itemsize)
    memory = memory_at(strided.address + low, high - low, strided.keep)
    item = np.dtype((np.void, strided.itemsize))
    array = np.ndarray(strided.shape, item, memory, -low, strided.strides)
    copy = array.copy(order="K")
    return copy.ravel(order="K").view(np.uint8), copy.strides


# ---------------------------------------------------------------------------------------
# Restoring
# ---------------------------------------------------------------------------------------


def copies_of(arrays: Sequence[object], paths: Sequence[str]) -> list[object]:
    """Return copies of arrays in memory of their own, aliased among each other as the arrays are.

    Raises:
        NotEncodableError: an array cannot be stored; the message has its path.
    """
    collected = collect(arrays, paths)
    memory = [allocate(buffer.data.nbytes) for buffer in collected.buffers]
    for target, buffer in zip(memory, collected.buffers, strict=True):
        target[:] = buffer.data
    return rebuild(collected.views, memory)


def rebuild(views: Sequence[View], buffers: Sequence[Bytes]) -> list[object]:
    """Return the arrays over buffers from `trio_ckpt.state._arrays.memory.allocate`.

    The buffers become the arrays' memory; the caller must not write to them any more.

    Raises:
        StoreDamagedError: a view does not fit its buffer.
        StoreError: the library that an array needs is not installed.
    """
    return [_build(view, buffers) for view in views]


def _build(view: View, buffers: Sequence[Bytes]) -> object:
    memory = allocate(0) if view.buffer is None else buffers[view.buffer]
    if view.kind in ("torch", "torch.parameter"):
        return build_torch(
            view.kind,
            cast("str", view.dtype),
            memory,
            view.shape,
            view.strides,
            view.offset,
            view.device,
            view.writeable,
        )
    dtype = restore_dtype(view.dtype)
    try:
        if view.buffer is None:
            array = np.empty(view.shape, dtype)
        else:
            array = np.ndarray(view.shape, dtype, memory.data, view.offset, view.strides)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise StoreDamagedError(f"a saved array is invalid: {error}") from error
    if view.kind != "numpy":
        return build_other(view.kind, array)
    array.flags.writeable = view.writeable
    return array
