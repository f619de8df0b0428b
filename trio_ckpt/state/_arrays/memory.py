"""Memory in whole pages: anonymous mappings as NumPy arrays.

A private anonymous mapping begins at a page, belongs to one array alone, and is freed with the
last view of it.  The dirty-page tracker can watch such memory (`dirty_pages.py`), the staging arena
is cut from it (`arena.py`), and a state is restored into it (`buffers.py`).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import operator
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Array: TypeAlias = npt.NDArray[Any]  # of any dtype

PAGE_BYTES = mmap.PAGESIZE
HUGE_PAGE_BYTES = 2**21  # on x86-64 and on arm64 with 4 KiB pages; a hint elsewhere
MAPPED_FROM_BYTES = 2**16
"""Below this an array gets no mapping of its own: a process may have 65,530 mappings
(vm.max_map_count), and a state may have a hundred thousand small arrays."""


def map_pages(nbytes: int) -> Bytes:
    """Return zeroed memory, `nbytes` long, beginning at a page; freed with its last view.

    No page is in memory before it is touched.  For 2 MiB and more it asks the kernel for huge
    pages, which take a fifth of the time to touch.
    """
    if not nbytes:
        return np.empty(0, np.uint8)
    if sys.platform == "win32":
        mapping = mmap.mmap(-1, nbytes)
    else:
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them uses small pages
                mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


def allocate(nbytes: int) -> Bytes:
    """Return zeroed memory for an array of `nbytes`: whole pages unless it is small."""
    return map_pages(nbytes) if nbytes >= MAPPED_FROM_BYTES else np.zeros(nbytes, np.uint8)


def owner_of(array: Array) -> object:
    """Return the object at the end of an array's chain of bases, which owns its memory."""
    owner: object = array
    while (inner := _base_of(owner)) is not None:
        owner = inner
    return owner


def _base_of(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.base
    return cast("memoryview", value).obj if isinstance(value, memoryview) else None


def address_of(array: Array) -> int:
    """Return the address of an array's first element."""
    return int(array.__array_interface__["data"][0])


class _BorrowedMemory:
    """Memory of another owner for NumPy, kept alive: the array interface, version 3."""

    def __init__(self, address: int, nbytes: int, keep: object) -> None:
        self.keep = keep
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # read-only
            "shape": (nbytes,),
            "typestr": "|u1",
        }


def memory_at(address: int, nbytes: int, keep: object) -> Bytes:
    """Return read-only bytes over another owner's memory; they keep `keep` alive."""
    return np.asarray(_BorrowedMemory(address, nbytes, keep))


# ---------------------------------------------------------------------------------------
# For users: arrays that the dirty-page tracker can watch
# ---------------------------------------------------------------------------------------

Shape = int | Sequence[int]


def empty(shape: Shape, dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C") -> Array:
    """Return an array like `numpy.empty`, beginning at a page, in memory of its own.

    The kernel can track its writes, so saving what changed in it costs next to
    nothing.  Small arrays (under 64 KiB) are ordinary arrays.

    Raises:
        ValueError: the dtype holds Python objects.
    """
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"dtype {kind} holds Python objects: they cannot be in pages")
    sides = (operator.index(shape),) if not isinstance(shape, Sequence) else tuple(shape)
    nbytes = math.prod(sides) * kind.itemsize
    if nbytes < MAPPED_FROM_BYTES:
        return np.empty(sides, kind, order)
    return np.ndarray(sides, kind, buffer=map_pages(nbytes).data, order=order)


def zeros(shape: Shape, dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C") -> Array:
    """Return an array of zeros like `numpy.zeros`, in pages as for `empty`."""
    return full(shape, 0, dtype, order)


def ones(shape: Shape, dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C") -> Array:
    """Return an array of ones like `numpy.ones`, in pages as for `empty`."""
    return full(shape, 1, dtype, order)


def full(
    shape: Shape, value: object, dtype: npt.DTypeLike | None = None, order: Literal["C", "F"] = "C"
) -> Array:
    """Return an array filled with `value` like `numpy.full`, in pages as for `empty`."""
    result = empty(shape, np.asarray(value).dtype if dtype is None else dtype, order)
    result[...] = value
    return result


def array(values: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Array:
    """Return a copy of `values` like `numpy.array`, in pages as for `empty`."""
    source = np.asarray(values, dtype)
    is_fortran = source.flags.f_contiguous and not source.flags.c_contiguous
    result = empty(source.shape, source.dtype, "F" if is_fortran else "C")
    result[...] = source
    return result
