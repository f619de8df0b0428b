"""The edge cases and examples of seed 003, "Incremental checkpointing", by their names there.

The cases 7 and 8 are about workers on other machines; here is what one process does by itself.
The seed's task is a stream, its checkpoint of a running task a snapshot inside a batch.
"""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import trio_ckpt
from tests.opening import begin
from trio_ckpt import NotEncodableError, Run, StoreDamagedError
from trio_ckpt.abc import INLINE_LIMIT_BYTES
from trio_ckpt.state._arrays import compress, engine as _arrays
from trio_ckpt.state._arrays.dirty_pages import Untracked
from trio_ckpt.state._tree.identity import ArrayLeaf
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Delay, FaultyStore


async def die_in_body(
    store: Any, state: Any, work: Callable[[Any, trio_ckpt.Snapshots], Any]
) -> None:
    """Run a body with snapshots at every point, and die at its end."""

    async def session() -> None:
        async with begin(store) as run, run.open_stream("s", state=state) as stream:
            async for _batch in stream.batches(range(1)):
                async with stream.snapshots(every_s=0) as snapshot:
                    await work(stream.state, snapshot)
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await session()


async def resumed(store: Any, state: Any) -> Any:
    """What a next session begins with."""
    async with begin(store) as run:
        async with run.open_stream("s", state=state, on_fail="record") as stream:
            return stream.state


# ------------------------------------------------------------------------------------- edge cases


async def test_edge_case_1_checkpoint_serialization_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged with the path of what cannot be saved, and skipped; the task goes on; earlier
    ones stay valid."""
    store = MemoryStore()

    async def work(state: Any, snapshot: trio_ckpt.Snapshots) -> None:
        state["done"] = 1
        assert await snapshot.point("one")
        await snapshot.wait()
        state["done"], state["model"]["hook"] = 2, lambda: None
        assert not await snapshot.point("two")
        assert (snapshot.saved, snapshot.skipped) == (1, 1)

    await die_in_body(store, {"done": 0, "model": {}}, work)
    assert "state.model.hook" in caplog.text
    assert await resumed(store.after_crash(), {"done": 0, "model": {}}) == {"done": 1, "model": {}}


async def test_edge_case_1_at_the_gate_the_batch_fails() -> None:
    """A batch, unlike a snapshot, is a promise: it is not confirmed without its state."""
    store = MemoryStore()

    async def session() -> None:
        new: dict[str, Any] = {"done": 0}
        async with begin(store) as run, run.open_stream("s", state=new) as stream:
            async for batch in stream.batches(range(3)):
                stream.state["done"] += 1
                if batch.index == 1:
                    stream.state["hook"] = lambda: None
                batch.complete()

    with pytest.raises(trio_ckpt.BatchFailedError, match=r"state\.hook") as caught:
        await session()
    assert isinstance(caught.value.__cause__, NotEncodableError)
    assert await resumed(store, {"done": 0}) == {"done": 1}


def blob_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file())


async def test_edge_case_2_large_checkpoints(tmp_path: Path) -> None:
    """They are files beside the database, packed, and what nothing needs any more is removed."""
    array = np.random.default_rng(2).integers(0, 2**20, 2**18)  # 2 MiB; 44 of 64 bits are zeros
    folder, seen = tmp_path / "large.ckpt", list[int]()
    async with begin(folder) as run, run.open_stream("s", state={"a": array.copy()}) as stream:
        async for batch in stream.batches(range(6)):
            stream.state["a"][:] = (stream.state["a"][::-1] + batch.index) % 2**20
            batch.complete()
            await batch.confirm()
            seen.append(blob_bytes(folder))
    assert array.nbytes > INLINE_LIMIT_BYTES
    assert 0 < seen[0] < array.nbytes, "it is not beside the database, or not packed"
    assert blob_bytes(folder) < max(seen), "of a complete stream one state is kept"
    assert (folder / "state.db").stat().st_size < array.nbytes // 4
    found = await resumed(folder, {"a": np.zeros(1)})
    for index in range(6):
        array = (array[::-1] + index) % 2**20
    assert found["a"].tobytes() == array.tobytes()


async def test_edge_case_3_stale_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is of the same moment as its progress, so age alone makes it no worse: a run goes
    on however long it lay.  Who wants a limit asks for the age, and begins afresh; the old run
    is archived, not lost.
    """
    store = MemoryStore()
    two_hours_ago = time.time() - 7_200
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: two_hours_ago)
        async with begin(store) as run, run.open_stream("s", state={"done": 0}) as stream:
            async for batch in stream.batches():
                stream.state["done"] += 1
                batch.complete(last=batch.index == 2)
    assert await resumed(store, {"done": 0}) == {"done": 3}

    view = await store.load_run("r")
    assert view is not None
    updated_at = view.streams["s",].progress.updated_at
    assert updated_at is not None
    is_stale = time.time() - updated_at > 3_600
    assert is_stale
    async with begin(store, fresh=is_stale) as run:
        async with run.open_stream("s", state={"done": 0}) as stream:
            assert stream.state == {"done": 0}
    assert await store.load_run("r", generation=0) is not None


