"""Streams: loops over batches, every way out of them, and what the next start finds."""

# ruff: noqa: B023, PT012, PT017, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    BatchCancelledError,
    BatchFailedError,
    RetryRule,
    RetryTable,
    Run,
    SourceChangedError,
    Status,
    StreamBusyError,
    StreamEndedError,
    StreamFailedError,
    Then,
    TokenNeverSettledError,
    TokenState,
)
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore


class BodyError(Exception):
    """What a body raises."""


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the k-th step of any task."""

    def __init__(self, scope: trio.CancelScope, k: int) -> None:
        self.left, self.scope = k, scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def run_cancelled_at(k: int, program: Callable[[], Awaitable[None]]) -> bool:
    """Run a program, cancelled at its k-th schedule point; False if it ended before."""
    trio._core._run._r = random.Random(0)  # type: ignore[attr-defined]  # one order per test
    with trio.CancelScope() as scope:
        instrument = CancelAt(scope, k)
        trio.lowlevel.add_instrument(instrument)
        try:
            await program()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.left <= 0


@pytest.mark.parametrize("has_state", [False, True])
async def test_cancelled_at_any_point_only_the_work_that_is_left_runs_again(
    has_state: bool,
) -> None:
    k, was_cut = 0, True
    while was_cut:
        k += 1
        store, tokens, bodies = MemoryStore(), list[Any](), list[int]()

        async def program(store: MemoryStore, tokens: list[Any], bodies: list[int]) -> None:
            state = {"sum": 0} if has_state else None
            async with (
                begin(store) as run,
                run.open_stream("s", state=state) as stream,
            ):
                async for batch in stream.batches(range(3)):
                    tokens.append(batch.token)
                    await trio.lowlevel.checkpoint()
                    if has_state:
                        stream.state["sum"] += batch.item
                    bodies.append(batch.index)
                    batch.complete(records=1, totals={"x": 0.1})
                    await trio.lowlevel.checkpoint()

        was_cut = await run_cancelled_at(k, lambda: program(store, tokens, bodies))
        assert {t.state for t in tokens} <= {TokenState.CONFIRMED, TokenState.FAILED}
        view = await store.load_run("r")
        confirmed = [t.batch_index for t in tokens if t.state is TokenState.CONFIRMED]
        done: list[int] = []
        if view is not None and ("s",) in view.streams:
            progress = view.streams[("s",)].progress
            done = list(progress.confirmed)
            assert progress.records == len(done)
            assert progress.failures == {}  # a cancellation is no failure
            assert progress.status in (Status.INTERRUPTED, Status.COMPLETE)
        assert done == confirmed
        again: list[int] = []
        await program(store.after_crash(), tokens, again)
        assert again == [index for index in range(3) if index not in done]
        assert all(not token.is_pending for token in tokens)
    assert k > 20


async def left(store: MemoryStore, count: int = 3) -> list[int]:
    """What another start works on."""
    indexes = []
    async with begin(store.after_crash()) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(count)):
                indexes.append(batch.index)
                batch.complete()
        assert stream.status is Status.COMPLETE
    return indexes


@pytest.mark.parametrize(("how", "first"), [("break", 1), ("return", 1), ("continue", 3)])
async def test_leaving_the_loop_after_complete_saves(how: str, first: int) -> None:
    store = MemoryStore()

    async def body(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                if how == "break":
                    break
                if how == "return":
                    return
                continue

    async with begin(store) as run:
        await body(run)
    assert await left(store) == list(range(first, 3))


@pytest.mark.parametrize("is_completed", [False, True])
async def test_an_exception_leaves_unchanged_and_the_batch_runs_again(
    is_completed: bool,
) -> None:
    store, error = MemoryStore(), BodyError("late" if is_completed else "early")
    with pytest.raises(BodyError) as info:
        async with (
            begin(store) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(3)):
                if is_completed:
                    batch.complete()
                raise error
    assert info.value is error
    assert stream.status is Status.FAILED
    assert stream.error is not None
    assert (stream.error.type, stream.error.batch_index) == ("BodyError", 0)
    assert await left(store) == [0, 1, 2]


async def test_a_forgotten_batch_is_an_error_at_the_next_step_or_the_end() -> None:
    store = MemoryStore()
    for _ in range(2):
        with pytest.raises(TokenNeverSettledError):
            async with begin(store) as run:
                async with run.open_stream("s") as stream:
                    async for _batch in stream.batches(range(3)):
                        if stream.progress.failures:
                            break
    assert await left(store) == [0, 1, 2]


async def test_an_exception_caught_around_the_loop_is_invisible_to_the_gate() -> None:
    async with (
        begin() as run,
        run.open_stream("s") as stream,
    ):
        try:
            async for batch in stream.batches(range(3)):
                batch.complete()
                raise BodyError
        except BodyError:
            pass
        old = stream.batches(range(3))
        assert (await anext(old)).index == 1  # batch 0 was saved by the new loop's first step
        new = stream.batches(range(3))
        with pytest.raises(TokenNeverSettledError):
            await anext(new)
        assert (await anext(new)).complete()
        with pytest.raises(StreamBusyError):
            await anext(old)
        assert [b.index async for b in new if b.complete()] == [2]


async def test_a_batch_is_settled_by_another_task_and_from_a_thread() -> None:
    async with (
        begin() as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(2)):
            if batch.index == 0:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, _complete, batch.token)
            else:
                batch.token.complete()
            assert not batch.complete()
            with pytest.raises(RuntimeError, match="for ever"):
                await batch.token.wait()
            await batch.confirm()
            await batch.token.wait()
            assert batch.index in stream.progress.confirmed


def _complete(token: Any) -> None:
    assert trio.from_thread.run_sync(token.complete, None)


async def test_attempts_wait_and_survive_restarts(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    rule = RetryRule((BodyError,), attempts=4, backoff_s=10.0, jitter=0.0, then=Then.SKIP)
    attempts: list[tuple[int, float]] = []

    async def go(store: MemoryStore, limit: float) -> None:
        start = trio.current_time()
        with trio.move_on_after(limit):
            async with begin(store) as run:
                async with run.open_stream("s", retry=RetryTable((rule,))) as stream:
                    async for batch in stream.batches(range(1)):
                        attempts.append((batch.attempt, trio.current_time() - start))
                        batch.spend(usd=1)
                        batch.fail(BodyError())
                assert run.exit_code == 3
                assert stream.status is Status.COMPLETE
                assert stream.progress.spent["usd"].value == 4
                assert [index async for index, _, _ in stream.skipped()] == [0]

    await go(store, 15)
    await go(store.after_crash(), 1000)
    assert attempts == [(1, 0), (2, 10), (3, 0), (4, 40)]


async def test_state_is_restored_after_a_failure_and_on_resume() -> None:
    store = MemoryStore()
    retry = RetryTable((RetryRule((BodyError,), attempts=2, backoff_s=0.0),))
    async with begin(store) as run:
        async with run.open_stream("s", state={"n": 0}, retry=retry) as stream:
            async for batch in stream.batches(range(3)):
                stream.state["n"] += 1
                if batch.index == 1 and batch.attempt == 1:
                    batch.fail(BodyError())
                elif batch.index == 2:
                    batch.skip("no use")
                else:
                    batch.complete()
            assert stream.state == {"n": 2}
    async with begin(store.after_crash()) as run:
        async with run.open_stream("s", state={"n": 100}) as stream:
            assert stream.state == {"n": 2}


async def test_the_first_state_is_that_of_the_first_session() -> None:
    store = MemoryStore()
    for initial in (0, 100):
        async with begin(store) as run:
            async with run.open_stream("s", state={"n": initial}) as stream:
                assert stream.state == {"n": 0}
                async for batch in stream.batches(range(3)):
                    batch.complete()
                    break


async def test_an_open_end_ends_by_withdraw_last_or_finish_and_stays_ended() -> None:
    async def withdraw(stream: Any) -> None:
        async for batch in stream.batches():
            batch.withdraw()

    async def last(stream: Any) -> None:
        async for batch in stream.batches():
            batch.complete(last=True, cursor="end")
            break

    async def finish(stream: Any) -> None:
        await stream.finish({"why": "enough"})

    async def one(stream: Any) -> None:
        async with stream.open_batch() as batch:
            batch.complete(last=True)
        with pytest.raises(StreamEndedError):
            async with stream.open_batch():
                pass

    store = MemoryStore()
    for end in (withdraw, last, finish, one):
        async with begin(store) as run:
            async with run.open_stream(end.__name__) as stream:
                await end(stream)
            assert stream.status is Status.COMPLETE, end
        async with begin(store) as run:
            async with run.open_stream(end.__name__) as stream:
                assert [b async for b in stream.batches()] == []
            assert stream.status is Status.COMPLETE, end


async def test_a_failed_stream_raises_at_its_exit_and_stays_failed() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        with pytest.raises(StreamFailedError):
            async with run.open_stream("s") as stream:
                await stream.fail("no", retryable=False)
        with pytest.raises(StreamFailedError, match="retry_failed"):
            async with run.open_stream("s"):
                pass
    async with begin(store, retry_failed=True) as run:
        async with run.open_stream("s") as stream:
            pass


async def test_sources() -> None:
    store = MemoryStore()

    async def go(items: Any) -> list[int]:
        async with begin(store) as run:
            async with run.open_stream("s") as stream:
                return [b.index async for b in stream.batches(items) if b.complete()]

    assert await go(["a", "b"]) == [0, 1]
    assert await go(lambda: iter(["a", "b", "c"])) == [2]  # growing
    with pytest.raises(SourceChangedError):
        await go(["a"])
    with pytest.raises(SourceChangedError):
        await go(lambda: ["a"])
    with pytest.raises(SourceChangedError):
        await go(["a", "x", "c"])
    with pytest.raises(BodyError):
        await go(_raising)
    with pytest.raises(TypeError):
        await go(iter(["a"]))
    assert await go(["a", "b", "c"]) == []


def _raising() -> Any:
    yield "a"
    raise BodyError


async def test_an_empty_source_is_complete() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("s") as stream:
            assert [b async for b in stream.batches([])] == []
        assert stream.status is Status.COMPLETE


async def test_a_stream_belongs_to_its_task() -> None:
    async def intrude(stream: Any) -> None:
        with pytest.raises(StreamBusyError):
            await anext(stream.batches([1]))

    async with begin() as run:
        async with run.open_stream("s") as stream, trio.open_nursery() as nursery:
            nursery.start_soon(intrude, stream)
            with pytest.raises(StreamBusyError, match="open already"):
                async with run.open_stream("s"):
                    pass
        await intrude(stream)


async def test_totals_are_exact_over_a_crash_at_every_save() -> None:
    for k in range(2, 8):
        store = MemoryStore()
        for plan in ({k: Fail()}, {}):
            faulty = FaultyStore(store, plan)
            try:
                async with begin(faulty) as run:
                    async with run.open_stream("s") as stream:
                        async for batch in stream.batches(range(4)):
                            batch.complete(records=1, totals={"x": 0.1})
            except Exception as error:
                assert plan, error
            store = store.after_crash()
        view = await store.load_run("r")
        assert view is not None
        progress = view.streams[("s",)].progress
        assert (progress.records, progress.totals["x"].value) == (4, 0.4)
        assert progress.status is Status.COMPLETE


async def test_leaving_while_a_retry_waits_fails_its_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    retry = RetryTable((RetryRule((BodyError,), backoff_s=100.0),))
    async with begin() as run:
        with trio.move_on_after(1):
            async with run.open_stream("s", retry=retry) as stream:
                async for batch in stream.batches(range(1)):
                    token = batch.token
                    batch.fail(BodyError())
    with pytest.raises(BatchCancelledError):
        token.result_nowait()
    assert stream.status is Status.INTERRUPTED


async def test_a_final_failure_raises_at_the_next_step() -> None:
    with pytest.raises(BatchFailedError) as info:
        async with begin() as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    batch.fail(BodyError("bad"))
    assert isinstance(info.value.__cause__, BodyError)
