"""Converts arrays to the memory that they are in, and back.

Theory of operation
===================

`collect` turns array objects into *buffers*, contiguous runs of bytes over the arrays' own
memory, and *views*, which describe each array as a part of a buffer.  Arrays whose memory
overlaps, which their addresses show, are views of one buffer: memory is stored once, and aliased
arrays are aliased again.  An array with holes that overlaps no other is copied without
them; one that overlaps others keeps them, so the bytes in the holes are stored, too.

`rebuild` makes the arrays again over buffers that were read: writeable memory of their own.

A view that comes from a store is checked completely before it is used (`check_view`): every byte
that it reaches lies inside its buffer.

An array of a NumPy subclass is refused, since it would lose what the subclass adds (such as the
mask of a masked array).
"""

from __future__ import annotations

import math
import mmap
import operator
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import attrs
import numpy as np

from ..._util.errors import NotEncodableError, StoreDamagedError
from ..._util.exceptions import text_of
from .._tree.flatten import tensor_kind
from .._tree.frame import MAX_BYTES, Kind, View
from .dtypes import Plain, describe_dtype, restore_dtype
from .frameworks import (
    Strided,
    build_other,
    build_torch,
    open_torch,
    to_numpy,
    torch_itemsize,
)
from .memory import Array, Bytes, address_of, allocate, memory_at, owner_of


@attrs.define(eq=False, repr=False)  # frozen ones take three times as long to make, for each array
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


def check_view(view: View, sizes: Sequence[int]) -> None:
    """Check that a view which was read reaches nothing outside of its buffer.

    Args:
        view: The view; the types of its values are right.
        sizes: The sizes of all buffers in bytes.

    Raises:
        StoreDamagedError: it does, or has a dtype that is invalid.
    """
    is_there = view.buffer is None or view.buffer < len(sizes)
    if len(view.shape) != len(view.strides) or not is_there:
        raise StoreDamagedError("a saved view of a buffer is inconsistent")
    if math.prod(view.shape) > MAX_BYTES:  # in Python's integers
        raise StoreDamagedError("a saved view has more elements than there can be")
    low, high = 0, 0
    itemsize = itemsize_of(view)
    if math.prod(view.shape) * itemsize:
        low, high = reach(view.shape, view.strides, itemsize)
    room = 0 if view.buffer is None else sizes[view.buffer]
    if view.offset + low < 0 or view.offset + high > room:
        raise StoreDamagedError("a saved view reaches outside of its buffer")


def itemsize_of(view: View) -> int:
    """Return the size of an element in bytes.

    Raises:
        StoreDamagedError, StoreError: as for `restore_dtype`.
    """
    if view.kind in ("torch", "torch.parameter"):
        return torch_itemsize(view.dtype if isinstance(view.dtype, str) else "")
    return restore_dtype(view.dtype).itemsize


def reach(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Return the first byte and the end of an array with elements, relative to its first one."""
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    return sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + itemsize


_Alone: TypeAlias = "tuple[int, Array, Array, Plain]"  # number, array, owner, dtype


@attrs.frozen(eq=False, repr=False)
class Collected:
    """The result of `collect`: views in the order of the arrays, and their buffers."""

    buffers: list[Buffer]
    views: list[View]


@attrs.define(eq=False, repr=False)
class _Leaf:
    """An array that is being assigned to a buffer."""

    kind: Kind
    dtype: Plain
    strided: Strided
    array: Array | None  # None for torch
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
    alone: dict[int, _Alone] = {}  # by the id of the owner
    leaves: dict[int, _Leaf] = {}  # the others, by number
    number = 0
    try:
        for number, value in enumerate(arrays):
            owner = _sole_owner(value)
            if owner is None or id(owner) in alone:
                leaves[number] = _open(value)
            else:
                array = cast("Array", value)
                alone[id(owner)] = (number, array, owner, describe_dtype(array.dtype))
    except ValueError as error:
        path = paths[number] if paths is not None else f"arrays[{number}]"
        raise NotEncodableError(path, text_of(error)) from error
    owners = {id(leaf.owner) for leaf in leaves.values()}
    is_foreign = not all(_is_known(leaf.owner) for leaf in leaves.values() if leaf.high > leaf.low)
    for key in list(alone) if is_foreign else alone.keys() & owners:
        number, array, *_ = alone.pop(key)
        leaves[number] = _open(array)
    views = {n: leaf.view(None, 0, leaf.strided.strides) for n, leaf in leaves.items()}
    buffers: list[Buffer] = []
    groups: list[tuple[int, list[int] | _Alone]] = [(one[0], one) for one in alone.values()]
    if leaves:
        groups = sorted([*groups, *_clusters(leaves)], key=operator.itemgetter(0))
    for number, group in groups:
        if isinstance(group, list):
            buffers.append(_store(group, leaves, views, len(buffers)))
            continue
        _number, array, owner, dtype = group
        flags, at = array.flags, len(buffers)
        views[number] = View(
            "numpy", at, dtype, array.shape, array.strides, 0, flags.writeable, "cpu"
        )
        data = (array if flags.c_contiguous else array.T).reshape(-1).view(np.uint8)
        data.flags.writeable = False
        buffers.append(Buffer(data, owner, None, "", array.itemsize))
    return Collected(buffers, [views[n] for n in range(len(arrays))])


def _sole_owner(value: object) -> Array | None:
    """Return the array that owns the memory of an array without holes; None: it is another value.

    Memory that arrays own never overlaps, so most arrays need no comparison of addresses, which
    take ten times as long to find as all else here.
    """
    if type(value) is not np.ndarray:
        return None
    array: Array = value  # pyright: ignore[reportUnknownVariableType]
    if not array.flags.forc or not array.nbytes:
        return None
    owner = array.base
    if owner is None:
        return array if array.flags.owndata else None
    if type(owner) is not np.ndarray:
        return None
    found: Array = owner  # pyright: ignore[reportUnknownVariableType]
    return found if found.flags.owndata else None


def _is_known(owner: object) -> bool:
    """Return whether no other owner has a part of the memory of this one."""
    if type(owner) is np.ndarray:
        array: Array = owner
        return array.flags.owndata
    return type(owner) in (mmap.mmap, bytes, bytearray)


def _open(value: object) -> _Leaf:
    kind = tensor_kind(value)
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
    array: Array = value
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


def _strided(array: Array) -> Strided:
    return Strided(
        address=address_of(array),
        base=address_of(array),
        itemsize=array.dtype.itemsize,
        shape=array.shape,
        strides=array.strides,
        keep=array,
    )


def _clusters(leaves: Mapping[int, _Leaf]) -> list[tuple[int, list[int]]]:
    """Group the leaves with bytes whose memory overlaps; each group after its first number."""
    found: list[list[int]] = []
    end = 0
    filled = [number for number, leaf in leaves.items() if leaf.high > leaf.low]
    for number in sorted(filled, key=lambda n: (leaves[n].low, n)):
        if found and leaves[number].low < end:
            found[-1].append(number)
            end = max(end, leaves[number].high)
        else:
            found.append([number])
            end = leaves[number].high
    return [(min(cluster), cluster) for cluster in found]


def _store(
    cluster: list[int], leaves: Mapping[int, _Leaf], views: dict[int, View], number: int
) -> Buffer:
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
        return build_torch(view, memory)
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
