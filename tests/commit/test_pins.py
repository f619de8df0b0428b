"""A pinned state keeps its arrays until it is unpinned, over sessions, folds and completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.lowlevel

import trio_ckpt
from tests.opening import begin
from trio_ckpt import CannotRedoError, Stream
from trio_ckpt._commit import stored_state
from trio_ckpt._commit.archive_states import MAX_PINS
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Fail, FaultyStore

KEY = ("s",)


@pytest.fixture(autouse=True)
def every_state_is_a_chain_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is kept can be counted."""
    monkeypatch.setattr(stored_state, "SHARE_OF_DEAD", -1.0)


def new() -> dict[str, Any]:
    return {"a": np.zeros(100_000), "n": 0}


async def work(stream: Stream[dict[str, Any]], until: int, *, last: bool = False) -> None:
    """Go on to a batch; each changes the whole array."""
    async for batch in stream.batches():
        stream.state["a"] = np.random.default_rng(batch.index).normal(size=100_000)
        stream.state["n"] += 1
        batch.complete(last=last and batch.index == until)
        await batch.confirm()
        if batch.index == until:
            return


async def rewound(store: Any, to: int) -> dict[str, Any]:
    async with begin(store) as run:
        await run.rewind(KEY, to=to, reason="x")
        async with run.open_stream(*KEY, state=new()) as stream:
            return stream.state


async def test_a_pinned_state_can_be_restored_after_others_were_dropped() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream(*KEY, state=new()) as stream:
        await work(stream, 1)
        await stream.pin("good")
        await work(stream, 5)
    async with begin(store.after_crash()) as run, run.open_stream(*KEY, state=new()) as stream:
        await work(stream, 9)
        pin = stream.progress.pins["good"]
        assert pin.batch_index == 1
    with pytest.raises(CannotRedoError):
        await rewound(store, 2)
    state = await rewound(store, pin.batch_index)
    assert state["n"] == 2
    assert np.array_equal(state["a"], np.random.default_rng(1).normal(size=100_000))


async def test_a_pinned_state_can_be_read_without_going_back_to_it(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store")
    async with begin(store) as run, run.open_stream(*KEY, state=new()) as stream:
        await work(stream, 1)
        await stream.pin("good")
        await work(stream, 5)
        async for batch in stream.batches():  # its state is that of the batch before
            batch.complete(last=True)
    for batch_index, made_by in ((1, 1), (5, 5), (6, 5)):
        found = await trio_ckpt.read_arrays(store, "r", KEY, batch=batch_index)
        expected = np.random.default_rng(made_by).normal(size=100_000)
        assert np.array_equal(found["state.a"], expected)
    with pytest.raises(trio_ckpt.StoreDamagedError):
        await trio_ckpt.read_arrays(store, "r", KEY, batch=2)
    with pytest.raises(ValueError, match="batch 7 was never confirmed"):
        await trio_ckpt.read_arrays(store, "r", KEY, batch=7)
    await store.aclose()


async def test_an_open_batch_is_saved_before_its_state_is_pinned() -> None:
    async with begin("memory:") as run, run.open_stream(*KEY, state=new()) as stream:
        async for batch in stream.batches(range(3)):
            stream.state["n"] += 1
            batch.complete()
            if batch.index == 1:
                await stream.pin("second")
                assert list(stream.progress.confirmed) == [0, 1]
    assert stream.progress.pins["second"].batch_index == 1


async def test_a_complete_stream_keeps_its_pinned_states_and_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with begin(folder) as run, run.open_stream(*KEY, state=new()) as stream:
        await work(stream, 1)
        await stream.pin("good")
        await work(stream, 5, last=True)
    assert stream.status is trio_ckpt.Status.COMPLETE
    assert blobs(folder) == 2
    assert (await rewound(folder, 1))["n"] == 2


def blobs(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "blobs").rglob("*"))


