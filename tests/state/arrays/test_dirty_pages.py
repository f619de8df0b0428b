"""The tracker reports every page that was written; where it cannot be sure it says so."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest

from trio_ckpt.state._arrays import userfaultfd
from trio_ckpt.state._arrays.dirty_pages import DirtyPages, Tracker, Untracked, open_tracker
from trio_ckpt.state._arrays.memory import PAGE_BYTES, Bytes, address_of, memory_at, zeros

PAGES = 100
NBYTES = PAGES * PAGE_BYTES


@attrs.define(eq=False)
class ComparingKernel:
    """What the kernel does, by comparing with copies: for machines without the real one."""

    copies: dict[tuple[int, int], Bytes] = attrs.field(factory=dict)
    is_closed: bool = False

    def protect(self, start: int, nbytes: int) -> None:
        self.copies[start, nbytes] = memory_at(start, nbytes, None).copy()

    def scan(self, start: int, nbytes: int) -> npt.NDArray[np.intp]:
        if (start, nbytes) not in self.copies:
            raise OSError(errno.EPERM, "not registered")
        now = memory_at(start, nbytes, None).copy()
        differ = (now != self.copies[start, nbytes]).reshape(-1, PAGE_BYTES).any(axis=1)
        self.copies[start, nbytes] = now
        return np.flatnonzero(differ)

    def forget(self, start: int, nbytes: int) -> None:
        if self.copies.pop((start, nbytes), None) is None:
            raise OSError(errno.EINVAL, "not registered")

    def close(self) -> None:
        self.is_closed = True


class Blind(ComparingKernel):
    """Detects no write by the kernel itself, which the test sees on page 3."""

    def scan(self, start: int, nbytes: int) -> npt.NDArray[np.intp]:
        return np.setdiff1d(super().scan(start, nbytes), [3])


class Alarmist(ComparingKernel):
    """Reports pages that were not written."""

    def scan(self, start: int, nbytes: int) -> npt.NDArray[np.intp]:
        return np.union1d(super().scan(start, nbytes), [0, nbytes // PAGE_BYTES - 1])


@pytest.fixture(params=["kernel", "simulated"])
def tracker(request: pytest.FixtureRequest) -> Iterator[Tracker]:
    found = open_tracker(ComparingKernel() if request.param == "simulated" else None)
    if isinstance(found, Untracked):
        pytest.skip(found.reason)
    yield found
    found.close()


def pages_of(answer: DirtyPages | Untracked) -> list[int]:
    assert isinstance(answer, DirtyPages)
    assert answer.pages is not None
    return answer.pages.tolist()


def begin(tracker: Tracker, array: npt.NDArray[Any]) -> tuple[int, int]:
    answer = tracker.written(array)
    assert isinstance(answer, DirtyPages), answer
    return answer.region, answer.scan


def test_exactly_the_written_pages_are_reported(tracker: Tracker) -> None:
    array = zeros(NBYTES, np.uint8)
    at = begin(tracker, array)
    assert pages_of(tracker.written(array, *at)) == []
    array[5 * PAGE_BYTES] = array[-1] = 1
    array[7 * PAGE_BYTES - 1 : 7 * PAGE_BYTES + 1] = 1
    assert pages_of(tracker.written(array, *at)) == [5, 6, 7, PAGES - 1]


def test_a_scan_loses_nothing_for_an_earlier_scan(tracker: Tracker) -> None:
    """A save that failed needs no repair, and two chains may watch one array."""
    array = zeros(NBYTES, np.uint8)
    region, first = begin(tracker, array)
    array[PAGE_BYTES] = 1
    second = tracker.written(array, region, first)
    assert isinstance(second, DirtyPages)
    array[2 * PAGE_BYTES] = 1
    assert pages_of(tracker.written(array, region, second.scan)) == [2]
    assert pages_of(tracker.written(array, region, first)) == [1, 2]
    assert pages_of(tracker.written(array, region, second.scan)) == [2]


def test_writes_of_the_kernel_are_noticed(tmp_path: Path, tracker: Tracker) -> None:
    """readinto, preadv and recv_into into pages that are protected."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE_BYTES)
    array = zeros(NBYTES, np.uint8)
    at = begin(tracker, array)
    memory = memoryview(array)
    with path.open("rb", buffering=0) as file:
        assert file.readinto(memory[PAGE_BYTES : PAGE_BYTES + 10]) == 10
        os.preadv(file.fileno(), [memory[9 * PAGE_BYTES - 1 : 9 * PAGE_BYTES + 1]], 0)
    assert pages_of(tracker.written(array, *at)) == [1, 8, 9]
    assert bytes(array[PAGE_BYTES : PAGE_BYTES + 10]) == b"x" * 10


