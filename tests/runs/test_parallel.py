"""run_batches: several batches at once, progress exact, each item once."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.opening import begin
from trio_ckpt import (
    Batch,
    BatchFailedError,
    Frontier,
    RetryRule,
    RetryTable,
    Run,
    Status,
    StreamFailedError,
    Then,
    TokenNeverSettledError,
    run_batches,
)
from trio_ckpt._util.exceptions import leaves_of
from trio_ckpt.stores import MemoryStore


class BodyError(Exception):
    """What a handler raises."""


async def test_known_items_with_gaps() -> None:
    store, done = MemoryStore(), list[int]()

    async def even(batch: Batch[str]) -> None:
        assert batch.item == f"i{batch.index}"
        await trio.lowlevel.checkpoint()
        if batch.index % 2:
            raise BodyError
        batch.complete(records=1)

    async def every(batch: Batch[str]) -> None:
        done.append(batch.index)
        batch.complete(records=1)

    items = [f"i{index}" for index in range(10)]
    skip = RetryTable((RetryRule((BodyError,), attempts=1, then=Then.SKIP),))
    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, items, even, concurrency=4, retry=skip)
    assert stream.status is Status.COMPLETE
    assert run.exit_code == 3
    async with begin(store, retry_failed=True) as run, run.open_stream("s") as stream:
        await run_batches(stream, [*items, "i10"], every, concurrency=4)
        assert stream.progress.records == 11
    assert sorted(done) == [1, 3, 5, 7, 9, 10]
    assert stream.status is Status.COMPLETE


TREE = {"0": ["1", "2", "3"], "1": ["4", "5"], "2": ["5", "6"], "6": ["7", "0"], "7": ["8"]}


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("cut", [None, 1, 4, 8])
async def test_a_frontier_grows_each_item_once_and_resumes(
    concurrency: int, cut: int | None, autojump_clock: trio.testing.MockClock
) -> None:
    store, done = MemoryStore(), list[str]()

    async def handle(batch: Batch[str]) -> None:
        await trio.sleep(1)
        batch.add(TREE.get(batch.item, []))
        batch.complete(records=1)
        done.append(batch.item)

    async def go(store: MemoryStore, seeds: list[str]) -> tuple[Any, Any]:
        async with begin(store) as run, run.open_stream("s", state=Frontier(seeds)) as stream:
            await run_batches(stream, None, handle, concurrency=concurrency)
        return stream, run

    if cut is not None:
        with trio.move_on_after(cut + 0.5):
            await go(store, ["0"])
    stream, _ = await go(store.after_crash(), ["0", "9"])
    assert sorted(done) == [str(number) for number in range(10)]
    assert stream.progress.records == 10
    assert stream.status is Status.COMPLETE
    assert stream.state.left == 0


async def test_a_retry_that_waits_holds_no_worker_and_ends_no_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The last batch of a frontier fails, runs again, and its items find all workers."""
    at_work, most, finished = 0, 0, list[tuple[str, float]]()

    async def handle(batch: Batch[str]) -> None:
        nonlocal at_work, most
        if batch.item == "0" and batch.attempt == 1:
            raise BodyError
        at_work += 1
        most = max(most, at_work)
        await trio.sleep(1)
        at_work -= 1
        if batch.item == "0":
            batch.add(["a", "b", "c"])
        batch.complete()
        finished.append((batch.item, trio.current_time()))

    retry = RetryTable((RetryRule((BodyError,), backoff_s=100.0, jitter=0.0),))
    async with begin("memory:") as run:
        async with run.open_stream("s", state=Frontier(["0", "x"]), retry=retry) as stream:
            await run_batches(stream, None, handle, concurrency=3)
            assert stream.statistics().session_retries == 1
    assert finished[0][0] == "x"
    assert most == 3
    assert trio.current_time() == pytest.approx(62, abs=0.1)


FLAKY = RetryTable((RetryRule((BodyError,), backoff_s=50.0, jitter=0.0),))


