"""Finds the pages that were written since the last scan: the kernel's answer, without a hash.

Theory of operation
===================

The kernel protects pages against writes, and removes the protection at the first write.  A
*scan* lists the pages without protection and protects them again (`userfaultfd.py`).  A scan at
256 MiB costs 0.1 to 1 ms, a first write to a page about 1 us.  Sources: userfaultfd(2),
ioctl_userfaultfd(2), PAGEMAP_SCAN(2const), Documentation/admin-guide/mm/pagemap.rst.

The tracker watches *regions*: the whole pages of one piece of memory with one owner.  A
region stores for each of its pages the number of the scan that last found it written.  So
"written since scan e" is a comparison, a failed save has nothing to restore, and two chains
of saves may follow the same memory.

The law: more pages than were written may be reported, never fewer.  If the tracker cannot
be certain, it says so (`Untracked`, with the reason), and hashing takes over:

* the kernel has no such tracking, or forbids it; the self-test at the start did not detect a
  write by the program or one by the kernel (a file read into the page);
* the memory is shared or a file's: other processes write to it past the program's page table;
* the memory was freed: its owner is followed by a weak reference, and a scan refuses a range
  that is not registered any more (unmapped, moved, replaced);
* this process is a fork of the one that opened the tracker.

Pages at the ends that are shared with other memory are reported each time.  No
program can detect writes by devices to memory that they pinned before (RDMA, registered
io_uring buffers, pinned CUDA host memory).  Do not put such memory under the tracker.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import weakref
from collections import deque
from typing import Any, cast

import attrs
import numpy as np
import numpy.typing as npt

from .memory import PAGE_BYTES, Array, address_of, map_pages, owner_of
from .userfaultfd import Kernel, LinuxKernel

MIN_WATCHED_BYTES = 2**18
"""Smaller memory is hashed faster than it is scanned: each first write costs 1 us, each
scan a system call."""
TOO_SMALL = f"smaller than {MIN_WATCHED_BYTES} bytes"
MAX_REGIONS = 4096  # each splits a mapping, and vm.max_map_count is 65,530 by default


@attrs.frozen
class Untracked:
    """The tracker cannot answer, and why."""

    reason: str


@attrs.frozen
class DirtyPages:
    """The result of a scan.

    Attributes:
        region: The number of the region; a different number means different memory.
        scan: The number of this scan, for the next `Tracker.written`.
        pages: The pages written after the earlier scan, counted from the one in which
            the array begins; None: any may be, because that scan was at other memory.
    """

    region: int
    scan: int
    pages: npt.NDArray[np.intp] | None


@attrs.define(eq=False, repr=False)
class _Region:
    """One watched piece of memory: its whole pages, and when each was last found written."""

    number: int
    start: int
    pages: int
    owner: weakref.ref[object]
    scan: int
    written_at: npt.NDArray[np.uint32]


class Tracker:
    """Watches memory for writes; ends with `close`, and leaves nothing behind at exit.

    `open_tracker` makes and tests it.  Several threads may use it.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._regions: dict[tuple[int, int], _Region] = {}  # by first page and page count
        self._gone: deque[tuple[int, tuple[int, int]]] = deque()  # regions of freed owners
        self._next = 1
        self._is_open = True

    @property
    def regions(self) -> int:
        """The number of watched pieces of memory."""
        with self._lock:
            self._forget_gone()
            return len(self._regions)

    def written(
        self,
        array: Array,
        region: int | None = None,
        scan: int | None = None,
        *,
        owner: object = None,
    ) -> DirtyPages | Untracked:
        """Return the pages under a contiguous array that were written after `scan` at `region`.

        Begins to watch the memory if it is not watched.  Pages at the ends that also belong to
        other memory are always included.

        Args:
            array: A contiguous array.
            region: The region of an earlier answer about the same address.
            scan: The scan of that answer.
            owner: The object that keeps the memory alive, if NumPy does not know it.
        """
        if not self._is_open:
            return Untracked("the tracker is closed")
        if os.getpid() != self._pid:
            return Untracked("this process is a fork of the one that tracks")
        start, nbytes = address_of(array), array.nbytes
        if nbytes < MIN_WATCHED_BYTES:
            return Untracked(TOO_SMALL)
        if owner is None:
            owner = owner_of(array)
        low, high = _extent_of(owner, start, nbytes)
        first, end = -(-low // PAGE_BYTES), high // PAGE_BYTES  # the owner's whole pages
        with self._lock:
            watched = self._find(owner, first, end)
            if isinstance(watched, Untracked):
                return watched
            try:
                self._scan(watched)
            except OSError as error:
                self._drop(watched)
                return Untracked(f"the memory is not tracked any more: {error}")
            return self._answer(watched, start, nbytes, region, scan)

    def close(self) -> None:
        """Stop watching and release all resources.  A second call does nothing."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._regions.clear()
                self._kernel.close()

    def _find(self, owner: object, first: int, end: int) -> _Region | Untracked:
        """Return the region of these pages; a new one if none exists, or its owner is gone."""
        self._forget_gone()
        known = self._regions.get((first, end - first))
        if known is not None:
            return known
        if any(r.start < end and first < r.start + r.pages for r in self._regions.values()):
            return Untracked("other memory that is watched overlaps it")
        if len(self._regions) >= MAX_REGIONS:
            return Untracked(f"{MAX_REGIONS} pieces of memory are watched already")
        return self._begin(owner, first, end)

    def _forget_gone(self) -> None:
        """Drop the regions whose owners were freed, without a search through all others."""
        while self._gone:
            number, key = self._gone.popleft()
            region = self._regions.get(key)
            if region is not None and region.number == number:  # else it is already dropped
                del self._regions[key]

    def _begin(self, owner: object, first: int, end: int) -> _Region | Untracked:
        start, nbytes = first * PAGE_BYTES, (end - first) * PAGE_BYTES
        kernel, gone, number = self._kernel, self._gone, self._next

        def forget(_owner: object) -> None:
            """Record that the memory is about to be freed, and perhaps reused by another object."""
            gone.append((number, (first, end - first)))
            with contextlib.suppress(OSError):
                kernel.forget(start, nbytes)

        try:
            follow = weakref.ref(owner, forget)
        except TypeError:
            return Untracked(f"a {type(owner).__name__} does not report its end")
        problem = _why_not_private(start, start + nbytes)
        if problem is not None:
            return Untracked(problem)
        try:
            self._kernel.protect(start, nbytes)
        except OSError as error:
            return Untracked(f"the kernel does not track it: {error}")
        written_at = np.zeros(end - first, np.uint32)
        region = _Region(number, first, end - first, follow, 0, written_at)
        self._next += 1
        self._regions[first, end - first] = region
        return region

    def _scan(self, region: _Region) -> None:
        pages = self._kernel.scan(region.start * PAGE_BYTES, region.pages * PAGE_BYTES)
        region.scan += 1
        region.written_at[pages] = region.scan

    def _drop(self, region: _Region) -> None:
        del self._regions[region.start, region.pages]
        with contextlib.suppress(OSError):  # unmapped: then it is not registered any more
            self._kernel.forget(region.start * PAGE_BYTES, region.pages * PAGE_BYTES)

    def _answer(
        self, region: _Region, start: int, nbytes: int, number: int | None, scan: int | None
    ) -> DirtyPages:
        first, end = start // PAGE_BYTES, -(-(start + nbytes) // PAGE_BYTES)
        low, high = max(first, region.start), min(end, region.start + region.pages)
        if number != region.number or scan is None:
            return DirtyPages(region.number, region.scan, None)
        inside = region.written_at[low - region.start : high - region.start] > scan
        pages = np.flatnonzero(inside) + (low - first)
        ends = [np.arange(low - first), np.arange(high - first, end - first)]
        return DirtyPages(region.number, region.scan, np.concatenate((ends[0], pages, ends[1])))


def _extent_of(owner: object, start: int, nbytes: int) -> tuple[int, int]:
    """Return the extent of the memory that an array is in: its owner's, if that is known."""
    if isinstance(owner, np.ndarray):
        low, high = np.lib.array_utils.byte_bounds(cast("Array", owner))
        return int(low), int(high)
    try:
        whole = np.frombuffer(cast("Any", owner), np.uint8)
        low = address_of(whole)
        return low, _end_of_mapping(owner, low + whole.nbytes)
    except (TypeError, ValueError, BufferError):
        return start, start + nbytes


def _end_of_mapping(owner: object, end: int) -> int:
    """Round up to a page: the rest of the last page of a mapping has no other owner."""
    return -(-end // PAGE_BYTES) * PAGE_BYTES if type(owner).__name__ == "mmap" else end


def _why_not_private(start: int, end: int) -> str | None:
    """Return why a range cannot be tracked; None: all of it is private anonymous memory.

    Reads /proc/self/maps, see proc_pid_maps(5).
    """
    if end - start <= 0:
        return "it fills no page"
    covered = start
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            bounds, permissions, _offset, _device, inode, *_name = line.split(maxsplit=5)
            low, high = (int(part, 16) for part in bounds.split("-"))
            if high <= start or low >= end:
                continue
            if permissions[3] != "p" or inode != "0":
                return "it is shared memory or a mapped file"
            if permissions[1] != "w":
                return "it cannot be written"
            covered += min(high, end) - max(low, start)
    return None if covered == end else "it is not mapped"


def open_tracker(kernel: Kernel | None = None) -> Tracker | Untracked:
    """Return a tracker that passed its test here, or why there is none.

    Args:
        kernel: The kernel's interface; default: Linux.
    """
    try:
        kernel = kernel or LinuxKernel()
    except OSError as error:
        return Untracked(f"no dirty-page tracking: {error}")
    try:
        problem = _self_test(kernel)
    except OSError as error:
        problem = str(error)
    if problem is not None:
        kernel.close()
        return Untracked(f"the test of dirty-page tracking failed: {problem}")
    return Tracker(kernel)


def _self_test(kernel: Kernel) -> str | None:
    """Write to pages in every way, and check that each write is detected; None: all were."""
    memory = map_pages(4 * PAGE_BYTES)
    start, nbytes = address_of(memory), memory.nbytes
    memory[0] = 1
    kernel.protect(start, nbytes)
    try:
        if len(kernel.scan(start, nbytes)):
            return "pages that were just protected count as written"
        memory[0] = memory[PAGE_BYTES] = 2  # one page was touched before, the other was not
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(b"x")
            file.seek(0)
            file.readinto(memory.data[3 * PAGE_BYTES :])
        if kernel.scan(start, nbytes).tolist() != [0, 1, 3]:
            return "a write was not detected"
        if len(kernel.scan(start, nbytes)):
            return "pages stay written"
    finally:
        kernel.forget(start, nbytes)
    return None
