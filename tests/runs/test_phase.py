"""A phase is complete with the streams of its block: it never hides work that is left."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.opening import begin
from trio_ckpt import RunStoppedError, Status
from trio_ckpt._journal.summary import phase_statuses, read_run_status
from trio_ckpt.stores import MemoryStore


async def collect(
    store: Any, bad: str | None = None, *, retryable: bool = True, **settings: Any
) -> tuple[int, Status, list[tuple[str, int]]]:
    """Streams in a phase that asks for nothing once it is complete, as users write it."""
    asked: list[tuple[str, int]] = []
    async with begin(store, **settings) as run:
        async with run.phase("pulls") as phase:
            if not phase.complete:
                for name in ("a", "b"):
                    async with run.open_stream(name, on_fail="record") as stream:
                        async for batch in stream.batches(range(2)):
                            asked.append((name, batch.index))
                            if name == bad and batch.index == 1:
                                await stream.fail("429", retryable=retryable)
                                break
                            batch.complete()
    look = await read_run_status(store, "r")
    assert look is not None
    assert phase_statuses(look.parts) == run.phases
    return run.exit_code, run.phases["pulls"], asked


async def test_a_stream_that_failed_for_now_keeps_its_phase_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    with caplog.at_level(logging.INFO):
        code, status, _ = await collect(store, "a")
    assert (code, status) == (75, Status.INTERRUPTED)
    assert "phase 'pulls' is left with work in 1 stream: a" in caplog.text
    assert await collect(store) == (0, Status.COMPLETE, [("a", 1)])
    assert await collect(store) == (0, Status.COMPLETE, [])


async def test_a_stream_that_failed_for_good_does_not() -> None:
    store = MemoryStore()
    code, status, _ = await collect(store, "a", retryable=False)
    assert (code, status) == (69, Status.COMPLETE)
    assert await collect(store) == (69, Status.COMPLETE, [])
    assert await collect(store, retry_failed=True) == (0, Status.COMPLETE, [("a", 1)])


@pytest.mark.parametrize("how", ["redo", "rewind", "skip"])
async def test_what_goes_back_to_work_opens_its_phase_again(how: str) -> None:
    store = MemoryStore()
    assert (await collect(store))[:2] == (0, Status.COMPLETE)
    async with begin(store) as run:
        assert run.current_phase is None
        if how == "rewind":
            await run.rewind(("b",), to=0, reason="x")
        else:
            async with run.open_stream("b") as stream:
                await stream.redo([1], reason="x")
                if how == "skip":
                    async for batch in stream.batches(range(2)):
                        batch.skip("not today")
        if how == "skip":
            assert run.phases == {"pulls": Status.COMPLETE}
        else:
            assert (run.phases, run.current_phase) == ({"pulls": Status.INTERRUPTED}, "pulls")
    retries = {"retry_failed": True} if how == "skip" else {}
    assert await collect(store, **retries) == (0, Status.COMPLETE, [("b", 1)])


async def test_a_phase_that_is_gone_through_again_is_in_progress() -> None:
    store = MemoryStore()
    await collect(store)
    async with begin(store) as run:
        await run.rewind(("a",), to=-1, reason="x")
        async with run.phase("pulls") as phase:
            assert not phase.complete
            assert run.phases == {"pulls": Status.IN_PROGRESS}
            assert run.exit_code == 75
        assert run.phases == {"pulls": Status.INTERRUPTED}


async def test_a_stream_belongs_to_the_phase_that_it_was_opened_in_last() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.phase("first"):
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3), end=0):
                    batch.complete()
        assert run.phases == {"first": Status.INTERRUPTED}
        async with run.phase("second"), run.open_stream("s") as stream:
            async for batch in stream.batches(range(3), end=1):
                batch.complete()
        async with run.phase("first"):
            pass
        assert run.phases == {"first": Status.COMPLETE, "second": Status.INTERRUPTED}
        async with run.open_stream("s") as stream:  # in none
            async for batch in stream.batches(range(3)):
                batch.complete()
        async with run.phase("second"):
            pass
        assert set(run.phases.values()) == {Status.COMPLETE}
        assert run.exit_code == 0


async def test_a_stop_in_a_phase_leaves_it_interrupted() -> None:
    store = MemoryStore()
    with pytest.raises(RunStoppedError):
        async with begin(store) as run, run.phase("p"):
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(3)):
                    batch.complete()
                    run.request_stop()
    assert run.phases == {"p": Status.INTERRUPTED}
    async with begin(store) as run:
        assert run.phases == {"p": Status.INTERRUPTED}


async def test_streams_that_are_listed_and_not_opened_are_of_no_phase() -> None:
    async with begin("memory:") as run:
        async with run.phase("discovery"):
            await run.add_streams([("a",), ("b",)])
        assert run.phases == {"discovery": Status.COMPLETE}
        assert run.exit_code == 75


# -- what is open is in progress -----------------------------------------------------------


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_stream_that_is_open_again_is_in_progress(retryable: bool) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", on_fail="record") as stream:
        await stream.fail("429", retryable=retryable)
        assert stream.status is Status.FAILED
    async with begin(store) as run:
        assert run.group("s").status is Status.FAILED
        async with run.open_stream("s", retry_failed=not retryable) as stream:
            assert stream.status is Status.IN_PROGRESS
            assert run.group("s").status is Status.IN_PROGRESS
            assert run.statistics().streams[Status.IN_PROGRESS] == 1
        # left before anything was done: nothing is raised, for nothing failed now
        assert stream.status is (Status.FAILED if retryable else Status.INTERRUPTED)
        with pytest.raises(RuntimeError, match="mine"):
            async with run.open_stream("s", retry_failed=not retryable) as stream:
                async for _ in stream.batches():
                    raise RuntimeError("mine")
        assert run.group("s").status is Status.FAILED
