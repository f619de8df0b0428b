"""What the local stores have in common: full disks, saves that are given up on, shared blobs."""

# ruff: noqa: ASYNC221, ASYNC240  # a test may block its own loop

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.hangs import PROGRAM_S
from tests.stores.tools import A, B, chain, heads, make, path_of_blob
from trio_ckpt._util.errors import RunLockedError, StoreError
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import JsonStore, SqliteStore, open_store
from trio_ckpt.stores._local import blobs as _blobs, locks
from trio_ckpt.stores._local.store import LocalStore

LOCAL = pytest.mark.parametrize("kind", [SqliteStore, JsonStore])

_NO_ROOM = """
    import resource, sys, trio
    from trio_ckpt._util.errors import StoreError
    from trio_ckpt.abc import Checkpoint, RunKey
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            saved = 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            try:
                while True:
                    await store.save(run, [Checkpoint("s", saved + 1, bytes(5_000))])
                    saved += 1
            except StoreError as error:
                print(type(error).__name__, error)
            try:
                await store.put_blob(run, bytes(300_000))
            except StoreError as error:
                print(type(error).__name__, error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            assert await store.save(run, [Checkpoint("s", saved + 1, b"")]) == [None]
            print(saved + 1)
        await store.aclose()

    trio.run(main)
"""


