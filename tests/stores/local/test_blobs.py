"""The blobs of the local stores: how they are written, read, named, dropped and removed."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.hangs import HANG_S
from tests.stores.tools import A, B, chain, failing_commit, make, owned, path_of_blob
from trio_ckpt._util.errors import (
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from trio_ckpt.abc import BlobPart, Checkpoint, RunKey, Store
from trio_ckpt.stores import JsonStore, SqliteStore, open_store
from trio_ckpt.stores._json import format
from trio_ckpt.stores._local import blobs as _blobs, files as _files, store as _store

LOCAL = pytest.mark.parametrize("scheme", ["sqlite", "json"])
BIG = bytes(range(256)) * (5 * 2**12)  # 5 MiB: hashed in a thread of its own
BIG_DIGEST = hashlib.sha256(BIG).hexdigest()


def digest_of(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def naming(stream: str, sequence: int, *payloads: bytes) -> Checkpoint:
    names = tuple(map(digest_of, payloads))
    return Checkpoint(stream, sequence, b"%d" % sequence, blobs=names)


def files(folder: Path) -> set[str]:
    """The blobs, and whatever else lies there."""
    return {path.name for path in folder.glob("blobs/**/*") if path.is_file()}


async def names(store: Store, stream: str = A) -> dict[int, tuple[str, ...]]:
    page = await store.history("run", stream)
    return {record.sequence: record.blobs for record in page.records}


# ---------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 4096, 2**20])
async def test_write_that_takes_a_part_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """writev(2) may take less than it is given, and end within a buffer."""
    monkeypatch.setattr(_blobs, "MAX_BUFFERS", 3)
    monkeypatch.setattr(_blobs, "WRITE_BYTES", 1000)
    real = os.writev

    def writev(fd: int, buffers: Sequence[memoryview]) -> int:
        assert len(buffers) <= 3
        return real(fd, [memoryview(b"".join(buffers))[:most]])

    monkeypatch.setattr(os, "writev", writev)
    buffers = [bytes([n]) * (n * 37 % 2500) for n in range(20)]
    whole = b"".join(buffers)
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, buffers)
        assert await store.read_blob("run", digest_of(whole)) == whole
    await store.aclose()


async def test_buffers_are_written_where_they_lie(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing joins or copies them: what the kernel is given are parts of the caller's buffers."""
    payload = bytearray(BIG)
    given: list[object] = []
    real = os.writev

    def writev(fd: int, buffers: Sequence[memoryview]) -> int:
        given.extend(view.obj for view in buffers)
        return real(fd, buffers)

    monkeypatch.setattr(os, "writev", writev)
    store = await SqliteStore.open(folder)
    half = len(payload) // 2
    view = memoryview(payload)
    async with owned(store) as run:
        await store.put_blob(run, [view[:half], view[half:]])
    assert given
    assert all(one is payload for one in given)
    await store.aclose()