def grow(state: Any) -> None:
    """Change a little of a state that is large enough to be saved as differences."""
    state["n"] += 1
    state["log"].append(random.Random(state["n"]).random())
    state["a"][state["n"] % len(state["a"])] += 1.5


def new_state() -> dict[str, Any]:
    log = [random.Random(0).random()] * 10_000
    return {"n": 0, "log": log, "a": np.random.default_rng(1).normal(size=100_000)}


async def train(store: Any, batches: int, **settings: Any) -> tuple[int, list[float], bytes]:
    async with begin(store) as run, run.open_stream("s", state=new_state(), **settings) as stream:
        async for batch in stream.batches(range(batches)):
            grow(stream.state)
            batch.complete()
        state = stream.state
        return state["n"], state["log"], state["a"].tobytes()


async def work_large(store: Any, batches: int, **settings: Any) -> tuple[int, bytes]:
    """Change a tenth of an array in each batch: each is a blob of its own, all are one chain."""
    new = {"n": 0, "a": np.random.default_rng(4).normal(size=400_000)}
    async with begin(store) as run, run.open_stream("s", state=new, **settings) as stream:
        async for batch in stream.batches(range(batches)):
            stream.state["n"] += 1
            stream.state["a"][batch.index * 40_000 : (batch.index + 1) * 40_000] *= 1.01
            batch.complete()
        return stream.state["n"], stream.state["a"].tobytes()


async def test_edge_case_4_missing_delta_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The seed goes on with what is left, which is a state that never was.  Here the missing one
    is named; `recover=True` goes back to the newest whole one, and does the rest again."""
    expected = await work_large(MemoryStore(), 8)
    folder = tmp_path / "task.ckpt"
    await work_large(folder, 5)
    store = await open_store(folder)
    history = await store.history("r", '["s"]')
    await store.aclose()
    names = [record.blobs[0] for record in history.records if record.blobs]
    assert len(names) >= 5
    lost = next(path for path in (folder / "blobs").rglob("*") if path.name.startswith(names[2]))
    lost.unlink()

    with pytest.raises(StoreDamagedError, match=f"{names[2][:12]}.*recover=True"):
        await work_large(folder, 8)
    assert await work_large(folder, 8, recover=True) == expected
    assert any(record.levelno == logging.ERROR for record in caplog.records), "it was not said"
    assert await work_large(folder, 8) == expected


@attrs.define
class Odd:
    """A state of kinds that no framework knows."""

    weights: np.ndarray[Any, Any]
    names: set[str] = attrs.field(factory=set[str])
    table: dict[tuple[int, int], complex] = attrs.field(factory=dict[tuple[int, int], complex])


async def test_edge_case_5_framework_detection_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel support, memory that it cannot watch, values of no framework: all of them are
    saved as what changed in them, and the statistics say by which way."""

    def new() -> Odd:
        return Odd(np.zeros(200_000))

    def step(state: Odd, n: int) -> None:
        state.weights[n * 1_000] = n
        state.names.add(f"n{n}")
        state.table[n, 2 * n] = complex(n, -0.0)

    monkeypatch.setattr(_arrays, "open_tracker", lambda: Untracked("forbidden here"))
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", state=new()) as stream:
        async for batch in stream.batches(range(5)):
            step(stream.state, batch.index)
            batch.complete()
        await stream.save()
        statistics = stream.statistics().state
    assert statistics is not None
    (array,) = statistics.arrays.values()
    assert (array.method, array.reason) == ("hash", "forbidden here")
    found, expected = await resumed(store, new()), new()
    for n in range(5):
        step(expected, n)
    assert found.weights.tobytes() == expected.weights.tobytes()
    assert (found.names, found.table) == (expected.names, expected.table)


