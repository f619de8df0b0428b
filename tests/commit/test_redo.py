"""Redo: a re-queue subtracts exactly what batches had added, and loses nothing."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.opening import begin
from trio_ckpt import (
    Batch,
    CannotRedoError,
    Frontier,
    OutputsMissingError,
    Run,
    Status,
    Stream,
    StreamBusyError,
    TrioCkptError,
    UnknownStreamError,
    run_batches,
)
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt._runs import verify
from trio_ckpt._util.exact_sum import MAX_AMOUNT
from trio_ckpt.abc import Checkpoint, Fold, HistoryPage, RunKey
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import CommitThenError, Fail, FaultyStore, Hang


async def read_records(store: MemoryStore) -> list[Record]:
    """The records of the stream, the oldest first."""
    found = [r async for page in read_pages(store, "r", 0, ("s",)) for _, r in page]
    return found[::-1]


async def write_pages(
    run: Run, count: int = 4, worked: list[int] | None = None, text: str = "first"
) -> Stream[None]:
    """One file for every batch that is left."""
    async with run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            if worked is not None:
                worked.append(batch.index)
            await batch.write_text(f"{batch.index}.txt", f"{text} {batch.index}")
            batch.spend(cost=0.1)
            batch.complete(records=2, totals={"words": 0.3})
    return stream


def archived(folder: Path) -> list[str]:
    """What is in the archive of an output folder, but for manifests that are outdated."""
    files = (folder / ".archive").rglob("*")
    names = [path for path in files if path.is_file() and "manifest" not in path.name]
    return sorted(path.read_text() for path in names)


def exact(*amounts: float) -> Fraction:
    return sum(map(Fraction, amounts), Fraction())


def sums(stream: Stream[Any]) -> tuple[int, Fraction, Fraction, Fraction]:
    """Records, and one total, spent and saved each, exactly."""
    progress = stream.progress
    found = [
        Fraction(total.numerator, 2**total.shift)
        for total in (progress.totals["words"], progress.spent["cost"])
    ]
    saved = progress.spent_confirmed["cost"]
    return progress.records, *found, Fraction(saved.numerator, 2**saved.shift)


# ---------------------------------------------------------------------------------------
# Redo
# ---------------------------------------------------------------------------------------


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


class Snapshots(MemoryStore):
    """Keeps what a kill after each of its saves would leave, files included."""

    def __init__(self, folder: Path, aside: Path) -> None:
        super().__init__()
        self.folder, self.aside = folder, aside
        self.taken: list[tuple[MemoryStore, Path]] = []
        self.is_on = False

    async def save(
        self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
    ) -> list[Exception | None]:
        outcomes = await super().save(run, group, folds)
        if self.is_on:
            copy = self.aside / str(len(self.taken))
            shutil.copytree(self.folder, copy)
            self.taken.append((self.after_crash(), copy))
        return outcomes


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
    class Cancelling(MemoryStore):
        scope: trio.CancelScope | None = None

        async def save(
            self, run: RunKey, group: Sequence[Checkpoint], folds: Sequence[Fold] = ()
        ) -> list[Exception | None]:
            if self.scope is not None:
                self.scope.cancel()
            return await super().save(run, group, folds)

    store = Cancelling()
    async with begin(store, output_dir=tmp_path) as run:
        await write_pages(run, 2)
        async with run.open_stream("s") as stream:
            with trio.CancelScope() as store.scope:
                await stream.redo([0], reason="x")
            store.scope = None
            assert list(stream.progress.confirmed) == [1]
            assert archived(tmp_path) == ["first 0"]


class Gated(MemoryStore):
    """Holds back a read of the history until the gate opens, after some others."""

    gate: trio.Event | None = None
    passes = 0

    async def history(self, run_id: str, stream: str, **options: Any) -> HistoryPage:
        if self.gate is not None and self.passes == 0:
            gate, self.gate = self.gate, None
            await gate.wait()
        elif self.gate is not None:
            self.passes -= 1
        return await super().history(run_id, stream, **options)


async def write_some(stream: Stream[Any], count: int, some: Iterable[int], text: str) -> list[int]:
    """Many batches, few of them with a file."""
    worked, files = [], set(some)
    async for batch in stream.batches(range(count)):
        worked.append(batch.index)
        if batch.index in files:
            await batch.write_text(f"{batch.index}", text)
        batch.complete(records=1)
    return worked


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


# ---------------------------------------------------------------------------------------
# Rewind
# ---------------------------------------------------------------------------------------


async def follow(
    run: Run,
    count: int,
    *,
    state: dict[str, Any] | None = None,
    skip: Iterable[int] = (),
    start: int = 0,
) -> Stream[Any]:
    """Batches that build on each other: a state, a cursor and an append file."""
    async with run.open_stream("s", state=state) as stream:
        async for batch in stream.batches(range(count), start=start):
            if batch.index in skip:
                batch.skip("not today")
                continue
            before = (stream.cursor or "") if state is None else stream.state["trail"]
            trail = f"{before}{batch.index}."
            if state is None:
                batch.complete(records=1, cursor=trail)
            else:
                stream.state["trail"] = trail
                batch.append_json("lines.jsonl", trail)
                batch.complete(records=1)
    return stream


async def test_a_plain_rewind_puts_all_later_batches_back(tmp_path: Path) -> None:
    worked: list[int] = []
    async with begin("memory:", output_dir=tmp_path) as run:
        await write_pages(run, 5)
        taken = await run.rewind(("s",), to=1, reason="x")
        assert list(taken) == [2, 3, 4]
        assert run.group("s").status is Status.INTERRUPTED
        assert not await run.rewind(("s",), to=1, reason="x")
        assert archived(tmp_path) == ["first 2", "first 3", "first 4"]
        stream = await write_pages(run, 5, worked, "second")
        assert worked == [2, 3, 4]
        assert sums(stream) == (10, exact(*[0.3] * 5), exact(*[0.1] * 8), exact(*[0.1] * 5))
        assert list(await run.rewind(("s",), to=-5, reason="x")) == [0, 1, 2, 3, 4]
        assert stream.progress.records == 0
        assert stream.progress.totals["words"].value == 0


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize(("to", "cursor"), [(2, "0.1.2."), (0, "0."), (-1, None)])
async def test_a_rewind_brings_back_the_cursor(
    to: int, cursor: str | None, is_restarted: bool
) -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await follow(run, 5)
        assert list(await run.rewind(("s",), to=to, reason="x")) == list(range(to + 1, 5))
        if is_restarted:
            store = store.after_crash()
    async with begin(store) as run, run.open_stream("s") as stream:
        assert stream.cursor == cursor
    async with begin(store) as run:
        stream = await follow(run, 5)
    assert (stream.cursor, stream.progress.records) == ("0.1.2.3.4.", 5)


@pytest.mark.parametrize(("to", "trail"), [(2, "0.1.2."), (0, "0."), (-1, "new:")])
async def test_a_rewind_brings_back_state_and_lines(to: int, trail: str, tmp_path: Path) -> None:
    store, sink = MemoryStore(), tmp_path / "lines.jsonl"
    async with begin(store, output_dir=tmp_path) as run:
        await follow(run, 5, state={"trail": ""})
        whole = sink.read_bytes()
        await run.rewind(("s",), to=to, reason="x")
    kept = b"".join(whole.splitlines(keepends=True)[: to + 1])
    assert archived(tmp_path) == [whole[len(kept) :].decode()]
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", state={"trail": "new:"}) as stream:
            assert stream.state == {"trail": trail}
            if kept:
                assert sink.read_bytes() == kept
        stream = await follow(run, 5, state={"trail": ""})
    assert stream.progress.records == 5
    assert stream.state == {"trail": "0.1.2.3.4."}
    assert sink.read_bytes() == whole
    assert stream.progress.sinks == {"lines.jsonl": len(whole)}


async def test_a_rewind_counts_a_state_saved_between_batches() -> None:
    async def trail_after(to: int) -> Any:
        async with begin("memory:") as run:
            async with run.open_stream("s", state={"n": 0}) as stream:
                async for batch in stream.batches(range(3)):
                    stream.state["n"] += 1
                    batch.complete()
                    stream.state["n"] += 10
                    await stream.save()
                    stream.state["n"] += 100
                    await stream.save()
            await run.rewind(("s",), to=to, reason="x")
            async with run.open_stream("s", state={"n": 5}) as stream:
                return stream.state["n"]

    assert [await trail_after(to) for to in (-1, 0, 1, 2)] == [5, 111, 222, 333]


async def test_rewinds_after_rewinds_find_the_state_that_stands(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        for to in (2, 0, 1, -1, 3):
            await follow(run, 5, state={"trail": ""})
            await run.rewind(("s",), to=to, reason="x")
            async with run.open_stream("s", state={"trail": ""}) as stream:
                assert stream.state["trail"] == "".join(f"{n}." for n in range(to + 1))
                assert list(stream.progress.confirmed) == list(range(to + 1))


async def test_a_rewind_takes_what_was_saved_after_the_first_of_them(tmp_path: Path) -> None:
    """Ranges had batch 2 and 3 done before 0: what is after batch 2 in the sequence goes back."""
    store = MemoryStore()
    state = {"trail": ""}
    async with begin(store, output_dir=tmp_path) as run:
        await follow(run, 4, state=state, start=2)
    async with begin(store, output_dir=tmp_path) as run:
        stream = await follow(run, 4, state=state)
        assert stream.state == {"trail": "2.3.0.1."}
        assert list(await run.rewind(("s",), to=2, reason="x")) == [0, 1, 3]
        async with run.open_stream("s", state=state) as stream:
            assert stream.state == {"trail": "2."}
    async with begin(store, output_dir=tmp_path) as run:
        stream = await follow(run, 4, state=state)
        assert stream.state == {"trail": "2.0.1.3."}
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ["2.", "2.0.", "2.0.1.", "2.0.1.3."]


@pytest.mark.parametrize("way", ["last", "withdraw", "finish"])
async def test_a_rewind_forgets_a_last_batch_that_went_back(way: str) -> None:
    async def work(run: Run) -> Stream[None]:
        async with run.open_stream("s", first_index=1) as stream:
            async for batch in stream.batches():
                if way == "withdraw" and batch.index == 4:
                    batch.withdraw()
                else:
                    batch.complete(last=way == "last" and batch.index == 3)
                if way == "finish" and batch.index == 3:
                    await stream.finish()
        return stream

    async with begin("memory:") as run:
        stream = await work(run)
        assert (stream.status, stream.progress.last_index) == (Status.COMPLETE, 3)
        assert not await run.rewind(("s",), to=3, reason="x")
        assert stream.progress.last_index == 3
        await run.rewind(("s",), to=2, reason="x")
        assert stream.progress.last_index is None
        assert stream.progress.completed_at is None
        assert run.exit_code == 75
        stream = await work(run)
        assert list(stream.progress.confirmed) == [1, 2, 3]
        async with run.open_stream("s", first_index=1) as stream:
            await stream.redo([2], reason="it only opens a hole")
            assert stream.progress.last_index == 3
            assert stream.progress.left == 1
            assert [batch.index async for batch in settled(stream)] == [2]
            assert stream.status is Status.COMPLETE


async def settled(stream: Stream[Any]) -> Any:
    async for batch in stream.batches():
        batch.complete()
        yield batch


async def test_a_rewind_is_refused_while_the_stream_is_open_or_unknown() -> None:
    async with begin("memory:") as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(2)):
                batch.complete()
            with pytest.raises(StreamBusyError, match="is open already"):
                await run.rewind(("s",), to=0, reason="x")
        for key in (("t",), (), ("s", "t")):
            with pytest.raises(UnknownStreamError, match="has no stream"):
                await run.rewind(key, to=0, reason="x")
        wrong: Any = "s"
        with pytest.raises(TypeError, match="tuple of its parts"):
            await run.rewind(wrong, to=0, reason="x")
        assert len(stream.progress.confirmed) == 2


async def test_a_stream_that_is_being_rewound_is_not_opened_or_rewound() -> None:
    store = Gated()
    async with begin(store) as run:
        await follow(run, 3)
        store.gate = gate = trio.Event()
        async with trio.open_nursery() as nursery:

            async def rewind() -> None:
                assert list(await run.rewind(("s",), to=0, reason="x")) == [1, 2]

            nursery.start_soon(rewind)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(StreamBusyError):
                await run.rewind(("s",), to=1, reason="x")
            with pytest.raises(StreamBusyError):
                async with run.open_stream("s"):
                    pass
            gate.set()
        stream = await follow(run, 3)
        assert (stream.progress.records, stream.cursor) == (3, "0.1.2.")


async def test_every_tail_that_a_rewind_cuts_off_is_kept(tmp_path: Path) -> None:
    async with begin("memory:", output_dir=tmp_path) as run:
        for text in ("one", "two", "three"):
            await run.add_streams([("s",)])
            await run.rewind(("s",), to=0, reason="x")
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(2)):
                    batch.append_json("lines.jsonl", text if batch.index else "head")
                    batch.complete()
    assert archived(tmp_path) == ['"one"\n', '"two"\n']
    assert (tmp_path / "lines.jsonl").read_text() == '"head"\n"three"\n'


async def follow_to_the_end(store: Any, folder: Path) -> list[tuple[int, int]]:
    """Pages by a cursor whose last one is None; returns batches and the pages asked for."""
    asked = []
    async with begin(store, output_dir=folder) as run, run.open_stream("s") as stream:
        async for batch in stream.batches():
            page = stream.cursor or 0
            asked.append((batch.index, page))
            await batch.write_json(f"{batch.index}.json", {"page": page})
            batch.complete(cursor=page + 1 if page < 3 else None, last=page == 3)
    assert stream.status is Status.COMPLETE
    return asked


@pytest.mark.parametrize("by", ["damage", "rewind"])
async def test_a_cursor_that_has_come_to_its_end_is_brought_back(by: str, tmp_path: Path) -> None:
    store = MemoryStore()
    assert await follow_to_the_end(store, tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    async with begin(store, output_dir=tmp_path) as run:
        if by == "rewind":
            await run.rewind(("s",), to=1, reason="x")
        else:
            (tmp_path / "2.json").unlink()
            async with run.open_stream("s") as stream:
                assert stream.cursor == 2
                with pytest.raises(CannotRedoError):
                    await stream.redo([0], reason="x")
    assert await follow_to_the_end(store, tmp_path) == [(2, 2), (3, 3)]


# ---------------------------------------------------------------------------------------
# Damaged outputs
# ---------------------------------------------------------------------------------------


async def count_up(
    store: Any, folder: Path, count: int, *, state: Any = None, **options: Any
) -> list[int]:
    """One file for each batch; with a state, batches build on each other."""
    worked = []
    async with begin(store, output_dir=folder, **options) as run:
        async with run.open_stream("s", state=state) as stream:
            async for batch in stream.batches(range(count)):
                worked.append(batch.index)
                if state is not None:
                    stream.state["n"] += batch.index
                    await batch.write_text(f"{batch.index}", f"{stream.state['n']}")
                else:
                    await batch.write_text(f"{batch.index}", "text")
                batch.complete(records=1)
        assert stream.status is Status.COMPLETE
        assert stream.progress.records == count
        if state is not None:
            assert stream.state["n"] == sum(range(count))
    return worked


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_with_a_state_all_from_the_first_bad_batch_on_are_done_again(
    kind: str, tmp_path: Path
) -> None:
    store: Any = MemoryStore() if kind == "memory" else tmp_path / "r.ckpt"
    folder = tmp_path / "out"
    assert await count_up(store, folder, 8, state={"n": 0}) == list(range(8))
    before = {n: (folder / f"{n}").read_text() for n in range(8)}
    (folder / "6").write_text("?")
    (folder / "3").unlink()
    assert await count_up(store, folder, 8, state={"n": 0}) == [3, 4, 5, 6, 7]
    assert {n: (folder / f"{n}").read_text() for n in range(8)} == before
    assert archived(folder) == sorted([before[4], before[5], "?", before[7]])
    assert await count_up(store, folder, 8, state={"n": 0}) == []


async def test_damage_older_than_1000_records_rewinds_to_before_batch_0(
    tmp_path: Path,
) -> None:
    async def work(store: MemoryStore) -> list[int]:
        worked = []
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s", state={"n": 0}) as stream:
                async for batch in stream.batches(range(1_060)):
                    worked.append(batch.index)
                    stream.state["n"] += batch.index
                    if batch.index % 100 == 30:
                        await batch.write_text(f"{batch.index}", f"{stream.state['n']}")
                    batch.complete(records=1)
            assert stream.state["n"] == sum(range(1_060))
            assert stream.progress.records == 1_060
        return worked

    store = MemoryStore()
    await work(store)
    (tmp_path / "30").unlink()
    assert await work(store) == list(range(30, 1_060))


async def append(store: Any, folder: Path, count: int = 5, **options: Any) -> list[int]:
    worked = []
    async with begin(store, output_dir=folder, **options) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            worked.append(batch.index)
            for name in ("a.jsonl", "b.jsonl"):
                if name == "a.jsonl" or batch.index % 2:
                    batch.append_json(name, {"batch": batch.index}, {"more": "x" * batch.index})
            batch.complete(records=2)
        assert stream.progress.records == 2 * count
    return worked


@pytest.mark.parametrize("cut", [1, 20, 60, 120])
async def test_a_shortened_append_file_goes_back_to_before_what_it_lost(
    cut: int, tmp_path: Path
) -> None:
    store = MemoryStore()
    await append(store, tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.jsonl", "b.jsonl")}
    short = whole["a.jsonl"][:-cut]
    (tmp_path / "a.jsonl").write_bytes(short)
    lines = whole["a.jsonl"].splitlines(keepends=True)
    sizes = [sum(map(len, lines[: 2 * n])) for n in range(6)]
    lost = next(n for n in range(5) if sizes[n + 1] > len(short))
    assert await append(store, tmp_path) == list(range(lost, 5))
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
    reasons = [r.metadata["reason"] for r in await read_records(store) if r.kind is RecordKind.REDO]
    assert reasons == [f"a.jsonl was shortened to {len(short)} bytes"]


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_lost_append_file_is_refused_unless_all_is_to_be_done_again(
    is_gone: bool, tmp_path: Path
) -> None:
    store = MemoryStore()
    await append(store, tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.jsonl", "b.jsonl")}
    if is_gone:
        (tmp_path / "b.jsonl").unlink()
    else:
        (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(OutputsMissingError, match=r"b\.jsonl.*all \d+ confirmed bytes"):
        await append(store, tmp_path)
    assert await append(store, tmp_path, redo_missing=True) == [1, 2, 3, 4]
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


@pytest.mark.parametrize("state", [None, "frontier"])
async def test_altered_lines_go_back_to_work_when_they_are_looked_at(
    state: str | None, tmp_path: Path
) -> None:
    worked: list[int] = []

    async def handle(batch: Batch[Any]) -> None:
        worked.append(batch.index)
        batch.append_json("lines.jsonl", batch.index)
        batch.complete()

    async def work(**options: Any) -> None:
        worked.clear()
        frontier: Any = Frontier(list("abcd")) if state is not None else None
        async with begin(store, output_dir=tmp_path, **options) as run:
            async with run.open_stream("s", state=frontier) as stream:
                await run_batches(stream, None if frontier else range(4), handle)

    store = MemoryStore()
    await work()
    (tmp_path / "lines.jsonl").write_text("0\n1\n7\n3\n")
    await work()
    assert worked == []  # by their length they are good
    await work(verify="sha256")
    assert worked == [2, 3]
    assert (tmp_path / "lines.jsonl").read_text() == "0\n1\n2\n3\n"
    await work(verify="sha256")
    assert worked == []


async def test_a_mass_of_missing_outputs_is_refused_of_ordered_streams_too(tmp_path: Path) -> None:
    store = MemoryStore()
    await count_up(store, tmp_path, 12, state={"n": 0})
    for n in range(1, 12):
        (tmp_path / f"{n}").unlink()
    with pytest.raises(OutputsMissingError, match="and 10 more of 12"):
        await count_up(store, tmp_path, 12, state={"n": 0})
    again = await count_up(store, tmp_path, 12, state={"n": 0}, redo_missing=True)
    assert again == list(range(1, 12))


# ---------------------------------------------------------------------------------------
# Against a model
# ---------------------------------------------------------------------------------------


@attrs.define
class Entry:
    """One record that stands, in the model."""

    index: int | None  # None: a state saved between batches
    trail: str  # the state, and the cursor, after it
    line: str
    total: float
    is_skip: bool = False


@attrs.define
class Model:
    """What an ordered stream must be: a list of what stands, in the order it was saved."""

    log: list[Entry] = attrs.field(factory=list[Entry])
    spent: Fraction = Fraction()
    nonce: int = 0

    @property
    def trail(self) -> str:
        return self.log[-1].trail if self.log else ""

    def done(self, *, skipped: bool = False) -> list[int]:
        return sorted(e.index for e in self.log if e.index is not None and e.is_skip is skipped)

    def rewind(self, to: int) -> list[int]:
        cut = next((n for n, e in enumerate(self.log) if (e.index or 0) > to), None)
        if cut is None:
            return []
        gone, self.log = self.log[cut:], self.log[:cut]
        return sorted(e.index for e in gone if e.index is not None)

    @property
    def is_built_over(self) -> bool:
        """Whether a batch was confirmed after one that was skipped."""
        skipped, done = self.done(skipped=True), self.done()
        return bool(skipped and done) and min(skipped) < max(done)

    def retry(self) -> None:
        self.log = [e for e in self.log if not e.is_skip]


async def take_a_step(
    store: MemoryStore, folder: Path, model: Model, rng: random.Random, count: int
) -> MemoryStore:
    """Change run and model alike: a few batches, then perhaps a rewind, then an end."""
    retries = rng.random() < 0.2
    if retries and model.is_built_over:
        async with begin(store, output_dir=folder, retry_failed=True) as run:
            with pytest.raises(CannotRedoError, match="later ones build"):
                await follow(run, 0, state={"trail": ""})
        retries = False
    if retries:
        model.retry()
    async with begin(store, output_dir=folder, retry_failed=retries) as run:
        async with run.open_stream("s", state={"trail": ""}) as stream:
            check_model(stream, model, folder)
            until = model.nonce + rng.randrange(1, 4)
            async for batch in stream.batches(range(count)):
                model.nonce += 1
                cost, total = rng.random(), rng.random()
                batch.spend(cost=cost)
                model.spent += Fraction(cost)
                if rng.random() < 0.2:
                    batch.skip("not today")
                    model.log.append(Entry(batch.index, model.trail, "", 0.0, is_skip=True))
                    if model.nonce == until:
                        break
                    continue
                assert stream.state["trail"] == model.trail
                assert stream.cursor == (model.trail or None)
                trail = f"{model.trail}{batch.index}:{model.nonce} "
                stream.state["trail"] = trail
                batch.append_json("lines.jsonl", model.nonce)
                await batch.write_text(f"{batch.index}.txt", f"{model.nonce}")
                batch.complete(records=1, totals={"words": total}, cursor=trail)
                model.log.append(Entry(batch.index, trail, f"{model.nonce}\n", total))
                if rng.random() < 0.2:
                    trail = f"{trail}save "
                    await batch.confirm()
                    stream.state["trail"] = trail
                    await stream.save(cursor=trail)
                    model.log.append(Entry(None, trail, "", 0.0))
                if model.nonce == until:
                    break
        if rng.random() < 0.5:
            to = rng.randrange(-1, count)
            assert list(await run.rewind(("s",), to=to, reason="x")) == model.rewind(to)
        return store.after_crash() if rng.random() < 0.5 else store


def check_model(stream: Stream[Any], model: Model, folder: Path) -> None:
    progress = stream.progress
    assert list(progress.confirmed) == model.done()
    assert list(progress.skipped) == model.done(skipped=True)
    assert progress.records == len(model.done())
    total = progress.totals.get("words")
    assert (Fraction(total.numerator, 2**total.shift) if total else 0) == exact(
        *(entry.total for entry in model.log)
    )
    spent = progress.spent.get("cost")
    assert (Fraction(spent.numerator, 2**spent.shift) if spent else 0) == model.spent
    assert stream.state["trail"] == model.trail
    assert stream.cursor == (model.trail or None)
    lines = "".join(entry.line for entry in model.log)
    if lines:
        assert (folder / "lines.jsonl").read_text() == lines
    assert progress.sinks.get("lines.jsonl", 0) == len(lines)
    for entry in model.log:
        if entry.line:
            assert (folder / f"{entry.index}.txt").read_text() + "\n" == entry.line


@pytest.mark.parametrize("seed", range(12))
async def test_any_batches_skips_rewinds_and_kills_agree_with_the_model(
    seed: int, tmp_path: Path
) -> None:
    rng, model = random.Random(seed), Model()
    store, count = MemoryStore(), 6
    for _ in range(12):
        store = await take_a_step(store, tmp_path, model, rng, count)
    async with begin(store, output_dir=tmp_path) as run:
        async with run.open_stream("s", state={"trail": ""}) as stream:
            check_model(stream, model, tmp_path)


@pytest.mark.parametrize("seed", range(8))
async def test_any_redos_rewinds_and_kills_of_batches_that_stand_alone(
    seed: int, tmp_path: Path
) -> None:
    """What was ever confirmed is the output of its batch or in the archive."""
    rng, store, count = random.Random(seed), MemoryStore(), 6
    standing, gone, nonce = dict[int, int](), list[int](), 0
    for _ in range(10):
        async with begin(store, output_dir=tmp_path) as run:
            async with run.open_stream("s") as stream:
                until = nonce + rng.randrange(1, 5)
                async for batch in stream.batches(range(count)):
                    nonce += 1
                    await batch.write_text(f"{batch.index}", f"{nonce}")
                    batch.complete(totals={"nonces": nonce})
                    standing[batch.index] = nonce
                    if nonce == until:
                        break
                if rng.random() < 0.5:
                    chosen = rng.sample(sorted(standing), rng.randrange(len(standing) + 1))
                    await stream.redo(chosen, reason="x")
                    gone += [standing.pop(index) for index in chosen]
            if rng.random() < 0.4:
                to = rng.randrange(-1, count)
                taken = await run.rewind(("s",), to=to, reason="x")
                assert list(taken) == sorted(index for index in standing if index > to)
                gone += [standing.pop(index) for index in taken]
            store = store.after_crash() if rng.random() < 0.5 else store
        progress = stream.progress
        assert list(progress.confirmed) == sorted(standing)
        total = progress.totals.get("nonces")
        assert (total.value if total else 0) == sum(standing.values())
        for index, number in standing.items():
            assert (tmp_path / f"{index}").read_text() == f"{number}"
        kept = [text for text in archived(tmp_path) if text.isdigit()]  # no manifest
        assert sorted(map(int, kept)) == sorted(gone)


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


# ---------------------------------------------------------------------------------------
# One stream begins again
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["alone", "state"])
async def test_a_stream_that_is_rewound_to_its_beginning_begins_again(
    order: str, tmp_path: Path
) -> None:
    """With another list, a shorter one, and another first index; the other stage stays."""
    state: Any = None if order == "alone" else {"seen": []}
    store = MemoryStore()

    async def work(run: Run, name: str, first: int, items: str) -> Stream[Any]:
        async with run.open_stream(name, first_index=first, state=state) as stream:
            async for batch in stream.batches(list(items)):
                if batch.index == first:
                    await batch.write_text(f"{name}-{batch.index}", batch.item)
                batch.spend(usd=1)
                if state is not None:
                    stream.state["seen"].append(batch.item)
                batch.complete(records=1, totals={"words": 1})
            await stream.finish(metadata={"model": "m"})
        return stream

    async with begin(store, output_dir=tmp_path) as run:
        for name in ("ocr", "fix"):
            await work(run, name, 1, "abcdef")
        assert len(await run.rewind(("ocr",), to=0, reason="the scans were bad")) == 6
        progress = run.view().streams["ocr",].progress
        assert (progress.expected, progress.last_index, progress.metadata) == (None, None, {})
        assert run.exit_code == 75
        assert (tmp_path / "fix-1").exists()
        assert not (tmp_path / "ocr-1").exists()
        assert archived(tmp_path) == ["a"]
    async with begin(store, output_dir=tmp_path) as run:
        stream = await work(run, "ocr", 5, "gh")
        assert list(stream.progress.confirmed) == [5, 6]
        if state is not None:
            assert stream.state == {"seen": ["g", "h"]}
        assert run.group("ocr").totals == {"words": 2}
        assert run.group("ocr").spent == {"usd": 8}  # what was spent stays spent
        assert run.group("fix").confirmed == 6
        assert run.exit_code == 0


async def test_a_stream_that_has_nothing_done_begins_again_too() -> None:
    store = MemoryStore()
    with pytest.raises(RuntimeError):
        async with begin(store) as run, run.open_stream("s") as stream:
            async for _ in stream.batches(list("abc")):
                raise RuntimeError
    async with begin(store) as run:
        assert run.group("s").status is Status.FAILED
        assert len(await run.rewind(("s",), to=-1, reason="x")) == 0
        summary, progress = run.group("s"), run.view().streams["s",].progress
        assert (summary.status, summary.error, progress.failures) == (Status.INTERRUPTED, None, {})
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(["z"]):
                assert batch.attempt == 1
                batch.complete()
        assert run.exit_code == 0