async def test_big_blob_is_hashed_and_synced_beside_writing_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last write waits for the first hash and the first sync of a thread beside it."""
    begun = {"hashes": threading.Event(), "syncs": threading.Event()}
    real_writev, real_hash, real_sync = os.writev, _blobs._hash, _blobs.sync_data
    written = 0

    def writev(fd: int, buffers: Sequence[memoryview]) -> int:
        nonlocal written
        written += sum(map(len, buffers))
        if written == len(BIG):
            assert begun["hashes"].wait(30)
            assert begun["syncs"].wait(30) or sys.platform != "linux"
        return real_writev(fd, buffers)

    def note() -> None:
        for name, event in begun.items():
            if name in threading.current_thread().name:
                event.set()

    def hash_all(*args: Any) -> None:
        note()
        real_hash(*args)

    def sync(fd: int) -> None:
        note()
        real_sync(fd)

    monkeypatch.setattr(os, "writev", writev)
    monkeypatch.setattr(_blobs, "_hash", hash_all)
    monkeypatch.setattr(_blobs, "sync_data", sync)
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        assert await store.read_blob("run", BIG_DIGEST) == BIG
    await store.aclose()


@pytest.mark.parametrize("payload", [b"small", BIG])
@pytest.mark.parametrize("step", ["writev", "sync_data", "replace"])
async def test_write_that_fails_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, payload: bytes, step: str
) -> None:
    failed: list[str] = []

    def fail(*args: Any) -> None:
        failed.append(step)
        raise OSError(errno.ENOSPC, "No space left on device")

    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        with monkeypatch.context() as patch:
            patch.setattr(_blobs if step == "sync_data" else os, step, fail)
            with pytest.raises(StoreError, match="writing a blob failed: No space left"):
                await store.put_blob(run, payload)
        assert failed == [step]  # above all a sync: what it did not write is not asked for again
        assert files(folder) == set()
        assert not [one for one in threading.enumerate() if "a blob" in one.name]
        await store.put_blob(run, payload)
        assert files(folder) == {digest_of(payload)}
    await store.aclose()


@LOCAL
@pytest.mark.parametrize("payload", [b"small", BIG])
async def test_iterator_that_fails_leaves_nothing(
    scheme: str, folder: Path, payload: bytes
) -> None:
    """Its exception passes as it is, and the next try is a new one."""

    def buffers() -> Iterator[bytes]:
        yield payload
        raise KeyError("no more")

    store = await open_store(f"{scheme}:{folder}")
    async with owned(store) as run:
        with pytest.raises(KeyError, match="no more"):
            await store.put_blob(run, buffers())
        assert files(folder) == set()
        assert not [one for one in threading.enumerate() if "a blob" in one.name]
        assert await store.put_blob(run, payload) == digest_of(payload)
    await store.aclose()


async def test_buffer_that_is_not_contiguous(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        with pytest.raises(TypeError, match="C-contiguous"):
            await store.put_blob(run, [memoryview(b"abcdef")[::2]])
    await store.aclose()


async def test_blob_that_is_there_is_not_touched(folder: Path) -> None:
    """The file under its name is left as it is; one that was cut is replaced."""
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        (path,) = folder.glob("blobs/*/*")
        before = path.stat()
        assert await store.put_blob(run, [BIG[:7], BIG[7:]]) == BIG_DIGEST
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert len([*folder.glob("blobs/**/*")]) == 2  # its folder and itself
        os.truncate(path, 1000)
        await store.put_blob(run, BIG)
        assert await store.read_blob("run", BIG_DIGEST) == BIG
    await store.aclose()


# ---------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------


@LOCAL
async def test_cut_blob_is_damage(scheme: str, folder: Path) -> None:
    await make(folder, naming(A, 1, BIG), blobs=(BIG,), scheme=scheme)
    (path,) = folder.glob("blobs/*/*")
    os.truncate(path, 1000)
    store = await open_store(f"{scheme}:{folder}")
    assert await store.read_blob("run", BIG_DIGEST, 0, 1000) == BIG[:1000]
    with pytest.raises(StoreDamagedError, match="too short"):
        await store.read_blob("run", BIG_DIGEST, 0, 1001)
    assert await names(store) == {1: (BIG_DIGEST,)}  # the record itself is whole
    path.unlink()
    with pytest.raises(StoreDamagedError, match="missing"):
        await store.read_blob("run", BIG_DIGEST, 0, 1)
    await store.aclose()


async def test_part_that_comes_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blobs, "MAX_READ_BYTES", 1000)
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        for offset, size in ((0, 1000), (5, 1001), (17, 123_456), (0, 0)):
            part = await store.read_blob("run", BIG_DIGEST, offset, size)
            assert part == BIG[offset : offset + size]
    await store.aclose()


async def test_parts_are_filled_whatever_a_call_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    monkeypatch.setattr(_blobs, "MAX_BUFFERS", 3)

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffer[:1000] for buffer in buffers[:1]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        for sizes in ((1000, 0, 1001, 3, 4, 5, 6), (0,), (123_456,)):
            memory = [bytearray(size) for size in sizes]
            await store.read_blob_parts(
                "run", [BlobPart(BIG_DIGEST, 17, [memoryview(m) for m in memory])]
            )
            assert b"".join(memory) == BIG[17 : 17 + sum(sizes)]
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: 0)
        with pytest.raises(StoreDamagedError, match="was truncated"):
            await store.read_blob_parts(
                "run", [BlobPart(BIG_DIGEST, 0, [memoryview(bytearray(1))])]
            )
    await store.aclose()


async def test_blob_that_is_cut_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", lambda fd, size, offset: b"")
            with pytest.raises(StoreDamagedError, match="was truncated"):
                await store.read_blob("run", BIG_DIGEST, 0, 10)
    await store.aclose()


@LOCAL
async def test_reader_of_a_blob_that_goes_gets_the_right_bytes_or_damage(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is removed, never changed: one that is open is read to its end."""
    store, reader = await open_store(f"{scheme}:{folder}"), await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        real = os.pread
        token = trio.lowlevel.current_trio_token()

        def pread(fd: int, size: int, offset: int) -> bytes:
            monkeypatch.setattr(os, "pread", real)
            trio.from_thread.run(store.drop_blobs, run, A, [1], trio_token=token)
            assert files(folder) == set()
            return real(fd, size, offset)

        monkeypatch.setattr(os, "pread", pread)
        assert await reader.read_blob("run", BIG_DIGEST) == BIG
        with pytest.raises(StoreDamagedError, match="missing"):
            await reader.read_blob("run", BIG_DIGEST)
    await store.aclose()
    await reader.aclose()


