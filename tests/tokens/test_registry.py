"""The registry: a monitor never misses the latest state, and does not poll."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from tests.hangs import HANG_S
from trio_ckpt import CheckpointCoordinator, DuplicateCheckpointError, TokenRegistry
from trio_ckpt._tokens.token import touch
from trio_ckpt.testing import seeded_scheduler


@pytest.fixture
def coordinator() -> CheckpointCoordinator:
    return CheckpointCoordinator()


async def test_every_change_of_a_token_raises_the_version(
    coordinator: CheckpointCoordinator,
) -> None:
    registry = coordinator.registry
    versions = [registry.version]
    one = coordinator.create_checkpoint("run", 0)
    versions.append(registry.version)
    other = coordinator.create_checkpoint("run", 1)
    versions.append(registry.version)
    one.complete()
    versions.append(registry.version)
    other.fail("no")
    versions.append(registry.version)
    assert versions == sorted(set(versions))


async def test_what_changes_nothing_leaves_the_version(
    coordinator: CheckpointCoordinator,
) -> None:
    token = coordinator.create_checkpoint("run", 0)
    version = coordinator.registry.version
    with pytest.raises(DuplicateCheckpointError):
        coordinator.create_checkpoint("run", 0)
    coordinator.find_checkpoint("run", 0)
    coordinator.get_pending_checkpoints()
    assert coordinator.registry.version == version
    token.complete()
    version = coordinator.registry.version
    token.complete()
    token.fail("late")
    assert coordinator.registry.version == version


async def test_wait_changed_returns_at_once_where_it_has_moved(
    coordinator: CheckpointCoordinator,
) -> None:
    registry = coordinator.registry
    known = registry.version
    coordinator.create_checkpoint("run", 0).complete()
    with assert_checkpoints(), trio.fail_after(HANG_S):
        assert await registry.wait_changed(known) == registry.version
    assert registry.version > known


async def test_who_is_behind_does_not_sleep_with_who_is_not(
    coordinator: CheckpointCoordinator,
) -> None:
    registry = coordinator.registry
    behind = registry.version
    coordinator.create_checkpoint("run", 0).complete()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.wait_changed, registry.version)
        await wait_all_tasks_blocked()
        with trio.fail_after(HANG_S):
            assert await registry.wait_changed(behind) == registry.version
        touch(registry)


async def test_wait_changed_sleeps_until_something_changes(
    coordinator: CheckpointCoordinator,
) -> None:
    registry = coordinator.registry
    seen: list[int] = []

    async def watch() -> None:
        with assert_checkpoints():
            seen.append(await registry.wait_changed(registry.version))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(watch)
        await wait_all_tasks_blocked()
        assert seen == []
        token = coordinator.create_checkpoint("run", 0)
    assert seen == [registry.version] * 2
    token.complete()


async def test_a_cancelled_monitor_harms_no_other(coordinator: CheckpointCoordinator) -> None:
    registry = coordinator.registry
    seen: list[int] = []

    async def watch() -> None:
        seen.append(await registry.wait_changed(registry.version))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(watch)
            await wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        assert seen == []
        coordinator.create_checkpoint("run", 0).complete()
    assert len(seen) == 1


async def test_pending_is_oldest_first_and_by_run(coordinator: CheckpointCoordinator) -> None:
    made = [
        coordinator.create_checkpoint(run_id, index)
        for run_id, index in (("b", 9), ("a", 5), ("b", 2), ("a", 7))
    ]
    registry = coordinator.registry
    assert registry.pending() == tuple(made)
    assert registry.pending("a") == (made[1], made[3])
    assert registry.pending("b") == (made[0], made[2])
    assert registry.pending("c") == ()
    assert len(registry) == 4
    made[0].complete()
    again = coordinator.create_checkpoint("b", 9)  # a new token is the youngest
    assert registry.pending("b") == (made[2], again)
    coordinator.close()
    assert len(registry) == 0


async def test_streams_tell_batches_apart(coordinator: CheckpointCoordinator) -> None:
    one = coordinator.create_checkpoint("run", 0, stream=("a",))
    other = coordinator.create_checkpoint("run", 0, stream=("b",))
    registry = coordinator.registry
    assert registry.find("run", ("a",), 0) is one
    assert registry.find("run", ("b",), 0) is other
    assert registry.find("run", (), 0) is None
    coordinator.close()


async def test_a_refused_duplicate_leaves_the_first_in_its_place(
    coordinator: CheckpointCoordinator,
) -> None:
    first = coordinator.create_checkpoint("run", 0)
    for _ in range(2):
        with pytest.raises(DuplicateCheckpointError):
            coordinator.create_checkpoint("run", 0)
    assert coordinator.registry.pending() == (first,)
    first.complete()


def test_an_empty_registry_is_made_outside_of_trio() -> None:
    assert len(TokenRegistry()) == 0


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), monitors=st.integers(1, 4), batches=st.integers(1, 12))
def test_no_wake_up_is_lost_whatever_the_order(seed: int, monitors: int, batches: int) -> None:
    """Every monitor sees the end, however slow it is, and versions only grow."""
    order = random.Random(seed)

    async def main() -> None:
        coordinator = CheckpointCoordinator()
        registry = coordinator.registry
        ends: list[int] = []
        settled = 0

        async def pause(most: int) -> None:
            for _ in range(order.randrange(most)):
                await trio.lowlevel.checkpoint()

        async def watch() -> None:
            version = registry.version
            while settled < batches:
                newer = await registry.wait_changed(version)
                assert newer > version
                version = newer
                await pause(4)  # a monitor that is busy
            ends.append(registry.version)

        async def work(index: int) -> None:
            nonlocal settled
            token = coordinator.create_checkpoint("run", index)
            await pause(6)
            settled += 1
            token.complete() if order.random() < 0.5 else token.fail("no")

        with trio.fail_after(HANG_S):
            async with trio.open_nursery() as nursery:
                for _ in range(monitors):
                    nursery.start_soon(watch)
                for index in range(batches):
                    nursery.start_soon(work, index)
        assert len(ends) == monitors
        assert registry.pending() == ()

    with seeded_scheduler(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))  # who sleeps for ever is seen
