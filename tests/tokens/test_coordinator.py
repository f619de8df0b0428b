"""Coordination without I/O: the thirteen tests by name, the ways out of a block, the end."""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_ckpt
from tests.hangs import HANG_S
from trio_ckpt import (
    BatchCancelledError,
    CheckpointCoordinator,
    CheckpointFailedError,
    CheckpointResult,
    CheckpointToken,
    DuplicateCheckpointError,
    TokenNeverSettledError,
    TokenState,
)
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import seeded_scheduler

RUN = "test-run"
PATHS = CheckpointResult(
    batch_path="/path/to/batch_0.ttl",
    checkpoint_path="/path/to/checkpoint_0.json",
    batch_hash="abc123",
    checkpoint_hash="def456",
)


@pytest.fixture
def coordinator() -> CheckpointCoordinator:
    return CheckpointCoordinator()


# -- the thirteen: ten by name, two as shown, and concurrent waiters ----------------------


async def test_create_and_complete_checkpoint_successfully(
    coordinator: CheckpointCoordinator,
) -> None:
    token = coordinator.create_checkpoint(RUN, 0)
    assert (token.run_id, token.batch_index, token.state) == (RUN, 0, TokenState.PENDING)
    assert token.complete(PATHS)
    result = await token.wait()
    assert (result.batch_path, result.checkpoint_path) == (PATHS.batch_path, PATHS.checkpoint_path)
    assert (result.batch_hash, result.checkpoint_hash) == ("abc123", "def456")
    assert result.completed_at is not None


