"""The list of streams, what is left of it, and phases: done once, told by every session."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    RetryRule,
    RetryTable,
    Run,
    Status,
    StoreError,
    StreamBusyError,
    StreamFailedError,
    Then,
    UnknownStreamError,
)
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import RecordKind
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import Fail, FaultyStore

KEYS = [("c", "x"), ("a", "x"), ("a", "y"), ("b", "x")]


class BodyError(Exception):
    """What a body raises."""


async def work(run: Run, *key: str, count: int = 2, **options: Any) -> None:
    async with run.open_stream(*key, **options) as stream:
        async for batch in stream.batches(range(count)):
            batch.complete(records=1)


# ---------------------------------------------------------------------------------------
# The list
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_list_is_kept_in_its_order(kind: str, tmp_path: Path) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    async with begin(store) as run:
        listed = await run.add_streams([*KEYS, KEYS[0]])
        assert (listed.new, listed.unlisted) == (tuple(KEYS), ())
        assert run.streams_to_process() == KEYS
    async with begin(store) as run:
        assert run.streams_to_process() == KEYS
        assert run.found.streams == 4


async def test_adding_again_saves_nothing_and_changes_nothing() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await run.add_streams(KEYS)
        listed = await run.add_streams(reversed(KEYS))
        assert (listed.new, listed.unlisted) == ((), ())
        assert run.streams_to_process() == KEYS
    view = await store.load_run("r")
    assert view is not None
    for place, key in enumerate(KEYS):
        assert view.streams[key].progress.sequence == 1
        assert view.streams[key].progress.position == place
        assert view.streams[key].progress.status is Status.PENDING


async def test_new_streams_come_after_those_that_were_listed() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await run.add_streams(KEYS[:2])
    async with begin(store.after_crash()) as run:
        listed = await run.add_streams([("n", "x"), *KEYS])
        assert listed.new == (("n", "x"), *KEYS[2:])
        assert run.streams_to_process() == [*KEYS[:2], ("n", "x"), *KEYS[2:]]


async def test_what_is_listed_no_longer_is_reported_and_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await run.add_streams(KEYS)
        with caplog.at_level(logging.INFO):
            listed = await run.add_streams(KEYS[1:3])
        assert (listed.new, listed.unlisted) == ((), (KEYS[0], KEYS[3]))
        assert "not named any more, but still listed: 2 streams (c/x, b/x)" in caplog.text
        assert run.streams_to_process() == KEYS


async def test_a_stream_that_was_opened_before_gets_its_place() -> None:
    async with begin("memory:") as run:
        await work(run, "z", "x")
        assert (await run.add_streams([("a", "x"), ("z", "x")])).new == (("a", "x"), ("z", "x"))
        assert run.streams_to_process() == [("a", "x")]
        assert run.group("z").status is Status.COMPLETE


@pytest.mark.parametrize("bad", [[("@phase", "x")], [()], [("a", "")], [("a", "\n")]])
async def test_bad_keys_are_refused_and_nothing_is_listed(bad: Any) -> None:
    async with begin("memory:") as run:
        with pytest.raises(ValueError, match="stream"):
            await run.add_streams([("good",), *bad])
        assert run.streams_to_process() == []
        texts: Any = ["good"]
        with pytest.raises(TypeError, match="tuple of its parts"):
            await run.add_streams(texts)


async def test_a_list_that_could_not_be_saved_is_no_list() -> None:
    store = MemoryStore()
    async with begin(FaultyStore(store, {2: Fail()})) as run:
        with pytest.raises(StoreError):
            await run.add_streams(KEYS)
        assert (await run.add_streams(KEYS)).new == tuple(KEYS)
        assert run.streams_to_process() == KEYS


async def test_with_listed_streams_never_opened_the_run_is_not_done() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        assert run.exit_code == 0
        await run.add_streams(KEYS)
        assert run.exit_code == 75
        for key in KEYS[:-1]:
            await work(run, *key)
            assert run.exit_code == 75
    async with begin(store) as run:
        assert run.exit_code == 75
        await work(run, *KEYS[-1])
        assert run.exit_code == 0


async def test_a_list_of_thousands_is_compared_at_once() -> None:
    keys = [(f"{n}", "x") for n in range(5_000)]
    async with begin("memory:") as run:
        await run.add_streams(keys)
        began = time.process_time()
        listed = await run.add_streams(keys[1:])
        assert time.process_time() - began < 1  # s of CPU; comparing each with each takes seconds
        assert (listed.new, listed.unlisted) == ((), (keys[0],))


# ---------------------------------------------------------------------------------------
# What is left of it
# ---------------------------------------------------------------------------------------


async def fill(run: Run) -> None:
    """One stream for every way to stand."""
    await run.add_streams([(name,) for name in ("new", "done", "cut", "lost", "late", "holes")])
    await work(run, "done")
    async with run.open_stream("cut") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
            break
    for name, retryable in (("lost", False), ("late", True)):
        async with run.open_stream(name, on_fail="record") as stream:
            await stream.fail("no", retryable=retryable)
    async with run.open_stream("holes") as stream:
        async for batch in stream.batches(range(2)):
            batch.skip("no")


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["new", "cut", "late"]),
        ({"retry_failed": True}, ["new", "cut", "lost", "late", "holes"]),
        ({"start_from": ("cut",)}, ["cut", "late"]),
        ({"start_from": ("done",)}, ["cut", "late"]),
        ({"start_from": ("holes",)}, []),
        ({"start_from": ("holes",), "retry_failed": True}, ["holes"]),
    ],
)
async def test_streams_to_process(
    options: dict[str, Any], expected: list[str], is_restarted: bool
) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await fill(run)
        if not is_restarted:
            assert [key[0] for key in run.streams_to_process(**options)] == expected
    async with begin(store) as run:
        assert [key[0] for key in run.streams_to_process(**options)] == expected


async def test_start_from_takes_first_parts_and_refuses_unknown_ones() -> None:
    async with begin("memory:") as run:
        await run.add_streams(KEYS)
        assert run.streams_to_process(start_from=("a",)) == KEYS[1:]
        assert run.streams_to_process(start_from=("a", "y")) == KEYS[2:]
        assert run.streams_to_process(start_from=()) == KEYS
        for unknown in (("q",), ("a", "q"), ("a", "x", "x")):
            with pytest.raises(UnknownStreamError, match=f"no stream '{'/'.join(unknown)}'") as e:
                run.streams_to_process(start_from=unknown)
            assert (e.value.run_id, e.value.stream) == ("r", unknown)
        text: Any = "a"
        with pytest.raises(TypeError):
            run.streams_to_process(start_from=text)


async def test_what_failed_for_good_is_taken_up_when_it_is_asked_for() -> None:
    async with begin("memory:") as run:
        await fill(run)
        with pytest.raises(StreamFailedError, match="retry_failed=True tries again"):
            await work(run, "lost")
        for key in run.streams_to_process(retry_failed=True):
            await work(run, *key, retry_failed=True)
        assert run.streams_to_process(retry_failed=True) == []
        assert run.exit_code == 0


# ---------------------------------------------------------------------------------------
# A stream that fails lets the next one go on
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_table_that_fails_the_stream_lets_the_next_one_go_on(retryable: bool) -> None:
    store, rule = (
        MemoryStore(),
        RetryRule((BodyError,), attempts=1, then=Then.FAIL_STREAM, retryable=retryable),
    )

    async def session() -> None:
        for key in run.streams_to_process():
            async with run.open_stream(*key, on_fail="record", retry=RetryTable((rule,))) as stream:
                async for batch in stream.batches(range(3)):
                    if key == ("bad",) and batch.index == 1 and is_bad:
                        batch.fail(BodyError("the server is gone"))
                    else:
                        batch.complete()

    is_bad = True
    async with begin(store) as run:
        await run.add_streams([("bad",), ("good",)])
        await session()
        assert run.group("bad").status is Status.FAILED
        assert run.group("good").status is Status.COMPLETE
        assert run.exit_code == (75 if retryable else 69)
        error = run.group("bad").error
        assert error is not None
        assert (error.type, error.message, error.batch_index) == (
            "BodyError",
            "the server is gone",
            1,
        )
        assert error.retryable is retryable
    is_bad = False
    async with begin(store) as run:
        assert run.streams_to_process() == ([("bad",)] if retryable else [])
        await session()
        assert run.exit_code == (0 if retryable else 69)


async def test_without_on_fail_the_failure_of_a_stream_is_raised() -> None:
    retry = RetryTable((RetryRule((BodyError,), attempts=1, then=Then.FAIL_STREAM),))
    with pytest.raises(StreamFailedError) as info:
        async with begin("memory:") as run, run.open_stream("s", retry=retry) as stream:
            async for batch in stream.batches(range(3)):
                batch.fail(BodyError("no"))
    assert (info.value.stream, info.value.batch_index) == (("s",), 0)
    assert isinstance(info.value.__cause__, BodyError)


@pytest.mark.parametrize("error", [BodyError(), StreamFailedError("other", stream=("t",))])
async def test_on_fail_absorbs_nothing_but_the_streams_own_failure(error: Exception) -> None:
    async with begin("memory:") as run:
        with pytest.raises(type(error)) as info:
            async with run.open_stream("s", on_fail="record"):
                raise error
        assert info.value is error


# ---------------------------------------------------------------------------------------
# Phases
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_phase_is_done_once(kind: str, tmp_path: Path) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    done = []
    for _ in range(3):
        async with begin(store) as run:
            async with run.phase("discovery") as phase:
                assert phase.name == "discovery"
                if not phase.complete:
                    assert run.current_phase == "discovery"
                    assert run.phases == {"discovery": Status.IN_PROGRESS}
                    assert run.exit_code == 75
                    done.append(1)
            assert run.current_phase is None
            assert run.phases == {"discovery": Status.COMPLETE}
            assert run.exit_code == 0
    assert done == [1]


async def test_a_phase_that_fails_says_so_and_runs_again() -> None:
    store = MemoryStore()
    with pytest.raises(BodyError):
        async with begin(store) as run, run.phase("p"):
            raise BodyError("disk full")
    async with begin(store) as run:
        assert run.phases == {"p": Status.FAILED}
        assert run.current_phase == "p"
        assert run.exit_code == 75
        async with run.phase("p") as phase:
            assert not phase.complete
            assert phase.error is not None
            assert (phase.error.type, phase.error.message) == ("BodyError", "disk full")
            assert run.phases == {"p": Status.IN_PROGRESS}
        assert run.phases == {"p": Status.COMPLETE}
    async with begin(store) as run, run.phase("p") as phase:
        assert phase.complete
        assert phase.error is None
    page = [r.kind async for p in read_pages(store, "r", 0, ("@phase", "p")) for _, r in p]
    assert page[::-1] == [RecordKind.SAVE, RecordKind.FAIL, RecordKind.SAVE, RecordKind.FINISH]


async def test_a_phase_that_is_cancelled_or_killed_is_not_complete() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        with trio.CancelScope() as scope:
            async with run.phase("p"):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert run.phases == {"p": Status.INTERRUPTED}
        async with run.phase("q"):
            store = store.after_crash()
    async with begin(store) as run:
        assert run.phases == {"p": Status.INTERRUPTED, "q": Status.INTERRUPTED}
        assert run.current_phase == "q"
        for name in ("p", "q"):
            async with run.phase(name) as phase:
                assert not phase.complete
        assert run.exit_code == 0


async def test_phases_nest_but_not_in_themselves() -> None:
    async with begin("memory:") as run:
        async with run.phase("outer"):
            async with run.phase("inner"):
                assert run.current_phase == "inner"
                with pytest.raises(StreamBusyError, match="phase 'outer' is open already"):
                    async with run.phase("outer"):
                        pass
            assert run.current_phase == "outer"
        assert run.phases == {"outer": Status.COMPLETE, "inner": Status.COMPLETE}
        async with run.phase("outer") as phase:
            assert phase.complete


async def test_the_error_of_a_complete_phase_changes_nothing() -> None:
    async with begin("memory:") as run:
        async with run.phase("p"):
            pass
        with pytest.raises(BodyError):
            async with run.phase("p"):
                raise BodyError
        assert run.phases == {"p": Status.COMPLETE}


@pytest.mark.parametrize("name", ["", "@x", "a\nb"])
async def test_a_bad_name_is_no_phase(name: str) -> None:
    async with begin("memory:") as run:
        with pytest.raises(ValueError, match="stream"):
            async with run.phase(name):
                pass
        assert run.phases == {}


async def test_a_phase_whose_end_cannot_be_saved_is_not_complete() -> None:
    store = MemoryStore()
    async with begin(FaultyStore(store, {3: Fail()})) as run:
        with pytest.raises(StoreError):
            async with run.phase("p"):
                pass
    async with begin(store) as run, run.phase("p") as phase:
        assert not phase.complete


async def test_phases_are_no_streams_of_the_user() -> None:
    async with begin("memory:") as run:
        async with run.phase("p"):
            pass
        assert run.streams_to_process() == []
        assert run.groups() == {}
        assert run.statistics().streams[Status.COMPLETE] == 0
