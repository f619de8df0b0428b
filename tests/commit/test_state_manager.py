"""State that survives: with every batch, inside long ones, whatever is killed and wherever."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import trio

import trio_ckpt
from tests.commit.training import Model, bits, count, new_model, step
from tests.opening import begin
from trio_ckpt import Batch, NotEncodableError, Run
from trio_ckpt._commit.exits import Exit
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt.abc import Store
from trio_ckpt.state import _plan, check_kind
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Fail, FaultyStore

EPOCHS = 25


async def train(run: Run, die_after: int | None = None) -> Model:
    async with run.open_stream("s", state=new_model()) as stream:
        done = 0
        async for batch in stream.batches(range(EPOCHS)):
            step(stream.state)
            if die_after == done:
                raise KeyboardInterrupt
            done += 1
            batch.complete()
        return stream.state


async def uninterrupted() -> Model:
    async with begin(MemoryStore()) as run:
        return await train(run)


async def test_a_run_that_is_killed_repeatedly_ends_with_the_same_state() -> None:
    expected = bits(await uninterrupted())
    for seed in range(5):
        rng = random.Random(seed)
        store = MemoryStore()
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                async with begin(store) as run:
                    model = await train(run, die_after=rng.choice([0, 1, 2, 5, None]))
                    assert bits(model) == expected
                    break
            store = store.after_crash()


async def test_a_save_that_fails_at_any_place_loses_no_acknowledged_state() -> None:
    expected = bits(await uninterrupted())
    for k in range(1, EPOCHS + 4):
        store = MemoryStore()
        with pytest.raises(trio_ckpt.StoreError):
            async with begin(FaultyStore(store, {k: Fail()})) as run:
                await train(run)
        async with begin(store.after_crash()) as run:
            assert bits(await train(run)) == expected, k


async def test_a_failed_attempt_leaves_nothing_of_itself_in_the_state() -> None:
    table = trio_ckpt.RetryTable((trio_ckpt.RetryRule((OSError,), backoff_s=0.0),))
    expected = bits(await uninterrupted())
    async with (
        begin(MemoryStore()) as run,
        run.open_stream("s", state=new_model(), retry=table) as stream,
    ):
        async for batch in stream.batches(range(EPOCHS)):
            step(stream.state)
            if batch.attempt < 1 + batch.index % 3:
                stream.state.weights[:] = 7
                batch.fail(OSError("once more"))
                continue
            batch.complete()
        assert bits(stream.state) == expected


async def test_a_skipped_batch_leaves_nothing_of_itself_in_the_state() -> None:
    async with begin(MemoryStore()) as run, run.open_stream("s", state=new_model()) as stream:
        async for batch in stream.batches(range(3)):
            before = bits(stream.state)
            step(stream.state)
            if batch.index == 1:
                batch.skip("no")
                await batch_is_over(stream, before)
            else:
                batch.complete()


async def batch_is_over(stream: Any, before: Any) -> None:
    await loop_cursor_of(stream).settle_open(Exit.NEXT)
    assert bits(stream.state) == before


async def test_what_is_excluded_is_not_saved() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        assert (await train(run)).cache
    async with begin(store) as run, run.open_stream("s", state=new_model()) as stream:
        assert (stream.state.step, stream.state.cache) == (EPOCHS, [])


async def test_a_state_that_cannot_be_saved_is_refused_before_any_work() -> None:
    state = {"a": [1, object()]}
    with pytest.raises(NotEncodableError, match=r"state\.a\[1\]"):
        async with begin(MemoryStore()) as run, run.open_stream("s", state=state):
            raise AssertionError("it was opened")


async def test_a_leaf_that_cannot_be_saved_fails_its_batch_by_its_path() -> None:
    async def session() -> None:
        async with begin(MemoryStore()) as run, run.open_stream("s", state=new_model()) as stream:
            async for batch in stream.batches(range(2)):
                stream.state.table["bad"] = object()
                batch.complete()

    with pytest.raises(trio_ckpt.BatchFailedError, match=r"state\.table\.bad"):
        await session()


@attrs.define
class Base:
    n: int = 0


@attrs.define
class Derived(Base):
    m: int = 0


@attrs.define
class Other:
    n: int = 0


async def reopened(saved: Any, given: Any) -> Any:
    """The state of a stream that was begun with one and is opened with another."""
    store = MemoryStore()
    for state in (saved, given):
        async with (
            begin(store) as run,
            run.open_stream("s", state=state, on_fail="record") as stream,
        ):
            if state is saved:
                await stream.save()
    return stream.state


@pytest.mark.parametrize(
    ("saved", "given", "names"),
    [
        ({"n": 1}, [1], "type dict was saved, state= is of type list"),
        ([1], {"n": 1}, "type list was saved, state= is of type dict"),
        (Base(), {"n": 1}, "type Base was saved, state= is of type dict"),
        ({"n": 1}, Base(), "type dict was saved, state= is of type Base"),
        (Base(), Other(), "type Base was saved, state= is of type Other"),
        ("text", b"text", "type str was saved, state= is of type bytes"),
        (np.zeros(3), [0.0], "type ndarray was saved, state= is of type list"),
        (1, [1], "type int was saved, state= is of type list"),
        ({"n": 1}, trio_ckpt.Frontier(), "not a Frontier, but state= is one"),
    ],
)
async def test_a_state_of_another_kind_is_refused_by_the_names_of_both(
    saved: Any, given: Any, names: str
) -> None:
    with pytest.raises(trio_ckpt.StateChangedError, match=names):
        await reopened(saved, given)


@pytest.mark.parametrize(
    ("saved", "given"),
    [
        ({"n": 1}, {}),
        (Derived(1, 2), Derived()),
        (1, 2.5),
        (2.5, True),
        (np.float32(1), 1.0),
        (np.zeros(3), np.zeros((2, 2), np.int8)),
        (Counter("a"), {}),
        ({"n": 1}, OrderedDict()),
    ],
)
async def test_a_state_of_the_same_kind_is_taken(saved: Any, given: Any) -> None:
    assert np.array_equal(await reopened(saved, given), saved)


async def test_a_saved_none_is_of_any_kind() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", state={"n": 1}) as stream:
        stream.state = None  # type: ignore[assignment]  # what is tested
        await stream.save()
    async with begin(store) as run, run.open_stream("s", state={"n": 1}) as stream:
        assert stream.state is None


def test_a_class_and_one_derived_from_it_are_of_one_kind() -> None:
    check_kind(Base(), Derived())
    check_kind(Derived(), Base())


# -- large trees --------------------------------------------------------------------------------


@attrs.define
class Celsius:
    """Reading its field runs code of the program."""

    degrees: float = 0.0
    seen: ClassVar[list[int]] = []

    def __getattribute__(self, name: str) -> Any:
        if name == "degrees":
            Celsius.seen.append(threading.get_ident())
        return super().__getattribute__(name)


async def test_code_of_the_program_runs_in_its_thread_for_any_size_of_tree() -> None:
    state: dict[str, Any] = {f"key{n}": n for n in range(10_000)}
    async with (
        begin(MemoryStore()) as run,
        run.open_stream("s", state={"now": Celsius(), **state}) as stream,
    ):
        Celsius.seen.clear()
        for n in range(3):
            stream.state["now"].degrees = float(n)
            await stream.save()
        await stream.finish()
    assert set(Celsius.seen) == {threading.get_ident()}


async def test_other_tasks_go_on_while_a_large_tree_is_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The walk waits for another task: on the event loop it would wait for ever."""
    went_on, real = threading.Event(), _plan.flatten_state

    def wait(*args: Any) -> Any:
        assert went_on.wait(10)
        return real(*args)

    async def go_on() -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        went_on.set()

    async with (
        begin(MemoryStore()) as run,
        run.open_stream("s", state={f"key{n}": n for n in range(10_000)}) as stream,
    ):
        monkeypatch.setattr(_plan, "flatten_state", wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            await stream.save()
        await stream.finish()


# -- large arrays -------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "json"])
async def large_store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind = request.param
    return MemoryStore() if kind == "memory" else f"{kind}:{tmp_path / 'store'}"


def large() -> dict[str, Any]:
    return {"a": np.random.default_rng(1).normal(size=(2_000, 300)), "n": 0}


async def work_large(store: Store | str, epochs: int) -> tuple[float, bytes]:
    async with begin(store) as run, run.open_stream("s", state=large()) as stream:
        async for batch in stream.batches(range(epochs)):
            state = stream.state
            state["a"][batch.index :: 500] += 0.5
            state["n"] += 1
            if batch.index == 7:
                state["a"] = state["a"] * 2.0
            batch.complete()
        return stream.state["n"], stream.state["a"].tobytes()


async def test_large_arrays_come_back_from_every_store(large_store: Store | str) -> None:
    expected = await work_large(MemoryStore(), 12)
    for epochs in (3, 8, 12):
        found = await work_large(large_store, epochs)
    assert found == expected


async def test_a_blob_that_was_altered_is_refused_by_name(tmp_path: Path) -> None:
    await work_large(f"sqlite:{tmp_path / 'store'}", 2)
    blobs = [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]
    assert blobs
    for path in blobs:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
    with pytest.raises(trio_ckpt.StoreDamagedError, match=r"state\['a'\]|state\.a"):
        await work_large(f"sqlite:{tmp_path / 'store'}", 3)


async def test_a_new_chain_begins_before_one_is_long() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s", state=large()) as stream:
        async for batch in stream.batches(range(120)):
            stream.state["a"][batch.index] += 1.0
            batch.complete()
        assert len(loop_cursor_of(stream).open_stream.state_manager.head.chain) <= 51  # type: ignore[union-attr]


# -- what is kept -------------------------------------------------------------------------------


async def rewrite(store: Store | str, batches: int, **settings: Any) -> trio_ckpt.StateStatistics:
    """Each batch changes the whole array, so each begins a chain."""
    async with (
        begin(store) as run,
        run.open_stream("s", state={"a": np.zeros(100_000), "n": 0}, **settings) as stream,
    ):
        async for batch in stream.batches():
            stream.state["a"] = np.random.default_rng(batch.index).normal(size=100_000)
            stream.state["n"] += 1
            batch.complete(last=batch.index == batches)
            if batch.index == batches - 1:
                await batch.confirm()
                break
        found = stream.statistics().state
        assert found is not None
        return found


def blob_files(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "blobs").rglob("*"))