async def test_edge_case_5_what_is_no_data_is_refused_by_its_path() -> None:
    """The seed falls back to pickle, which stores code; the error here says where it is."""

    async def session() -> None:
        async with begin(MemoryStore()) as run, run.open_stream("s", state={"hooks": [print]}):
            raise AssertionError("it was opened")

    with pytest.raises(NotEncodableError, match=r"state\.hooks\[0\].*exclude the field"):
        await session()


async def test_edge_case_6_delta_compaction() -> None:
    """After 50 differences a chain begins again; the program sees nothing of it."""
    expected = await train(MemoryStore(), 130)
    store, lengths = MemoryStore(), list[int]()
    for batches in (40, 49, 50, 51, 52, 101, 130):
        found = await train(store, batches)
        async with begin(store) as run, run.open_stream("s", state=new_state()) as stream:
            statistics = stream.statistics().state
            assert statistics is not None
            lengths.append(statistics.chain)
    assert found == expected
    assert 1 < max(lengths) <= 51
    assert lengths[0] > 30, "it was saved whole each time: nothing is shown"
    assert lengths[-1] < 50, "it was never compacted"


@pytest.mark.parametrize("most", [1, 3])
async def test_edge_case_6_after_how_many_differences_is_a_setting(most: int) -> None:
    """Whatever it is, the state comes back; the next start may say another."""
    expected = await train(MemoryStore(), 12)
    store, lengths = MemoryStore(), list[int]()
    retention = trio_ckpt.Retention(max_deltas=most)
    for batches in range(1, 13):
        found = await train(store, batches, retention=retention)
        async with begin(store) as run, run.open_stream("s", state=new_state()) as stream:
            statistics = stream.statistics().state
            assert statistics is not None
            lengths.append(statistics.chain)
    assert found == expected
    assert max(lengths) == most + 1
    assert lengths.count(1) >= 12 // (most + 1)


@pytest.mark.parametrize("floats", [0, 2**20], ids=["plain", "with arrays"])
async def test_edge_case_9_concurrent_checkpoint_calls(
    floats: int, autojump_clock: MockClock
) -> None:
    """One at a time, whichever task asks; while one is on its way others are not begun, and the
    next takes the newest state.  Arrays are copied in a thread, while other tasks go on."""
    new: dict[str, Any] = {"asked": 0, **({"a": np.zeros(floats)} if floats else {})}
    inner = MemoryStore()
    store = FaultyStore(inner, dict.fromkeys(range(1, 1_000), Delay(1.0)))
    answers: list[bool] = []

    async def ask(state: Any, snapshot: trio_ckpt.Snapshots, label: str) -> None:
        state["asked"] += 1
        if floats:
            state["a"] += 1
        answers.append(await snapshot.point(label))

    async def work(state: Any, snapshot: trio_ckpt.Snapshots) -> None:
        for round_ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(ask, state, snapshot, f"{round_}.{number}")
            await snapshot.wait()
        assert (snapshot.saved, snapshot.skipped) == (3, 0)
        assert await trio.to_thread.run_sync(snapshot.point_sync, "from a thread")

    await die_in_body(store, new, work)
    assert answers.count(True) == 3
    found = await resumed(inner.after_crash(), {"asked": 0})
    assert found["asked"] == 30
    assert not floats or found["a"].tobytes() == np.full(floats, 30.0).tobytes()


