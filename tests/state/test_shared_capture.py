"""One arena, one tracker and one compressor for all streams of a run."""

from __future__ import annotations

import errno
import functools
import gc
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import trio

from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import Run
from trio_ckpt._runs.run import open_run_of
from trio_ckpt.abc import RunKey
from trio_ckpt.state import zeros
from trio_ckpt.state._arrays import engine
from trio_ckpt.state._arrays.arena import SLAB_BYTES, Arena, ArenaClosedError
from trio_ckpt.state._arrays.dirty_pages import MIN_WATCHED_BYTES, Tracker
from trio_ckpt.state._arrays.memory import PAGE_BYTES
from trio_ckpt.stores import MemoryStore


@attrs.define(eq=False)
class Kernel:
    """Reports every page as written, and knows how many pieces of memory it protects."""

    protected: set[tuple[int, int]] = attrs.field(factory=set)
    is_closed: bool = False

    def protect(self, start: int, nbytes: int) -> None:
        self.protected.add((start, nbytes))

    def scan(self, start: int, nbytes: int) -> npt.NDArray[np.intp]:
        if (start, nbytes) not in self.protected:
            raise OSError(errno.EPERM, "not registered")
        return np.arange(nbytes // PAGE_BYTES)

    def forget(self, start: int, nbytes: int) -> None:
        self.protected.discard((start, nbytes))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()
    monkeypatch.setattr(engine, "open_tracker", lambda: Tracker(kernel))
    yield kernel
    assert kernel.is_closed


def descriptors() -> int:
    """How many files the process has open; 0 where there is no such folder."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


async def test_hundreds_of_streams_with_arrays_share_an_arena_and_a_tracker() -> None:
    before = descriptors()
    async with begin() as run, AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                run.open_stream(str(number), state={"a": np.zeros(MIN_WATCHED_BYTES // 8)})
            )
            for number in range(600)
        ]
        for number, stream in enumerate(streams):
            stream.state["a"][0] = number
            await stream.save()
        assert descriptors() <= before + 2
        assert open_run_of(run).tools.engine().arena.used_bytes == 0
        for stream in streams:
            await stream.finish()
    assert descriptors() <= before


async def test_a_run_without_arrays_has_no_arena() -> None:
    async with begin() as run, run.open_stream("s", state={"n": 0}) as stream:
        stream.state["n"] = 1
        await stream.save()
        assert not open_run_of(run).tools.is_open
        await stream.finish()


async def test_the_arena_goes_with_the_run_not_with_a_stream() -> None:
    async with begin() as run:
        for name in "ab":
            async with run.open_stream(name, state={"a": np.zeros(10)}) as stream:
                await stream.finish()
        arena = open_run_of(run).tools.engine().arena
        arena.reserve_nowait().release()  # type: ignore[union-attr]
    with pytest.raises(ArenaClosedError):
        arena.reserve_nowait()


async def one_stream(run: Run, name: str) -> None:
    """Open a stream with a watched array, save it, and keep nothing of it."""
    async with run.open_stream(name, state={"a": zeros(MIN_WATCHED_BYTES, np.uint8)}) as stream:
        stream.state["a"][1] += 1
        await stream.save()
        await stream.finish()


async def test_the_memory_of_a_closed_stream_is_no_longer_watched(
    kernel: Kernel,
) -> None:
    state = {"a": zeros(MIN_WATCHED_BYTES)}
    async with begin() as run, run.open_stream("kept", state=state) as kept:
        for number in range(3):
            await one_stream(run, str(number))
        tracker = open_run_of(run).tools.engine().tracker
        assert isinstance(tracker, Tracker)
        with trio.fail_after(HANG_S):
            while tracker.regions > 1:
                gc.collect()  # a task that ended may be in a cycle
                await trio.sleep(0.001)  # a thread that has answered may hold the state still
        assert tracker.regions == len(kernel.protected) == 1
        await kept.finish()


class SlowStore(MemoryStore):
    """Takes its time for blobs, so that many are on their way at once."""

    async def put_blob(self, run: RunKey, payload: Any) -> str:
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        return await super().put_blob(run, payload)


async def test_more_streams_than_threads_save_through_an_arena_for_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None waits for ever: one state is copied at a time, so no holder of memory waits for more,
    and those who pack what they have find a thread."""
    copying, most = 0, 0
    real = engine.ArrayEngine.hold

    def hold(self: engine.ArrayEngine, *arguments: Any) -> engine.ArrayCapture:
        nonlocal copying, most
        copying += 1
        most = max(most, copying)
        time.sleep(0.001)  # so that another would begin meanwhile, if it could
        held = real(self, *arguments)
        copying -= 1
        return held

    monkeypatch.setattr(engine.ArrayEngine, "hold", hold)
    monkeypatch.setattr(engine, "Arena", functools.partial(Arena, 16 * SLAB_BYTES))
    count = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 10

    async def work(run: Run, number: int) -> None:
        rng = np.random.default_rng(number)
        state = {"a": rng.integers(0, 255, 7 * SLAB_BYTES // 2, np.uint8)}
        async with run.open_stream(str(number), state=state) as stream:
            for _ in range(2):
                stream.state["a"] ^= 0x5A
                await stream.save()
            await stream.finish()

    store = SlowStore()
    async with begin(store) as run:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(work, run, number)
        assert open_run_of(run).tools.engine().arena.used_bytes == 0
        assert run.exit_code == 0
    assert most == 1