# ---------------------------------------------------------------------------------------
# Naming
# ---------------------------------------------------------------------------------------


async def test_record_without_attached_blobs_costs_nothing_more(folder: Path) -> None:
    """Saving such a group takes one statement for all records and one for all heads; no file."""
    store = await SqliteStore.open(folder)
    said: list[str] = []
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [*chain(A, 1, 1), *chain(B, 1, 1)])
        await store._writing.run(store._writer._connection.set_trace_callback, said.append)
        await store.save(run, [*chain(A, 2, 2), *chain(B, 2, 2)])
        await store._writing.run(store._writer._connection.set_trace_callback, None)
        assert [text.split()[0] for text in said] == [
            *("BEGIN", "SELECT", "SELECT", "INSERT", "UPDATE", "COMMIT")
        ]
        assert "attached" not in " ".join(said)
        assert list((folder / "blobs").iterdir()) == []
    await store.aclose()


async def test_record_without_attached_blobs_reads_as_ever(folder: Path) -> None:
    """While no record of the store has any, none is looked up for each."""
    store = await SqliteStore.open(folder)
    said: list[str] = []
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 9))
    await store.read_run("run")
    assert store._reader._connection is not None
    await store._reading.run(store._reader._connection.set_trace_callback, said.append)
    await store.read_run("run")
    assert len([text for text in said if "attached" in text]) == 1
    await store.aclose()


async def test_rows_of_attached_blobs_go_with_what_they_are_of(folder: Path) -> None:
    store = await SqliteStore.open(folder)

    def rows() -> list[Any]:
        return store._writer._connection.execute("SELECT count(*) FROM attached").fetchall()

    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for payload in (b"one", b"two"):
            await store.put_blob(run, payload)
        await store.save(run, [naming(A, 1, b"one", b"two", b"one")])
        await store.save(RunKey("run", 1, owner), [naming(A, 1, b"one")])
        assert await store._writing.run(rows) == [(3,)]
        await store.prune(RunKey("run", 1, owner), keep=1)
        assert await store._writing.run(rows) == [(1,)]
        await store.drop_blobs(RunKey("run", 1, owner), A, [1])
        assert await store._writing.run(rows) == [(0,)]
    await store.aclose()


async def test_names_are_in_the_line_of_the_record(folder: Path) -> None:
    """A person sees them in checkpoint.json, also that they were dropped."""
    store = await JsonStore.open(folder)
    async with owned(store) as run:
        for payload in (b"one", b"two"):
            await store.put_blob(run, payload)
        group = [naming(A, 1, b"one", b"two"), naming(A, 2, b"one"), *chain(A, 3, 3)]
        await store.save(run, group)
        await store.drop_blobs(run, A, [2])
    await store.aclose()
    lines = (folder / "runs" / "run" / "checkpoint.json").read_text().splitlines()
    named = [line for line in lines if '"blobs":' in line]
    assert len(named) == 1
    assert f'"blobs":["{digest_of(b"one")}","{digest_of(b"two")}"]' in named[0]


async def test_drop_in_the_journal_of_what_is_not_there_is_damage(folder: Path) -> None:
    store = await JsonStore.open(folder)
    async with store.lock_run("run") as owner:
        held = store._writer._held["run"]
        line = format.JournalLine(owner, 0, drops=[(A, [1])])
        await store._writing.run(store._writer._append, held, line)
        with pytest.raises(StoreDamagedError, match="line 2, is not what was written"):
            await store.read_run("run")
    await store.aclose()


# ---------------------------------------------------------------------------------------
# Removing
# ---------------------------------------------------------------------------------------


@LOCAL
async def test_dropped_blob_is_removed_while_runs_are_owned(scheme: str, folder: Path) -> None:
    """A long run beside it does not keep a blob that no handle is about to name."""
    store, other = await open_store(f"{scheme}:{folder}"), await open_store(f"{scheme}:{folder}")
    async with other.lock_run("other"), store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for n in range(1, 6):
            await store.put_blob(run, b"%d" % n)
            await store.save(run, [naming(A, n, b"%d" % n)])
            assert await store.drop_blobs(run, A, [n - 1]) == (n > 1)
            assert files(folder) == {digest_of(b"%d" % n)}
    await store.aclose()
    await other.aclose()


