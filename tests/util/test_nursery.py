"""A service nursery ends with its block, and exceptions leave it as the same objects."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_ckpt._util.nursery import open_service_nursery


class BodyError(Exception):
    """The block fails."""


class TaskError(Exception):
    """A background task fails."""


async def fail(error: BaseException) -> None:
    raise error


async def fail_when_cancelled(error: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise error


async def test_tasks_are_cancelled_when_the_block_ends() -> None:
    ended = trio.Event()

    async def serve() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_service_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.lowlevel.checkpoint()
    assert ended.is_set()


@pytest.mark.parametrize(
    "error",
    [BodyError("alone"), ExceptionGroup("of the user", [BodyError("one")]), KeyboardInterrupt()],
    ids=["exception", "group", "interrupt"],
)
async def test_the_blocks_exception_leaves_as_the_same_object(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        async with open_service_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert raised.value is error


async def test_a_tasks_failure_cancels_the_block_and_leaves_alone() -> None:
    failure = TaskError("alone")
    with pytest.raises(TaskError) as raised:
        async with open_service_nursery() as nursery:
            nursery.start_soon(fail, failure)
            await trio.sleep_forever()
    assert raised.value is failure


async def test_a_group_that_a_task_raises_leaves_alone() -> None:
    group = ExceptionGroup("of the task", [TaskError("one"), TaskError("two")])
    with pytest.raises(ExceptionGroup, match="of the task") as raised:
        async with open_service_nursery() as nursery:
            nursery.start_soon(fail, group)
            await trio.sleep_forever()
    assert raised.value.exceptions == group.exceptions  # trio makes a group of its own of them


async def test_a_tasks_failure_has_the_blocks_as_its_context() -> None:
    first, failure = BodyError("first"), TaskError("while it was cancelled")
    with pytest.raises(TaskError) as raised:
        async with open_service_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, failure)
            await trio.lowlevel.checkpoint()
            raise first
    assert raised.value is failure
    assert raised.value.__context__ is first


async def test_the_failures_of_several_tasks_leave_as_a_group() -> None:
    one, two = TaskError("one"), TaskError("two")
    with pytest.raises(ExceptionGroup) as raised:
        async with open_service_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, one)
            nursery.start_soon(fail_when_cancelled, two)
            await trio.lowlevel.checkpoint()
    assert {*raised.value.exceptions} == {one, two}


async def test_a_task_may_end_the_block_without_an_exception() -> None:
    async def stop(nursery: trio.Nursery) -> None:
        nursery.cancel_scope.cancel()

    went_on = False
    try:
        async with open_service_nursery() as nursery:
            nursery.start_soon(stop, nursery)
            await trio.sleep_forever()
        went_on = True
    finally:
        assert went_on


@pytest.mark.parametrize("tasks", [0, 1])
@pytest.mark.parametrize("error", [None, BodyError("the block's own")], ids=["none", "error"])
async def test_a_cancelled_block_raises_its_own_exception(
    error: BodyError | None, tasks: int
) -> None:
    caught: BaseException | None = None
    with trio.CancelScope() as around:
        around.cancel()
        try:
            async with open_service_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.lowlevel.checkpoint()
                except trio.Cancelled:
                    if error is not None:
                        raise error from None
                    raise
        except (BodyError, trio.Cancelled) as problem:  # neither is in a group
            caught = problem
            if error is None:
                raise
    assert caught is error if error is not None else isinstance(caught, trio.Cancelled)
    assert around.cancelled_caught is (error is None)


async def test_a_block_whose_tasks_are_cancelled_passes_that_on() -> None:
    with trio.CancelScope() as around:
        async with open_service_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            around.cancel()
    assert around.cancelled_caught


async def test_a_cancellation_from_outside_is_no_end_by_a_task() -> None:
    """The tasks are cancelled first, which also cancels the nursery."""
    with trio.CancelScope() as around:
        async with open_service_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(trio.sleep_forever)
            async with open_service_nursery() as inner:
                for _ in range(10):
                    inner.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                around.cancel()
                await trio.sleep_forever()
        raise AssertionError("the block went on")
    assert around.cancelled_caught
