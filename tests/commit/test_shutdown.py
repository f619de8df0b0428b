"""A stop waits for what has something to save, and for nothing else."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    RetryRule,
    RetryTable,
    Run,
    RunStoppedError,
    Snapshots,
    Status,
    Stopping,
    run_batches,
)
from trio_ckpt._util.text import stopping_text
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Delay, FaultyStore

LOGGER = "trio_ckpt._commit.shutdown"
HOUR_S = 3_600


async def stop_after(run: Run, seconds: float) -> None:
    await trio.sleep(seconds)
    run.request_stop()


async def wait_in_body(run: Run, for_s: float, went_on: list[int]) -> None:
    async with run.open_stream("waits") as stream:
        async for batch in stream.batches(range(3)):
            async with batch.waiting():
                await trio.sleep(for_s)
            went_on.append(batch.index)
            batch.complete()


async def test_a_stop_does_not_wait_for_a_wait(autojump_clock: trio.testing.MockClock) -> None:
    went_on: list[int] = []
    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 7)
            await wait_in_body(run, HOUR_S, went_on)
    assert trio.current_time() == 7
    assert caught.value.exit_code == 75
    assert went_on == []


async def test_a_wait_that_a_stop_ends_is_no_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, went_on = MemoryStore(), list[int]()
    with pytest.raises(RunStoppedError):
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 7)
            await wait_in_body(run, 5, went_on)
    assert went_on == [0]  # and batch 1 waits when the stop comes
    async with begin(store) as run:
        async with run.open_stream("waits") as stream:
            async for batch in stream.batches(range(3)):
                assert batch.attempt == 1
                went_on.append(batch.index)
                batch.complete()
        assert run.exit_code == 0
    assert went_on == [0, 1, 2]


async def test_a_wait_that_ends_during_a_stop_does_not_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Another batch is saved meanwhile, and nothing new is begun for it."""
    went_on: list[int] = []
    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 1)
            nursery.start_soon(wait_in_body, run, 5, went_on)
            async with run.open_stream("works") as stream:
                async for batch in stream.batches(range(3)):
                    await trio.sleep(20)
                    batch.complete()
    assert caught.value.exit_code == 75
    assert trio.current_time() == 20
    assert went_on == []
    assert stream.statistics().confirmed == 1


async def test_after_a_wait_a_stop_waits_again(autojump_clock: trio.testing.MockClock) -> None:
    went_on: list[int] = []
    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 5)
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    async with batch.waiting():
                        await trio.sleep(2)
                    await trio.sleep(10)
                    went_on.append(batch.index)
                    batch.complete()
    assert caught.value.exit_code == 75
    assert (trio.current_time(), went_on) == (12, [0])
    assert stream.statistics().confirmed == 1


async def test_many_that_wait_and_one_that_works(autojump_clock: trio.testing.MockClock) -> None:
    """A lock is handed on meanwhile; who gets it during the stop does not go on either."""
    turn, begun = trio.Lock(), list[int]()

    async def handle(batch: Batch[int]) -> None:
        async with batch.waiting():
            await turn.acquire()
        try:
            begun.append(batch.index)
            await trio.sleep(10)
        finally:
            turn.release()
        batch.complete()

    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 15)
            async with run.open_stream("s") as stream:
                await run_batches(stream, range(50), handle, concurrency=8)
    assert caught.value.exit_code == 75
    assert (trio.current_time(), len(begun)) == (20, 2)
    assert stream.statistics().confirmed == 2


async def fail_in_a_wait(run: Run) -> None:
    async with run.open_stream("fails") as stream:
        async for batch in stream.batches(range(2)):
            async with batch.waiting():
                await trio.sleep(5)
                raise ValueError("the queue is gone")


async def work(run: Run, *, until_s: float) -> None:
    async with run.open_stream("works") as stream:
        async for batch in stream.batches(range(2)):
            await trio.sleep_until(until_s)
            batch.complete()