def test_writes_of_other_threads_are_noticed(tracker: Tracker) -> None:
    array = zeros(NBYTES, np.uint8)
    at = begin(tracker, array)
    thread = threading.Thread(target=array.fill, args=(1,))
    thread.start()
    thread.join()
    assert pages_of(tracker.written(array, *at)) == list(range(PAGES))


@pytest.mark.parametrize("seed", range(5))
def test_random_writes_agree_with_a_comparison(tracker: Tracker, seed: int) -> None:
    rng = random.Random(seed)
    array = zeros(NBYTES - rng.randrange(PAGE_BYTES), np.uint8)
    for _ in range(20):
        answer = tracker.written(array)
        assert isinstance(answer, DirtyPages)
        before = array.copy()
        for _ in range(rng.randrange(8)):
            start = rng.randrange(array.size)
            array[start : start + rng.randrange(3 * PAGE_BYTES)] = rng.randrange(256)
        differ = np.unique(np.flatnonzero(array != before) // PAGE_BYTES).tolist()
        reported = pages_of(tracker.written(array, answer.region, answer.scan))
        assert set(differ) <= set(reported)


def test_views_of_one_memory_share_its_region(tracker: Tracker) -> None:
    whole = zeros((PAGES, PAGE_BYTES), np.uint8)
    part = whole[10:80]
    at = begin(tracker, part)
    assert tracker.regions == 1
    whole[9], whole[10], whole[79], whole[80] = 1, 1, 1, 1
    assert pages_of(tracker.written(part, *at)) == [0, 69]
    begin(tracker, whole)
    assert tracker.regions == 1


def test_pages_that_belong_to_others_as_well_are_always_reported(tracker: Tracker) -> None:
    """An array that NumPy allocated begins and ends in the middle of a page."""
    array = np.zeros(4 * 2**20, np.uint8)
    phase = address_of(array) % PAGE_BYTES
    if not phase:
        pytest.skip("this allocator gives whole pages")
    at = begin(tracker, array)
    last = (phase + array.nbytes - 1) // PAGE_BYTES
    assert pages_of(tracker.written(array, *at)) == [0, last]
    array[2 * PAGE_BYTES - phase] = 1
    assert pages_of(tracker.written(array, *at)) == [0, 2, last]


def test_an_array_replaced_at_the_same_address_is_another_region(tracker: Tracker) -> None:
    array = zeros(NBYTES, np.uint8)
    region, _look = begin(tracker, array)
    address = address_of(array)
    for _ in range(20):  # the system gives the same place again, mostly
        del array
        gc.collect()
        array = zeros(NBYTES, np.uint8)
        answer = tracker.written(array, region, 10**6)
        assert isinstance(answer, DirtyPages)
        assert answer.region != region
        assert answer.pages is None
        if address_of(array) == address:
            break
    assert tracker.regions == 1


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mmap"), reason="no mmap here")
def test_memory_that_was_mapped_again_is_not_tracked_any_more() -> None:
    """mmap(2) with MAP_FIXED puts new pages where an array was, which no object reports."""
    found = open_tracker()
    if isinstance(found, Untracked):
        pytest.skip(found.reason)
    array = zeros(NBYTES, np.uint8)
    at = begin(found, array)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size, kind = ctypes.c_size_t(PAGE_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
    fixed = ctypes.c_void_p(address_of(array) + PAGE_BYTES)
    offset = ctypes.c_long(0)
    assert libc.mmap(fixed, size, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, offset) == fixed.value
    answer = found.written(array, *at)
    assert isinstance(answer, Untracked)
    assert "not tracked any more" in answer.reason
    found.close()


def test_memory_unmapped_behind_its_owner_is_no_longer_tracked() -> None:
    kernel = ComparingKernel()
    tracker = open_tracker(kernel)
    assert isinstance(tracker, Tracker)
    array = zeros(NBYTES, np.uint8)
    at = begin(tracker, array)
    kernel.copies.clear()  # as if the mapping was replaced
    answer = tracker.written(array, *at)
    assert isinstance(answer, Untracked)
    assert "not tracked any more" in answer.reason
    again = tracker.written(array, *at)
    assert isinstance(again, DirtyPages)
    assert again.pages is None


def mapped_file() -> npt.NDArray[np.uint8]:
    with tempfile.TemporaryFile() as file:
        file.truncate(NBYTES)
        return np.frombuffer(mmap.mmap(file.fileno(), NBYTES), np.uint8)


def shared() -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, NBYTES), np.uint8)


