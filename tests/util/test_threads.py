"""The one seam for blocking calls: mock clocks do not jump over them."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from functools import partial

import pytest
import sniffio
import trio
import trio.testing
from trio.testing import MockClock

from trio_ckpt._util import threads
from trio_ckpt._util.threads import Aside, CallStuckError, WorkerThread, hold_clock, run_blocking

CALL_S = 0.05  # real seconds that a slow call takes here


async def test_clock_does_not_jump_over_a_call(autojump_clock: MockClock) -> None:
    """While a call is out, a timeout beside it must not fire, however short."""
    worker = WorkerThread("test")
    for run in (run_blocking, worker.run):
        with trio.move_on_after(10_000) as scope:
            await run(time.sleep, CALL_S)
        assert not scope.cancelled_caught
    assert trio.current_time() == 0
    worker.stop()


async def test_unheld_clock_jumps(autojump_clock: MockClock) -> None:
    """The control: without the seam, trio does jump, which is why there is one."""
    with trio.move_on_after(10_000) as scope:
        await trio.to_thread.run_sync(time.sleep, CALL_S)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert trio.current_time() == 10_000


async def test_clock_is_restored_after_the_last_call(autojump_clock: MockClock) -> None:
    threshold = autojump_clock.autojump_threshold
    first, second = hold_clock(), hold_clock()
    with first as is_mock:
        assert is_mock
        assert autojump_clock.autojump_threshold == math.inf
        with second:
            assert autojump_clock.autojump_threshold == math.inf
        assert autojump_clock.autojump_threshold == math.inf
    assert autojump_clock.autojump_threshold == threshold
    await trio.sleep(1_000)
    assert trio.current_time() == 1_000


async def test_clock_jumps_while_trio_does_what_a_thread_asks_for(
    autojump_clock: MockClock,
) -> None:
    aside = Aside()

    async def wait() -> None:
        with aside.asking():
            await trio.sleep(5)

    def work() -> None:
        time.sleep(CALL_S)
        trio.from_thread.run(wait)
        time.sleep(CALL_S)

    with trio.move_on_after(10_000):
        await aside.run(partial(trio.to_thread.run_sync, work))
    assert trio.current_time() == 5


async def test_clock_is_restored_when_a_thread_that_asks_is_abandoned(
    autojump_clock: MockClock,
) -> None:
    aside, answered = Aside(), trio.Event()

    async def wait() -> None:
        with aside.asking():
            await trio.sleep(50)
        answered.set()

    with trio.move_on_after(10):
        await aside.run(
            partial(trio.to_thread.run_sync, trio.from_thread.run, wait, abandon_on_cancel=True)
        )
    assert trio.current_time() == 10
    await answered.wait()
    assert (trio.current_time(), autojump_clock.autojump_threshold) == (50, 0)


async def test_clock_is_restored_after_an_error(autojump_clock: MockClock) -> None:
    worker = WorkerThread("test")
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 1, 0)
    assert autojump_clock.autojump_threshold == 0
    worker.stop()


async def test_calls_at_once(autojump_clock: MockClock) -> None:
    """The clock stays held until the slowest of several calls is back."""
    one, other = WorkerThread("one"), WorkerThread("other")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, time.sleep, CALL_S / 10)
        nursery.start_soon(other.run, time.sleep, CALL_S)
        with trio.move_on_after(10_000) as scope:
            await one.run(time.sleep, CALL_S)
        assert not scope.cancelled_caught
    assert trio.current_time() == 0
    one.stop()
    other.stop()


async def test_real_clock_is_left_alone() -> None:
    with hold_clock() as is_mock:
        assert not is_mock
    assert await run_blocking(threading.get_ident) != threading.get_ident()


async def test_calls_begin_in_the_order_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_THREADS", 1)
    release, begun = threading.Event(), list[int]()

    def work(number: int) -> None:
        begun.append(number)
        release.wait()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(run_blocking, work, number)
            await trio.testing.wait_all_tasks_blocked()
        release.set()
    assert begun == [0, 1, 2, 3, 4]


async def test_calls_over_the_limit_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is cancelled before it began is not made."""
    monkeypatch.setattr(threads, "MAX_THREADS", 2)
    release, begun, scope = threading.Event(), list[int](), trio.CancelScope()

    def work(number: int) -> None:
        begun.append(number)
        release.wait()

    async def cancelled() -> None:
        with scope:
            await run_blocking(begun.append, 5)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(run_blocking, work, number)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(cancelled)
        await trio.testing.wait_all_tasks_blocked()
        while len(begun) < 2:  # noqa: ASYNC110  # a thread sets no event of trio
            await trio.sleep(0.001)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(begun) == [0, 1]
        release.set()
    assert sorted(begun) == [0, 1, 2, 3, 4]
    assert await run_blocking(divmod, 7, 2) == (3, 1)


async def test_call_has_the_context_variables_of_its_caller() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("of the caller")
    assert await run_blocking(variable.get) == "of the caller"


