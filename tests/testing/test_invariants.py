"""Each invariant notices when the library itself breaks it: one mistake each, made for the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import trio_ckpt
from tests.testing.programs import check_good, explore_crashes, good, nothing_to_check
from trio_ckpt._commit.group_commit import GroupCommitter
from trio_ckpt._commit.open_stream import OpenStream
from trio_ckpt._commit.reservations import Reservations
from trio_ckpt._commit.stream_log import PendingCommit
from trio_ckpt._journal import store as store_contract
from trio_ckpt.outputs._tree import Tree
from trio_ckpt.stores import MemoryStore
from trio_ckpt.stores.memory import _MemoryLock
from trio_ckpt.testing import CrashFoundError, LawBrokenError, World
from trio_ckpt.testing._files import MemoryFiles
from trio_ckpt.testing._inodes import File

Patch = pytest.MonkeyPatch


def confirm_before_the_save(patch: Patch) -> None:
    save, end = GroupCommitter._save, PendingCommit.end

    def end_once(self: PendingCommit, error: Exception | None) -> None:
        if not self.is_over:
            end(self, error)

    async def end_first(self: GroupCommitter, group: Any, folds: Any) -> Any:
        for pending in group:
            end_once(pending, None)
        return await save(self, group, folds)

    patch.setattr(GroupCommitter, "_save", end_first)
    patch.setattr(PendingCommit, "end", end_once)


def leave_out_the_fsync_of_files(patch: Patch) -> None:
    def fsync(self: MemoryFiles, fd: int) -> None:
        entry = self._entry(fd)
        if not entry.name.startswith(".") and not entry.name.endswith("jsonl"):
            entry.node.sync()

    patch.setattr(MemoryFiles, "fsync", fsync)


def leave_out_the_fsync_of_folders(patch: Patch) -> None:
    patch.setattr(Tree, "sync", lambda self, fd, name: None)


def spoil_what_is_synced(patch: Patch) -> None:
    def fsync(self: MemoryFiles, fd: int) -> None:
        node = self._entry(fd).node
        node.sync()
        if isinstance(node, File) and node.data.startswith(b"{"):
            node.synced, node.synced_mtime_ns = bytes(len(node.data)), 0

    patch.setattr(MemoryFiles, "fsync", fsync)


def leave_out_the_sync_of_lines(patch: Patch) -> None:
    patch.setattr(MemoryFiles, "fdatasync", lambda self, fd: None)


def leave_the_tail(patch: Patch) -> None:
    patch.setattr(MemoryFiles, "truncate", lambda self, fd, size: None)


def forget_a_batch_on_load(patch: Patch) -> None:
    fold_up = store_contract._fold_up

    def forget(*args: Any) -> Any:
        progress = fold_up(*args)
        progress.confirmed.discard(0)
        progress.done.discard(0)
        return progress

    patch.setattr(store_contract, "_fold_up", forget)


def keep_the_lock(patch: Patch) -> None:
    @asynccontextmanager
    async def lock_run(self: MemoryStore, run_id: str) -> AsyncGenerator[int, None]:
        async with original(self, run_id) as owner:
            yield owner
        self._memory.locks[run_id] = _MemoryLock("2025-01-01T00:00:00+00:00")

    original = MemoryStore.lock_run
    patch.setattr(MemoryStore, "lock_run", lock_run)


def leave_tokens_pending(patch: Patch) -> None:
    patch.setattr(OpenStream, "fail_token", lambda self, token, failure: None)


MISTAKES: list[tuple[Callable[[Patch], None], str]] = [
    (confirm_before_the_save, "was confirmed, and the store has no record of it"),
    (leave_out_the_fsync_of_files, "is confirmed, and its output"),
    (leave_out_the_fsync_of_folders, "is missing"),
    (spoil_what_is_synced, "has another content"),
    (leave_out_the_sync_of_lines, "confirmed bytes of lines.jsonl"),
    (forget_a_batch_on_load, "is confirmed, and was handed out again"),
    (keep_the_lock, "still owns run 'run'"),
    (leave_tokens_pending, "is still pending"),
]


@pytest.mark.parametrize(
    ("mistake", "invariant"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES]
)
def test_a_mistake_of_the_library_is_noticed_by_its_law(
    mistake: Callable[[Patch], None], invariant: str, monkeypatch: Patch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(CrashFoundError, match=invariant) as caught:
        explore_crashes(good, nothing_to_check)
    assert isinstance(caught.value.__cause__, LawBrokenError)
    with pytest.raises(CrashFoundError) as again:
        explore_crashes(good, nothing_to_check, replay=caught.value.replay)
    assert str(again.value) == str(caught.value)
    monkeypatch.undo()
    explore_crashes(good, nothing_to_check, replay=caught.value.replay)


def test_what_gives_back_more_than_was_reserved_is_noticed(monkeypatch: Patch) -> None:
    async def reserve(world: World) -> None:
        async with trio_ckpt.open_run("r", store=world.store) as run, run.open_stream("s") as s:
            async for batch in s.batches(range(2)):
                await batch.reserve(usd=0.5)
                batch.spend(usd=0.25)
                batch.complete()

    explore_crashes(reserve, nothing_to_check)
    monkeypatch.setattr(Reservations, "at_end", lambda self: {"usd": -0.75})
    with pytest.raises(CrashFoundError, match="gives back more usd than was reserved"):
        explore_crashes(reserve, nothing_to_check)


def test_a_tail_that_is_not_cut_is_noticed_by_the_check(monkeypatch: Patch) -> None:
    leave_the_tail(monkeypatch)
    with pytest.raises(CrashFoundError):
        explore_crashes(good, check_good)


def test_what_was_requeued_may_be_done_again() -> None:
    """Redo, rewind and a shorter append file break no invariant."""

    async def session(world: World, *, goes_back: bool) -> None:
        async with trio_ckpt.open_run("r", store=world.store, output_dir=world.output_dir) as run:
            if goes_back:
                await run.rewind(("lines",), to=0, reason="asked for")
            async with run.open_stream("alone") as stream:
                if goes_back and stream.progress.is_done(0):
                    await stream.redo([0], reason="asked for")
                async for batch in stream.batches(range(2)):
                    path = await batch.write_json(f"{batch.index}.json", batch.index)
                    batch.complete(outputs=[path])
            async with run.open_stream("lines") as stream:
                async for batch in stream.batches(range(2)):
                    batch.append_json("lines.jsonl", batch.index)
                    batch.complete()

    async def program(world: World) -> None:
        await session(world, goes_back=False)
        if not world.count("went back"):
            await session(world, goes_back=True)
            world.note("went back")

    def check(world: World) -> None:
        assert world.files.read("lines.jsonl") == b"0\n1\n"
        assert world.files.read("0.json") == b"0\n"

    assert explore_crashes(program, check, crashes=150).crash_points > 100
