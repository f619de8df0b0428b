"""Settling, staging and stopping from threads: carried into trio's, where they change things."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchCancelledError,
    BatchFailedError,
    CheckpointCoordinator,
    CheckpointFailedError,
    CheckpointToken,
    Frontier,
    Run,
    RunStoppedError,
    TokenState,
    run_batches,
)
from trio_ckpt.stores import MemoryStore, open_store


def in_a_thread_of_trio(func: Callable[[], Any]) -> Any:
    return trio.to_thread.run_sync(func)


async def in_a_foreign_thread(func: Callable[[], Any]) -> Any:
    """In a thread that trio does not know."""
    done, got = trio.Event(), list[Any]()
    token = trio.lowlevel.current_trio_token()

    def work() -> None:
        try:
            got.append(func())
        except BaseException as error:
            got.append(error)
        token.run_sync_soon(done.set)

    threading.Thread(target=work).start()
    await done.wait()
    if isinstance(got[0], BaseException):
        raise got[0]
    return got[0]


async def in_another_trio(func: Callable[[], Any]) -> Any:
    """In the loop of another trio program."""

    async def main() -> Any:
        return func()

    return await trio.to_thread.run_sync(trio.run, main)


WHERE = [in_a_thread_of_trio, in_a_foreign_thread, in_another_trio]
everywhere = pytest.mark.parametrize("there", WHERE, ids=lambda func: func.__name__)


async def watch(run: Run) -> None:
    """Stands for a display, which a change has to wake."""
    registry = run.coordinator.registry
    version = registry.version
    while True:
        version = await registry.wait_changed(version)


async def waits(token: CheckpointToken[Any], told: list[Any]) -> None:
    try:
        told.append(await token.wait())
    except CheckpointFailedError as error:
        told.append(error)


@everywhere
@pytest.mark.parametrize("verb", ["complete", "fail"])
async def test_a_token_is_settled_from_any_thread(there: Any, verb: str) -> None:
    told: list[Any] = []
    with trio.fail_after(HANG_S):
        async with CheckpointCoordinator() as coordinator, trio.open_nursery() as nursery:
            token = coordinator.create_checkpoint("r", 0)
            for _ in range(3):
                nursery.start_soon(waits, token, told)
            await trio.testing.wait_all_tasks_blocked()
            assert await there(lambda: getattr(token, verb)("said")) is True
            assert await there(lambda: getattr(token, verb)("again")) is False
    assert coordinator.get_pending_checkpoints() == ()
    assert [getattr(each, "reason", each) for each in told] == ["said"] * 3


SETTLE: dict[str, Callable[[Batch[Any]], bool]] = {
    "complete": lambda batch: batch.complete(records=2),
    "fail": lambda batch: batch.fail("no"),
    "skip": lambda batch: batch.skip("no"),
    "withdraw": lambda batch: batch.withdraw(),
    "token.complete": lambda batch: batch.token.complete(),
    "token.fail": lambda batch: batch.token.fail("no"),
}
FAILS = ("fail", "token.fail")


@everywhere
@pytest.mark.parametrize("verb", SETTLE)
async def test_a_batch_is_settled_from_any_thread(there: Any, verb: str) -> None:
    told: list[Any] = []
    answers: list[bool] = []

    async def loop(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches():
                nursery.start_soon(waits, batch.token, told)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(2):
                    answers.append(await there(partial(SETTLE[verb], batch)))
                break

    with trio.fail_after(HANG_S):
        async with begin() as run, trio.open_nursery() as nursery:
            nursery.start_soon(watch, run)
            if verb in FAILS:
                with pytest.raises(BatchFailedError, match="no"):
                    await loop(run)
            else:
                await loop(run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert answers == [True, False]
    assert len(told) == 1
    assert isinstance(told[0], CheckpointFailedError) is ("complete" not in verb)


async def test_of_two_threads_that_settle_the_first_wins() -> None:
    """Each batch is settled by four threads at once: one is told True."""
    store = MemoryStore()
    barrier = threading.Barrier(4)

    def settle(batch: Batch[Any], number: int) -> bool:
        barrier.wait(HANG_S)
        return batch.complete(records=number)

    async def all_at_once(batch: Batch[Any]) -> list[int]:
        won: list[int] = []

        async def one(number: int) -> None:
            if await trio.to_thread.run_sync(settle, batch, number):
                won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1, 5):
                nursery.start_soon(one, number)
        return won

    records = 0
    async with begin(store=store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(20)):
            (won,) = await all_at_once(batch)
            records += won
        assert stream.statistics().records == records


async def test_handlers_in_threads_settle_their_own_batches() -> None:
    def work(batch: Batch[int]) -> None:
        batch.complete(records=batch.item)

    async def handle(batch: Batch[int]) -> None:
        await trio.to_thread.run_sync(work, batch)

    with trio.fail_after(HANG_S):
        async with begin() as run, run.open_stream("s") as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.wait_confirmed, stream, range(50))
                nursery.start_soon(run.wait_confirmed, stream, [49])
                await run_batches(stream, range(50), handle, concurrency=4)
            assert stream.progress.records == sum(range(50))


async def test_what_threads_stage_is_added_up_exactly(tmp_path: Any) -> None:
    def stage(batch: Batch[Any], number: int) -> None:
        for _ in range(100):
            batch.spend(calls=1)
        batch.add([f"item {number}"])
        batch.append_json("all.jsonl", number)

    async def handle(batch: Batch[Any]) -> None:
        if batch.item == "begin":
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(trio.to_thread.run_sync, stage, batch, number)
        batch.complete()

    async with begin(output_dir=tmp_path) as run:
        async with run.open_stream("s", state=Frontier(["begin"])) as stream:
            await run_batches(stream, None, handle)
            assert stream.progress.spent["calls"].value == 800
            assert len(stream.progress.confirmed) == 9
    lines = (tmp_path / "all.jsonl").read_text().split()
    assert sorted(map(int, lines)) == list(range(8))


@everywhere
async def test_what_a_call_raises_is_raised_where_it_was_made(there: Any) -> None:
    async with begin() as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(ValueError, match="records must be an int from 0 on"):
                await there(partial(batch.complete, records=-1))
            assert batch.token.state is TokenState.PENDING
            assert await there(batch.complete) is True


@everywhere
async def test_a_coordinator_is_closed_from_any_thread(there: Any) -> None:
    told: list[Any] = []
    coordinator = CheckpointCoordinator()
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, coordinator.create_checkpoint("r", 0), told)
            await trio.testing.wait_all_tasks_blocked()
            await there(coordinator.close)
    assert [type(each) for each in told] == [BatchCancelledError]
    with pytest.raises(trio.ClosedResourceError):
        coordinator.create_checkpoint("r", 1)


@everywhere
async def test_a_run_is_stopped_from_any_thread(there: Any) -> None:
    with trio.fail_after(HANG_S), pytest.raises(RunStoppedError) as caught:
        async with begin() as run, trio.open_nursery() as nursery:
            nursery.start_soon(watch, run)
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(5)):
                    await there(run.request_stop)
                    assert run.is_stopping
                    batch.complete()
    assert caught.value.exit_code == 75
    await there(run.request_stop)  # it is over: nothing is left to stop


async def test_a_signal_handler_stops_a_run() -> None:
    """A handler of the program's own runs between any two instructions of trio's thread."""
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with trio.fail_after(HANG_S), pytest.raises(RunStoppedError):
            async with begin() as run:
                signal.signal(signal.SIGUSR1, lambda *_: run.request_stop())
                async with run.open_stream("s") as stream, trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    async for batch in stream.batches(range(5)):
                        batch.complete()
                        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


LATE: dict[str, Callable[[Batch[Any]], object]] = {
    **SETTLE,
    "spend": lambda batch: batch.spend(calls=1),
    "append_json": lambda batch: batch.append_json("a", 1),
    "append_bytes": lambda batch: batch.append_bytes("a", b"1"),
}


@pytest.mark.parametrize("verb", LATE)
def test_a_thread_that_comes_too_late_is_told(verb: str) -> None:
    async def main() -> Batch[Any]:
        async with begin() as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.complete()
        return batch

    batch = trio.run(main)
    with pytest.raises(trio.RunFinishedError, match=r"trio\.run\(\) .* has ended"):
        trio.run(in_another_trio, partial(LATE[verb], batch))
    assert batch.token.state is TokenState.CONFIRMED


def test_a_stop_that_comes_too_late_stops_nothing() -> None:
    async def main() -> Run:
        async with begin() as run:
            pass
        return run

    for call in (lambda run: run.request_stop(), in_a_thread_of_its_own):
        run = trio.run(main)
        call(run)
        assert run.exit_code == 0


def in_a_thread_of_its_own(run: Run) -> None:
    thread = threading.Thread(target=run.request_stop)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_late_thread_changes_no_token() -> None:
    coordinator = CheckpointCoordinator()

    async def main() -> CheckpointToken[Any]:
        return coordinator.create_checkpoint("r", 0)

    token = trio.run(main)
    for call in (token.complete, partial(token.fail, "no"), coordinator.close):
        with pytest.raises(trio.RunFinishedError):
            trio.run(in_another_trio, call)
    assert token.is_pending
    coordinator.close()  # the thread that trio has left is this one


async def test_a_thread_sees_the_age_of_a_token(autojump_clock: trio.testing.MockClock) -> None:
    async with CheckpointCoordinator() as coordinator:
        token = coordinator.create_checkpoint("r", 0)
        await trio.sleep(3)
        assert await trio.to_thread.run_sync(lambda: token.age_s) == 3


# -- without trio -----------------------------------------------------------------------------


async def enter_a_run() -> None:
    async with begin():
        pass


async def make_a_token() -> None:
    CheckpointCoordinator().create_checkpoint("r", 0)


async def open_a_store() -> None:
    await open_store("sqlite:unused.ckpt")


@pytest.mark.parametrize("call", [enter_a_run, make_a_token, open_a_store])
def test_under_asyncio_the_error_says_what_to_do(call: Any) -> None:
    with pytest.raises(RuntimeError, match=r"under asyncio: start the program with trio\.run"):
        asyncio.run(call())


def test_without_a_loop_the_error_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"outside of trio: start the program with trio\.run"):
        CheckpointCoordinator().create_checkpoint("r", 0)
