"""A synchronous program has the run, the streams and the batches of a trio program."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import sniffio
import trio

from tests.hangs import HANG_S
from tests.opening import begin_blocking
from trio_ckpt import (
    BatchFailedError,
    Frontier,
    RetryRule,
    RetryTable,
    Run,
    RunLockedError,
    RunStoppedError,
    Status,
    StreamBusyError,
    StreamsStillOpenError,
    Then,
    TokenNeverSettledError,
    UnknownStreamError,
)
from trio_ckpt.abc import Observer
from trio_ckpt.blocking import BlockingBatch, BlockingRun, BlockingStream, run_batches
from trio_ckpt.stores import MemoryStore

SKIP = RetryTable((RetryRule((OSError,), attempts=1, then=Then.SKIP),))


CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="none")


class CannotReadError(Exception):
    pass


def collect(run: BlockingRun, count: int, upto: int) -> list[int]:
    """Work on some batches of a stream; returns which."""
    worked = []
    with run.open_stream("ocr") as stream:
        for batch in stream.batches(range(count)):
            batch.write_json(f"{batch.item}.json", {"page": batch.item})
            batch.complete(records=1)
            worked.append(batch.index)
            if batch.index == upto:
                break
    return worked


def test_a_loop_resumes_where_it_was_left(tmp_path: Path) -> None:
    store, output_dir = tmp_path / "store", tmp_path / "out"
    with begin_blocking(store, output_dir=output_dir) as run:
        assert collect(run, 5, upto=1) == [0, 1]
        assert run.exit_code == 75
    with begin_blocking(store, output_dir=output_dir) as run:
        assert collect(run, 5, upto=9) == [2, 3, 4]
    assert run.exit_code == 0  # also after the block
    assert run.statistics().records == 5
    pages = [json.loads((output_dir / f"{page}.json").read_text()) for page in range(5)]
    assert pages == [{"page": page} for page in range(5)]


def test_a_coordinator_is_not_shared_between_trio_loops() -> None:
    with begin_blocking() as run:
        other = begin_blocking(run_id="other", coordinator=run.coordinator)
        with pytest.raises(ValueError, match="coordinator must be None: each synchronous run"):
            other.__enter__()


def test_a_batch_is_durable_when_the_next_one_is_handed_out() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream:
        for batch in stream.batches(range(3)):
            assert list(stream.progress.done) == list(range(batch.index))
            batch.complete()
            assert not batch.complete()  # it is settled


def test_confirm_waits_until_the_batch_is_durable() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream:
        for batch in stream.batches(range(2)):
            batch.complete()
            batch.confirm()
            assert stream.progress.is_done(batch.index)


def test_an_exception_of_the_body_fails_its_batch() -> None:
    store, error = MemoryStore(), CannotReadError("page 1")

    def program() -> None:
        with begin_blocking(store) as run, run.open_stream("ocr") as stream:
            for batch in stream.batches(range(3)):
                if batch.index == 1:
                    raise error
                batch.complete()

    with pytest.raises(CannotReadError) as raised:
        program()
    assert raised.value is error
    with begin_blocking(store) as run, run.open_stream("ocr") as stream:
        assert list(stream.progress.done) == [0]
        assert stream.error is not None
        assert "page 1" in stream.error.message
        assert stream.progress.failures[1].attempts == 1


def test_a_batch_that_is_never_settled_is_an_error() -> None:
    def program() -> None:
        with begin_blocking() as run, run.open_stream("ocr") as stream:
            for _ in stream.batches(range(3)):
                pass

    with pytest.raises(TokenNeverSettledError, match="batch 0") as raised:
        program()
    assert raised.value.batch_index == 0


def test_a_batch_that_is_left_by_break_is_saved() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream:
        for batch in stream.batches(range(3)):
            batch.complete()
            break
        assert not stream.progress.done  # it passes the gate with the next loop, or the block
        assert [batch.index for batch in stream.batches(range(3)) if batch.complete()] == [1, 2]


def batches_of(run: BlockingRun) -> Generator[BlockingBatch[int]]:
    with run.open_stream("ocr") as stream:
        yield from stream.batches(range(3))


def test_a_generator_that_is_closed_leaves_its_stream() -> None:
    store = MemoryStore()
    with begin_blocking(store) as run:
        batches = batches_of(run)
        assert next(batches).complete()
        assert next(batches).index == 1
        batches.close()
        assert run.open_streams == frozenset()
    with begin_blocking(store) as run, run.open_stream("ocr") as stream:
        assert list(stream.progress.done) == [0]
        assert stream.progress.failures == {}


def test_a_generator_that_is_kept_cannot_outlive_the_run() -> None:
    kept = []

    def program() -> None:
        with begin_blocking() as run:
            kept.append(batches_of(run))
            next(kept[0])

    with pytest.raises(RuntimeError, match="close the generator"):
        program()
    with pytest.raises(trio.ClosedResourceError, match="run 'r' is closed"):
        next(kept[0])


def test_streams_may_be_nested() -> None:
    with begin_blocking() as run, run.open_stream("books") as books:
        for book in books.batches(["a", "b"]):
            with run.open_stream("pages", book.item) as pages:
                for page in pages.batches(range(2)):
                    page.complete()
            book.complete()
        assert run.group("pages").confirmed == 4
    assert run.exit_code == 0


def test_a_run_in_another_process_keeps_its_lock(tmp_path: Path) -> None:
    with begin_blocking(tmp_path), pytest.raises(RunLockedError), begin_blocking(tmp_path):
        pass


# -- all of a stream ----------------------------------------------------------------------------


def test_a_state_is_saved_and_restored() -> None:
    store = MemoryStore()
    for start in (0, 2):
        with begin_blocking(store) as run, run.open_stream("sum", state={"n": 0}) as stream:
            assert stream.state == {"n": start}
            for batch in stream.batches(range(4), end=start + 1):
                stream.state["n"] += 1
                batch.complete()
            stream.state = {"n": stream.state["n"]}
            stream.save(cursor="here")
            assert stream.cursor == "here"


def test_a_stop_ends_a_long_body_at_its_next_point() -> None:
    store = MemoryStore()

    def program() -> None:
        with begin_blocking(store) as run, run.open_stream("sum", state={"n": 0}) as stream:
            for _ in stream.batches(range(1)):
                with stream.snapshots(every_s=0) as snapshots:
                    assert snapshots.point("none")
                    snapshots.wait()
                    assert snapshots.saved == 1
                    stream.state["n"] = 7
                    run.request_stop()
                    snapshots.point("seven")
                raise AssertionError("the body goes on")

    with pytest.raises(RunStoppedError):
        program()
    with begin_blocking(store) as run, run.open_stream("sum", state={"n": 0}) as stream:
        for batch in stream.batches(range(1)):
            assert (batch.resumed_from, stream.state) == ("seven", {"n": 7})
            batch.complete()


def test_one_batch_is_worked_on_in_a_block() -> None:
    with begin_blocking() as run, run.open_stream("pages") as stream:
        with stream.open_batch() as batch:
            batch.complete(cursor="next", last=True)
        assert stream.status is Status.COMPLETE
        assert stream.cursor == "next"
    assert run.exit_code == 0


def test_skipped_batches_are_read_page_by_page() -> None:
    with begin_blocking() as run, run.open_stream("pages") as stream:
        for batch in stream.batches(range(4)):
            batch.skip(f"page {batch.index} is empty")
        assert [index for index, _, _ in stream.skipped()] == [3, 2, 1, 0]
        newest = stream.skipped()
        assert next(newest)[2].error.message == "page 3 is empty"
        newest.close()


def test_settings_of_a_stream_can_be_read_and_set() -> None:
    with begin_blocking() as run, run.open_stream("pages", first_index=5) as stream:
        assert (stream.key, stream.first_index, stream.resume_index) == (("pages",), 5, 5)
        stream.expected_batches = 9
        assert stream.expected_batches == 9
        assert stream.statistics().left == 9
        assert stream.remaining(total=2) == [5, 6]
        with pytest.raises(AttributeError, match="key cannot be set"):
            stream.key = ("other",)


def test_a_phase_is_done_once() -> None:
    store, was_complete = MemoryStore(), []
    for _ in range(2):
        with begin_blocking(store) as run, run.phase("discovery") as phase:
            was_complete.append(phase.complete)
            assert run.current_phase == (None if phase.complete else "discovery")
    assert was_complete == [False, True]


def test_streams_are_listed_and_rewound() -> None:
    with begin_blocking() as run:
        assert run.add_streams([("a",), ("b",)]).new == (("a",), ("b",))
        with run.open_stream("a") as stream:
            for batch in stream.batches(range(3)):
                batch.complete()
        assert run.streams_to_process() == [("b",)]
        assert list(run.rewind(("a",), to=0, reason="a test")) == [1, 2]
        assert run.streams_to_process() == [("a",), ("b",)]
        with pytest.raises(UnknownStreamError):
            run.group("c")


def test_observers_are_called_in_the_thread_of_trio() -> None:
    threads = set[int]()

    class Seen(Observer):
        def attempt_ended(self, *args: object, **kwargs: object) -> None:
            threads.add(threading.get_ident())

    with begin_blocking() as run, run.open_stream("a") as stream, run.observing(Seen()):
        for batch in stream.batches(range(2)):
            batch.complete()
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_a_function_of_trio_runs_beside_the_block() -> None:
    cancelled = threading.Event()

    async def watch(run: Run, key: str) -> None:
        try:
            await run.wait_confirmed((key,), [0])
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with begin_blocking() as run:
        run.add_streams([("a",)])
        with run.beside(watch, "a"), run.open_stream("a") as stream:
            for batch in stream.batches(range(2)):
                batch.complete()
        assert cancelled.is_set()


def test_a_function_beside_the_block_fails_it() -> None:
    failed = threading.Event()

    async def fail(_run: Run) -> None:
        failed.set()
        raise CannotReadError("beside")

    def program() -> None:
        with begin_blocking() as run, run.beside(fail), run.open_stream("a") as stream:
            failed.wait(HANG_S)
            for batch in stream.batches(range(1_000_000)):  # until a call is cancelled
                batch.complete()

    with pytest.raises(CannotReadError, match="beside"):
        program()


# -- stops ---------------------------------------------------------------------------------------


def test_a_stop_reaches_the_body_at_its_next_call() -> None:
    store, seen = MemoryStore(), []

    def program() -> None:
        with begin_blocking(store) as run, run.open_stream("ocr") as stream:
            try:
                for batch in stream.batches(range(5)):
                    if batch.index == 2:
                        run.request_stop()
                        assert run.is_stopping
                    batch.complete()
            except RunStoppedError as stopped:
                seen.append(stopped)
                raise

    with pytest.raises(RunStoppedError) as raised:
        program()
    assert raised.value.exit_code == 75
    assert len(seen) == 1
    with begin_blocking(store) as run, run.open_stream("ocr") as stream:
        assert list(stream.progress.done) == [0, 1, 2]  # the open batch was saved
        assert stream.progress.failures == {}


def test_a_stop_does_not_wait_for_a_body_that_waits() -> None:
    def program() -> None:
        with begin_blocking(grace_s=HANG_S) as run, run.open_stream("ocr") as stream:
            for batch in stream.batches(range(5)):
                with batch.waiting():
                    run.request_stop()
                raise AssertionError("the body goes on")

    with pytest.raises(RunStoppedError) as raised:
        program()
    assert raised.value.exit_code == 75


def test_a_stop_is_no_failure_of_a_batch() -> None:
    store = MemoryStore()

    def program() -> None:
        with begin_blocking(store, grace_s=0) as run, run.open_stream("ocr") as stream:
            for batch in stream.batches(range(5)):
                run.request_stop()
                try:
                    run.wait_confirmed(stream, [4])
                except Exception as error:
                    batch.fail(error)

    with pytest.raises(RunStoppedError):
        program()
    with begin_blocking(store) as run, run.open_stream("ocr") as stream:
        assert stream.progress.failures == {}


def test_nested_streams_stop_at_once() -> None:
    def program() -> None:
        with begin_blocking(grace_s=HANG_S) as run, run.open_stream("outer") as outer:
            for _ in outer.batches(range(2)):
                with run.open_stream("inner") as inner:
                    for batch in inner.batches(range(5)):
                        batch.complete()
                        run.request_stop()

    with pytest.raises(RunStoppedError) as raised:
        program()
    assert raised.value.exit_code == 75


# -- threads -------------------------------------------------------------------------------------


def test_each_thread_may_own_streams() -> None:
    with begin_blocking() as run, ThreadPoolExecutor(4) as pool:

        def work(key: int) -> int:
            with run.open_stream(f"part {key}") as stream:
                for batch in stream.batches(range(5)):
                    batch.complete(records=1)
            return key

        assert list(pool.map(work, range(8))) == list(range(8))
        assert run.statistics().records == 40


def test_threads_may_help_with_a_batch(tmp_path: Path) -> None:
    with (
        begin_blocking(output_dir=tmp_path) as run,
        run.open_stream("ocr") as stream,
        ThreadPoolExecutor(4) as pool,
    ):
        for batch in stream.batches(range(2)):

            def write(part: int, batch: BlockingBatch[int] = batch) -> str:
                batch.spend(calls=1)
                return batch.write_text(f"{batch.index}-{part}.txt", "text")

            assert len(list(pool.map(write, range(6)))) == 6
            batch.complete()
        assert stream.statistics().spent == {"calls": 12}
    assert len(list(tmp_path.glob("*.txt"))) == 12


def test_a_stream_belongs_to_the_thread_that_opened_it() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream, ThreadPoolExecutor(1) as pool:
        with pytest.raises(StreamBusyError):
            pool.submit(next, stream.batches(range(3))).result()
        assert stream.remaining(total=1) == [0]
        for batch in stream.batches(range(1)):
            batch.complete()


def test_a_stop_ends_the_call_of_a_helping_thread() -> None:
    def program() -> None:
        with (
            begin_blocking(grace_s=0) as run,
            run.open_stream("ocr") as stream,
            ThreadPoolExecutor(1) as pool,
        ):
            for batch in stream.batches(range(3)):

                def wait(batch: BlockingBatch[int] = batch) -> None:
                    with batch.waiting():
                        run.request_stop()

                with pytest.raises(RunStoppedError):
                    pool.submit(wait).result()
                batch.complete()

    with pytest.raises(RunStoppedError):
        program()


@pytest.mark.parametrize("makes_a_call", [True, False])
def test_a_run_that_is_left_before_its_threads_says_so(*, makes_a_call: bool) -> None:
    opened, left, ends = threading.Event(), threading.Event(), list[BaseException]()
    threads = list[threading.Thread]()

    def work(run: BlockingRun) -> None:
        try:
            with run.open_stream("ocr") as stream:
                opened.set()
                left.wait(HANG_S)
                if makes_a_call:
                    stream.finish()
        except BaseException as error:
            ends.append(error)

    def program() -> None:
        with begin_blocking(grace_s=0) as run:
            threads.append(threading.Thread(target=work, args=[run]))
            threads[0].start()
            opened.wait(HANG_S)

    with pytest.raises(StreamsStillOpenError, match="ocr"):
        program()
    left.set()
    threads[0].join(HANG_S)
    assert [type(error) for error in ends] == [trio.ClosedResourceError]


def test_a_block_is_left_by_the_thread_that_entered_it() -> None:
    with begin_blocking() as run, ThreadPoolExecutor(1) as pool:
        block = run.open_stream("ocr")
        block.__enter__()
        with pytest.raises(RuntimeError, match="by the thread that entered it"):
            pool.submit(block.__exit__, None, None, None).result()
        block.__exit__(None, None, None)


def test_calls_after_the_end_of_a_run_say_so() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream:
        for batch in stream.batches(range(2)):
            batch.complete()
    with pytest.raises(trio.ClosedResourceError, match="run 'r' is closed"):
        stream.finish()
    with pytest.raises(trio.RunFinishedError):
        batch.fail("late")
    run.request_stop()  # without an effect
    assert list(stream.progress.done) == [0, 1]


def test_what_trio_calls_cannot_wait_for_the_run() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream:

        def items() -> list[int]:
            stream.finish()
            return [1]

        with pytest.raises(RuntimeError, match="in trio's thread"):
            next(stream.batches(items))


# -- many batches at once ------------------------------------------------------------------------


def test_handlers_run_side_by_side() -> None:
    together = threading.Barrier(4, timeout=HANG_S)

    def handle(batch: BlockingBatch[int]) -> None:
        together.wait()
        batch.complete(records=batch.item)

    with begin_blocking() as run, run.open_stream("ocr") as stream:
        run_batches(stream, range(8), handle, concurrency=4)
        assert stream.progress.records == sum(range(8))
        assert stream.progress.left == 0


def test_a_handler_that_fails_is_tried_as_the_table_says() -> None:
    def handle(batch: BlockingBatch[int]) -> None:
        if batch.item == 2:
            raise OSError("no page 2")
        batch.complete()

    with begin_blocking() as run, run.open_stream("ocr") as stream:
        run_batches(stream, range(4), handle, concurrency=2, retry=SKIP)
        assert [index for index, _, _ in stream.skipped()] == [2]


def test_a_handler_that_fails_cancels_the_calls_of_others() -> None:
    begun, ends = threading.Barrier(2, timeout=HANG_S), list[BaseException]()
    error = CannotReadError("page 0")

    def handle(run: BlockingRun, batch: BlockingBatch[int]) -> None:
        begun.wait()
        if batch.index == 0:
            raise error
        try:
            run.wait_confirmed(("ocr",), [99])
        except BaseException as end:
            ends.append(end)
            raise

    def program() -> None:
        with begin_blocking() as run, run.open_stream("ocr") as stream:
            run_batches(stream, range(100), partial(handle, run), concurrency=2)

    with pytest.raises(CannotReadError) as raised:
        program()
    assert raised.value is error
    assert [type(end) for end in ends] == [trio.Cancelled]


def test_a_handler_may_open_streams_and_snapshots() -> None:
    def handle(batch: BlockingBatch[str]) -> None:
        with run.open_stream("of", batch.item) as inner:
            for page in inner.batches(range(2)):
                page.complete()
        batch.complete()

    def step(batch: BlockingBatch[int]) -> None:
        with counted.snapshots(every_s=0) as snapshots:
            assert snapshots.point()
        batch.complete()

    with begin_blocking() as run:
        with run.open_stream("books") as books:
            run_batches(books, ["a", "b"], handle, concurrency=2)
        with run.open_stream("count", state={}) as counted:
            run_batches(counted, range(2), step)
        assert run.group("of").confirmed == 4


def test_what_a_handler_leaves_open_is_closed() -> None:
    kept = []

    def handle(run: BlockingRun, batch: BlockingBatch[int]) -> None:
        inner = batches_of(run)
        kept.append(inner)
        next(inner)
        batch.complete()

    def program() -> None:
        with begin_blocking() as run, run.open_stream("books") as books:
            run_batches(books, range(1), partial(handle, run))

    with pytest.raises(RuntimeError, match="close the generator"):
        program()
    kept.clear()


def test_a_frontier_is_worked_on_by_threads() -> None:
    def handle(batch: BlockingBatch[str]) -> None:
        if len(batch.item) < 3:
            batch.add([batch.item + "a", batch.item + "b"])
        batch.complete()

    with begin_blocking() as run, run.open_stream("crawl", state=Frontier(["a"])) as stream:
        run_batches(stream, None, handle, concurrency=3)
        assert len(stream.progress.done) == 7


def test_an_async_handler_is_refused() -> None:
    async def handle(batch: BlockingBatch[int]) -> None:
        batch.complete()

    def program() -> None:
        with begin_blocking() as run, run.open_stream("ocr") as stream:
            run_batches(stream, range(2), handle)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="plain function"):
        program()


def test_tasks_and_handlers_have_the_context_of_the_program() -> None:
    seen = list[str]()

    async def watch(_run: Run) -> None:
        seen.append(CALLER.get())

    def handle(batch: BlockingBatch[int]) -> None:
        seen.append(CALLER.get())
        with pytest.raises(sniffio.AsyncLibraryNotFoundError):
            sniffio.current_async_library()  # so it may run a loop of its own
        batch.complete()

    def program() -> None:
        CALLER.set("program")
        with begin_blocking() as run, run.beside(watch), run.open_stream("ocr") as stream:
            run_batches(stream, range(2), handle)

    contextvars.copy_context().run(program)
    assert seen == ["program"] * 3


def test_a_batch_that_a_handler_fails_is_an_error() -> None:
    def program() -> None:
        with begin_blocking() as run, run.open_stream("ocr") as stream:
            run_batches(stream, range(2), lambda batch: batch.fail("no page"))

    with pytest.raises(BatchFailedError, match="no page"):
        program()


def test_a_stream_of_trio_is_refused() -> None:
    with begin_blocking() as run, run.open_stream("ocr") as stream:
        assert isinstance(stream, BlockingStream)
        with pytest.raises(TypeError, match="stream must be an open stream of trio_ckpt"):
            run_batches(stream._held, range(2), print)  # type: ignore[arg-type]