async def test_create_and_fail_checkpoint(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint(RUN, 1)
    cause = OSError("disk full")
    assert token.fail(cause)
    with pytest.raises(CheckpointFailedError) as caught:
        await token.wait()
    assert (caught.value.run_id, caught.value.batch_index) == (RUN, 1)
    assert caught.value.__cause__ is cause


async def test_await_blocks_until_completion(
    coordinator: CheckpointCoordinator, autojump_clock: MockClock
) -> None:
    token = coordinator.create_checkpoint(RUN, 0)
    woken_at: list[float] = []

    async def wait() -> None:
        await token.wait()
        woken_at.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(50)
        assert woken_at == []
        token.complete()
    assert woken_at == [50]


async def test_find_checkpoint_by_id(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint(RUN, 2)
    assert coordinator.find_checkpoint(RUN, 2) is token
    assert coordinator.find_checkpoint(RUN, 3) is None
    assert coordinator.find_checkpoint("other-run", 2) is None
    assert coordinator.find_checkpoint(RUN, 2, stream=("a",)) is None
    token.complete()


async def test_get_pending_checkpoints(coordinator: CheckpointCoordinator) -> None:
    tokens = [coordinator.create_checkpoint(RUN, index) for index in (2, 0, 1)]
    other = coordinator.create_checkpoint("other-run", 0)
    assert coordinator.get_pending_checkpoints(RUN) == tuple(tokens)
    assert coordinator.get_pending_checkpoints() == (*tokens, other)
    coordinator.close()


@pytest.mark.parametrize("settle", ["complete", "fail"])
async def test_remove_from_pending_after_completion(
    coordinator: CheckpointCoordinator, settle: str
) -> None:
    token = coordinator.create_checkpoint(RUN, 0)
    assert len(coordinator.get_pending_checkpoints(RUN)) == 1
    token.complete() if settle == "complete" else token.fail("no")
    assert coordinator.get_pending_checkpoints(RUN) == ()
    assert coordinator.find_checkpoint(RUN, 0) is None


async def test_prevent_progress_update_on_failure(coordinator: CheckpointCoordinator) -> None:
    progress = 0
    token = coordinator.create_checkpoint(RUN, 0)
    token.fail("the save failed")
    with pytest.raises(CheckpointFailedError):
        progress = await advance(token)
    assert progress == 0


async def test_handle_multiple_operations_idempotency(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint(RUN, 0)
    assert [token.complete("first"), token.complete("second"), token.fail("no")] == [
        True,
        False,
        False,
    ]
    assert await token.wait() == "first"
    assert await token.wait() == "first"


async def test_coordinate_checkpoint_await_progress_sequence(
    coordinator: CheckpointCoordinator,
) -> None:
    events: list[str] = []

    async def save(token: CheckpointToken[Any]) -> None:
        await wait_all_tasks_blocked()
        events.append(f"saved {token.batch_index}")
        token.complete(PATHS)

    async with trio.open_nursery() as nursery:
        for index in range(3):
            token = coordinator.create_checkpoint(RUN, index)
            nursery.start_soon(save, token)
            await token.wait()
            events.append(f"confirmed {index}")
            events.append(f"progress {index + 1}")
    assert events == [
        event
        for index in range(3)
        for event in (f"saved {index}", f"confirmed {index}", f"progress {index + 1}")
    ]


async def test_block_progress_if_checkpoint_fails(coordinator: CheckpointCoordinator) -> None:
    """A loop ends at the batch that failed; what comes after it is never begun."""
    progress = 0

    async def loop() -> None:
        nonlocal progress
        for index in range(5):
            token = coordinator.create_checkpoint(RUN, index)
            token.fail(OSError("disk full")) if index == 2 else token.complete()
            progress = await advance(token)

    with pytest.raises(CheckpointFailedError) as caught:
        await loop()
    assert (progress, caught.value.batch_index) == (2, 2)
    assert coordinator.get_pending_checkpoints(RUN) == ()


async def test_should_coordinate_checkpoint_completion(coordinator: CheckpointCoordinator) -> None:
    """As the guide shows it: completed first, so waiting is over at once."""
    token = coordinator.create_checkpoint(RUN, 0)
    token.complete(PATHS)
    with trio.fail_after(HANG_S):
        assert (await token.wait()).batch_hash == "abc123"


async def test_should_handle_checkpoint_failures(coordinator: CheckpointCoordinator) -> None:
    """As the guide shows it: the waiter learns the run, the batch and the reason."""
    token = coordinator.create_checkpoint(RUN, 0)
    token.fail(Exception("Disk full"))
    with pytest.raises(CheckpointFailedError, match="Disk full") as caught:
        await token.wait()
    assert caught.value.run_id == RUN
    assert caught.value.batch_index == 0
    assert caught.value.reason == "Disk full"


async def test_concurrent_waiters(coordinator: CheckpointCoordinator) -> None:
    token = coordinator.create_checkpoint(RUN, 0)
    got: list[str] = []

    async def wait() -> None:
        got.append(await token.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        token.complete("for all")
    assert got == ["for all"] * 10


async def advance(token: CheckpointToken[Any]) -> int:
    """What a program does after a batch: wait for its checkpoint, and only then count it."""
    await token.wait()
    return token.batch_index + 1


REFERENCE = Path(__file__).parents[2] / "docs" / "explanation" / "from-the-seeds.md"


def test_the_reference_names_tests_that_are_there() -> None:
    """A row is shown by ``file: name``, or by a name of this file."""
    rows = re.findall(r"^\|.*`(test_\w+)` \|", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    sources = [
        path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")
    ]
    names = set(re.findall(r"^(?:async )?def (test_\w+)", "\n".join(sources), re.MULTILINE))
    assert len(rows) > 13
    assert set(rows) - names == set()


# -- names ----------------------------------------------------------------------------------


async def test_a_duplicate_is_refused_and_allowed_again_once_settled(
    coordinator: CheckpointCoordinator,
) -> None:
    first = coordinator.create_checkpoint(RUN, 0, stream=("a",))
    with pytest.raises(DuplicateCheckpointError) as caught:
        coordinator.create_checkpoint(RUN, 0, stream=("a",))
    error = caught.value
    assert (error.run_id, error.stream, error.batch_index) == (RUN, ("a",), 0)
    assert isinstance(error, RuntimeError)
    assert coordinator.find_checkpoint(RUN, 0, stream=("a",)) is first
    first.fail("no")
    second = coordinator.create_checkpoint(RUN, 0, stream=("a",))
    assert second is not first
    assert coordinator.find_checkpoint(RUN, 0, stream=("a",)) is second
    first.complete("late")
    assert second.is_pending
    second.complete()


@pytest.mark.parametrize(
    ("run_id", "batch_index", "stream", "error"),
    [
        ("", 0, (), ValueError),
        ("a/b", 0, (), ValueError),
        ("run", -1, (), ValueError),
        ("run", 0, ("@ours",), ValueError),
        ("run", 0, ("",), ValueError),
        ("run", 0, "pulls", TypeError),
        ("run", 0, {"pulls": 1}, TypeError),
        (7, 0, (), TypeError),
        (None, 0, (), TypeError),
    ],
)
async def test_bad_names_are_refused(
    coordinator: CheckpointCoordinator,
    run_id: Any,
    batch_index: int,
    stream: Any,
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        coordinator.create_checkpoint(run_id, batch_index, stream=stream)
    assert coordinator.get_pending_checkpoints() == ()


# -- closing -----------------------------------------------------------------------------


async def test_closing_fails_what_is_left() -> None:
    caught: list[CheckpointFailedError] = []

    async def wait(token: CheckpointToken[Any]) -> None:
        try:
            await token.wait()
        except CheckpointFailedError as error:
            caught.append(error)

    async with trio.open_nursery() as nursery:
        async with CheckpointCoordinator() as coordinator:
            done = coordinator.create_checkpoint(RUN, 0)
            done.complete("kept")
            left = coordinator.create_checkpoint(RUN, 1)
            nursery.start_soon(wait, left)
            await wait_all_tasks_blocked()
        assert left.state is TokenState.FAILED
    (error,) = caught
    assert type(error) is BatchCancelledError
    assert error.batch_index == 1
    assert "closed" in error.reason
    assert done.result_nowait() == "kept"
    assert coordinator.get_pending_checkpoints() == ()


async def test_a_closed_coordinator_makes_no_tokens(coordinator: CheckpointCoordinator) -> None:
    coordinator.close()
    coordinator.close()
    with pytest.raises(trio.ClosedResourceError):
        coordinator.create_checkpoint(RUN, 0)


async def test_an_error_in_the_block_leaves_as_it_is_and_closes() -> None:
    error = OSError("of the user")
    tokens: list[CheckpointToken[Any]] = []

    async def work() -> None:
        async with CheckpointCoordinator() as coordinator:
            tokens.append(coordinator.create_checkpoint(RUN, 0))
            raise error

    with pytest.raises(OSError, match="of the user") as caught:
        await work()
    assert caught.value is error
    assert tokens[0].state is TokenState.FAILED


async def test_cancellation_closes_too() -> None:
    with trio.CancelScope() as scope:
        async with CheckpointCoordinator() as coordinator:
            token = coordinator.create_checkpoint(RUN, 0)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert token.state is TokenState.FAILED


# -- a block for one token ---------------------------------------------------------------


async def failure_of_block(token: CheckpointToken[Any]) -> CheckpointFailedError:
    with trio.fail_after(HANG_S), pytest.raises(CheckpointFailedError) as caught:
        await token.wait()
    return caught.value


async def test_block_settled_and_left(coordinator: CheckpointCoordinator) -> None:
    async with coordinator.open_checkpoint(RUN, 0, stream=("a",)) as token:
        assert coordinator.find_checkpoint(RUN, 0, stream=("a",)) is token
        token.complete("done")
    assert await token.wait() == "done"


async def test_block_failed_and_left(coordinator: CheckpointCoordinator) -> None:
    async with coordinator.open_checkpoint(RUN, 0) as token:
        token.fail("given up")
    assert (await failure_of_block(token)).reason == "given up"


async def test_block_left_unsettled_is_an_error_never_a_hang(
    coordinator: CheckpointCoordinator,
) -> None:
    with pytest.raises(TokenNeverSettledError) as caught:
        async with coordinator.open_checkpoint(RUN, 3, stream=("a",)) as token:
            pass
    error = caught.value
    assert (error.run_id, error.stream, error.batch_index) == (RUN, ("a",), 3)
    assert (await failure_of_block(token)).__cause__ is error


async def test_block_left_by_an_error(coordinator: CheckpointCoordinator) -> None:
    error = OSError("disk full")
    with pytest.raises(OSError, match="disk full") as caught:
        async with coordinator.open_checkpoint(RUN, 0) as token:
            raise error
    assert caught.value is error
    failed = await failure_of_block(token)
    assert (failed.reason, failed.__cause__) == ("disk full", error)


async def test_block_left_by_an_error_after_it_was_completed(
    coordinator: CheckpointCoordinator,
) -> None:
    tokens: list[CheckpointToken[Any]] = []

    async def work() -> None:
        async with coordinator.open_checkpoint(RUN, 0) as token:
            tokens.append(token)
            token.complete("done")
            raise OSError("too late")

    with pytest.raises(OSError, match="too late"):
        await work()
    assert tokens[0].result_nowait() == "done"


async def test_block_left_by_cancellation(coordinator: CheckpointCoordinator) -> None:
    with trio.CancelScope() as scope:
        async with coordinator.open_checkpoint(RUN, 0) as token:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    failed = await failure_of_block(token)
    assert type(failed) is BatchCancelledError
    assert failed.__cause__ is None


async def test_block_left_by_a_group_of_cancelled_children(
    coordinator: CheckpointCoordinator,
) -> None:
    alone: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            alone.append(error)
            raise
    group = BaseExceptionGroup("children", alone)
    with pytest.raises(BaseExceptionGroup):
        async with coordinator.open_checkpoint(RUN, 0) as token:
            raise group
    assert type(await failure_of_block(token)) is BatchCancelledError


async def test_block_of_a_pending_batch_is_refused(coordinator: CheckpointCoordinator) -> None:
    async with coordinator.open_checkpoint(RUN, 0) as token:
        with pytest.raises(DuplicateCheckpointError):
            async with coordinator.open_checkpoint(RUN, 0):
                raise AssertionError("never entered")
        assert coordinator.find_checkpoint(RUN, 0) is token
        token.complete()


# -- any order ------------------------------------------------------------------------------


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["complete", "fail", "cancel", "forget", "error"]),
        st.integers(0, 4),  # waiters
        st.integers(0, 6),  # steps before it happens
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    actions=ACTIONS,
    cancelled_waiters=st.integers(0, 3),
    close_after=st.integers(0, 15),
)
def test_no_order_leaves_a_waiter_asleep_or_a_token_pending(
    seed: int, actions: list[tuple[str, int, int]], cancelled_waiters: int, close_after: int
) -> None:
    order = random.Random(seed)
    outcomes: list[tuple[int, str]] = []
    tokens: dict[int, CheckpointToken[Any]] = {}
    expected = {"complete": "done", "fail": "given up", "error": "it broke"}

    async def steps(number: int) -> None:
        for _ in range(number):
            await trio.lowlevel.checkpoint()

    async def wait(token: CheckpointToken[Any]) -> None:
        await steps(order.randrange(4))
        try:
            outcomes.append((token.batch_index, await token.wait()))
        except CheckpointFailedError as error:
            outcomes.append((token.batch_index, error.reason))

    async def wait_in_vain(token: CheckpointToken[Any]) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_quietly, token)
                await steps(order.randrange(3))
                scope.cancel()

    async def wait_quietly(token: CheckpointToken[Any]) -> None:
        with contextlib.suppress(CheckpointFailedError):
            await token.wait()

    async def main() -> None:
        async def work(index: int, action: str, waiters: int, delay: int) -> None:
            try:
                with trio.CancelScope() as scope:
                    async with coordinator.open_checkpoint("run", index) as token:
                        tokens[index] = token
                        for _ in range(waiters):
                            watchers.start_soon(wait, token)
                        for _ in range(cancelled_waiters):
                            watchers.start_soon(wait_in_vain, token)
                        await steps(delay)
                        match action:
                            case "complete":
                                token.complete("done")
                            case "fail":
                                token.fail("given up")
                            case "cancel":
                                scope.cancel()
                                await trio.lowlevel.checkpoint()
                            case "error":
                                raise OSError("it broke")
            except (TokenNeverSettledError, trio.ClosedResourceError, OSError):
                pass

        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as watchers, trio.open_nursery() as workers:
                async with CheckpointCoordinator() as coordinator:
                    for index, action in enumerate(actions):
                        workers.start_soon(work, index, *action)
                    await steps(close_after)
                assert coordinator.get_pending_checkpoints() == ()
            assert coordinator.get_pending_checkpoints() == ()

    with seeded_scheduler(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))  # who sleeps for ever is seen
    assert all(not token.is_pending for token in tokens.values())
    assert len(outcomes) == sum(actions[index][1] for index in tokens)  # each of them woke
    for index, outcome in outcomes:
        action = actions[index][0]
        closed = outcome == "its coordinator was closed before it was settled"
        cancelled = action == "cancel" and "cancelled" in outcome
        forgotten = action == "forget" and "ended without complete()" in outcome
        assert outcome == expected.get(action) or closed or cancelled or forgotten
    for index in tokens:  # all waiters of one token are told the same
        assert len({told for at, told in outcomes if at == index}) <= 1


async def test_a_batch_of_a_stream_is_found_by_run_and_index(
    coordinator: CheckpointCoordinator,
) -> None:
    token = coordinator.create_checkpoint(RUN, 2, stream=("a",))
    assert coordinator.find_checkpoint(RUN, 2) is token
    assert coordinator.find_checkpoint(RUN, 2, stream=()) is None
    assert coordinator.find_checkpoint(RUN, 3) is None
    assert coordinator.find_checkpoint("other", 2) is None
    plain = coordinator.create_checkpoint(RUN, 2)
    assert coordinator.find_checkpoint(RUN, 2) is plain
    plain.complete()
    other = coordinator.create_checkpoint(RUN, 2, stream=("b", "c"))
    with pytest.raises(ValueError, match=r"batch 2 of run .* in 2 streams, 'a', 'b/c': name one"):
        coordinator.find_checkpoint(RUN, 2)
    assert coordinator.find_checkpoint(RUN, 2, stream=("a",)) is token
    token.complete()
    assert coordinator.find_checkpoint(RUN, 2) is other
    other.fail("x")
    assert coordinator.find_checkpoint(RUN, 2) is None


async def test_a_batch_of_a_run_is_found_by_run_and_index() -> None:
    async with (
        trio_ckpt.open_run("r", store=MemoryStore(), handle_signals=False) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(2)):
            assert run.coordinator.find_checkpoint("r", batch.index) is batch.token
            batch.complete()
        assert run.coordinator.find_checkpoint("r", 0) is None