async def test_an_error_in_a_wait_fails_the_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with begin(MemoryStore()) as run:
        with pytest.raises(ValueError, match="the queue is gone"):
            await fail_in_a_wait(run)
        assert run.statistics().failing == 1


async def test_an_error_in_a_wait_during_a_stop_fails_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError) as caught:
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 2)
            nursery.start_soon(fail_in_a_wait, run)
            await work(run, until_s=9)
    assert (caught.value.exit_code, trio.current_time()) == (75, 9)
    async with begin(store) as run:
        assert run.statistics().failing == 0


async def test_a_wait_that_times_out_during_a_stop_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The time limit is the program's: what it does then is seen through."""
    done: list[int] = []
    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 2)
            nursery.start_soon(partial(work, run, until_s=9))
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    with trio.move_on_after(4):
                        async with batch.waiting():
                            await trio.sleep_forever()
                    await trio.sleep(30)
                    done.append(batch.index)
                    batch.complete()
    assert (caught.value.exit_code, trio.current_time(), done) == (143, 32, [])


@pytest.mark.parametrize(
    ("acts", "code"),
    [
        (["SIGUSR1", "SIGTERM"], 128 + signal.SIGUSR1),
        (["SIGINT", "SIGTERM"], 130),
        (["SIGINT"], 130),
        (["SIGUSR1"], 128 + signal.SIGUSR1),
        (["request_stop", "SIGINT"], 143),
        (["request_stop", "SIGINT", "SIGINT"], 143),
    ],
)
async def test_the_code_is_that_with_which_the_stop_began(
    autojump_clock: trio.testing.MockClock, acts: list[str], code: int
) -> None:
    """Whether a second signal or the end of the grace cancels the batch."""
    options = {"handle_signals": True, "stop_signals": ["SIGINT", "SIGTERM", "SIGUSR1"]}
    with pytest.raises(RunStoppedError) as caught:
        async with begin(**options) as run, run.open_stream("s") as stream:
            async for _ in stream.batches(range(2)):
                for act in acts:
                    if act == "request_stop":
                        run.request_stop()
                    else:
                        signal.raise_signal(signal.Signals[act])
                    await trio.sleep(1)
                await trio.sleep_forever()
    assert caught.value.exit_code == code


class BusyError(Exception):
    """The other side asks to wait for an hour."""


@pytest.mark.parametrize("retry_after", [None, lambda _error: HOUR_S], ids=["backoff", "pause"])
@pytest.mark.parametrize("is_loop", [True, False])
async def test_a_stop_does_not_wait_for_the_next_attempt(
    autojump_clock: trio.testing.MockClock,
    is_loop: bool,
    retry_after: Callable[[BaseException], float] | None,
) -> None:
    rule = RetryRule((BusyError,), backoff_s=HOUR_S, max_backoff_s=HOUR_S, retry_after=retry_after)

    async def handle(_batch: Batch[int]) -> None:
        raise BusyError

    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 7)
            async with run.open_stream("s", retry=RetryTable((rule,))) as stream:
                if is_loop:
                    async for batch in stream.batches(range(3)):
                        batch.fail(BusyError())
                else:
                    await run_batches(stream, range(3), handle, concurrency=2)
    assert (caught.value.exit_code, trio.current_time()) == (75, 7)


async def test_one_wait_at_a_time_before_the_batch_is_settled() -> None:
    async with begin(MemoryStore()) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            async with batch.waiting():
                with pytest.raises(RuntimeError, match="attempt 1 at batch 0 waits already"):
                    async with batch.waiting():
                        pass
            batch.complete()
            with pytest.raises(RuntimeError, match="is completed: waiting"):
                async with batch.waiting():
                    pass
        assert stream.status is not Status.FAILED


# -- a long body with snapshots -----------------------------------------------------------------


async def count(run: Run, upto: int, seen: list[object], *, every_s: float = 1_000) -> None:
    """One batch that takes a second a step, and saves at most every `every_s` seconds."""
    async with run.open_stream("s", state={"n": 0}) as stream:
        async for batch in stream.batches(range(1)):
            seen.append((batch.resumed_from, stream.state["n"]))
            async with stream.snapshots(every_s=every_s) as snapshots:
                while stream.state["n"] < upto:
                    await trio.sleep(1)
                    stream.state["n"] += 1
                    await snapshots.point(f"step {stream.state['n']}")
            batch.complete()


