"""The JSON store: what a save costs, saves that fail, and how files are replaced."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stores.tools import A, B, chain, heads, make
from trio_ckpt._util.errors import (
    RunLockedError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreError,
)
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import JsonStore
from trio_ckpt.stores._json import files, journal, reader, writer


class Spy:
    """Notes the calls of functions, and may make one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, OSError] = {}
        self.before: Callable[[], None] = lambda: None
        self._monkeypatch = monkeypatch

    def watch(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.before()
            self.calls.append(name)
            if name in self.fails:
                raise self.fails[name]
            return real(*args, **kwargs)

        self._monkeypatch.setattr(module, name, call)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Watches whatever changes a run's files, or makes a change durable."""
    spy = Spy(monkeypatch)
    spy.watch(journal, "write_all")
    spy.watch(journal, "sync_data")
    spy.watch(writer, "sync_folder")
    spy.watch(files, "write_durably")
    spy.watch(files, "sync_folder")
    spy.watch(files.os, "replace")
    return spy


# ---------------------------------------------------------------------------------------
# What a save costs
# ---------------------------------------------------------------------------------------


async def test_save_is_one_append_and_one_fdatasync(folder: Path, spy: Spy) -> None:
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        spy.calls.clear()
        group = [*chain(A, 1, 20), *chain(B, 1, 20)]
        await store.save(RunKey("run", 0, owner), group, [Fold(A, 3, b"")])
        assert spy.calls == ["write_all", "sync_data"]
    await store.aclose()


async def test_owner_number_is_durable_before_the_block_begins(folder: Path, spy: Spy) -> None:
    await make(folder, scheme="json")
    store = await JsonStore.open(folder)
    spy.calls.clear()
    async with store.lock_run("run") as owner:
        assert spy.calls == ["sync_folder", "write_all", "sync_data"]
        stored = reader.JsonReader(folder).read_run("run", None)
        assert stored is not None
        assert stored.owner == owner == 2
    await store.aclose()


async def test_first_owner_number_is_durable_before_the_block_begins(
    folder: Path, spy: Spy
) -> None:
    store = await JsonStore.open(folder)
    spy.calls.clear()
    async with store.lock_run("run"):
        assert spy.calls == [
            "sync_folder",  # the name of the run's folder
            "write_durably",  # the journal
            "write_durably",  # checkpoint.json under another name
            "sync_folder",
            "replace",
            "sync_folder",
        ]
    await store.aclose()


async def test_durable_for_the_process_waits_for_no_disk(folder: Path, spy: Spy) -> None:
    store = await JsonStore.open(folder, durability="process")
    async with store.lock_run("run") as owner:
        spy.calls.clear()
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
        assert spy.calls == ["write_all"]
    await store.aclose()


async def test_empty_group_writes_nothing(folder: Path, spy: Spy) -> None:
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        spy.calls.clear()
        assert await store.save(RunKey("run", 0, owner), []) == []
        assert spy.calls == []
    await store.aclose()


async def test_all_writing_together_is_linear(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewritten each time it has doubled, a run costs a few times its size, not its square."""
    monkeypatch.setattr(writer, "MIN_REWRITE_BYTES", 1_000)
    written: list[int] = []
    real = writer.prepare

    def prepare(*args: Any) -> Any:
        result = real(*args)
        written.append(result.checkpoint_bytes)
        return result

    monkeypatch.setattr(writer, "prepare", prepare)
    store = await JsonStore.open(folder, durability="process")
    async with store.lock_run("run") as owner:
        for n in range(1, 3_001):
            await store.save(RunKey("run", 0, owner), [Checkpoint(A, n, bytes(300))])
    await store.aclose()
    assert len(written) < 16
    assert sum(written) < 3 * written[-1]
    assert reader.JsonReader(folder).list_runs("", None, 10)[0].records == 3_000


# ---------------------------------------------------------------------------------------
# Saves that fail
# ---------------------------------------------------------------------------------------


async def test_write_that_ends_half_way_saves_nothing_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC after a part of the line: it is cut back, and there is room again later."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 2))
        with monkeypatch.context() as patch:
            _fill_the_disk(patch)
            with pytest.raises(StoreError, match=r"journal.*saving failed: No space.*nothing was"):
                await store.save(run, [*chain(A, 3, 3), *chain(B, 1, 1)])
        assert await heads(store) == {A: 2}
        assert await store.save(run, [*chain(A, 3, 3), *chain(B, 1, 1)]) == [None, None]
    assert await heads(store) == {A: 3, B: 1}
    await store.aclose()


def _fill_the_disk(patch: pytest.MonkeyPatch) -> None:
    def write_all(fd: int, content: bytes) -> None:
        os.write(fd, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(journal, "write_all", write_all)


async def test_write_that_cannot_be_undone_closes_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line stays, which is nothing; but nothing may come after it."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 2))
        with monkeypatch.context() as patch:
            _fill_the_disk(patch)

            def ftruncate(fd: int, size: int) -> None:
                raise OSError(errno.EIO, "Input/output error")

            patch.setattr(journal.os, "ftruncate", ftruncate)
            with pytest.raises(StoreError, match="nothing was saved"):
                await store.save(run, chain(A, 3, 3))
        with pytest.raises(StoreError, match="nothing more is written"):
            await store.save(run, chain(A, 3, 3))
    assert await heads(store) == {A: 2}
    await store.aclose()
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), chain(A, 3, 3)) == [None]
    await store.aclose()


async def test_failed_fsync_leaves_the_outcome_unknown(folder: Path, spy: Spy) -> None:
    """After it nothing more is written, and the run stays locked while the process lives."""
    store, other = await JsonStore.open(folder), await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        spy.fails["sync_data"] = OSError(errno.EIO, "Input/output error")
        with pytest.raises(SaveOutcomeUnknownError, match="it is unknown whether"):
            await store.save(run, chain(A, 1, 1))
        spy.fails.clear()
        spy.calls.clear()
        for _ in range(2):
            with pytest.raises(StoreError, match="nothing more is written"):
                await store.save(run, chain(A, 1, 1))
        with pytest.raises(StoreError, match="nothing more is written"):
            await store.prune(run, keep=0)
        assert spy.calls == []
    for handle in (store, other):
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
            async with handle.lock_run("run"):
                pass
    async with other.lock_run("another"):
        pass
    await store.aclose()
    await other.aclose()


async def test_save_without_the_lock_is_refused(folder: Path) -> None:
    """Also with the newest owner number: only who holds the lock may write the files."""
    store, intruder = await JsonStore.open(folder), await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        with pytest.raises(StoreConflictError, match="without its lock"):
            await intruder.save(run, chain(A, 1, 1))
        assert await store.save(run, chain(A, 1, 1)) == [None]
    with pytest.raises(StoreConflictError, match="without its lock"):
        await store.save(run, chain(A, 2, 2))
    await store.aclose()
    await intruder.aclose()


async def test_no_second_owner_where_the_lock_of_the_run_was_removed(folder: Path) -> None:
    """What is appended is not compared with an owner's number: the journal itself is locked."""
    store = await JsonStore.open(folder)
    other = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        for rewritten in (False, True):
            if rewritten:
                held = store._writer._held["run"]
                store._writer._rewrite_if_it_can_be("run", held)
            for path in folder.glob("lock/" + "?" * 32):
                path.unlink()
            with pytest.raises(RunLockedError, match="an unknown host"):
                async with other.lock_run("run"):
                    pass
        assert await store.save(RunKey("run", 0, owner), chain(A, 1, 1)) == [None]
    async with other.lock_run("run") as following:
        assert following == owner + 1
    await store.aclose()
    await other.aclose()


@pytest.mark.parametrize("change", ["removed", "appended", "cut"])
async def test_files_that_another_process_changed(folder: Path, change: str) -> None:
    """What was saved into a file that has no name any more would be lost without a word."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 1))
        (path,) = folder.glob("runs/run/journal.*")
        content = path.read_bytes()
        match change:
            case "removed":
                path.unlink()
            case "appended":
                path.write_bytes(content + b"x")
            case "cut":
                path.write_bytes(content[:-1])
        with pytest.raises(StoreConflictError, match=r"was removed or|was written by"):
            await store.save(run, chain(A, 2, 2))
        with pytest.raises(StoreError, match="nothing more is written"):
            await store.save(run, chain(A, 2, 2))
    await store.aclose()


async def test_run_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it saving is refused with what to do; what is there stays, and pruning makes room."""
    monkeypatch.setattr(writer, "MAX_RUN_BYTES", 20_000)
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        big = bytes(9_000)  # 12,000 in base64
        assert await store.save(run, [Checkpoint(A, 1, big)]) == [None]
        for _ in range(2):
            with pytest.raises(StoreError, match=r"over 20,000 bytes.*use the sqlite store"):
                await store.save(run, [Checkpoint(A, 2, big)])
        assert await store.save(run, [Checkpoint(A, 2, b"small")]) == [None]
        run = RunKey("run", 1, owner)
        assert await store.save(run, chain(A, 1, 1)) == [None]
        await store.prune(run, keep=1)
        assert await store.save(run, [Checkpoint(A, 2, big)]) == [None]
    await store.aclose()


# ---------------------------------------------------------------------------------------
# How files are replaced
# ---------------------------------------------------------------------------------------


async def test_crash_at_any_step_of_a_rewrite_loses_nothing(
    folder: Path, tmp_path: Path, spy: Spy
) -> None:
    """Before each change of a file the folder is copied; every copy says the same, and the next
    owner can go on from it."""
    spy.watch(files.Path, "unlink")
    store = await JsonStore.open(folder)
    copies: list[Path] = []

    def copy() -> None:
        copies.append(tmp_path / f"copy {len(copies)}")
        shutil.copytree(folder, copies[-1])

    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), [*chain(A, 1, 3), *chain(B, 1, 2)])
        spy.calls.clear()
        spy.before = copy
    spy.before = lambda: None
    copy()
    await store.aclose()
    assert spy.calls.count("replace") == 1
    assert len(copies) == len(spy.calls) + 1 >= 8
    for folder_then in copies:
        again = await JsonStore.open(folder_then)
        assert await heads(again) == {A: 3, B: 2}
        async with again.lock_run("run") as owner:
            assert owner == 2
            assert await again.save(RunKey("run", 0, owner), chain(A, 4, 4)) == [None]
        assert await heads(again) == {A: 4, B: 2}
        await again.aclose()


