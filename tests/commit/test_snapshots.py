"""Snapshots: a killed body continues from the newest, which never answers for a batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

import trio_ckpt
from tests.commit.training import Model, bits, count, new_model, snap, step
from tests.opening import begin
from trio_ckpt import Batch, Run
from trio_ckpt.stores import MemoryStore


async def long_body(
    run: Run, seen: list[tuple[int, str | None, int]], die_at: int | None = None
) -> Model:
    async with run.open_stream("s", state=new_model()) as stream:
        async for batch in stream.batches(range(2)):
            model = stream.state
            seen.append((batch.index, batch.resumed_from, model.step))
            async with stream.snapshots(every_s=1.0) as snapshot:
                while model.step < 10 * (batch.index + 1):
                    step(model)
                    await snapshot.point(f"step {model.step}")
                    await trio.sleep(0.6)
                    if model.step == die_at:
                        raise KeyboardInterrupt
            batch.complete()
        return stream.state


async def handled(
    run: Run, seen: list[tuple[int, str | None, int]], die_at: int | None = None
) -> Model:
    """What `long_body` does, as a handler."""

    async def handle(batch: Batch[Any]) -> None:
        model = stream.state
        seen.append((batch.index, batch.resumed_from, model.step))
        async with stream.snapshots(every_s=1.0) as snapshot:
            while model.step < 10 * (batch.index + 1):
                step(model)
                await snapshot.point(f"step {model.step}")
                await trio.sleep(0.6)
                if model.step == die_at:
                    raise KeyboardInterrupt
        batch.complete()

    async with run.open_stream("s", state=new_model()) as stream:
        await trio_ckpt.run_batches(stream, range(2), handle)
        return stream.state


@pytest.mark.parametrize("work", [long_body, handled])
async def test_killed_work_goes_on_with_its_newest_snapshot(
    work: Callable[..., Awaitable[Model]], autojump_clock: Any
) -> None:
    store, seen = MemoryStore(), list[tuple[int, str | None, int]]()
    async with begin(MemoryStore()) as run:
        expected = bits(await long_body(run, []))
    for die_at in (4, 13, 17):
        with pytest.raises(KeyboardInterrupt):
            async with begin(store) as run:
                await work(run, seen, die_at)
        store = store.after_crash()
    async with begin(store) as run:
        assert bits(await work(run, seen)) == expected
    assert seen == [
        (0, None, 0),
        (0, "step 3", 3),
        (1, None, 10),
        (1, "step 13", 13),
        (1, "step 16", 16),
    ]


async def test_snapshots_are_for_the_task_that_works_on_the_batch() -> None:
    refused = list[str]()

    async def snap_elsewhere(stream: Any) -> None:
        with pytest.raises(trio_ckpt.StreamBusyError):
            async with stream.snapshots():
                raise AssertionError("it was opened")
        refused.append("no")

    async def handle(batch: Batch[Any]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snap_elsewhere, stream)
        batch.complete()
        await batch.confirm()
        with pytest.raises(trio_ckpt.StreamBusyError):  # its batch is over
            async with stream.snapshots():
                raise AssertionError("it was opened")
        refused.append("over")

    async with begin(MemoryStore()) as run, run.open_stream("s", state={"n": 0}) as stream:
        await trio_ckpt.run_batches(stream, range(1), handle)
        with pytest.raises(RuntimeError, match="none is open"):
            async with stream.snapshots():
                raise AssertionError("it was opened")
    await snap_elsewhere(stream)
    assert refused == ["no", "over", "no"]


async def test_a_failed_attempt_discards_its_snapshots(autojump_clock: Any) -> None:
    store = MemoryStore()

    async def session() -> None:
        async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
            async for batch in stream.batches(range(3)):
                assert (batch.resumed_from, stream.state) == (None, {"n": 0})
                async with stream.snapshots(every_s=0.0) as snapshot:
                    stream.state["n"] += 1
                    await snapshot.point("here")
                raise OSError("no")

    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            await session()


async def test_a_snapshot_not_encodable_is_left_out_and_earlier_ones_stay(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()

    async def session() -> None:
        async with begin(store) as run, run.open_stream("s", state={"n": 0, "x": [0]}) as stream:
            state: Any = stream.state
            async for _batch in stream.batches(range(1)):
                async with stream.snapshots(every_s=0.0) as snapshot:
                    state["n"] = 1
                    assert await snapshot.point("one")
                    await snapshot.wait()
                    state["n"], state["x"] = 2, [object()]
                    assert not await snapshot.point("two")
                    assert (snapshot.saved, snapshot.skipped) == (1, 1)
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await session()
    assert "state.x[0]" in caplog.text
    async with (
        begin(store.after_crash()) as run,
        run.open_stream("s", state={"n": 0, "x": [0]}) as stream,
    ):
        assert stream.state == {"n": 1, "x": [0]}


async def test_a_snapshot_is_never_torn(autojump_clock: Any) -> None:
    """The state holds its own sum; the loop changes it while a save is on its way."""
    store = MemoryStore()

    async def work(count: int) -> None:
        async with (
            begin(store) as run,
            run.open_stream("s", state={"a": np.zeros(50_000), "sum": 0.0}) as stream,
        ):
            state = stream.state
            assert float(state["a"].sum()) == state["sum"]  # type: ignore[union-attr]
            async for _batch in stream.batches(range(10_000)):
                async with stream.snapshots(every_s=0.0) as snapshot:
                    for _ in range(count):
                        state["a"] += 1.0  # type: ignore[operator]
                        state["sum"] += 50_000.0  # type: ignore[operator]
                        await snapshot.point()
                raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            await work(30)
        store = store.after_crash()


def in_thread(snapshot: Any, model: Model) -> None:
    for _ in range(5):
        step(model)
        snapshot.point_sync(f"step {model.step}")


async def test_points_in_a_thread() -> None:
    store = MemoryStore()

    async def session() -> None:
        async with begin(store) as run, run.open_stream("s", state=new_model()) as stream:
            async for _batch in stream.batches(range(1)):
                async with stream.snapshots(every_s=0.0) as snapshot:
                    await trio.to_thread.run_sync(in_thread, snapshot, stream.state)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await session()
    async with begin(store.after_crash()) as run, run.open_stream("s", state=new_model()) as stream:
        assert stream.state.step > 0


async def test_a_batch_confirmed_as_its_snapshot_was_has_its_own_state() -> None:
    store = MemoryStore()

    async def first(stream: Any, batch: Batch[Any]) -> None:
        if batch.index == 1:
            raise KeyboardInterrupt
        await snap(stream, 5)
        batch.complete()

    with pytest.raises(KeyboardInterrupt):
        await count(store, first)

    async def second(stream: Any, batch: Batch[Any]) -> None:
        assert stream.state["n"] == 5
        if batch.index == 1 and batch.attempt == 1:
            stream.state["n"] = 99
            batch.skip("no")
        else:
            batch.complete()

    assert await count(store, second) == 5


async def test_a_rewind_goes_back_to_what_was_confirmed_not_to_a_snapshot() -> None:
    store = MemoryStore()

    async def handle(stream: Any, batch: Batch[Any]) -> None:
        before = stream.state["n"]
        await snap(stream, 100 + batch.index)
        stream.state["n"] = before + 1
        batch.complete()

    assert await count(store, handle) == 3
    async with begin(store) as run:
        await run.rewind(("s",), to=0, reason="x")
    assert await count(store, handle) == 3


async def test_a_snapshot_is_for_its_own_batch_alone() -> None:
    store, seen = MemoryStore(), list[tuple[int, int, str | None]]()

    async def first(stream: Any, batch: Batch[Any]) -> None:
        if batch.index == 0:
            batch.skip("later")
            return
        await snap(stream, 777)
        raise KeyboardInterrupt

    async def second(stream: Any, batch: Batch[Any]) -> None:
        seen.append((batch.index, stream.state["n"], batch.resumed_from))
        stream.state["n"] += 1
        batch.complete()

    with pytest.raises(KeyboardInterrupt):
        await count(store, first)
    assert await count(store, second, retry_failed=True) == 3
    assert seen == [(0, 0, None), (1, 1, None), (2, 2, None)]


async def test_no_snapshot_lands_after_the_record_that_ends_its_attempt() -> None:
    store = MemoryStore()

    async def handle(stream: Any, batch: Batch[Any]) -> None:
        if batch.index == 1:
            stream.state["n"] = 777
            async with stream.snapshots(every_s=0.0) as snapshot:
                await snapshot.point()
                batch.skip("no")
                await batch.confirm()
        else:
            stream.state["n"] = 1
            batch.complete()

    assert await count(store, handle) == 1
    async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
        assert stream.state == {"n": 1}


async def test_snapshots_never_push_out_what_is_confirmed() -> None:
    store = MemoryStore()
    with pytest.raises(ValueError, match="body"):
        async with (
            begin(store) as run,
            run.open_stream("s", state={"a": np.zeros(100_000)}) as stream,
        ):
            await many_snapshots(stream)
    async with (
        begin(store) as run,
        run.open_stream("s", state={"a": np.ones(1)}, on_fail="record") as stream,
    ):
        assert stream.state["a"].tobytes() == np.zeros(100_000).tobytes()


async def many_snapshots(stream: Any) -> None:
    async for batch in stream.batches(range(1)):
        async with stream.snapshots(every_s=0.0) as snapshot:
            for n in range(6):
                stream.state["a"] = np.random.default_rng(n).normal(size=100_000)
                await snapshot.point()
                await snapshot.wait()
        assert batch.index == 0
        raise ValueError("body")
