"""The kernel's side of dirty-page tracking: userfaultfd(2) and PAGEMAP_SCAN(2const), by ctypes.

Linux 6.7 can write-protect pages *asynchronously*: the kernel itself resolves the first write to
a protected page, by removing the protection.  ``PAGEMAP_SCAN`` lists
the pages without protection and protects them again, both in one step per page, so no write
falls between the two.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import weakref
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..._util.forks import close_unshared, open_unshared
from .memory import PAGE_BYTES, address_of

if sys.platform == "linux":
    import fcntl

# Syscall numbers: arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h.
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "loongarch64": 282}

# include/uapi/linux/userfaultfd.h.  The numbers hold on the machines above.
_UFFD_USER_MODE_ONLY = 1
_UFFD_API = 0xAA
_UFFD_FEATURE_WP_UNPOPULATED = 1 << 13  # 6.4: pages that were never touched are protected, too
_UFFD_FEATURE_WP_ASYNC = 1 << 15  # 6.7
_UFFDIO_API = 0xC018AA3F  # struct uffdio_api {u64 api, features, ioctls}
_UFFDIO_REGISTER = 0xC020AA00  # struct uffdio_register {u64 start, len, mode, ioctls}
_UFFDIO_REGISTER_MODE_WP = 1 << 1
_UFFDIO_UNREGISTER = 0x8010AA01  # struct uffdio_range {u64 start, len}
_UFFDIO_WRITEPROTECT = 0xC018AA06  # struct uffdio_writeprotect {u64 start, len, mode}
_UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

# include/uapi/linux/fs.h: struct pm_scan_arg, twelve u64: size, flags, start, end, walk_end,
# vec, vec_len, max_pages, category_inverted, category_mask, category_anyof_mask, return_mask.
_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_ARG = struct.Struct("12Q")
_WALK_END_OFFSET = 32
_PM_SCAN_WP_MATCHING = 1 << 0
_PM_SCAN_CHECK_WPASYNC = 1 << 1  # EPERM if anything in the range is not tracked
_PAGE_IS_WRITTEN = 1 << 1

_REGIONS_PER_SCAN = 16_384  # struct page_region {u64 start, end, categories}: 384 KiB


class Kernel(Protocol):
    """The kernel's functions for a tracker; all in bytes, all in whole pages."""

    def protect(self, start: int, nbytes: int) -> None:
        """Begin to track a range, with all its pages clean."""
        ...

    def scan(self, start: int, nbytes: int) -> npt.NDArray[np.intp]:
        """Return the indexes of the range's written pages, and make them clean."""
        ...

    def forget(self, start: int, nbytes: int) -> None:
        """Stop tracking a range."""
        ...

    def close(self) -> None:
        """Stop tracking all ranges."""
        ...


class LinuxKernel:
    """userfaultfd and PAGEMAP_SCAN.

    Raises:
        OSError: the kernel has no asynchronous write-protection, or forbids it.
    """

    def __init__(self) -> None:
        number = _SYS_USERFAULTFD.get(platform.machine()) if sys.platform == "linux" else None
        if number is None or sys.maxsize < 2**32:
            raise OSError(errno.ENOSYS, "dirty pages are tracked on 64-bit Linux only")
        libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_CLOEXEC | _UFFD_USER_MODE_ONLY
        self._uffd: int = open_unshared(libc.syscall, number, flags)
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd: " + os.strerror(ctypes.get_errno()))
        try:
            features = _UFFD_FEATURE_WP_ASYNC | _UFFD_FEATURE_WP_UNPOPULATED
            fcntl.ioctl(self._uffd, _UFFDIO_API, struct.pack("3Q", _UFFD_API, features, 0))
            flags = os.O_RDONLY | os.O_CLOEXEC
            self._pagemap = open_unshared(os.open, "/proc/self/pagemap", flags)
        except BaseException:
            close_unshared(self._uffd)
            raise
        self._closing = weakref.finalize(self, _close, self._uffd, self._pagemap)
        self._found = np.zeros((_REGIONS_PER_SCAN, 3), np.uint64)

    def protect(self, start: int, nbytes: int) -> None:
        register = struct.pack("4Q", start, nbytes, _UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, register)
        protect = struct.pack("3Q", start, nbytes, _UFFDIO_WRITEPROTECT_MODE_WP)
        fcntl.ioctl(self._uffd, _UFFDIO_WRITEPROTECT, protect)

    def scan(self, start: int, nbytes: int) -> npt.NDArray[np.intp]:
        # The kernel has a fast path for this mask, and it is the only one with
        # which pages dropped by madvise(2) count as written on every kernel.
        runs: list[npt.NDArray[np.intp]] = []
        at, end = start, start + nbytes
        while at < end:
            argument = bytearray(
                _PM_SCAN_ARG.pack(
                    _PM_SCAN_ARG.size,
                    _PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC,
                    at,
                    end,
                    0,
                    address_of(self._found),
                    _REGIONS_PER_SCAN,
                    0,
                    0,
                    _PAGE_IS_WRITTEN,
                    0,
                    _PAGE_IS_WRITTEN,
                )
            )
            count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, argument)
            bounds = (self._found[:count, :2] - np.uint64(start)) // np.uint64(PAGE_BYTES)
            runs.append(spread(bounds.astype(np.intp)))
            (walked,) = struct.unpack_from("Q", argument, _WALK_END_OFFSET)
            if walked <= at:
                raise OSError(errno.EIO, "PAGEMAP_SCAN makes no progress")
            at = walked
        return np.concatenate(runs)

    def forget(self, start: int, nbytes: int) -> None:
        fcntl.ioctl(self._uffd, _UFFDIO_UNREGISTER, struct.pack("2Q", start, nbytes))

    def close(self) -> None:
        self._closing()


def _close(uffd: int, pagemap: int) -> None:
    close_unshared(uffd)  # this ends every registration
    close_unshared(pagemap)


def spread(runs: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return the numbers in ``[first, end)`` of every run, in one array."""
    lengths = runs[:, 1] - runs[:, 0]
    if not len(runs):
        return np.empty(0, np.intp)
    shift = runs[:, 0] - np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return np.arange(lengths.sum(), dtype=np.intp) + np.repeat(shift, lengths)