@pytest.mark.parametrize("every_s", [0, 3, 1_000])
async def test_a_stop_saves_a_long_body_at_its_next_point(
    autojump_clock: trio.testing.MockClock, every_s: float
) -> None:
    store, seen = MemoryStore(), list[object]()
    for stop_s in (4.5, 2.5):
        began_s = trio.current_time()
        with pytest.raises(RunStoppedError) as caught:
            async with begin(store) as run, trio.open_nursery() as nursery:
                nursery.start_soon(stop_after, run, stop_s)
                await count(run, 100, seen, every_s=every_s)
        assert caught.value.exit_code == 75
        assert trio.current_time() - began_s == stop_s + 0.5
    async with begin(store) as run:
        await count(run, 8, seen)
        assert run.exit_code == 0
    assert seen == [(None, 0), ("step 5", 5), ("step 8", 8)]


async def test_a_stop_during_a_snapshot_saves_the_newest_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, seen = MemoryStore(), list[object]()
    slow = FaultyStore(store, {number: Delay(1.5) for number in range(2, 20)})
    with pytest.raises(RunStoppedError) as caught:
        async with begin(slow) as run:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop_after, run, 4.5)
                await count(run, 100, seen, every_s=0)
    assert caught.value.exit_code == 75
    async with begin(store) as run:
        await count(run, 5, seen)
    assert seen[-1] == ("step 5", 5)


async def test_a_state_that_cannot_be_saved_is_seen_through(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """There is nothing to go on from, so the body has its grace."""
    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 2.5)
            async with run.open_stream("s", state=dict[str, Any](n=0)) as stream:
                async for batch in stream.batches(range(2)):
                    async with stream.snapshots() as snapshots:
                        stream.state["n"] = object()
                        for _ in range(10):
                            await trio.sleep(1)
                            await snapshots.point()
                        stream.state["n"] = 10
                    batch.complete()
    assert (caught.value.exit_code, trio.current_time()) == (75, 10)
    assert stream.statistics().confirmed == 1


async def test_a_handler_is_saved_at_its_next_point(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()

    async def handle(batch: Batch[int]) -> None:
        async with stream.snapshots(every_s=1_000) as snapshots:
            while True:
                await trio.sleep(1)
                stream.state["n"] += 1
                await snapshots.point("here")

    with pytest.raises(RunStoppedError) as caught:
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 6.5)
            async with run.open_stream("s", state={"n": 0}) as stream:
                await run_batches(stream, range(2), handle)
    assert (caught.value.exit_code, trio.current_time()) == (75, 7)
    async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
        assert stream.state["n"] == 7


def crunch(snapshots: Snapshots, state: dict[str, int], begun: threading.Event) -> None:
    while True:
        state["n"] += 1
        snapshots.point_sync(f"step {state['n']}")
        begun.set()


async def in_a_thread_of_trio(func: Callable[..., None], *args: Any) -> None:
    await trio.to_thread.run_sync(func, *args)


async def in_a_foreign_thread(func: Callable[..., None], *args: Any) -> None:
    def work() -> None:
        with suppress(trio.RunFinishedError):
            func(*args)

    threading.Thread(target=work).start()
    await trio.sleep_forever()


@pytest.mark.parametrize("there", [in_a_thread_of_trio, in_a_foreign_thread])
def test_a_stop_saves_a_thread_at_its_next_point(there: Any) -> None:
    store, begun = MemoryStore(), threading.Event()

    async def stop(run: Run) -> None:
        await trio.to_thread.run_sync(begun.wait)
        run.request_stop()

    async def main() -> None:
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop, run)
            async with run.open_stream("s", state={"n": 0}) as stream:
                async for _batch in stream.batches(range(1)):
                    async with stream.snapshots(every_s=0) as snapshots:
                        await there(crunch, snapshots, stream.state, begun)

    with pytest.raises(RunStoppedError) as caught:
        trio.run(main)
    assert caught.value.exit_code == 75

    async def look() -> tuple[int, str | None]:
        async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
            async for batch in stream.batches(range(1)):
                found = stream.state["n"], batch.resumed_from
                batch.complete()
        return found

    n, label = trio.run(look)
    assert n > 0
    assert label == f"step {n}"


