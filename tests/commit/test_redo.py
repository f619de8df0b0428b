"""Redo: a re-queue subtracts exactly what batches had added, and loses nothing."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.commit.redone import (
    Gated,
    archived,
    exact,
    read_records,
    sums,
    write_pages,
    write_some,
)
from tests.opening import begin
from tests.watched import WatchedStore
from trio_ckpt import (
    Batch,
    CannotRedoError,
    Frontier,
    Status,
    Stream,
    TrioCkptError,
    run_batches,
)
from trio_ckpt._journal.record import RecordKind
from trio_ckpt._runs import verify
from trio_ckpt._util.exact_sum import MAX_AMOUNT
from trio_ckpt.abc import Checkpoint, Fold
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import CommitThenError, Fail, FaultyStore, Hang


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_redone_batches_run_again_and_their_outputs_are_kept_aside(
    kind: str, tmp_path: Path
) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    folder, worked = tmp_path / "out", list[int]()
    async with begin(store, output_dir=folder) as run:
        await write_pages(run)
    async with begin(store, output_dir=folder) as run:
        async with run.open_stream("s") as stream:
            assert stream.status is Status.COMPLETE
            await stream.redo([2, 1, 2], reason="a better parser")
            assert list(stream.progress.confirmed) == [0, 3]
            assert stream.status is Status.IN_PROGRESS
            assert sums(stream) == (4, exact(0.3, 0.3), exact(*[0.1] * 4), exact(0.1, 0.1))
        assert not (folder / "1.txt").exists()
        assert archived(folder) == ["first 1", "first 2"]
        assert run.exit_code == 75
        await write_pages(run, worked=worked, text="second")
        assert run.exit_code == 0
    assert worked == [1, 2]
    assert (folder / "1.txt").read_text() == "second 1"
    assert (folder / "0.txt").read_text() == "first 0"
    async with begin(store, output_dir=folder) as run:
        stream = await write_pages(run, worked=worked)
        assert sums(stream) == (8, exact(*[0.3] * 4), exact(*[0.1] * 6), exact(*[0.1] * 4))
    assert worked == [1, 2]


async def test_redo_twice_keeps_every_version(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        for text in ("first", "second", "third"):
            await write_pages(run, 2, text=text)
            async with run.open_stream("s") as stream:
                await stream.redo([1], reason="again")
    assert archived(tmp_path) == ["first 1", "second 1", "third 1"]


async def test_the_loop_that_asks_for_a_redo_hands_the_batch_out_again() -> None:
    worked: list[tuple[int, int]] = []
    async with begin("memory:") as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(4)):
            worked.append((batch.index, batch.attempt))
            batch.complete()
            if batch.index == 2 and len(worked) == 3:
                await stream.redo([0, 2], reason="one looks odd")  # the open one is saved first
        assert stream.status is Status.COMPLETE
    assert worked == [(0, 1), (1, 1), (2, 1), (0, 1), (2, 1), (3, 1)]


async def test_redo_refuses_an_index_that_is_not_done_and_changes_nothing() -> None:
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            batch.complete()
        before = stream.progress.sequence
        with pytest.raises(ValueError, match=r"neither confirmed nor skipped.*\[2, 7\]"):
            await stream.redo([0, 2, 7], reason="x")
        with pytest.raises(ValueError, match="an index of indexes must be an int from 0 on"):
            await stream.redo([-1], reason="x")
        await stream.redo([], reason="x")
        assert stream.progress.sequence == before
        assert list(stream.progress.confirmed) == [0, 1]


@pytest.mark.parametrize("order", ["state", "cursor", "append"])
async def test_redo_is_refused_where_later_batches_build_on_it(order: str, tmp_path: Path) -> None:
    state = {"n": 0} if order == "state" else None
    async with begin("memory:", output_dir=tmp_path) as run:
        async with run.open_stream("s", state=state) as stream:
            async for batch in stream.batches(range(3)):
                if order == "append":
                    batch.append_json("lines.jsonl", batch.index)
                batch.complete(**({"cursor": batch.index} if order == "cursor" else {}))
            with pytest.raises(CannotRedoError, match="rewind the stream") as info:
                await stream.redo([1, 2], reason="x")
            assert (info.value.batch_index, info.value.stream) == (1, ("s",))
            assert len(stream.progress.confirmed) == 3


async def test_the_batches_of_a_frontier_are_not_redone() -> None:
    async def handle(batch: Batch[str]) -> None:
        batch.complete()

    async with begin("memory:") as run, run.open_stream("s", state=Frontier(["a", "b"])) as stream:
        await run_batches(stream, None, handle)
        with pytest.raises(TypeError, match="run_batches"):
            await stream.redo([0], reason="x")


async def test_skipped_batches_are_redone_too() -> None:
    worked: list[int] = []
    store = MemoryStore()
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(4)):
            batch.spend(cost=1)
            if batch.index in (1, 3):
                batch.skip("not today")
            else:
                batch.complete(records=1)
        assert run.exit_code == 3
        await stream.redo([0, 1], reason="x")
        assert list(stream.progress.skipped) == [3]
        assert (stream.progress.failures, stream.progress.skips.keys()) == ({}, {3})
        assert stream.progress.records == 1
        assert stream.progress.spent["cost"].value == 4
        assert stream.progress.spent_confirmed["cost"].value == 1
        async for batch in stream.batches(range(4)):
            worked.append(batch.index)
            batch.complete(records=1)
        assert (stream.progress.records, stream.status) == (3, Status.COMPLETE)
    assert worked == [0, 1]
    assert run.exit_code == 3


async def test_the_history_keeps_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(3)):
                batch.complete()
            with caplog.at_level(logging.INFO):
                await stream.redo([1], reason="the schema changed")
        await run.rewind(("s",), to=0, reason="the source was corrected")
    notes = [r.metadata["reason"] for r in await read_records(store) if r.kind is RecordKind.REDO]
    assert notes == ["the schema changed", "the source was corrected"]
    assert "run 'r', stream 's': batch 1 is re-queued: the schema changed" in caplog.text


AMOUNTS = st.floats(-MAX_AMOUNT, MAX_AMOUNT) | st.integers(-(2**63), 2**63 - 1)
COSTS = st.floats(0, MAX_AMOUNT) | st.integers(0, 2**63 - 1)
PLANS = st.lists(st.tuples(AMOUNTS, COSTS), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None)
@given(PLANS, st.lists(st.sets(st.integers(0, 5)), max_size=2), st.booleans())
def test_totals_after_any_redo_are_those_of_an_uninterrupted_run(
    plan: list[tuple[float, float]], redos: list[set[int]], is_restarted: bool
) -> None:
    async def work(stream: Stream[None]) -> None:
        async for batch in stream.batches(range(len(plan))):
            total, cost = plan[batch.index]
            batch.spend(cost=cost)
            batch.complete(records=batch.index, totals={"words": total})

    async def main() -> None:
        store, spent = MemoryStore(), [Fraction(plan[n][1]) for n in range(len(plan))]
        async with begin(store) as run, run.open_stream("s") as stream:
            await work(stream)
            whole = sums(stream)
        assert whole[1:] == (exact(*(t for t, _ in plan)), sum(spent), sum(spent))
        paid = whole[2]
        for asked in redos:
            wanted = [index for index in asked if index < len(plan)]
            async with begin(store) as run, run.open_stream("s") as stream:
                await stream.redo(wanted, reason="x")
                left = [n for n in range(len(plan)) if n not in wanted]
                assert sums(stream) == (
                    sum(left),
                    exact(*(plan[n][0] for n in left)),
                    paid,
                    sum((spent[n] for n in left), Fraction()),
                )
                if not is_restarted:
                    await work(stream)
            if is_restarted:
                store = store.after_crash()
                async with begin(store) as run, run.open_stream("s") as stream:
                    await work(stream)
            paid += sum((spent[n] for n in wanted), Fraction())
            assert sums(stream) == (whole[0], whole[1], paid, whole[3])

    trio.run(main)


# -- crashes ------------------------------------------------------------------------------


async def redo_and_work(store: Any, folder: Path, **options: Any) -> None:
    """Re-queue two of four batches, and do what is left."""
    async with begin(store, output_dir=folder, **options) as run:
        async with run.open_stream("s") as stream:
            await stream.redo([1, 2], reason="x")
        await write_pages(run, text="second")


async def check_redone(store: Any, folder: Path) -> None:
    """See that a start after whatever happened ends where one without it does."""
    async with begin(store, output_dir=folder) as run:
        stream = await write_pages(run, text="second")
        assert stream.status is Status.COMPLETE
        records, words, _, saved = sums(stream)
    assert (records, words, saved) == (8, exact(*[0.3] * 4), exact(*[0.1] * 4))
    texts = {(folder / f"{n}.txt").read_text() for n in range(4)}
    assert {"first 0", "first 3"} <= texts
    assert len(texts) == 4


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("fault", [Fail(), Hang(), CommitThenError()])
async def test_a_fault_at_any_save_of_a_redo_is_resumed_by_the_next_start(
    fault: Any, at: int, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run)
    faulty = FaultyStore(store, {at: fault})
    with suppress(TrioCkptError):
        await redo_and_work(faulty, tmp_path, save_timeout_s=5)
    assert faulty.saves >= at, "the plan goes beyond the last save"
    await check_redone(store.after_crash(), tmp_path)


class Snapshots(WatchedStore):
    """Keeps what a kill after each of its saves would leave, files included."""

    def __init__(self, folder: Path, aside: Path) -> None:
        super().__init__()
        self.folder, self.aside = folder, aside
        self.taken: list[tuple[MemoryStore, Path]] = []
        self.is_on = False

    async def after_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
        if self.is_on:
            copy = self.aside / str(len(self.taken))
            shutil.copytree(self.folder, copy)
            self.taken.append((self.after_crash(), copy))


async def test_a_kill_right_after_any_save_of_a_redo_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    store = Snapshots(folder, tmp_path / "copies")
    async with begin(store, output_dir=folder) as run:
        await write_pages(run)
    store.is_on = True
    await redo_and_work(store, folder)
    store.is_on = False
    assert len(store.taken) >= 6
    for killed, copy in store.taken:
        await check_redone(killed, copy)


async def test_a_redo_beside_the_verification_of_older_records(tmp_path: Path) -> None:
    """More records than are verified at once: the rest is looked at while batches are redone."""
    store, count, worked = MemoryStore(), 1_050, list[int]()

    async def handle(batch: Batch[int]) -> None:
        worked.append(batch.index)
        if batch.index % 100 in (0, 3, 49):
            await batch.write_text(f"{batch.index}", f"{batch.item}")
        batch.complete(records=1)

    for wanted in (set[int](), {1_049, 1_000}):
        (tmp_path / "3").unlink(missing_ok=True)
        async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
            await stream.redo(wanted, reason="x")
            await run_batches(stream, range(count), handle, concurrency=50)
            assert stream.progress.records == count
    assert sorted(worked[count:]) == [3, 1_000, 1_049]


# -- what belongs to others ---------------------------------------------------------------


async def test_redoing_a_skip_leaves_a_file_that_is_another_batchs_by_now(tmp_path: Path) -> None:
    store = MemoryStore()
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            await batch.write_text("a.txt", "0")
            batch.complete()
        await stream.redo([0], reason="x")
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(2)):
            if batch.index == 0:
                batch.skip("no")
            else:
                await batch.write_text("a.txt", "1")
                batch.complete()
        await stream.redo([0], reason="try again")
    assert (tmp_path / "a.txt").read_text() == "1"
    assert archived(tmp_path) == ["0"]


async def test_a_cancelled_redo_that_is_saved_still_moves_the_outputs(tmp_path: Path) -> None:
    class Cancelling(WatchedStore):
        scope: trio.CancelScope | None = None

        async def before_save(self, group: Sequence[Checkpoint], folds: Sequence[Fold]) -> None:
            if self.scope is not None:
                self.scope.cancel()

    store = Cancelling()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run, 2)
        async with run.open_stream("s") as stream:
            with trio.CancelScope() as store.scope:
                await stream.redo([0], reason="x")
            store.scope = None
            assert list(stream.progress.confirmed) == [1]
            assert archived(tmp_path) == ["first 0"]


async def test_a_batch_that_was_just_redone_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    """The verification reads its old record when the new output is there already."""
    store, count = Gated(), 1_020
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await write_some(stream, count, [3], "old")
    store.gate, store.passes = gate, _ = trio.Event(), 1
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await trio.testing.wait_all_tasks_blocked()  # the verification waits for the older page
        assert store.gate is None
        await stream.redo([3], reason="x")
        async for batch in stream.batches(range(count)):
            assert batch.index == 3
            await batch.write_text("3", "brand new")
            batch.complete(records=1)
            await batch.confirm()
            gate.set()
        assert await write_some(stream, count, [3], "wrong") == []
    assert stream.progress.records == count
    assert (tmp_path / "3").read_text() == "brand new"


async def test_what_redo_has_taken_is_not_taken_again_by_the_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verification has found the damage, and a redo comes before it."""
    store, count = MemoryStore(), 1_020
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await write_some(stream, count, [3], "old")
    (tmp_path / "3").unlink()
    find_damages, seen, goes_on = verify.find_damages, trio.Event(), trio.Event()

    async def slow(*args: Any) -> list[verify.Damage]:
        found = await find_damages(*args)
        if found:
            seen.set()
            await goes_on.wait()
        return found

    monkeypatch.setattr(verify, "find_damages", slow)
    async with begin(store, output_dir=tmp_path) as run, run.open_stream("s") as stream:
        await seen.wait()
        await stream.redo([3], reason="x")
        goes_on.set()
        assert await write_some(stream, count, [3], "new") == [3]
    assert stream.progress.records == count


async def test_reading_the_store_shows_what_was_done(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "r.ckpt")
    async with begin(store, output_dir=tmp_path / "out") as run:
        await write_pages(run)
        await run.rewind(("s",), to=2, reason="x")
    view = await store.load_run("r")
    await store.aclose()
    assert view is not None
    assert list(view.streams[("s",)].progress.confirmed) == [0, 1, 2]
    assert view.streams[("s",)].progress.status is Status.INTERRUPTED