async def test_order_of_a_rewrite(folder: Path, spy: Spy) -> None:
    """The journal and the new content are durable before the name; the old journal goes last."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
        spy.watch(writer, "remove_leftovers")
        spy.calls.clear()
    assert spy.calls == [
        "write_durably",
        "write_durably",
        "sync_folder",
        "replace",
        "sync_folder",
        "remove_leftovers",
    ]
    await store.aclose()


async def test_new_file_is_read_back_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that gives back something else than it took does not cost what is there."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
        real = files.read_whole

        def read_whole(path: Path, limit_bytes: int) -> bytes:
            content = real(path, limit_bytes)
            return content[:-5] + b"?" + content[-4:] if path.suffix == ".tmp" else content

        monkeypatch.setattr(files, "read_whole", read_whole)
    monkeypatch.undo()
    assert "was not read back as written" in caplog.text
    assert await heads(store) == {A: 3}
    await store.aclose()


@pytest.mark.parametrize("step", ["write_durably", "sync_folder"])
async def test_run_that_cannot_be_rewritten_goes_on_in_its_journal(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spy: Spy,
    step: str,
) -> None:
    """The save was durable before: it counts, and later ones, too."""
    monkeypatch.setattr(writer, "MIN_REWRITE_BYTES", 0)
    monkeypatch.setattr(writer, "REWRITE_SHARE", 0.0)
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 1))
        spy.fails[step] = OSError(errno.ENOSPC, "No space left on device")
        assert await store.save(run, chain(A, 2, 2)) == [None]
        assert "the journal grows on" in caplog.text
        assert await store.save(run, chain(A, 3, 3)) == [None]
        spy.fails.clear()
        assert await heads(store) == {A: 3}
    assert await heads(store) == {A: 3}
    await store.aclose()


async def test_name_that_may_not_be_durable_closes_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spy: Spy
) -> None:
    """Power loss may bring the old name back, and what is appended to the new journal is lost."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 2))
        spy.fails["replace"] = OSError(errno.EIO, "Input/output error")
        with pytest.raises(SaveOutcomeUnknownError, match=r"replacing checkpoint\.json failed"):
            await store.prune(run, keep=0)
        spy.fails.clear()
        with pytest.raises(StoreError, match="nothing more is written"):
            await store.save(run, chain(A, 3, 3))
    with pytest.raises(RunLockedError):
        async with store.lock_run("run"):
            pass
    assert await heads(store) == {A: 2}
    await store.aclose()


