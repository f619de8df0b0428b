"""Maintenance of a run that no process works on: owned, saved, and never made by asking."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.opening import begin
from trio_ckpt import (
    CannotRedoError,
    Run,
    RunLockedError,
    Status,
    StoreError,
    UnknownRunError,
    UnknownStreamError,
    open_maintenance,
)
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import RecordKind
from trio_ckpt._runs.stream import loop_cursor_of
from trio_ckpt._util.plain import RUN_STREAM
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Fail, FaultyStore


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncGenerator[Store]:
    store = await open_store("memory:" if kind == "memory" else str(folder / "r.ckpt"))
    try:
        yield store
    finally:
        await store.aclose()


async def write_pages(run: Run, name: str = "s", count: int = 4) -> list[int]:
    worked = []
    async with run.open_stream(name) as stream:
        async for batch in stream.batches(range(count)):
            worked.append(batch.index)
            if name == "s":
                await batch.write_text(f"{batch.index}.txt", "x")
            batch.spend(cost=1)
            batch.complete(records=2)
    return worked


both = pytest.mark.parametrize("kind", ["memory", "sqlite"])


@both
async def test_redo_puts_single_batches_back(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with opened(kind, tmp_path) as store:
        async with begin(store, output_dir=folder) as run:
            await write_pages(run)
        async with open_maintenance(store, "r") as maintenance:
            assert maintenance.outputs is not None
            assert maintenance.outputs.root == str(folder)
            await maintenance.redo(("s",), [3, 1, 3], "looks odd")
            with pytest.raises(ValueError, match="neither"):
                await maintenance.redo(("s",), [1], "again")
        assert not (folder / "1.txt").exists()
        kept = sorted(p.name for p in (folder / ".archive").rglob("*") if p.is_file())
        assert kept == ["1.txt", "3.txt", "manifest.json"]
        async with begin(store, output_dir=folder) as run:
            assert run.found.confirmed == 2
            assert await write_pages(run) == [1, 3]
            assert run.statistics().records == 8
            assert run.statistics().spent == {"cost": 6}


@both
async def test_rewind_puts_all_later_batches_back(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
            async for batch in stream.batches(range(4)):
                stream.state["n"] += 1
                batch.complete()
        async with open_maintenance(store, "r") as maintenance:
            with pytest.raises(CannotRedoError):
                await maintenance.redo(("s",), [1], "x")
            assert list(await maintenance.rewind(("s",), to=1, reason="x")) == [2, 3]
            assert list(await maintenance.rewind(("s",), to=0, reason="x")) == [1]
        async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
            assert stream.state == {"n": 1}


async def test_retry_puts_skipped_and_failed_back_and_counts_the_streams() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await write_pages(run, "done")
        async with run.open_stream("skips") as stream:
            async for batch in stream.batches(range(3)):
                batch.skip("no")
        for name in ("late", "lost"):
            async with run.open_stream(name, on_fail="record") as stream:
                await stream.fail("no", retryable=name == "late")
    async with open_maintenance(store, "r") as maintenance:
        with pytest.raises(UnknownStreamError, match="no stream 'other'"):
            await maintenance.retry([("skips",), ("other",)])
        with pytest.raises(UnknownStreamError):
            await maintenance.retry([RUN_STREAM])
        assert await maintenance.retry([("lost",), ("done",)]) == 1
    async with begin(store) as run:
        assert run.group("lost").status is Status.INTERRUPTED
        assert run.group("late").status is Status.FAILED
        assert run.group("skips").skipped == 3
    async with open_maintenance(store, "r") as maintenance:
        assert await maintenance.retry() == 2
        assert await maintenance.retry() == 0
    async with begin(store) as run:
        assert run.group("skips").skipped == 0
        assert {run.group(name).status for name in ("late", "lost", "skips")} == {
            Status.INTERRUPTED
        }
        assert run.group("done").status is Status.COMPLETE


@both
async def test_reset_archives_the_run_and_its_outputs(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    async with opened(kind, tmp_path) as store:
        async with begin(store, output_dir=folder, config={"n": 1}) as run:
            await write_pages(run)
            await write_pages(run, "t")
        before = await store.read_run("r")
        assert before is not None
        async with open_maintenance(store, "r") as maintenance:
            assert await maintenance.reset("a new model") == 1
        assert not (folder / "0.txt").exists()
        assert not (folder / "manifest.json").exists()
        kept = {path.name for path in (folder / ".archive").rglob("*") if path.is_file()}
        assert kept == {"0.txt", "1.txt", "2.txt", "3.txt", "manifest.json"}
        old = await store.load_run("r", 0)
        assert old is not None
        assert len(old.streams[("s",)].progress.confirmed) == 4
        notes = [
            record.metadata
            async for page in read_pages(store, "r", 1, RUN_STREAM)
            for _, record in page
            if record.kind is RecordKind.NOTE
        ]
        assert notes == [{"archived": True}, {"reset": "a new model", "archiving": [0]}]
        after = await store.read_run("r")
        assert after is not None
        assert after.owner > before.owner
        async with begin(store, output_dir=folder, config={"n": 2}) as run:
            assert str(run.found) == "nothing saved yet"
            assert await write_pages(run) == [0, 1, 2, 3]
        now = await store.load_run("r")
        assert now is not None
        assert (now.generation, now.owner > after.owner) == (1, True)


@both
async def test_prune_removes_old_generations(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        for is_again in (False, True, True):
            async with begin(store, fresh=is_again) as run:
                await write_pages(run, "t")
        async with open_maintenance(store, "r") as maintenance:
            pruned = await maintenance.prune(keep=1)
        assert pruned.generations == 2
        assert pruned.records > 8
        assert await store.read_run("r", 0) is None
        view = await store.load_run("r")
        assert view is not None
        assert view.generation == 2
        assert len(view.streams[("t",)].progress.confirmed) == 4


async def test_a_run_that_is_open_is_refused_and_unchanged() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await write_pages(run, "t")
        with pytest.raises(RunLockedError):
            async with open_maintenance(store.reopen(), "r"):
                pytest.fail("another process has it")
        assert await write_pages(run, "t", 5) == [4]
    async with open_maintenance(store, "r"):
        with pytest.raises(RunLockedError):
            async with begin(store.reopen()):
                pytest.fail("another process has it")
    async with begin(store) as run:
        assert run.found.sessions == 1  # maintenance is no session
        assert run.found.last_end == "ended"


@both
async def test_a_run_that_is_not_there_is_not_made_by_asking(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as store:
        with pytest.raises(UnknownRunError, match="no run 'r'"):
            async with open_maintenance(store, "r"):
                pytest.fail("there is none")
        assert await store.list_runs() == ()


async def test_unknown_streams_are_refused() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await write_pages(run, "t")
    async with open_maintenance(store, "r") as maintenance:
        for key in (("x",), RUN_STREAM):
            with pytest.raises(UnknownStreamError):
                await maintenance.redo(key, [0], "x")
            with pytest.raises(UnknownStreamError):
                await maintenance.rewind(key, to=0, reason="x")


async def test_a_folder_that_is_gone_is_left_out(tmp_path: Path) -> None:
    store, folder = MemoryStore(), tmp_path / "out"
    async with begin(store, output_dir=folder) as run:
        await write_pages(run)
    folder.rename(tmp_path / "moved")
    async with open_maintenance(store, "r") as maintenance:
        assert maintenance.outputs is None
        await maintenance.redo(("s",), [0], "x")
    assert not folder.exists()
    assert (tmp_path / "moved" / "0.txt").exists()


async def test_an_exception_of_the_block_leaves_as_it_is_and_saves_stay() -> None:
    store, error = MemoryStore(), KeyError("mine")
    async with begin(store) as run:
        await write_pages(run, "t")
    with pytest.raises(KeyError) as info:
        async with open_maintenance(store, "r") as maintenance:
            await maintenance.redo(("t",), [0], "x")
            raise error
    assert info.value is error
    async with begin(store) as run:
        assert run.found.confirmed == 3


async def test_a_save_that_fails_is_an_error_and_changes_nothing() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await write_pages(run, "t")
    faulty = FaultyStore(store, {1: Fail()})
    with pytest.raises(StoreError, match="as planned"):
        async with open_maintenance(faulty, "r") as maintenance:
            await maintenance.redo(("t",), [0], "x")
    async with begin(store) as run:
        assert run.found.confirmed == 4


async def test_after_a_reset_the_old_generation_can_be_pruned_at_once() -> None:
    store = MemoryStore()
    async with begin(store) as run:
        await write_pages(run, "t")
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.redo(("t",), [1], "x")
        assert await maintenance.reset("x") == 1
        assert (await maintenance.prune(keep=1)).generations == 1
        assert await maintenance.reset("x") == 2
    assert [summary.generation for summary in await store.list_runs()] == [2]


async def test_maintenance_is_no_work_and_moves_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = MemoryStore(), [1_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    async with begin(store) as run, run.open_stream("t") as stream:
        loop_cursor_of(stream).open_stream.opened_at = now[
            0
        ]  # its default was bound to the real clock
        async for batch in stream.batches(range(3)):
            now[0] += 5
            if batch.index == 1:
                batch.skip("no")
            else:
                batch.complete()
    for _ in range(2):
        now[0] += 100_000
        async with open_maintenance(store, "r") as maintenance:
            await maintenance.retry()
            await maintenance.rewind(("t",), to=0, reason="x")
        async with begin(store.after_crash()) as run:
            assert run.found.ended_at == 1_015
            assert run.statistics().runtime_s == pytest.approx(15, abs=1)
            async with run.open_stream("t") as stream:
                assert stream.statistics().runtime_s == pytest.approx(15, abs=1)