@pytest.mark.parametrize(("scheme", "file"), [("sqlite", "state.db"), ("json", "runs/run/journal")])
async def test_disk_takes_no_more(folder: Path, scheme: str, file: str) -> None:
    """A real write that fails in the kernel: nothing is half saved, and room lets it go on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_NO_ROOM), f"{scheme}:{folder}"],
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=True,
    )
    saving, blob, last = done.stdout.splitlines()
    assert saving.startswith(f"StoreError {folder}/{file}")
    assert ": saving failed:" in saving
    assert "writing a blob failed: File too large" in blob
    assert not list(folder.glob("blobs/*/*"))
    store = await open_store(f"{scheme}:{folder}")
    assert await heads(store) == {"s": int(last)}
    await store.aclose()


@LOCAL
async def test_save_that_was_given_up_on_keeps_the_lock(
    kind: type[SqliteStore] | type[JsonStore], folder: Path
) -> None:
    """It is still in the thread, where it may land: no process may go on before it ended."""
    store = await kind.open(folder)
    begun, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def hang() -> None:
        token.run_sync_soon(begun.set)
        release.wait()

    async with trio.open_nursery() as nursery:
        async with store.lock_run("run") as owner:
            nursery.start_soon(store._writing.run, hang)
            await begun.wait()
            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_blocked, scope)
                await store.save(RunKey("run", 0, owner), chain(A, 1, 1))
            assert scope.cancelled_caught
        with pytest.raises(RunLockedError):
            async with store.lock_run("run"):
                pass
        assert await store.read_owner("run") is not None
        release.set()
    await store._writing.run(int)  # after the save, in its thread
    again = await kind.open(folder)
    assert await heads(again) == {A: 1}  # it landed
    await again.aclose()
    await store.aclose()


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


@LOCAL
async def test_a_run_is_given_back_though_the_disk_takes_nothing_more(
    kind: type[SqliteStore] | type[JsonStore], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note in the lock file is only for people: no error of it hides what went wrong."""

    def fail(_fd: int, _size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = await kind.open(folder)
    async with store.lock_run("run"):
        monkeypatch.setattr(locks.os, "ftruncate", fail)
    monkeypatch.undo()
    async with store.lock_run("run"):
        pass
    await store.aclose()


@LOCAL
async def test_what_a_killed_owner_was_at_goes_with_the_next(
    kind: type[SqliteStore] | type[JsonStore], folder: Path, tmp_path: Path
) -> None:
    store = await kind.open(folder)
    async with store.lock_run("run"):
        await store.publish("run", b"busy")
        live, sign = sorted((folder / "live").iterdir())
        os.utime(sign)  # a process has read it
        live.with_suffix(".new").write_bytes(b"bu")
        killed = shutil.copytree(folder, tmp_path / "killed")
    await store.aclose()
    assert len(list((killed / "live").iterdir())) == 3
    store = await kind.open(killed)
    async with store.lock_run("run"):
        (new,) = (killed / "live").iterdir()
        assert (new.name, new.stat().st_mtime) == (sign.name, 0)
        assert not await store.is_watched("run")
    assert not list((killed / "live").iterdir())
    await store.aclose()


@LOCAL
async def test_bad_values_go_alone(kind: type[SqliteStore] | type[JsonStore], folder: Path) -> None:
    """A value that cannot be written is like any checkpoint that fails: it goes alone."""
    store = await kind.open(folder)
    bad = [
        Checkpoint('["\ud800"]', 1, b""),
        Checkpoint('["type"]', 1, object()),  # type: ignore[arg-type]  # the bad value
        Checkpoint('["null"]', 1, None),  # type: ignore[arg-type]  # the bad value
        Checkpoint('["text"]', 1, "text"),  # type: ignore[arg-type]  # the bad value
        Checkpoint('["big"]', 2**70, b""),
    ]
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for one in bad:
            outcomes = await store.save(run, [*chain(A, 1, 1), one, *chain(B, 1, 1)])
            assert [outcome is None for outcome in outcomes] == [True, False, True]
            assert isinstance(outcomes[1], StoreError)
            assert outcomes[1].__cause__ is not None
            assert await heads(store) == {A: 1, B: 1}
            run = RunKey("run", run.generation + 1, owner)
    await store.aclose()


@LOCAL
async def test_blob_that_was_pruned_during_a_read_is_not_damage(
    kind: type[SqliteStore] | type[JsonStore], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader holds no lock: it reads again, and learns that the generation is gone."""
    store, other = await kind.open(folder), await kind.open(folder)
    digest = hashlib.sha256(b"blob").hexdigest()
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.put_blob(run, b"blob")
        await store.save(run, [Checkpoint(A, 1, b"", digest)])
        await store.save(RunKey("run", 1, owner), chain(A, 1, 1))

    async def prune() -> None:
        async with store.lock_run("run") as owner:
            await store.prune(RunKey("run", 1, owner), keep=1)

    real = _blobs.Blobs.get

    def late(blobs: _blobs.Blobs, name: str) -> bytes:
        trio.from_thread.run(prune, trio_token=token)
        return real(blobs, name)

    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr(_blobs.Blobs, "get", late)
    assert await other.read_run("run", 0) is None
    await store.aclose()
    await other.aclose()


@LOCAL
async def test_blobs_are_cleaned_up_after_the_owner_number_was_raised(
    folder: Path, kind: type[SqliteStore] | type[JsonStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that an older owner, stopped in its commit, could still name one of them."""
    store = await kind.open(folder)
    left = path_of_blob(folder, "0" * 64)
    left.parent.mkdir(parents=True)
    left.touch()
    order: list[str] = []
    for name in ("raise_owner", "owning", "unnamed"):
        real = getattr(store._writer, name)

        def call(*args: Any, name: str = name, real: Any = real) -> Any:
            order.append(name)
            return real(*args)

        monkeypatch.setattr(store._writer, name, call)
    async with store.lock_run("run"):
        assert order == ["raise_owner", "owning", "owning", "unnamed"]
        assert not left.exists()
    await store.aclose()


@LOCAL
async def test_bad_fold_saves_nothing(folder: Path, kind: type[LocalStore]) -> None:
    store = await kind.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, chain(A, 1, 1))
        with pytest.raises(StoreError, match="a fold cannot be saved"):
            await store.save(run, chain(A, 2, 2), [Fold(A, 1, object())])  # type: ignore[arg-type]
        assert await heads(store) == {A: 1}
        assert await store.save(run, chain(A, 2, 2)) == [None]
    await store.aclose()


@LOCAL
async def test_pages_are_bounded_in_bytes(
    folder: Path, kind: type[LocalStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = "sqlite" if kind is SqliteStore else "json"
    monkeypatch.setattr(f"trio_ckpt.stores._{scheme}.reader.MAX_PAGE_BYTES", 2_500)
    await make(folder, *[Checkpoint(A, n, bytes(1_000)) for n in range(1, 8)], scheme=scheme)
    store = await kind.open(folder)
    sizes, cursor = [], None
    while True:
        page = await store.history("run", A, cursor=cursor)
        sizes.append(len(page.records))
        cursor = page.cursor
        if cursor is None:
            break
    assert sizes == [3, 3, 1]
    await store.aclose()