async def test_call_asks_trio_with_its_token() -> None:
    token = trio.lowlevel.current_trio_token()
    ask = partial(trio.from_thread.run_sync, threading.get_ident, trio_token=token)
    assert await run_blocking(ask) == threading.get_ident()


async def test_stuck_call_is_named(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a mock clock no timeout can notice a call that never ends, so the seam does."""
    monkeypatch.setattr(threads, "STUCK_AFTER_S", CALL_S)
    release = threading.Event()
    worker = WorkerThread("the disk")

    def hang() -> None:
        release.wait()

    with pytest.raises(CallStuckError, match=r"hang in thread 'the disk' has not returned"):
        await worker.run(hang)
    release.set()
    assert await worker.run(divmod, 7, 2) == (3, 1)
    assert autojump_clock.autojump_threshold == 0
    worker.stop()


async def test_a_call_that_ends_soon_after_its_time_is_not_stuck(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have been stopped for all of that time, with the call in it."""
    monkeypatch.setattr(threads, "STUCK_AFTER_S", 0.0)
    worker = WorkerThread("the disk")
    assert await worker.run(divmod, 7, 2) == (3, 1)
    await worker.run(time.sleep, CALL_S)
    worker.stop()


async def test_cancelled_call_drops_its_result() -> None:
    """Cancellation ends the waiting at once; the call goes on and its result is dropped."""
    worker = WorkerThread("test")
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        release.wait()
        ended.set()
        return "late"

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, slow)
            await trio.to_thread.run_sync(begun.wait)
            scope.cancel()
    assert scope.cancelled_caught
    assert not ended.is_set()
    release.set()
    assert await worker.run(divmod, 7, 2) == (3, 1)  # after it, in the order they came
    assert ended.is_set()
    worker.stop()


async def test_calls_come_back_in_order_and_in_one_thread() -> None:
    worker = WorkerThread("test")
    seen: list[tuple[int, int]] = []

    def note(number: int) -> None:
        seen.append((number, threading.get_ident()))

    for number in range(5):
        await worker.run(note, number)
    assert [number for number, _ in seen] == list(range(5))
    assert len({ident for _, ident in seen}) == 1
    assert seen[0][1] != threading.get_ident()
    worker.stop()


async def test_the_last_call_of_a_thread_is_not_waited_for() -> None:
    thread, release, order = WorkerThread("x"), threading.Event(), list[str]()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, lambda: (release.wait(), order.append("call")))
            await trio.testing.wait_all_tasks_blocked()
            running = thread._thread
            assert running is not None
            thread.stop(lambda: order.append("last"))
            assert order == []
            scope.cancel()
    release.set()
    await trio.to_thread.run_sync(running.join)
    assert order == ["call", "last"]


def test_a_thread_that_never_began_makes_its_last_call_at_once() -> None:
    order = list[str]()
    WorkerThread("x").stop(lambda: order.append("last"))
    assert order == ["last"]


async def test_cancelled_before_it_began() -> None:
    """A call that is cancelled before it is handed over never runs."""
    worker = WorkerThread("test")
    ran: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await worker.run(ran.append, 1)
    assert scope.cancelled_caught
    assert await worker.run(len, ran) == 0
    worker.stop()


def test_program_that_ends_first_is_no_trouble() -> None:
    """A result that comes after the end of the trio program is dropped without a word."""
    worker = WorkerThread("test")
    release, ended = threading.Event(), threading.Event()

    def slow() -> None:
        release.wait()

    async def main() -> None:
        with trio.move_on_after(CALL_S):
            await worker.run(slow)

    trio.run(main)
    release.set()

    async def again() -> None:
        await worker.run(ended.set)

    trio.run(again)
    assert ended.is_set()
    worker.stop()


async def test_inline_calls_need_no_thread(autojump_clock: MockClock) -> None:
    """What is in memory is called right here, and others still run around it."""
    threads.runs_inline.set(True)
    worker, here = WorkerThread("test"), threading.get_ident()
    for run in (run_blocking, worker.run):
        with trio.testing.assert_checkpoints():
            assert await run(threading.get_ident) == here
        with pytest.raises(ZeroDivisionError):
            await run(divmod, 1, 0)
        calls: list[int] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await run(calls.append, 1)
        assert scope.cancelled_caught
        assert not calls, "a call that has not begun is not made"


async def test_inline_calls_keep_the_order_they_came_in(autojump_clock: MockClock) -> None:
    threads.runs_inline.set(True)
    worker, came, made = WorkerThread("test"), list[int](), list[int]()

    async def call(number: int) -> None:
        came.append(number)
        await worker.run(made.append, number)

    for _ in range(20):  # in one order or the other: trio turns it around by chance
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(call, number)
    assert made == came


async def test_no_async_library_runs_in_a_thread() -> None:
    """As in a thread of `trio.to_thread`; under anyio the context names trio."""
    token = sniffio.current_async_library_cvar.set("trio")
    try:
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            await run_blocking(sniffio.current_async_library)
    finally:
        sniffio.current_async_library_cvar.reset(token)
