"""Runs: resume, lock, stop, errors and their shape, outputs as the truth."""

# ruff: noqa: PT012, PT017, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from tests.hangs import HANG_S
from tests.opening import begin
from trio_ckpt import (
    BatchFailedError,
    CheckpointFailedError,
    ConfigChangedError,
    Frontier,
    OutputClaimedError,
    OutputsMissingError,
    RetryRule,
    RetryTable,
    Run,
    RunLockedError,
    RunStoppedError,
    SaveOutcomeUnknownError,
    Status,
    StoreError,
    StreamFailedError,
    StreamsStillOpenError,
    open_run,
    run_batches,
)
from trio_ckpt._runs.run import open_run_of
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import CommitThenError, Delay, Fail, FaultyStore, Hang, Reject


class BodyError(Exception):
    """What a body raises."""


async def work(run: Run, name: str = "s", count: int = 3) -> list[int]:
    """Do what is left of a stream; returns what that was."""
    done = []
    async with run.open_stream(name) as stream:
        async for batch in stream.batches(range(count)):
            done.append(batch.index)
            batch.complete(records=1)
    return done


async def test_a_run_is_locked_and_the_error_says_by_whom() -> None:
    store = MemoryStore()
    async with begin(store):
        with pytest.raises(RunLockedError) as info:
            async with begin(store.reopen()):
                pass
    assert info.value.pid == os.getpid()
    assert info.value.host
    assert info.value.since.endswith("+00:00")
    async with begin(store) as run:
        assert run.found.last_end == "ended"
    async with begin(store.after_crash()) as run:
        assert run.found.sessions == 2


async def test_found_tells_killed_from_ended() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        assert str(run.found) == "nothing saved yet"
        await work(run)
        killed = store.after_crash()
    async with begin(killed) as run:
        assert run.found.last_end == "was killed"
        assert (run.found.confirmed, run.found.records, run.found.streams) == (3, 3, 1)
        assert await work(run) == []


async def test_the_bodys_exception_leaves_as_the_same_object() -> None:
    for error in (BodyError(), ExceptionGroup("mine", [BodyError()]), KeyboardInterrupt()):
        with pytest.raises(type(error)) as info:
            async with begin("memory:") as run, run.open_stream("s"):
                raise error
        assert info.value is error


async def test_one_stream_fails_and_its_siblings_are_interrupted() -> None:
    store = MemoryStore()
    tokens = []

    async def good(run: Run) -> None:
        async with run.open_stream("good") as stream:
            async for batch in stream.batches(range(3)):
                tokens.append(batch.token)
                if batch.index == 1:
                    await trio.sleep_forever()
                batch.complete()

    with pytest.raises(ExceptionGroup) as info:
        async with begin(store) as run, trio.open_nursery() as nursery:
            nursery.start_soon(good, run)
            await trio.testing.wait_all_tasks_blocked()
            async with run.open_stream("bad") as stream:
                async for _ in stream.batches(range(1)):
                    raise BodyError
    assert info.group_contains(BodyError)
    assert all(not token.is_pending for token in tokens)
    view = await store.load_run("r")
    assert view is not None
    assert view.streams[("good",)].progress.status is Status.INTERRUPTED
    assert list(view.streams[("good",)].progress.confirmed) == [0]
    assert view.streams[("bad",)].progress.status is Status.FAILED


