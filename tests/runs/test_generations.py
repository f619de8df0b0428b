"""Beginning again: whatever fails, and wherever, the outputs are those of the run that is there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from tests.outputs.faulty import files_in
from trio_ckpt import StoreDamagedError, StoreError, TrioCkptError, open_maintenance
from trio_ckpt.abc import RunKey, RunView, Store
from trio_ckpt.outputs import OutputDir
from trio_ckpt.outputs._tree import temp_name
from trio_ckpt.stores import MemoryStore
from trio_ckpt.testing import CommitThenError, Fail, FaultyStore, Hang

COUNT = 3
FAULTS = [Fail(), CommitThenError(), Hang()]


async def work(store: Store, folder: Path | None, text: str, **options: Any) -> list[int]:
    """Write what is left to write; which batches these were."""
    done: list[int] = []
    async with (
        begin(store, output_dir=folder, save_timeout_s=5.0, **options) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(COUNT)):
            if folder is not None:
                await batch.write_text(f"{batch.index}.txt", f"{text} {batch.index}")
            batch.append_json("lines.jsonl", text) if folder is not None else None
            batch.complete()
            done.append(batch.index)
    return done


def standing(folder: Path) -> dict[str, bytes]:
    return {
        name: data
        for name, data in files_in(folder).items()
        if not name.startswith(".archive/") and name != "manifest.json"
    }


def archived(folder: Path, generation: int) -> dict[str, bytes]:
    found = files_in(folder / f".archive/r-{generation}")
    return {name: data for name, data in found.items() if name != "manifest.json"}


def made(text: str) -> dict[str, bytes]:
    pages = {f"{index}.txt": f"{text} {index}".encode() for index in range(COUNT)}
    return {**pages, "lines.jsonl": f'"{text}"\n'.encode() * COUNT}


Begin = Callable[[Store, Path], Any]


async def by_fresh(store: Store, folder: Path) -> None:
    await work(store, folder, "new", fresh=True)


async def by_config(store: Store, folder: Path) -> None:
    await work(store, folder, "new", config={"n": 2}, on_config_change="restart")


async def by_reset(store: Store, folder: Path) -> None:
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.reset("x")
    await work(store, folder, "new")


WAYS = {"fresh": by_fresh, "config": by_config, "reset": by_reset}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
async def test_whichever_save_fails_the_files_are_those_of_the_stored_run(
    tmp_path: Path, fault: Any, way: Begin, autojump_clock: object
) -> None:
    """A resume goes on with what it finds: nothing old is lost, nothing old is taken for new."""
    saves, k = 0, 0
    generations: set[int] = set()
    while saves >= k:  # until it is one more than there are
        k += 1
        folder, store = tmp_path / f"{k}", MemoryStore()
        await work(store, folder, "old", config={"n": 1})
        faulty = FaultyStore(store, {k: fault})
        with suppress(TrioCkptError):
            await way(faulty, folder)
        saves = faulty.saves
        after = store.after_crash()
        view = await after.load_run("r")
        assert view is not None
        generations.add(view.generation)
        config = {"n": 1} if view.generation == 0 else {"n": 3}
        done = await work(after, folder, "new", config=config, on_config_change="accept")
        if view.generation == 0:
            assert done == []
            assert standing(folder) == made("old")
            assert files_in(folder / ".archive") == {}
        else:
            assert standing(folder) == made("new")
            assert archived(folder, 0) == made("old")
        assert await work(after, folder, "none", config=config) == []
    assert generations == ({1} if isinstance(fault, CommitThenError) else {0, 1})


async def test_a_move_that_was_interrupted_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await work(store, tmp_path, "old")
    archive = OutputDir.archive

    def failing(self: OutputDir, paths: list[str], label: str) -> Any:
        archive(self, list(paths)[:2], label)
        raise OSError(5, "as planned")

    with monkeypatch.context() as patch:
        patch.setattr(OutputDir, "archive", failing)
        with pytest.raises(OSError, match="as planned"):
            await work(store, tmp_path, "new", fresh=True)
    assert len(standing(tmp_path)) == 2
    with pytest.raises(KeyError):  # also a session that has no folder leaves it to the next
        async with begin(store, save_timeout_s=5.0):
            raise KeyError
    assert await work(store.after_crash(), tmp_path, "new") == [0, 1, 2]
    assert standing(tmp_path) == made("new")
    assert archived(tmp_path, 0) == made("old")


async def test_what_two_beginnings_left_is_archived_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    for text in ("first", "second"):
        await work(store, tmp_path, text, fresh=True)
    await work(store, None, "no files", fresh=True)
    await work(store, tmp_path, "third", fresh=True)
    assert archived(tmp_path, 0) == made("first")
    assert archived(tmp_path, 1) == made("second")
    assert archived(tmp_path, 2) == {}
    assert standing(tmp_path) == made("third")


async def test_what_is_archived_once_is_not_moved_again(tmp_path: Path) -> None:
    """The names are those of the new run by then."""
    store = MemoryStore()
    await work(store, tmp_path, "old")
    async with (
        begin(store, output_dir=tmp_path, fresh=True) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(1)):
            await batch.write_text("0.txt", "new 0")
            batch.complete()
            await batch.confirm()
        killed = store.after_crash()
    for _ in range(2):
        async with begin(killed, output_dir=tmp_path, save_timeout_s=5.0):
            assert (tmp_path / "0.txt").read_text() == "new 0"


async def test_a_pruned_or_damaged_generation_leaves_its_files_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Damaged(MemoryStore):
        async def load_run(self, run_id: str, generation: int | None = None) -> RunView | None:
            if generation == 0:
                raise StoreDamagedError("as planned")
            return await super().load_run(run_id, generation)

    for kind in (MemoryStore, Damaged):
        folder, store = tmp_path / kind.__name__, kind()
        await work(store, folder, "old")
        with pytest.raises(StoreError):
            await work(FaultyStore(store, {1: CommitThenError()}), folder, "new", fresh=True)
        killed = store.after_crash() if kind is MemoryStore else store
        if kind is MemoryStore:
            async with killed.lock_run("r") as owner:
                await killed.prune(RunKey("r", 1, owner), keep=1)
        with caplog.at_level(logging.ERROR):
            assert await work(killed, folder, "new") == [0, 1, 2]
        assert archived(folder, 0) == {}
    assert "the outputs of generation 0 stay where they are: as planned" in caplog.text


async def test_a_reset_without_its_folder_leaves_the_move_to_the_next_start(
    tmp_path: Path,
) -> None:
    store, moved = MemoryStore(), tmp_path / "moved"
    await work(store, tmp_path / "out", "old")
    (tmp_path / "out").rename(moved)
    async with open_maintenance(store, "r") as maintenance:
        assert maintenance.outputs is None
        await maintenance.reset("x")
    assert standing(moved) == made("old")
    await work(store, moved, "new")
    assert archived(moved, 0) == made("old")


@pytest.mark.parametrize("way", ["fresh", "reset", "restart"])
async def test_what_a_killed_session_left_half_written_goes(way: str, tmp_path: Path) -> None:
    store, folder = MemoryStore(), tmp_path / "out"
    half = folder / "a" / temp_name("x.json")
    async with (
        begin(store, output_dir=folder, config={"n": 1}) as run,
        run.open_stream("s") as stream,
    ):
        async for batch in stream.batches(range(1)):
            await batch.write_text("a/0.txt", "x")
            killed = store.after_crash()
            batch.complete()
    half.write_text("{")
    if way == "reset":
        async with open_maintenance(killed, "r") as maintenance:
            await maintenance.reset("x")
    options = {"fresh": way == "fresh", "on_config_change": "restart"}
    async with begin(
        killed,
        output_dir=folder,
        save_timeout_s=5.0,
        config={"n": 2 if way == "restart" else 1},
        **options,
    ):
        assert not half.exists()


async def test_a_reset_is_told_where_the_folder_is(tmp_path: Path) -> None:
    store, moved = MemoryStore(), tmp_path / "moved"
    await work(store, tmp_path / "out", "old")
    (tmp_path / "out").rename(moved)
    async with open_maintenance(store, "r", output_dir=moved) as maintenance:
        await maintenance.reset("x")
    assert archived(moved, 0) == made("old")