# -- what it says ---------------------------------------------------------------------------------


async def drain(run: Run, seen: list[Any], *, takes_s: float = 12) -> None:
    """Five batches at once are open when the stop comes; what is seen 4 s later."""

    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(takes_s)
        batch.complete()

    async def look() -> None:
        await trio.sleep(9)
        seen.append(run.statistics())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_after, run, 5)
        nursery.start_soon(look)
        async with run.open_stream("org/repo", "pulls") as stream:
            await run_batches(stream, range(50), handle, concurrency=5)


async def test_a_stop_that_waits_says_for_what(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    with (
        caplog.at_level(logging.WARNING, "trio_ckpt._commit.shutdown"),
        pytest.raises(RunStoppedError),
    ):
        async with begin(MemoryStore()) as run:
            await drain(run, seen)
    names = tuple((("org/repo", "pulls"), index) for index in range(3))
    assert seen[0].stopping == Stopping(5, names, 26)
    assert seen[0].eta_s is None
    waits, ended = caplog.messages
    assert waits == (
        "run 'r': the stop waits at most 30 s more for 5 batches (org/repo/pulls batch 0, "
        "org/repo/pulls batch 1, org/repo/pulls batch 2, 2 more); a second signal cancels what "
        "is open"
    )
    assert ended.startswith("run 'r' was stopped (every open batch is saved); go on with: ")


async def test_a_stop_that_gives_up_says_on_what(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    with (
        caplog.at_level(logging.WARNING, "trio_ckpt._commit.shutdown"),
        pytest.raises(RunStoppedError),
    ):
        async with begin(store, grace_s=3) as run:
            await drain(run, [], takes_s=HOUR_S)
    assert len(caplog.messages) == 3
    assert caplog.messages[1].startswith("run 'r': the stop is over, and cancels 5 batches (org/r")
    assert caplog.messages[1].endswith("; its 3.0 s are over; the next start runs these again")


async def test_without_a_stop_or_an_open_batch_nothing_is_said(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "trio_ckpt._commit.shutdown"),
        pytest.raises(RunStoppedError),
    ):
        async with begin(MemoryStore()) as run, run.open_stream("s") as stream:
            assert run.statistics().stopping is None
            async for batch in stream.batches(range(3)):
                batch.complete()
                run.request_stop()
    assert len(caplog.messages) == 1  # how to go on
    assert run.statistics().stopping is None


@pytest.mark.parametrize(
    ("stopping", "text"),
    [
        ((0, (), 9.0), "every open batch is saved"),
        ((1, ((("s",), 1_234),), math.inf), "waits for 1 batch (s batch 1,234)"),
        ((2, ((("s",), 1), (("a", "b"), 2)), 61.0), "waits at most 1 min 01 s more for 2 batches"),
        ((1, ((("s",), 1),), 0.0), "is over, and cancels 1 batch (s batch 1)"),
    ],
)
def test_a_stop_in_words(stopping: Any, text: str) -> None:
    assert stopping_text(*stopping).startswith(text)


async def test_a_process_that_is_stopped_while_it_ends_has_its_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A closed lid: what was open when it was closed is saved when it is opened."""

    async def be_stopped() -> None:
        await trio.sleep(10)
        autojump_clock.jump(8 * HOUR_S)

    with pytest.raises(RunStoppedError) as caught:
        async with begin(MemoryStore()) as run, trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, run, 5)
            nursery.start_soon(be_stopped)
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    await trio.sleep(20)
                    await trio.sleep(1)
                    batch.complete()
    assert (caught.value.exit_code, stream.statistics().confirmed) == (75, 1)