async def test_old_arrays_are_let_go_and_the_newest_come_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    await rewrite(f"sqlite:{store}", 8)
    assert blob_files(store) <= 3
    async with (
        begin(f"sqlite:{store}") as run,
        run.open_stream("s", state={"a": np.zeros(100_000), "n": 0}) as stream,
    ):
        assert stream.state["n"] == 8
        newest = np.random.default_rng(7).normal(size=100_000)
        assert np.array_equal(stream.state["a"], newest)  # type: ignore[arg-type]


async def test_old_arrays_left_at_completion_are_dropped_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill that comes between its last record and the letting go."""

    async def fail(*_args: Any) -> int:
        raise trio_ckpt.StoreError("the disk is busy")

    async def work(store: Path) -> None:
        async with (
            begin(f"sqlite:{store}") as run,
            run.open_stream("s", state={"a": np.zeros(100_000)}) as stream,
        ):
            async for batch in stream.batches(range(4)):
                stream.state["a"] = np.random.default_rng(batch.index).normal(size=100_000)
                batch.complete()

    with monkeypatch.context() as patch:
        patch.setattr("trio_ckpt.stores.SqliteStore.drop_blobs", fail)
        await work(tmp_path / "disturbed")
    await work(tmp_path / "whole")
    assert blob_files(tmp_path / "disturbed") > blob_files(tmp_path / "whole")
    await work(tmp_path / "disturbed")
    assert blob_files(tmp_path / "disturbed") == blob_files(tmp_path / "whole")


async def test_a_rewind_finds_what_retention_keeps_or_says_that_it_does_not(
    tmp_path: Path,
) -> None:
    store = f"sqlite:{tmp_path / 'store'}"
    await rewrite(store, 8, retention=trio_ckpt.Retention(last=3))
    async with begin(store) as run:
        with pytest.raises(trio_ckpt.CannotRedoError, match="not kept any more"):
            await run.rewind(("s",), to=1, reason="x")
        assert list(await run.rewind(("s",), to=5, reason="x")) == [6, 7]
        async with run.open_stream("s", state={"a": np.zeros(100_000), "n": 0}) as stream:
            assert stream.state["n"] == 6


async def test_kept_states_have_at_most_so_many_bytes(tmp_path: Path) -> None:
    """Each has 800,000 bytes of noise, and a little more."""
    folder = tmp_path / "store"
    retention = trio_ckpt.Retention(last=9, max_bytes=2_500_000)
    await rewrite(f"sqlite:{folder}", 8, retention=retention)
    assert blob_files(folder) == 3
    async with begin(f"sqlite:{folder}") as run:
        assert list(await run.rewind(("s",), to=5, reason="x")) == [6, 7]


async def test_a_damaged_state_is_refused_or_gone_back_from(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await rewrite(f"sqlite:{folder}", 4, retention=trio_ckpt.Retention(last=4))
    blobs = [path for path in (folder / "blobs").rglob("*") if path.is_file()]
    newest = max(blobs, key=lambda path: path.stat().st_mtime_ns)
    newest.chmod(0o600)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(trio_ckpt.StoreDamagedError, match="recover=True"):
        await rewrite(f"sqlite:{folder}", 4)
    async with (
        begin(f"sqlite:{folder}") as run,
        run.open_stream("s", state={"a": np.zeros(100_000), "n": 0}, recover=True) as stream,
    ):
        assert (stream.state["n"], list(stream.progress.confirmed)) == (3, [0, 1, 2])
    assert (await rewrite(f"sqlite:{folder}", 4)).saves == 1


async def test_statistics_say_how_each_array_was_captured(tmp_path: Path) -> None:
    found = await rewrite("memory:", 3)
    assert found.saves == 4  # the initial one is saved, too
    assert found.saved_bytes > 2_000_000
    assert set(found.arrays) == {"state.a"}
    assert found.arrays["state.a"].changed_bytes == 800_000


async def test_statistics_say_what_share_of_the_time_the_loop_was_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that advances by a second at each reading."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    async with begin(MemoryStore()) as run, run.open_stream("s", state={"n": 0}) as stream:
        for n in range(3):
            stream.state["n"] = n
            await stream.save()
        found = stream.statistics().state
        assert found is not None
        assert found.held_s == 4.0  # three saves, and the look at the initial state
        assert found.held_share == 4 / 8  # each began a second after the one before had ended
        assert stream.statistics().state == found  # it does not fade while nothing is saved


async def test_a_stream_that_has_state_is_not_opened_without() -> None:
    store = MemoryStore()

    async def handle(_stream: Any, batch: Batch[Any]) -> None:
        batch.complete()

    await count(store, handle)
    with pytest.raises(TypeError, match="has a saved state"):
        async with begin(store) as run, run.open_stream("s"):
            raise AssertionError("it was opened")


async def test_a_stream_with_a_frontier_is_not_opened_with_anything_else() -> None:
    store = MemoryStore()

    async def handle(batch: Batch[Any]) -> None:
        batch.complete()

    for _ in range(2):  # the second time what is known comes from the fold
        frontier = trio_ckpt.Frontier(["a"])
        async with begin(store) as run, run.open_stream("s", state=frontier) as stream:
            await trio_ckpt.run_batches(stream, None, handle, concurrency=1)
            assert list(stream.progress.confirmed) == [0]
        with pytest.raises(TypeError, match=r"has a Frontier: open it with state="):
            async with begin(store) as run, run.open_stream("s"):
                raise AssertionError("it was opened")
        with pytest.raises(trio_ckpt.StateChangedError, match="a Frontier was saved"):
            async with begin(store) as run, run.open_stream("s", state={"n": 0}):
                raise AssertionError("it was opened")


async def test_keys_that_look_alike_are_two() -> None:
    store, keys = MemoryStore(), (float("nan"), float("nan"))
    state = {key: np.full(3, number) for number, key in enumerate(keys)}
    async with begin(store) as run, run.open_stream("s", state=state) as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
    async with begin(store) as run, run.open_stream("s", state=state) as stream:
        assert [array.tolist() for array in stream.state.values()] == [[0, 0, 0], [1, 1, 1]]


async def test_a_state_that_the_user_puts_in_place_of_a_dirty_one_counts() -> None:
    async with (
        begin(MemoryStore()) as run,
        run.open_stream("s", state={"a": np.zeros(10)}) as stream,
    ):
        with contextlib.suppress(ValueError):
            async with stream.open_batch():
                stream.state["a"] += 5
                raise ValueError("body")
        stream.state = {"a": np.full(10, 7.0)}
        async with stream.open_batch() as batch:
            assert stream.state["a"][0] == 7.0
            batch.complete(last=True)


async def test_some_arrays_are_read_without_the_rest(large_store: Store | str) -> None:
    state: dict[str, Any] = {"a": np.zeros(100_000), "b": np.arange(90_000), "n": 0}
    async with begin(large_store) as run, run.open_stream("s", state=state) as stream:
        async for batch in stream.batches(range(4)):
            stream.state["a"][batch.index * 1_000] = batch.index
            stream.state["b"] += 1
            batch.complete()
        expected = {name: stream.state[name].tobytes() for name in "ab"}
    store = large_store if isinstance(large_store, MemoryStore) else await open_store(large_store)
    found = await trio_ckpt.read_arrays(store, "r", ("s",), ["state.b"])
    assert {name: array.tobytes() for name, array in found.items()} == {"state.b": expected["b"]}
    every = await trio_ckpt.read_arrays(store, "r", ("s",))
    assert {name: array.tobytes() for name, array in every.items()} == {
        f"state.{name}": value for name, value in expected.items()
    }
    with pytest.raises(ValueError, match=r"no array state\.c; it has: state\.a, state\.b"):
        await trio_ckpt.read_arrays(store, "r", ("s",), ["state.c"])
    with pytest.raises(trio_ckpt.UnknownRunError):
        await trio_ckpt.read_arrays(store, "none", ("s",))
    if store is not large_store:
        await store.aclose()