async def test_a_failed_stream_keeps_what_its_retention_names(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    retention = trio_ckpt.Retention(last=3)
    async with (
        begin(folder) as run,
        run.open_stream(*KEY, state=new(), retention=retention, on_fail="record") as stream,
    ):
        await work(stream, 5)
        await stream.fail("no", retryable=False)
    assert stream.status is trio_ckpt.Status.FAILED
    assert blobs(folder) == 3


async def test_what_is_unpinned_or_whose_label_moves_on_is_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with begin(folder) as run, run.open_stream(*KEY, state=new()) as stream:
        await work(stream, 1)
        await stream.pin("best")
        await work(stream, 5)
        assert blobs(folder) == 3  # the newest two, and the pinned one
        await stream.pin("best")
        assert blobs(folder) == 2
        await work(stream, 8)
        assert blobs(folder) == 3
        await stream.unpin("best")
        assert blobs(folder) == 2
        assert not stream.progress.pins
        with pytest.raises(ValueError, match="no pin 'best'; it has: none"):
            await stream.unpin("best")


async def test_a_rewind_to_before_its_batch_takes_a_pin_with_it() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream(*KEY, state=new()) as stream:
            await work(stream, 1)
            await stream.pin("early")
            await work(stream, 3)
            await stream.pin("late")
        await run.rewind(KEY, to=1, reason="x")
        assert list(stream.progress.pins) == ["early"]


async def test_a_pin_that_was_not_saved_is_none() -> None:
    store = MemoryStore()

    async def session() -> None:
        plan = {5: Fail()}  # the session, the first state, two batches, the pin
        async with (
            begin(FaultyStore(store, plan)) as run,
            run.open_stream(*KEY, state=new()) as stream,
        ):
            await work(stream, 1)
            await stream.pin("good")

    with pytest.raises(trio_ckpt.StoreError, match="save 5"):
        await session()
    view = await store.after_crash().load_run("r")
    assert view is not None
    progress = view.streams[KEY].progress
    assert (list(progress.confirmed), progress.pins) == ([0, 1], {})


async def test_unpinning_while_a_snapshot_is_saved_confuses_no_account(
    tmp_path: Path,
) -> None:
    """Both land in one group, so when the snapshot hears of it there is a later record."""
    folder = tmp_path / "store"
    async with begin(folder) as run, run.open_stream(*KEY, state=new()) as stream:
        await work(stream, 0)
        for label in ("a", "b", "c"):
            await stream.pin(label)
        async for batch in stream.batches():
            async with stream.snapshots(every_s=0) as snapshot:
                for number, label in enumerate("abc"):
                    stream.state["a"] = np.random.default_rng(50 + number).normal(size=100_000)
                    assert await snapshot.point()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(snapshot.wait)
                        while (
                            loop_cursor_of(stream).open_stream.stream_log.submitted
                            == stream.progress.sequence
                        ):
                            await trio.lowlevel.checkpoint()  # until the snapshot is on its way
                        await stream.unpin(label)
            batch.complete()
            await batch.confirm()
            break
        sequences = loop_cursor_of(stream).open_stream.state_manager.versions.take_dropped(
            (), is_complete=True
        )  # type: ignore[union-attr]
        store = await open_store(folder)
        history = [entry async for entry in trio_ckpt.read_history(store, "r", KEY)]
        states = {entry.sequence for entry in history if entry.state_bytes}
        assert {s for part in sequences.values() for s in part} <= states
        await store.aclose()


async def test_what_cannot_be_pinned_is_refused() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("none") as without:
            with pytest.raises(TypeError, match="have a state to pin"):
                await without.pin("x")
        async with run.open_stream(*KEY, state={"n": 0}) as stream:
            for label in ("", "a\nb", "x" * 201):
                with pytest.raises(ValueError, match="a label"):
                    await stream.pin(label)
            for number in range(MAX_PINS):
                loop_cursor_of(stream).open_stream.stream_log.progress.pins[str(number)] = (
                    trio_ckpt.Pin(0.0, None, b"")
                )
            await stream.pin("7")
            with pytest.raises(ValueError, match=f"{MAX_PINS} pins"):
                await stream.pin("one more")


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_pins_are_in_the_history_and_in_what_is_loaded(kind: str, tmp_path: Path) -> None:
    url = f"{kind}:{tmp_path / 'store'}"
    async with begin(url) as run, run.open_stream(*KEY, state={"n": 0}) as stream:
        await work_small(stream)
        await stream.pin("good")
        await stream.unpin("good")
        await stream.pin("better")
    store = await open_store(url)
    view = await store.load_run("r")
    assert view is not None
    assert view.streams[KEY].progress.pins["better"].batch_index == 0
    history = [entry async for entry in trio_ckpt.read_history(store, "r", KEY)]
    assert [(e.kind, e.metadata["label"]) for e in history if "pin" in e.kind] == [
        ("pin", "better"),
        ("unpin", "good"),
        ("pin", "good"),
    ]
    await store.aclose()


async def work_small(stream: Any) -> None:
    async for batch in stream.batches():
        stream.state["n"] += 1
        batch.complete()
        await batch.confirm()
        return
