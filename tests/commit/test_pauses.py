"""A stream hands out nothing while it pauses, and the longest pause counts."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt._commit.pauses import Pauses
from trio_ckpt._commit.shutdown import Stop
from trio_ckpt._runs.stream import loop_cursor_of


async def test_the_longest_pause_counts(autojump_clock: trio.testing.MockClock) -> None:
    pauses = Pauses("r", ("s",))
    pauses.pause_for(7.0, "a server asked")
    pauses.pause_for(3.0, "another one asked")
    assert pauses.newest == (pytest.approx(trio.current_time() + 7), "a server asked")
    await pauses.wait_over(Stop(1.0))
    assert (trio.current_time(), pauses.newest) == (pytest.approx(7), None)


async def test_a_pause_that_becomes_longer_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pauses = Pauses("r", ("s",))
    pauses.pause_for(7.0, "a server asked")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pauses.wait_over, Stop(1.0))
        await trio.sleep(5)
        pauses.pause_for(40.0, "it asked again")
    assert trio.current_time() == pytest.approx(45)


async def test_a_pause_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pauses = Pauses("r", ("s",))
    with caplog.at_level(logging.INFO, "trio_ckpt"):
        pauses.pause_for(7.0, "a server asked")
        pauses.pause_for(3.0, "another one asked")
    assert caplog.messages == ["run 'r', stream 's' waits 7 s: a server asked"]


async def test_a_batch_that_is_opened_waits_for_the_pause_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        loop_cursor_of(stream).open_stream.pauses.pause_for(7.0, "a server asked")
        async with stream.open_batch() as batch:
            assert trio.current_time() == pytest.approx(7)
            batch.complete()


async def test_the_next_batch_of_a_loop_waits_for_the_pause_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            if batch.index == 0:
                loop_cursor_of(stream).open_stream.pauses.pause_for(40.0, "a server asked")
            batch.complete()
        assert trio.current_time() == pytest.approx(40)
