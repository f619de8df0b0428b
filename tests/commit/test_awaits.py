"""An await that was forgotten is an error that names the method, never work that is not done."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchFailedError,
    NeverAwaitedError,
    Run,
    Snapshots,
    Stream,
    run_batches,
)
from trio_ckpt._commit.awaits import PRUNED_OVER
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.outputs import System, SystemPath
from trio_ckpt.stores import MemoryStore

# pyright: reportUnusedCoroutine=false

pytestmark = pytest.mark.filterwarnings("error")

FORGOTTEN: dict[str, Callable[[Batch[Any]], Any]] = {
    "write_json": lambda batch: batch.write_json("a.json", 1),
    "write_text": lambda batch: batch.write_text("a.txt", "a"),
    "write_bytes": lambda batch: batch.write_bytes("a.bin", b"a"),
    "confirm": lambda batch: batch.confirm(),
}


@pytest.mark.parametrize("name", FORGOTTEN)
@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_batch_is_not_complete_where_an_await_was_forgotten(
    name: str, is_kept: bool, tmp_path: Path
) -> None:
    store, kept = MemoryStore(), list[Any]()
    with pytest.raises(NeverAwaitedError) as caught:
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                call = FORGOTTEN[name](batch)
                if is_kept:
                    kept.append(call)
                del call
                batch.complete()
    assert f"{name}() was called without await in test_awaits.py, line " in str(caught.value)
    assert "batch 0 of run 'r', stream 's'" in str(caught.value)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert stream.remaining(total=2) == [0, 1]
    gc.collect()  # Python has nothing to warn of besides


async def test_the_line_is_that_of_the_call(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.write_text("a.txt", "a")
            line = test_the_line_is_that_of_the_call.__code__.co_firstlineno + 3
            with pytest.raises(NeverAwaitedError, match=rf"line {line},"):
                batch.complete()
            batch.complete()  # it is told once: who catches it knows of it


@pytest.mark.parametrize("name", FORGOTTEN)
async def test_an_await_forgotten_after_complete_fails_the_batch(name: str, tmp_path: Path) -> None:
    store = MemoryStore()
    with pytest.raises(BatchFailedError, match=rf"{name}\(\) was called without await"):
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
                FORGOTTEN[name](batch)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        assert not stream.progress.confirmed


class Slow(System):
    """A disk that gives a file its name when it is told to."""

    def __init__(self) -> None:
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def rename(self, name: str, goal: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self.has_begun.set()
        assert self.may_go_on.wait(30)
        super().rename(name, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


async def test_a_write_that_another_task_is_at_fails_the_batch(tmp_path: Path) -> None:
    disk, is_over = Slow(), trio.Event()

    async def write(batch: Batch[int]) -> None:
        with pytest.raises(RuntimeError, match="is over"):
            await batch.write_text("a.txt", "a")
        is_over.set()

    async with trio.open_nursery() as nursery:
        place = SystemPath(str(tmp_path), disk)
        async with begin(output_dir=place) as run, run.open_stream("s") as stream:
            with pytest.raises(BatchFailedError, match=r"write_text\(\) of another task has not"):
                async for batch in stream.batches(range(1)):
                    nursery.start_soon(write, batch)
                    await trio.to_thread.run_sync(disk.has_begun.wait)
                    batch.complete()
            disk.may_go_on.set()
            await is_over.wait()
            assert not stream.progress.confirmed


async def test_writes_of_a_nursery_in_the_body_are_waited_for(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            async with trio.open_nursery() as nursery:
                for name in ("a", "b"):
                    nursery.start_soon(batch.write_text, f"{name}{batch.index}", name)
                nursery.start_soon(partial(batch.write_json, f"c{batch.index}", 1))
                batch.complete()  # they have not begun, and end before the gate
        assert stream.progress.outputs == 6
    assert len([name for name in os.listdir(tmp_path) if name[0] in "abc"]) == 6


async def test_a_confirm_of_another_task_is_no_error(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                nursery.start_soon(batch.confirm)
            assert stream.progress.left == 0


async def test_a_handler_that_forgets_is_told_so(tmp_path: Path) -> None:
    async def handler(batch: Batch[int]) -> None:
        batch.write_json("a.json", 1)
        batch.complete()

    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        with pytest.raises(NeverAwaitedError, match=r"write_json\(\)"):
            await run_batches(stream, range(1), handler)


OF_STREAMS: dict[str, Callable[[Stream[Any]], Any]] = {
    "save": lambda stream: stream.save(),
    "finish": lambda stream: stream.finish(),
    "fail": lambda stream: stream.fail("x"),
    "redo": lambda stream: stream.redo([0], reason="x"),
    "rescan": lambda stream: stream.rescan(str, total=1),
    "pin": lambda stream: stream.pin("x"),
}


@pytest.mark.parametrize("name", OF_STREAMS)
async def test_a_stream_is_not_left_where_an_await_was_forgotten(name: str, tmp_path: Path) -> None:
    with pytest.raises(NeverAwaitedError, match=rf"{name}\(\) was called .* \(run 'r', stream 's'"):
        async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
            OF_STREAMS[name](stream)


OF_RUNS: dict[str, Callable[[Run], Any]] = {
    "add_streams": lambda run: run.add_streams([("a",)]),
    "rewind": lambda run: run.rewind(("a",), to=0, reason="x"),
    "wait_confirmed": lambda run: run.wait_confirmed(("a",), [0]),
}


@pytest.mark.parametrize("name", OF_RUNS)
async def test_a_run_is_not_left_where_an_await_was_forgotten(name: str, tmp_path: Path) -> None:
    with pytest.raises(NeverAwaitedError, match=rf"{name}\(\) was called without await"):
        async with begin(output_dir=tmp_path) as run:
            OF_RUNS[name](run)


async def test_a_forgotten_point_of_a_snapshot_is_told(tmp_path: Path) -> None:
    with pytest.raises(NeverAwaitedError, match=r"point\(\) was called without await"):
        async with (
            begin(output_dir=tmp_path) as run,
            run.open_stream("s", state={"n": 0}) as stream,
        ):
            async for batch in stream.batches(range(1)):
                async with stream.snapshots() as snapshots:
                    assert isinstance(snapshots, Snapshots)
                    snapshots.point("x")
                batch.complete()


async def test_the_own_error_of_a_body_is_not_hidden(tmp_path: Path) -> None:
    calls = []
    with pytest.raises(ZeroDivisionError):
        async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
            calls.append(stream.save())
            raise ZeroDivisionError
    calls.pop().close()


async def test_many_calls_are_not_kept(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        for _ in range(5 * PRUNED_OVER):
            await stream.save()
        assert len(loop_cursor_of(stream).calls._calls) <= PRUNED_OVER


async def test_a_loop_that_forgets_is_told_before_its_end(tmp_path: Path) -> None:
    calls = 0
    with pytest.raises(NeverAwaitedError, match=r"save\(\)"):
        async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
            for _ in range(10 * PRUNED_OVER):
                calls += 1
                stream.save()
    assert calls == PRUNED_OVER + 1


async def test_a_cancelled_write_is_no_forgotten_one(tmp_path: Path) -> None:
    async with begin(output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with trio.CancelScope() as scope:
                scope.cancel()
                await batch.write_text("a.txt", "a")
            batch.complete(outputs=[await batch.write_text("a.txt", "a")])
        assert stream.progress.outputs == 1


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_stream_is_not_left_where_its_batches_were_not_awaited(is_named: bool) -> None:
    async def handle(batch: Batch[int]) -> None:
        batch.complete()

    with pytest.raises(NeverAwaitedError) as caught:
        async with begin(MemoryStore()) as run, run.open_stream("s") as stream:
            if is_named:
                run_batches(stream=stream, items=[1, 2], handler=handle)
            else:
                run_batches(stream, [1, 2], handle)
    assert "run_batches() was called without await in test_awaits.py, line " in str(caught.value)
    assert "(run 'r', stream 's')" in str(caught.value)


async def test_batches_may_be_run_by_another_call() -> None:
    async def handle(batch: Batch[int]) -> None:
        batch.complete()

    async with begin(MemoryStore()) as run, run.open_stream("s") as stream:
        call = run_batches(stream, [1, 2], handle)
        await call
        assert len(stream.progress.confirmed) == 2
    with pytest.raises(TypeError, match="stream must be an open stream, not 5"):
        await run_batches(5, [1, 2], handle)  # type: ignore[arg-type]