@LOCAL
async def test_put_that_was_never_named_is_kept_until_the_run_is_given_back(
    scheme: str, folder: Path
) -> None:
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("another"):
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            for _ in range(2):
                await store.put_blob(run, BIG)
            await store.save(run, [naming(A, 1, BIG)])
            assert await store.drop_blobs(run, A, [1]) == len(BIG)
            assert files(folder) == {BIG_DIGEST}
        assert files(folder) == set()
    await store.aclose()


@LOCAL
async def test_another_run_with_the_same_blob_has_its_own(scheme: str, folder: Path) -> None:
    store, other = await open_store(f"{scheme}:{folder}"), await open_store(f"{scheme}:{folder}")
    async with owned(store) as run, owned(other, "other") as run_2:
        for handle, key in ((store, run), (other, run_2)):
            await handle.put_blob(key, BIG)
            assert await handle.save(key, [naming(A, 1, BIG)]) == [None]
        assert await store.drop_blobs(run, A, [1]) == len(BIG)
        assert not path_of_blob(folder, BIG_DIGEST).exists()
        assert await store.read_blob("other", BIG_DIGEST) == BIG
    await store.aclose()
    await other.aclose()


@LOCAL
@pytest.mark.parametrize("verb", ["drop_blobs", "prune"])
async def test_put_during_a_removal_writes_again(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """One that gets its name while the removal is being unlinked is another file."""
    store = await open_store(f"{scheme}:{folder}")
    token = trio.lowlevel.current_trio_token()
    real = _blobs.unlink_all
    doomed: list[Path] = []

    def unlink(paths: list[Path]) -> None:
        doomed.extend(paths)
        trio.from_thread.run(store.put_blob, run, BIG, trio_token=token)
        real(paths)

    async with owned(store) as run:
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        monkeypatch.setattr(_store, "unlink_all", unlink)
        if verb == "prune":
            await store.prune(run, keep=0)
            run = RunKey("run", 1, run.owner)
        else:
            assert await store.drop_blobs(run, A, [1]) == len(BIG)
        assert [path.name for path in doomed] == [f"{BIG_DIGEST}.tmp"]
        assert files(folder) == {BIG_DIGEST}
        sequence = 1 if verb == "prune" else 2
        assert await store.save(run, [naming(A, sequence, BIG)]) == [None]
        assert await store.read_blob("run", BIG_DIGEST) == BIG
    await store.aclose()


@LOCAL
async def test_put_before_a_removal_keeps_the_blob(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that has its name when the removal begins is seen by it."""
    store = await open_store(f"{scheme}:{folder}")
    token = trio.lowlevel.current_trio_token()
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        real = store._writer.unnamed  # type: ignore[attr-defined]

        def unnamed(*args: Any) -> Any:
            found = real(*args)
            trio.from_thread.run(store.put_blob, run, BIG, trio_token=token)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(store._writer, "unnamed", unnamed)  # type: ignore[attr-defined]
            assert await store.drop_blobs(run, A, [1]) == len(BIG)
        assert files(folder) == {BIG_DIGEST}
        assert await store.save(run, [naming(A, 2, BIG)]) == [None]
        assert await store.read_blob("run", BIG_DIGEST) == BIG
    await store.aclose()


@LOCAL
async def test_save_waits_for_no_unlinking(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long where a blob is large."""
    store = await open_store(f"{scheme}:{folder}")
    token = trio.lowlevel.current_trio_token()
    begun, is_saved = trio.Event(), threading.Event()
    real = _blobs.unlink_all

    def unlink(paths: list[Path]) -> None:
        token.run_sync_soon(begun.set)
        assert is_saved.wait(HANG_S)
        real(paths)

    async with owned(store) as run:
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        monkeypatch.setattr(_store, "unlink_all", unlink)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.drop_blobs, run, A, [1])
            await begun.wait()
            assert await store.save(run, chain(A, 2, 2)) == [None]
            is_saved.set()
        assert files(folder) == set()
    await store.aclose()


@LOCAL
@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_put_whose_run_was_released_stores_nothing(
    scheme: str, folder: Path, is_taken_over: bool
) -> None:
    """Whether another owner has the run, and has put the same blob, or none."""
    store, other = await open_store(f"{scheme}:{folder}"), await open_store(f"{scheme}:{folder}")
    token = trio.lowlevel.current_trio_token()
    begun, is_released = trio.Event(), threading.Event()
    raised: list[Exception] = []

    def buffers() -> Iterator[bytes]:
        token.run_sync_soon(begun.set)
        yield BIG[:1000]
        assert is_released.wait(HANG_S)
        yield BIG[1000:]

    async def put(run: RunKey) -> None:
        try:
            await store.put_blob(run, buffers())
        except StoreConflictError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        async with owned(store) as run:
            nursery.start_soon(put, run)
            await begun.wait()
        if is_taken_over:
            async with owned(other) as run:
                await other.put_blob(run, BIG)
                assert await other.save(run, [naming(A, 1, BIG)]) == [None]
                is_released.set()
                while not raised:
                    await trio.lowlevel.checkpoint()
        is_released.set()
    assert raised
    assert files(folder) == ({BIG_DIGEST} if is_taken_over else set())
    await store.aclose()
    await other.aclose()


@LOCAL
async def test_orphans_are_removed_by_the_next_owner_of_their_run(
    scheme: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a kill left: blobs that no record names, and temporary files; no file of a stranger."""
    caplog.set_level(logging.INFO, "trio_ckpt")
    await make(folder, naming(A, 1, b"kept"), blobs=(b"kept",), scheme=scheme)
    home = path_of_blob(folder, digest_of(b"kept")).parent
    orphans = {digest_of(b"orphan"), "tmpabcdef12.tmp", f"{digest_of(b'gone')}.tmp"}
    for name in (*orphans, "README"):
        (home / name).touch()
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("another"):
        assert files(folder) == {digest_of(b"kept"), "README", *orphans}
        async with store.lock_run("run"):
            assert files(folder) == {digest_of(b"kept"), "README"}
    await store.aclose()
    assert f"{digest_of(b'orphan')}, which no record names" in caplog.text


@LOCAL
async def test_orphans_that_cannot_be_removed_are_not_an_error(
    scheme: str, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(folder, naming(A, 1, b"kept"), blobs=(b"kept",), scheme=scheme)
    (path_of_blob(folder, digest_of(b"kept")).parent / "tmpabcdef12.tmp").touch()
    store = await open_store(f"{scheme}:{folder}")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _refuse_temporary)
        async with owned(store) as run:
            assert await store.save(run, chain(A, 2, 2)) == [None]
    await store.aclose()
    assert "orphans are left" in caplog.text


_real_unlink = Path.unlink


def _refuse_temporary(path: Path, **options: bool) -> None:
    if path.name == "tmpabcdef12.tmp":
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
    _real_unlink(path, **options)


@LOCAL
async def test_folder_of_a_run_without_blobs_goes(scheme: str, folder: Path) -> None:
    store = await open_store(f"{scheme}:{folder}")
    async with owned(store) as run:
        await store.put_blob(run, b"blob")
        await store.save(run, [naming(A, 1, b"blob")])
    assert path_of_blob(folder, digest_of(b"blob")).exists()
    async with owned(store) as run:
        await store.prune(run, keep=0)
    assert list((folder / "blobs").iterdir()) == []
    await store.aclose()


@LOCAL
async def test_save_that_was_refused_keeps_the_pin(scheme: str, folder: Path) -> None:
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        await store.put_blob(run, BIG)
        for bad in (naming(B, 7, BIG), naming(B, 1, BIG, b"never put")):
            (outcome,) = await store.save(run, [bad])
            assert outcome is not None
        await store.drop_blobs(run, A, [1])
        assert files(folder) == {BIG_DIGEST}
        assert await store.save(run, [naming(B, 1, BIG)]) == [None]
        await store.drop_blobs(run, B, [1])
        assert files(folder) == set()
    await store.aclose()


@LOCAL
async def test_blob_that_cannot_be_removed_is_not_an_error(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", _refuse)
            assert await store.drop_blobs(run, A, [1]) == len(BIG)
        assert "dropped blobs were not removed" in caplog.text
        await store.put_blob(run, BIG)
        assert await store.save(run, [naming(A, 2, BIG)]) == [None]
        assert await store.read_blob("run", BIG_DIGEST) == BIG
    await store.aclose()


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.EACCES, "Permission denied")


async def test_drop_of_a_run_beside_a_damaged_one(folder: Path) -> None:
    """It does not read the others."""
    await make(folder, scheme="json")
    store = await JsonStore.open(folder)
    async with owned(store, "another") as run:
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        (folder / "runs" / "run" / "checkpoint.json").write_text("{}")
        assert await store.drop_blobs(run, A, [1]) == len(BIG)
        assert files(folder) == set()
    await store.aclose()


@LOCAL
async def test_who_cannot_read_the_names_removes_nothing(
    scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise StoreError("the names cannot be read")

    store = await open_store(f"{scheme}:{folder}")
    async with owned(store) as run:
        await store.put_blob(run, BIG)
        await store.save(run, [naming(A, 1, BIG)])
        with monkeypatch.context() as patch:
            patch.setattr(store._writer, "unnamed", fail)  # type: ignore[attr-defined]
            assert await store.drop_blobs(run, A, [1]) == 0
        assert "dropped blobs were not removed" in caplog.text
        assert files(folder) == {BIG_DIGEST}
        assert await names(store) == {1: ()}
    async with owned(store):
        assert files(folder) == set()
    await store.aclose()


async def test_drop_whose_commit_failed(folder: Path) -> None:
    """It is read back: landed, failed with an error, or unknown if that fails."""
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for payload in (b"one", b"two"):
            await store.put_blob(run, payload)
        await store.save(run, [naming(A, 1, b"one"), naming(A, 2, b"two")])
        with (
            failing_commit(store, sqlite3.SQLITE_FULL, is_done=False),
            pytest.raises(StoreError, match="as planned"),
        ):
            await store.drop_blobs(run, A, [1])
        assert await names(store) == {1: (digest_of(b"one"),), 2: (digest_of(b"two"),)}
        assert len(files(folder)) == 2
        with failing_commit(store, sqlite3.SQLITE_BUSY, is_done=True):
            assert await store.drop_blobs(run, A, [1]) == 3
        assert files(folder) == {digest_of(b"two")}
        with (
            failing_commit(store, sqlite3.SQLITE_IOERR_FSYNC, is_done=True),
            pytest.raises(SaveOutcomeUnknownError),
        ):
            await store.drop_blobs(run, A, [2])
        assert files(folder) == {digest_of(b"two")}
    await store.aclose()


# ---------------------------------------------------------------------------------------
# Crashes
# ---------------------------------------------------------------------------------------


@LOCAL
async def test_crash_at_any_step_leaves_whole_what_is_named(
    scheme: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each operation on a file the folder is copied: in every copy each blob that a
    record names is whole, nothing that was acknowledged is gone, and the next owner goes on."""
    copies: list[tuple[Path, dict[int, set[int]], int]] = []
    allowed: dict[int, set[int]] = {}  # how many blobs each record may name: all, or none
    begun = 0  # the newest record that may be there

    def watch(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            copy()
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    def copy() -> None:
        copies.append((tmp_path / f"copy {len(copies)}", dict(allowed), begun))
        shutil.copytree(folder, copies[-1][0])

    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for module in (_blobs, _files):
            watch(module, "sync_folder")
        watch(_blobs, "sync_data")
        for name in ("writev", "replace", "write", "fdatasync"):
            watch(os, name)
        for name in ("unlink", "rmdir"):
            watch(Path, name)
        payloads = [b"%d" % n * 3000 for n in range(4)]
        for n in range(1, 4):
            for payload in payloads[n - 1 : n + 1]:
                await store.put_blob(run, [payload[:10], payload[10:]])
            begun = n
            copy()
            assert await store.save(run, [naming(A, n, *payloads[n - 1 : n + 1])]) == [None]
            allowed[n] = {2}
            copy()
            if n > 1:
                allowed[n - 1] = {0, 2}
                await store.drop_blobs(run, A, [n - 1])
                allowed[n - 1] = {0}
                copy()
    monkeypatch.undo()
    await store.aclose()
    assert len(copies) > 36
    for number, (then, counts, newest) in enumerate(copies):
        again = await open_store(f"{scheme}:{then}")
        found = await names(again)
        assert set(counts) <= set(found) <= set(range(1, newest + 1)), number
        for sequence, named in found.items():
            assert len(named) in counts.get(sequence, {2}), number
            for digest in named:
                assert digest_of(await again.read_blob("run", digest)) == digest, number
        async with again.lock_run("run") as owner:
            assert files(then) == {digest for named in found.values() for digest in named}
            run = RunKey("run", 0, owner)
            await again.put_blob(run, b"more")
            following = naming(A, len(found) + 1, b"more")
            assert await again.save(run, [following]) == [None]
        await again.aclose()