async def test_edge_case_9_a_point_that_comes_too_late_is_refused() -> None:
    """Outside its block it would save the state of another batch under the name of its own."""

    async def session() -> None:
        async with begin(MemoryStore()) as run, run.open_stream("s", state={"n": 0}) as stream:
            late: list[trio_ckpt.Snapshots] = []
            async for batch in stream.batches(range(2)):
                async with stream.snapshots(every_s=0) as snapshot:
                    late.append(snapshot)
                if batch.index == 1:
                    await late[0].point("late")
                batch.complete()

    with pytest.raises(RuntimeError, match="body of the batch"):
        await session()


def no_memory(*_args: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize("place", ["copying", "packing"])
async def test_edge_case_10_out_of_memory_checkpoints(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and skipped, the task goes on, and earlier ones stay valid; when there is
    memory again, so do snapshots."""
    target: Any = _arrays.ArrayEngine if place == "copying" else compress.Compressor
    name = "hold" if place == "copying" else "pack_parts"
    store = MemoryStore()
    new = {"n": 0, "a": np.zeros(50_000)}

    async def work(state: Any, snapshot: trio_ckpt.Snapshots) -> None:
        for n in range(1, 8):
            state["n"] = n
            state["a"] += 1
            with monkeypatch.context() as patch:
                if n in (3, 4, 7):
                    patch.setattr(target, name, no_memory)
                await snapshot.point(f"step {n}")
                await snapshot.wait()
        assert (snapshot.saved, snapshot.skipped) == (4, 3)

    await die_in_body(store, new, work)
    said = [record for record in caplog.records if record.name == "trio_ckpt._commit.snapshots"]
    assert [record.levelno for record in said] == [logging.WARNING] * 3
    assert all("memory" in record.getMessage().lower() for record in said)
    found = await resumed(store.after_crash(), {"n": 0, "a": np.zeros(50_000)})
    assert found["n"] == 6
    assert found["a"].tobytes() == np.full(50_000, 6.0).tobytes()


def test_edge_case_10_what_was_copied_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a few failures would use up the memory for copies."""
    engine = _arrays.ArrayEngine()
    with monkeypatch.context() as patch:
        patch.setattr(compress.Compressor, "pack_parts", no_memory)
        held = engine.hold([ArrayLeaf("state.a", np.ones(2**23))], {})
        with pytest.raises(MemoryError):
            list(held.pieces())
        held.release()
    assert engine.arena.used_bytes == 0
    engine.close()


async def test_edge_case_10_at_the_gate_the_batch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its waiters are told, and it runs again."""
    store, told = MemoryStore(), list[BaseException]()

    async def wait(token: Any) -> None:
        with pytest.raises(trio_ckpt.CheckpointFailedError) as caught:
            await token.wait()
        told.append(caught.value)

    async def session(run: Run, watcher: trio.Nursery) -> None:
        new: dict[str, Any] = {"n": 0, "a": np.zeros(50_000)}
        async with run.open_stream("s", state=new) as stream:
            async for batch in stream.batches(range(3)):
                stream.state["n"] += 1
                stream.state["a"] += 1
                if batch.index == 1:
                    watcher.start_soon(wait, batch.token)
                    await trio.testing.wait_all_tasks_blocked()
                    monkeypatch.setattr(compress.Compressor, "pack_parts", no_memory)
                batch.complete()

    async with trio.open_nursery() as watcher:
        with pytest.raises(trio_ckpt.BatchFailedError) as failed:
            async with begin(store) as run:
                await session(run, watcher)
    assert isinstance(failed.value.__cause__, MemoryError)
    monkeypatch.undo()
    assert len(told) == 1
    view = await store.load_run("r")
    assert view is not None
    assert list(view.streams["s",].progress.confirmed) == [0]
    found = await resumed(store, {"n": 0, "a": np.zeros(50_000)})
    assert (found["n"], found["a"].tobytes()) == (1, np.ones(50_000).tobytes())


# --------------------------------------------------------------------------------------- examples


async def test_example_1_simple_stateless_function() -> None:
    """No interval, no state: each item is confirmed, and nothing is captured inside it."""
    results: dict[int, int] = {}

    async def process(batch: trio_ckpt.Batch[int]) -> None:
        await trio.lowlevel.checkpoint()
        results[batch.index] = batch.item**2
        batch.complete(metadata={"result": results[batch.index]})

    store = MemoryStore()
    for _ in range(2):
        async with begin(store) as run, run.open_stream("square") as stream:
            await trio_ckpt.run_batches(stream, [1, 2, 3, 4, 5], process, concurrency=2)
            assert stream.statistics().state is None
    assert sorted(results.values()) == [1, 4, 9, 16, 25]
    pages = trio_ckpt.read_history(store, "r", ("square",))
    history = [checkpoint async for checkpoint in pages]
    assert {c.kind for c in history} <= {"batch", "finish"}
    assert sum(c.state_bytes for c in history) == 0


NUM_EPOCHS = 20


@attrs.define
class Training:
    """The seed's state: epoch, losses and weights."""

    epoch: int = 0
    loss: list[float] = attrs.field(factory=list[float])
    weights: np.ndarray[Any, Any] = attrs.field(factory=lambda: np.zeros(1_000))

    @property
    def progress_percent(self) -> float:
        return self.epoch / NUM_EPOCHS * 100


async def train_model(run: Run, die_at: int | None = None) -> tuple[Training, list[int]]:
    """One body that trains for 20 epochs of 3 s each, with a snapshot every 5 s."""
    trained: list[int] = []
    async with run.open_stream("train", state=Training()) as stream:
        async for batch in stream.batches(range(1)):
            state = stream.state
            async with stream.snapshots(every_s=5.0) as snapshot:
                while state.epoch < NUM_EPOCHS:
                    if state.epoch == die_at:
                        raise KeyboardInterrupt
                    await trio.sleep(3.0)
                    rng = np.random.default_rng(state.epoch)
                    state.weights += rng.normal(size=1_000) - 0.01 * state.weights
                    state.loss.append(float(np.square(state.weights).mean()))
                    trained.append(state.epoch)
                    state.epoch += 1
                    await snapshot.point(f"{state.progress_percent:g} %")
            batch.complete(metadata={"epochs": state.epoch})
        return stream.state, trained


async def test_example_2_long_running_ml_training(autojump_clock: MockClock) -> None:
    """A worker that fails mid-training loses what it did since its last snapshot, no more."""
    async with begin(MemoryStore()) as run:
        expected, _ = await train_model(run)
    store = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        async with begin(store) as run:
            await train_model(run, die_at=12)
    store = store.after_crash()
    async with begin(store) as run:
        found, trained = await train_model(run)
    assert trained == list(range(11, NUM_EPOCHS)), "the newest snapshot was at epoch 11"
    assert (found.epoch, found.loss) == (expected.epoch, expected.loss)
    assert found.weights.tobytes() == expected.weights.tobytes()


async def test_example_2_in_a_store_that_another_process_reads(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """The history of the default store has the snapshots (the seed's example 3)."""
    with pytest.raises(KeyboardInterrupt):
        async with begin(tmp_path / "ml.ckpt") as run:
            await train_model(run, die_at=9)
    store = await open_store(tmp_path / "ml.ckpt")
    history = [c async for c in trio_ckpt.read_history(store, "r", ("train",))]
    await store.aclose()
    labels = [c.metadata["label"] for c in history if c.kind == "snapshot"]
    assert labels
    assert labels == sorted(labels, key=lambda label: -float(label.split()[0]))
    async with begin(tmp_path / "ml.ckpt") as run:
        state, trained = await train_model(run)
    assert state.epoch == NUM_EPOCHS
    assert 0 < trained[0] <= 9