UNTRACKED: dict[str, tuple[Callable[[], npt.NDArray[np.uint8]], str]] = {
    "small": (lambda: zeros(2**17, np.uint8), "smaller than"),
    "a mapped file": (mapped_file, "shared memory or a mapped file"),
    "shared memory": (shared, "shared memory or a mapped file"),
    "read-only bytes": (lambda: np.frombuffer(bytes(NBYTES), np.uint8), "does not report its end"),
    "a bytearray": (lambda: np.frombuffer(bytearray(NBYTES), np.uint8), "does not report its end"),
}


@pytest.mark.parametrize(("make", "reason"), UNTRACKED.values(), ids=UNTRACKED.keys())
def test_memory_that_cannot_be_tracked_is_refused_with_the_reason(
    tracker: Tracker, make: Callable[[], npt.NDArray[np.uint8]], reason: str
) -> None:
    answer = tracker.written(make())
    assert isinstance(answer, Untracked)
    assert reason in answer.reason
    assert tracker.regions == 0


def test_a_fork_does_not_track(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    array = zeros(NBYTES, np.uint8)
    at = begin(tracker, array)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    answer = tracker.written(array, *at)
    assert isinstance(answer, Untracked)
    assert "fork" in answer.reason


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_fork_takes_nothing_from_its_parent(tracker: Tracker) -> None:
    array = zeros(NBYTES, np.uint8)
    at = begin(tracker, array)
    array[3 * PAGE_BYTES] = 1
    pid = os.fork()
    if not pid:
        array[5 * PAGE_BYTES] = 1
        os._exit(0 if isinstance(tracker.written(array, *at), Untracked) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    array[8 * PAGE_BYTES] = 1
    assert pages_of(tracker.written(array, *at)) == [3, 8]


def test_without_the_system_call_there_is_no_tracker_and_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(userfaultfd, "_SYS_USERFAULTFD", {})
    answer = open_tracker()
    assert isinstance(answer, Untracked)
    assert "64-bit Linux" in answer.reason


def test_without_permission_there_is_no_tracker_and_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(userfaultfd.fcntl, "ioctl", refuse)
    before = len(os.listdir("/proc/self/fd"))
    answer = open_tracker()
    assert isinstance(answer, Untracked)
    assert "no" in answer.reason
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("kernel", "reason"), [(Blind(), "not detected"), (Alarmist(), "just protected")]
)
def test_a_kernel_that_fails_its_test_is_not_used(kernel: ComparingKernel, reason: str) -> None:
    answer = open_tracker(kernel)
    assert isinstance(answer, Untracked)
    assert reason in answer.reason
    assert kernel.is_closed
    assert not kernel.copies


def test_everything_is_given_back(tracker: Tracker) -> None:
    arrays = [zeros(NBYTES, np.uint8) for _ in range(10)]
    for array in arrays:
        begin(tracker, array)
    assert tracker.regions == 10
    del array, arrays[:5]
    begin(tracker, arrays[0])
    assert tracker.regions == 5
    tracker.close()
    tracker.close()
    assert isinstance(tracker.written(arrays[0]), Untracked)
    del arrays[1:]  # the memory goes after the tracker
    arrays[0][:] = 1  # memory that is tracked no more is ordinary memory


def test_opening_and_closing_leaks_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        found = open_tracker()
        if isinstance(found, Tracker):
            begin(found, zeros(NBYTES, np.uint8))
            found.close()
    assert len(os.listdir("/proc/self/fd")) == before