async def test_streams_still_open_are_cancelled_and_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()

    async def other(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                if batch.index == 1:
                    await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as info:
        async with trio.open_nursery() as nursery, begin(store) as run:
            nursery.start_soon(other, run)
            await trio.testing.wait_all_tasks_blocked()
    assert info.group_contains(StreamsStillOpenError)
    with pytest.raises(trio.ClosedResourceError):
        await work(run)
    async with begin(store) as run:
        assert await work(run) == [2]  # what was completed has been saved


async def test_a_stop_drains_and_becomes_one_error(autojump_clock: trio.testing.MockClock) -> None:
    store, after = MemoryStore(), []

    async def one(run: Run, name: str) -> None:
        async with run.open_stream(name) as stream:
            async for batch in stream.batches(range(3)):
                await trio.sleep(5)
                batch.complete()
            after.append(name)

    with pytest.raises(RunStoppedError) as info:
        async with begin(store, resume_command="again") as run, trio.open_nursery() as nursery:
            nursery.start_soon(one, run, "a")
            nursery.start_soon(one, run, "b")
            await trio.sleep(7)
            run.request_stop()
    assert (info.value.exit_code, info.value.resume_command) == (75, "again")
    assert trio.current_time() < 11
    assert after == []
    async with begin(store) as run:
        assert run.found.last_end == "was stopped"
        assert await work(run, "a") == [2]


async def test_an_exhausted_loop_still_ends_during_a_stop() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                if batch.index == 1:
                    run.request_stop()
                batch.complete()
        assert stream.status is Status.COMPLETE


@pytest.mark.parametrize("signals", [0, 1, 2])
async def test_a_stop_is_forced_after_the_grace_or_by_a_second_signal(
    signals: int, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(RunStoppedError) as info:
        async with (
            begin("memory:", grace_s=20, handle_signals=True) as run,
            run.open_stream("s") as stream,
        ):
            async for _ in stream.batches(range(1)):
                run.request_stop()
                run.request_stop()  # changes nothing: only signals force
                for number in (signal.SIGINT, signal.SIGTERM)[2 - signals :]:
                    os.kill(os.getpid(), number)
                await trio.sleep_forever()
    assert info.value.exit_code == 143
    assert trio.current_time() == pytest.approx(0 if signals == 2 else 20, abs=1)


async def test_an_error_of_a_body_during_a_stop_has_the_stop_as_context() -> None:
    with pytest.raises(BodyError) as info:
        async with begin("memory:") as run, run.open_stream("s") as stream:
            async for _ in stream.batches(range(1)):
                run.request_stop()
                raise BodyError
    assert isinstance(info.value.__context__, RunStoppedError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_in_good_order(number: int) -> None:
    store = MemoryStore()
    for _ in range(2):  # the second run may have them again
        with pytest.raises(RunStoppedError) as info:
            async with begin(store, handle_signals=None) as run, begin_other(handle=None):
                async with run.open_stream("s") as stream:
                    async for batch in stream.batches():
                        os.kill(os.getpid(), number)
                        await trio.sleep(0.01)
                        batch.complete()
        assert info.value.exit_code == 75


async def test_the_program_names_the_signals_that_stop() -> None:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with pytest.raises(RunStoppedError) as info:
        async with (
            begin("memory:", handle_signals=True, stop_signals=["SIGHUP", "SIGUSR1"]) as run,
            run.open_stream("s") as stream,
        ):
            assert signal.getsignal(signal.SIGTERM) == former[signal.SIGTERM]
            async for batch in stream.batches():
                os.kill(os.getpid(), signal.SIGUSR1)
                await trio.sleep(0.01)
                batch.complete()
    assert info.value.exit_code == 75
    assert {number: signal.getsignal(number) for number in former} == former


async def test_a_named_signal_that_comes_twice_stops_at_once() -> None:
    with pytest.raises(RunStoppedError) as info:
        async with (
            begin("memory:", handle_signals=True, stop_signals=["SIGUSR1"]) as run,
            run.open_stream("s") as stream,
        ):
            async for _ in stream.batches():
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGUSR1)
                    await trio.sleep(0.01)
                await trio.sleep_forever()
    assert info.value.exit_code == 128 + signal.SIGUSR1


def begin_other(handle: bool | None) -> Any:
    return open_run("other", store="memory:", handle_signals=handle)


async def test_a_hung_store_poisons_the_run(autojump_clock: trio.testing.MockClock) -> None:
    inner, tokens = MemoryStore(), []

    async def one(run: Run, name: str) -> None:
        async with run.open_stream(name) as stream:
            async for batch in stream.batches(range(3)):
                tokens.append(batch.token)
                batch.complete()

    with pytest.raises(RunStoppedError) as info:
        async with begin(FaultyStore(inner, {3: Hang()}), save_timeout_s=60) as run:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, run, "a")
                nursery.start_soon(one, run, "b")
    assert info.value.exit_code == 75
    assert isinstance(info.value.__cause__, SaveOutcomeUnknownError)
    assert trio.current_time() == pytest.approx(60, abs=1)
    failed = [token for token in tokens if token.state.value == "failed"]
    assert failed
    with pytest.raises(CheckpointFailedError) as failure:
        failed[0].result_nowait()
    assert isinstance(failure.value.__cause__, SaveOutcomeUnknownError)
    async with begin(inner.after_crash()) as run:
        confirmed = {(t.stream[0], t.batch_index) for t in tokens} - {
            (t.stream[0], t.batch_index) for t in failed
        }
        for name in "ab":
            done = {index for stream, index in confirmed if stream == name}
            assert await work(run, name) == [i for i in range(3) if i not in done]


async def test_a_save_that_errored_but_committed_is_never_doubled() -> None:
    inner = MemoryStore()
    with pytest.raises(Exception, match="as planned"):
        async with begin(FaultyStore(inner, {3: CommitThenError()})) as run:
            await work(run)
    async with begin(inner.after_crash()) as run:
        assert await work(run) == [2]
        assert run.view().streams["s",].progress.records == 3


async def test_one_bad_checkpoint_in_a_group_fails_its_stream_alone() -> None:
    inner = MemoryStore()
    outcomes: dict[str, str] = {}

    async def one(run: Run, name: str) -> None:
        try:
            outcomes[name] = f"did {await work(run, name)}"
        except Exception as error:
            outcomes[name] = str(error)

    store = FaultyStore(inner, {k: Reject('["7"]') for k in range(2, 9)})
    async with begin(store) as run, trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(one, run, str(number))
    assert "refuses stream" in outcomes.pop("7")
    assert set(outcomes.values()) == {"did [0, 1, 2]"}
    assert store.saves < 30


@attrs.frozen
class Config:
    lang: str = "en"
    workers: int = 4


async def test_a_changed_config(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with begin(store, config=Config()) as run:
        await work(run)
    with pytest.raises(ConfigChangedError) as info:
        async with begin(store, config=Config("fr")):
            pass
    assert info.value.changes == (("lang", '"en"', '"fr"'),)
    async with begin(store, config=Config(workers=9), tunable=["workers"]) as run:
        assert await work(run) == []
    async with begin(store, config=Config("fr"), on_config_change="accept") as run:
        assert await work(run) == []
    async with begin(store, config=Config("de"), on_config_change="restart") as run:
        assert await work(run) == [0, 1, 2]
    assert await store.load_run("r", 0) is not None


async def test_fresh_archives_and_deletes_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    for fresh in (False, True):
        async with begin(store, output_dir=tmp_path, fresh=fresh) as run:
            assert await write(run, 2) == [0, 1]
    archived = sorted(p.name for p in (tmp_path / ".archive").rglob("*.json"))
    assert archived == ["0.json", "1.json", "manifest.json"]


async def write(run: Run, count: int, **settings: Any) -> list[int]:
    done = []
    async with run.open_stream("s", **settings) as stream:
        async for batch in stream.batches(range(count)):
            done.append(batch.index)
            await batch.write_json(f"{batch.index}.json", {"i": batch.index})
            batch.complete(records=1, totals={"n": 1})
    return done


async def test_damaged_outputs_are_done_again_exactly(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write(run, 20)
    (tmp_path / "3.json").unlink()
    (tmp_path / "5.json").write_text("")
    (tmp_path / "9.json").write_text('{"i":8}\n')
    for expected in ([3, 5, 9], []):
        async with begin(store, output_dir=tmp_path) as run:
            assert await write(run, 20) == expected
            progress = open_run_of(run).stream_table.progress["s",]
            assert (progress.records, progress.totals["n"].value) == (20, 20)
            assert progress.status is Status.COMPLETE
    for index in range(12):
        (tmp_path / f"{index}.json").unlink()
    with pytest.raises(OutputsMissingError):
        async with begin(store, output_dir=tmp_path) as run:
            await write(run, 20)
    async with begin(store, output_dir=tmp_path, redo_missing=True) as run:
        assert await write(run, 20) == list(range(12))


async def test_what_later_batches_build_on_goes_back_together(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write(run, 3, state={})
    (tmp_path / "1.json").unlink()
    async with begin(store, output_dir=tmp_path) as run:
        assert await write(run, 3, state={}) == [1, 2]


async def test_a_path_belongs_to_one_batch(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            if batch.index == 0:
                await batch.write_text("failed", "")
                batch.skip("its names are free again")
                continue
            if batch.index == 2:
                with pytest.raises(OutputClaimedError):
                    await batch.write_text("x", "")
            else:
                await batch.write_text("x", "")
                await batch.write_text("failed", "")
            batch.complete()


async def test_append_files_hold_each_line_once_after_a_crash_at_every_save(
    tmp_path: Path,
) -> None:
    for k in range(2, 7):
        store, folder = MemoryStore(), tmp_path / str(k)
        for plan in ({k: Fail()}, {}):
            try:
                async with begin(FaultyStore(store, plan), output_dir=folder) as run:
                    async with run.open_stream("s") as stream:
                        async for batch in stream.batches(range(4)):
                            batch.append_json("all.jsonl", batch.index, -batch.index)
                            batch.complete()
            except Exception as error:
                assert plan, error
            store = store.after_crash()
        lines = (folder / "all.jsonl").read_text().split()
        assert lines == ["0", "0", "1", "-1", "2", "-2", "3", "-3"]


async def test_another_stream_cannot_cut_a_sink_that_is_not_open_yet(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("a") as stream:
        async for batch in stream.batches(range(1)):
            batch.append_json("all.jsonl", 1)
            batch.complete()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("b") as stream:
        async for batch in stream.batches(range(1)):
            with pytest.raises(OutputClaimedError):
                batch.append_json("all.jsonl", 2)
            batch.complete()
    assert (tmp_path / "all.jsonl").read_text() == "1\n"


async def test_more_records_than_a_page_are_verified_beside_the_run(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write(run, 1_100)
    (tmp_path / "2.json").unlink()
    (tmp_path / "1050.json").unlink()
    async with begin(store, output_dir=tmp_path) as run:
        assert sorted(await write(run, 1_100)) == [2, 1050]
        assert open_run_of(run).stream_table.progress["s",].totals["n"].value == 1_100


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", "a\\b", "a\n", "x" * 201])
async def test_bad_run_ids(run_id: str) -> None:
    with pytest.raises(ValueError, match="run id"):
        async with open_run(run_id, store="memory:"):
            pass


async def test_stream_keys() -> None:
    async with begin("memory:") as run:
        for parts in [(), ("",), ("@mine",), ("a", "\x00")]:
            with pytest.raises(ValueError, match=r"stream|part"):
                async with run.open_stream(*parts):
                    pass
        async with run.open_stream("org/repo ü", "pulls"):
            pass


async def test_retry_failed_puts_skipped_batches_back(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.skip("no")
    assert run.exit_code == 3
    with caplog.at_level(logging.INFO):
        async with begin(store, retry_failed=True) as run:
            assert await work(run, count=2) == [0, 1]
    assert run.exit_code == 0


async def test_a_save_under_way_when_the_run_is_left_is_told_its_outcome(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tokens = []

    async def other(run: Run) -> None:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                tokens.append(batch.token)
                batch.complete()

    with pytest.raises(ExceptionGroup) as info:
        async with trio.open_nursery() as nursery:
            async with begin(FaultyStore(MemoryStore(), {2: Delay(10)}), grace_s=1) as run:
                nursery.start_soon(other, run)
                await trio.testing.wait_all_tasks_blocked()
    assert info.group_contains(StreamsStillOpenError)
    assert [token.state.value for token in tokens] == ["confirmed"]


async def test_swallowing_the_stop_does_not_make_the_run_complete() -> None:
    with pytest.raises(RunStoppedError):
        async with begin("memory:") as run:
            run.request_stop()
            with pytest.raises(RunStoppedError):
                await work(run)


async def test_after_a_refused_checkpoint_the_streams_failure_is_saved() -> None:
    """The sequence goes on where the store is, however many were refused with it."""
    store = MemoryStore()

    async def handle(batch: Any) -> None:
        batch.complete()

    with pytest.raises(StoreError):  # one refusal that fails four workers is one error
        async with begin(FaultyStore(store, {2: Reject('["s"]')})) as run:
            async with run.open_stream("s") as stream:
                await run_batches(stream, range(4), handle, concurrency=4)
    assert stream.status is Status.FAILED
    async with begin(store) as run:
        assert await work(run, count=4) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------
# What a review found: each of these hung, lost work or hid an error once
# ---------------------------------------------------------------------------------------


async def test_a_stop_without_streams_ends_the_run(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(RunStoppedError):
        async with begin("memory:") as run:
            run.request_stop()
    with pytest.raises(RunStoppedError):
        async with begin("memory:", handle_signals=True) as run:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep(1_000)
    assert trio.current_time() < 1_000


async def test_opening_fails_where_signals_cannot_be_had() -> None:
    def elsewhere() -> None:
        async def main() -> None:
            async with begin("memory:", handle_signals=True):
                pass

        trio.run(main)

    with trio.fail_after(HANG_S), pytest.raises(RuntimeError):
        await trio.to_thread.run_sync(elsewhere)


async def test_a_coordinator_closed_under_a_batch_hangs_no_task() -> None:
    with trio.fail_after(HANG_S):
        async with begin("memory:") as run, run.open_stream("s") as stream:
            with pytest.raises(trio.ClosedResourceError):
                async for batch in stream.batches(range(2)):
                    batch.complete()
                    run.coordinator.close()
        assert list(stream.progress.confirmed) == [0]


async def test_a_frontier_key_that_raises_is_called_in_the_body_alone() -> None:
    calls: list[str] = []

    def key(item: str) -> str:
        calls.append(item)
        if item == "bad":
            raise BodyError
        return item

    async def handle(batch: Any) -> None:
        with pytest.raises(BodyError):
            batch.add(["new", "bad"])
        if batch.item == "a":
            batch.add(["b"])
        batch.complete()

    with trio.fail_after(HANG_S):
        async with begin("memory:") as run:
            async with run.open_stream("f", state=Frontier(["a"], key=key)) as stream:
                await run_batches(stream, None, handle)
                assert list(stream.progress.confirmed) == [0, 1]
    assert calls == ["a", "new", "bad", "b", "new", "bad"]


async def test_withdrawing_over_holes_does_not_complete_the_stream() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(start=5):
                if batch.index == 7:
                    batch.withdraw()
                else:
                    batch.complete()
        assert stream.status is Status.INTERRUPTED
        assert run.exit_code == 75
        async with run.open_stream("s") as stream:
            assert [batch.index async for batch in stream.batches() if batch.complete()] == [
                0, 1, 2, 3, 4,
            ]  # fmt: skip
        assert stream.status is Status.COMPLETE


async def test_a_stream_that_failed_hands_out_nothing_more() -> None:
    with pytest.raises(StreamFailedError, match="bad"):
        async with begin("memory:") as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
                await stream.fail("bad", retryable=False)
    assert list(stream.progress.confirmed) == [0]
    assert stream.status is Status.FAILED
    assert stream.error is not None
    assert not stream.error.retryable


async def test_finish_does_not_swallow_a_failed_batch() -> None:
    table = RetryTable((RetryRule((OSError,)),))
    with pytest.raises(BatchFailedError):
        async with begin("memory:") as run, run.open_stream("s", retry=table) as stream:
            async for batch in stream.batches():
                batch.fail(OSError("down"))
                break
            await stream.finish()
    assert stream.status is Status.FAILED


async def test_finish_inside_open_batch_passes_the_gate_first() -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async with stream.open_batch() as batch:
            batch.complete()
            await stream.finish()
            assert list(stream.progress.confirmed) == [0]
    assert stream.status is Status.COMPLETE


async def test_confirm_of_an_attempt_that_is_over_says_how_it_ended() -> None:
    with pytest.raises(BatchFailedError):
        async with begin("memory:") as run, run.open_stream("s") as stream:
            async for batch in stream.batches(range(1)):
                batch.fail("no")
                with pytest.raises(BatchFailedError):
                    await batch.confirm()
                await batch.confirm()


async def test_a_generator_that_raised_is_made_again() -> None:
    attempts = 0

    def items() -> Any:
        nonlocal attempts
        attempts += 1
        yield from range(2)
        if attempts == 1:
            raise OSError("broken off")
        yield 2

    async with begin("memory:") as run, run.open_stream("s") as stream:
        loop = stream.batches(items)
        with pytest.raises(OSError, match="broken off"):
            async for batch in loop:
                batch.complete()
        async for batch in loop:
            batch.complete()
    assert list(stream.progress.confirmed) == [0, 1, 2]
    assert stream.status is Status.COMPLETE


async def test_a_file_that_no_record_knows_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lines.jsonl").write_text("mine\n")
    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.append_json("lines.jsonl", 1)
            batch.complete()
    assert (tmp_path / "lines.jsonl").read_text() == "1\n"
    (kept,) = (tmp_path / ".archive").rglob("lines.jsonl")
    assert kept.read_text() == "mine\n"
    assert "it was moved to" in caplog.text


async def test_finish_refuses_to_leave_holes() -> None:
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(start=2, end=3):
            batch.complete()
        with pytest.raises(RuntimeError, match="batch 0"):
            await stream.finish()
    assert stream.status is Status.INTERRUPTED


async def test_a_fresh_run_names_what_it_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    for fresh in (False, True):
        with caplog.at_level(logging.INFO):
            async with begin(store, output_dir=tmp_path, fresh=fresh) as run:
                async with run.open_stream("s") as stream:
                    async for batch in stream.batches(range(1)):
                        await batch.write_text("ours.txt", "text")
                        batch.complete()
        (tmp_path / "theirs.txt").write_text("text")
    assert "no record has them: 1 name (theirs.txt)" in caplog.text
    assert len(list((tmp_path / ".archive").rglob("ours.txt"))) == 1