@pytest.mark.parametrize("carrier", ["state", "cursor"])
async def test_no_ordered_batch_overtakes_one_that_waits_for_its_retry(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    seen: list[tuple[int, Any]] = []

    async def handle(batch: Batch[int]) -> None:
        before = stream.state["n"] if carrier == "state" else stream.cursor
        seen.append((batch.index, before))
        if carrier == "state":
            stream.state["n"] = batch.index
        if batch.index == 2 and batch.attempt == 1:
            raise BodyError
        if carrier == "cursor":
            batch.complete(cursor=batch.index)
        else:
            batch.complete()

    async with begin("memory:") as run:
        state: Any = {"n": None} if carrier == "state" else None
        async with run.open_stream("s", state=state, retry=FLAKY) as stream:
            await run_batches(stream, range(4), handle)
    assert seen == [(0, None), (1, 0), (2, 1), (2, 1), (3, 2)]
    assert trio.current_time() == pytest.approx(50, abs=1)


async def test_batches_that_stand_alone_overtake_one_that_waits_for_retry(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen = list[int]()

    async def handle(batch: Batch[int]) -> None:
        seen.append(batch.index)
        if batch.index == 1 and batch.attempt == 1:
            raise BodyError
        batch.complete()

    async with begin("memory:") as run, run.open_stream("s", retry=FLAKY) as stream:
        await run_batches(stream, range(4), handle)
    assert seen == [0, 1, 2, 3, 1]


async def test_a_failure_cancels_the_others_which_run_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, again, error = MemoryStore(), list[int](), BodyError("the server is gone")

    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(batch.item)
        if batch.item == 1:
            raise error
        batch.complete()

    async def note(batch: Batch[int]) -> None:
        again.append(batch.index)
        batch.complete()

    with pytest.raises(BodyError) as info:
        async with begin(store) as run, run.open_stream("s") as stream:
            await run_batches(stream, [0, 1, 2, 3], handle, concurrency=4)
    assert info.value is error  # exceptions of the user leave as the same objects
    assert (info.value.__cause__, info.value.__context__) == (None, None)
    assert info.value.__notes__ == ["in batch 1 of run 'r', stream 's'"]
    assert list(stream.progress.failures) == [1]
    assert stream.status is Status.FAILED
    async with begin(store) as run, run.open_stream("s") as stream:
        await run_batches(stream, [0, 1, 2, 3], note, concurrency=4)
    assert sorted(again) == [1, 2, 3]


async def test_after_a_caught_failure_a_frontier_goes_on_with_what_is_left() -> None:
    async def handle(batch: Batch[str]) -> None:
        if batch.item == "b" and batch.attempt == 1:
            raise BodyError
        batch.complete()

    async with begin("memory:") as run, run.open_stream("s", state=Frontier(list("abc"))) as stream:
        with pytest.raises(BodyError):
            await run_batches(stream, None, handle)
        await run_batches(stream, None, handle)
        assert len(stream.progress.confirmed) == 3
    assert stream.status is Status.COMPLETE


@pytest.mark.parametrize("is_group", [False, True])
async def test_what_is_remembered_of_an_exception_says_what_the_table_said(is_group: bool) -> None:
    """It leaves as it is, and the stream knows all the same that it failed for good, and where."""
    refused = BodyError("403")
    error = ExceptionGroup("two requests", [refused, refused]) if is_group else refused
    store = MemoryStore()
    rule = RetryRule((Exception,), attempts=1, retryable=False)

    async def handle(batch: Batch[int]) -> None:
        if batch.index == 2:
            raise error
        batch.complete()

    with pytest.raises(type(error)) as info:
        async with begin(store) as run, run.open_stream("s", retry=RetryTable((rule,))) as stream:
            await run_batches(stream, range(4), handle)
    assert info.value is error
    assert stream.error is not None
    assert (stream.error.retryable, stream.error.batch_index) == (False, 2)
    assert stream.error.type == "BodyError"
    assert stream.error.message == ("two requests: 403" if is_group else "403")
    assert run.exit_code == 69


async def test_of_several_exceptions_the_one_that_failed_for_good_leaves(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    table = RetryTable(
        (
            RetryRule((KeyError,), attempts=1),
            RetryRule((BodyError,), attempts=1, retryable=False),
        )
    )
    errors = [KeyError("first"), BodyError("second"), KeyError("third")]

    async def handle(batch: Batch[int]) -> None:
        with trio.CancelScope(shield=True):  # all have failed before the first one ends the others
            await trio.sleep(1)
        raise errors[batch.index]

    with pytest.raises(BodyError) as info:
        async with begin("memory:") as run, run.open_stream("s", retry=table) as stream:
            await run_batches(stream, range(3), handle, concurrency=3)
    assert info.value is errors[1]
    assert stream.error is not None
    assert (stream.error.message, stream.error.retryable) == ("second", False)
    assert caplog.text.count("one of several") == 3


class EqualError(BodyError):
    """An exception without a hash, as that of a dataclass has none."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EqualError)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("completes", [False, True])
async def test_of_several_exceptions_without_a_hash_one_leaves(
    completes: bool, autojump_clock: trio.testing.MockClock
) -> None:
    errors = [EqualError(index) for index in range(3)]

    async def handle(batch: Batch[int]) -> None:
        with trio.CancelScope(shield=True):  # all have failed before the first one ends the others
            await trio.sleep(1)
        if completes:
            batch.complete()
        raise errors[batch.index]

    with pytest.raises((EqualError, BaseExceptionGroup)) as info:
        async with begin("memory:") as run, run.open_stream("s") as stream:
            await run_batches(stream, range(3), handle, concurrency=3)
    leaves = leaves_of(info.value)
    assert len(leaves) == (3 if completes else 1)
    assert all(any(leaf is error for error in errors) for leaf in leaves)


async def test_a_batch_that_is_failed_by_a_word_raises_our_own_error() -> None:
    cause = BodyError("no")

    async def handle(batch: Batch[int]) -> None:
        batch.fail(cause)

    async with begin("memory:") as run, run.open_stream("s") as stream:
        with pytest.raises(BatchFailedError) as info:
            await run_batches(stream, range(1), handle)
        assert info.value.__cause__ is cause


async def test_a_handler_that_forgets_is_an_error() -> None:
    async def forget(batch: Batch[int]) -> None:
        if batch.index == 1:
            await trio.sleep_forever()

    with pytest.raises(TokenNeverSettledError):
        async with begin("memory:") as run, run.open_stream("s") as stream:
            await run_batches(stream, [1, 2], forget, concurrency=2)


async def test_what_needs_an_order_refuses_concurrency() -> None:
    async def cursor(batch: Batch[int]) -> None:
        with pytest.raises(ValueError, match="concurrency=1"):
            batch.complete(cursor=1)
        with pytest.raises(RuntimeError, match="skip"):
            batch.withdraw()
        batch.complete()

    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            await run_batches(stream, [1, 2], cursor, concurrency=2)
            with pytest.raises(ValueError, match="Frontier"):
                await run_batches(stream, None, cursor)
            with pytest.raises(ValueError, match=r"^concurrency must be an int from 1 to "):
                await run_batches(stream, [1], cursor, concurrency=0)
        async with run.open_stream("t", state={}) as stream:
            with pytest.raises(ValueError, match="order"):
                await run_batches(stream, [1, 2], cursor, concurrency=2)
        async with run.open_stream("f", state=Frontier()) as stream:
            with pytest.raises(ValueError, match="order"):
                await run_batches(stream, None, cursor, start=1)
            with pytest.raises(TypeError, match="run_batches"):
                await anext(stream.batches())


async def test_a_range_is_no_whole() -> None:
    store, done = MemoryStore(), list[int]()

    async def handle(batch: Batch[int]) -> None:
        done.append(batch.index)
        batch.complete()

    for start, end, status in [
        (2, 3, Status.INTERRUPTED),
        (0, 1, Status.INTERRUPTED),
        (4, 4, Status.COMPLETE),
    ]:
        async with begin(store) as run, run.open_stream("s") as stream:
            await run_batches(stream, range(5), handle, concurrency=2, start=start, end=end)
        assert stream.status is status
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_damaged_outputs_of_a_frontier_are_done_again(tmp_path: Any) -> None:
    store, done = MemoryStore(), list[str]()

    async def handle(batch: Batch[str]) -> None:
        done.append(batch.item)
        await batch.write_text(batch.item, batch.item)
        batch.add(TREE.get(batch.item, []))
        batch.complete(records=1)

    for expected in ([str(number) for number in range(9)], ["2"]):
        done.clear()
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s", state=Frontier(["0"])) as stream:
                await run_batches(stream, None, handle, concurrency=4)
        assert sorted(done) == expected
        assert stream.progress.records == 9
        (tmp_path / "2").write_text("")


async def test_lines_of_concurrent_batches_stay_together(tmp_path: Any) -> None:
    async def handle(batch: Batch[int]) -> None:
        for _ in range(3):
            batch.append_json("all.jsonl", batch.index)
            await trio.lowlevel.checkpoint()
        batch.complete()

    async with begin("memory:", output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await run_batches(stream, range(50), handle, concurrency=16)
    lines = (tmp_path / "all.jsonl").read_text().split()
    assert len(lines) == 150
    threes = [lines[at : at + 3] for at in range(0, 150, 3)]
    assert all(len(set(three)) == 1 for three in threes)
    assert {three[0] for three in threes} == {str(index) for index in range(50)}


async def test_an_exhausted_loop_ends_during_a_stop() -> None:
    async def handle(batch: Batch[int]) -> None:
        if batch.index == 3:
            run.request_stop()
        batch.complete()

    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            await run_batches(stream, range(4), handle, concurrency=1)
        assert stream.status is Status.COMPLETE


# ---------------------------------------------------------------------------------------
# Pauses
# ---------------------------------------------------------------------------------------


class LimitedError(Exception):
    """429, with the seconds that the server asks to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"429: {seconds} s")
        self.seconds = seconds


LIMITED = RetryTable(
    (
        RetryRule(
            (LimitedError,),
            jitter=0.0,
            backoff_s=1.0,
            retry_after=lambda error: getattr(error, "seconds", None),
        ),
    )
)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_retry_after_pauses_the_stream_and_the_others_go_on(
    concurrency: int, autojump_clock: trio.testing.MockClock
) -> None:
    starts: list[tuple[str, int, float]] = []

    async def handle(batch: Batch[str]) -> None:
        starts.append((batch.item, batch.index, round(trio.current_time())))
        await trio.sleep(1)
        if batch.item == "limited" and batch.index == 2 and batch.attempt == 1:
            raise LimitedError(30.0)
        await trio.sleep(1)
        batch.complete()

    async def collect(run: Run, name: str) -> None:
        async with run.open_stream(name, retry=LIMITED) as stream:
            await run_batches(stream, [name] * 8, handle, concurrency=concurrency)
        assert stream.status is Status.COMPLETE

    async with begin("memory:") as run, trio.open_nursery() as nursery:
        nursery.start_soon(collect, run, "limited")
        nursery.start_soon(collect, run, "free")
        await trio.sleep(2 * (2 // concurrency) + 1.5)
        (waiting,) = run.statistics().waiting
        assert waiting.stream == ("limited",)
        assert waiting.reason == "asked to wait: 429: 30.0 s"
        assert waiting.for_s == pytest.approx(29.5)
    began = {(name, index): at for name, index, at in starts}
    limited_at = 2 * (2 // concurrency) + 1  # when it was told to wait
    mine = [at for name, _, at in starts if name == "limited"]
    assert not [at for at in mine if limited_at < at < limited_at + 30]
    assert min(at for at in mine if at > limited_at) == limited_at + 30
    assert limited_at + 30 <= began["limited", 2] <= limited_at + 32
    assert max(at for name, _, at in starts if name == "free") <= 14
    assert run.statistics().waiting == ()
    assert [name for name, _, _ in starts].count("limited") == 9


async def test_a_pause_holds_a_sequential_loop_and_a_longer_one_extends_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    starts: list[tuple[int, float]] = []
    async with begin("memory:") as run, run.open_stream("s", retry=LIMITED) as stream:
        async for batch in stream.batches(range(2)):
            starts.append((batch.index, round(trio.current_time())))
            if batch.index == 0 and batch.attempt < 3:
                batch.fail(LimitedError(10.0 * batch.attempt))
            else:
                batch.complete()
    assert starts == [(0, 0), (0, 10), (0, 30), (1, 30)]


async def test_of_two_pauses_the_longer_counts(autojump_clock: trio.testing.MockClock) -> None:
    starts: list[tuple[int, int, float]] = []

    async def handle(batch: Batch[int]) -> None:
        starts.append((batch.index, batch.attempt, round(trio.current_time())))
        if batch.attempt == 1 and batch.index < 2:
            await trio.sleep(batch.index)
            raise LimitedError((20.0, 5.0)[batch.index])
        batch.complete()

    async with begin("memory:") as run, run.open_stream("s", retry=LIMITED) as stream:
        await run_batches(stream, range(3), handle, concurrency=2)
    assert {(index, attempt) for index, attempt, at in starts if at < 20} == {(0, 1), (1, 1)}
    assert {index for index, _, at in starts if at >= 20} == {0, 1, 2}


async def test_a_backoff_without_retry_after_pauses_no_other_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    done: list[tuple[int, float]] = []

    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(1)
        if batch.index == 0 and batch.attempt == 1:
            raise BodyError
        batch.complete()
        done.append((batch.index, round(trio.current_time())))

    retry = RetryTable((RetryRule((BodyError,), backoff_s=50.0, jitter=0.0),))
    async with begin("memory:") as run, run.open_stream("s", retry=retry) as stream:
        await run_batches(stream, range(4), handle, concurrency=1)
    assert done == [(1, 2), (2, 3), (3, 4), (0, 52)]


async def test_a_table_may_fail_the_stream_out_of_many_batches_at_once() -> None:
    async def handle(batch: Batch[str]) -> None:
        await trio.lowlevel.checkpoint()
        if batch.item == "bad" and batch.index == 3:
            raise BodyError("no")
        batch.complete()

    retry = RetryTable(
        (RetryRule((BodyError,), attempts=1, then=Then.FAIL_STREAM, retryable=False),)
    )
    store = MemoryStore()
    async with begin(store) as run:
        for name in ("bad", "good"):
            async with run.open_stream(name, retry=retry, on_fail="record") as stream:
                await run_batches(stream, [name] * 6, handle, concurrency=3, key=lambda _item: "x")
            assert stream.status is (Status.FAILED if name == "bad" else Status.COMPLETE)
        assert run.coordinator.get_pending_checkpoints("r") == ()
    async with begin(store) as run:
        with pytest.raises(StreamFailedError, match="for good, in an earlier session: no"):
            async with run.open_stream("bad", retry=retry):
                pass
        async with run.open_stream("bad", retry_failed=True) as stream:
            await run_batches(stream, ["fine"] * 6, handle, concurrency=3, key=lambda _item: "x")
        assert stream.status is Status.COMPLETE