async def test_first_name_that_may_not_be_durable_closes_the_run(folder: Path, spy: Spy) -> None:
    """An fsync that failed once may succeed the second time without having done anything."""
    store = await JsonStore.open(folder)
    spy.fails["replace"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(StoreError, match="locking run 'run' failed: Input/output error"):
        async with store.lock_run("run"):
            pass
    spy.fails.clear()
    with pytest.raises(StoreError, match="nothing more is written"):
        async with store.lock_run("run"):
            pass
    async with store.lock_run("another"):
        pass
    await store.aclose()


async def test_prune_that_cannot_write_removes_nothing(folder: Path, spy: Spy) -> None:
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
        run = RunKey("run", 1, owner)
        await store.save(run, chain(A, 1, 2))
        spy.fails["write_durably"] = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(StoreError, match="pruning failed: No space") as caught:
            await store.prune(run, keep=0)
        assert not isinstance(caught.value, SaveOutcomeUnknownError)
        spy.fails.clear()
        assert await heads(store) == {A: 2}
        assert len((await store.history("run", A, generation=0)).records) == 3
        assert await store.save(run, chain(A, 3, 3)) == [None]
        assert (await store.prune(run, keep=1)).records == 3
    assert await heads(store) == {A: 3}
    await store.aclose()


async def test_pruned_run_takes_no_room(folder: Path) -> None:
    """Its numbers stay, its records are in no file any more."""
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [Checkpoint(A, n, b"secret payload" * 100) for n in range(1, 50)])
        await store.prune(run, keep=0)
    await store.aclose()
    sizes = [path.stat().st_size for path in folder.glob("runs/run/*")]
    assert len(sizes) == 2
    assert sum(sizes) < 1_000
