"""What the SQLite store has beyond the contract: folders, damage, full disks, crashes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_ckpt._errors import (
    RunLockedError,
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
    StoreVersionError,
)
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import MemoryStore, SqliteStore, _locks, _sqlite_reader, open_store

A, B = '["a"]', '["b"]'
KILLS = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def _make(folder: Path, *group: Checkpoint, blobs: tuple[bytes, ...] = ()) -> None:
    """A store with a run that has these checkpoints."""
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        for payload in blobs:
            await store.put_blob(hashlib.sha256(payload).hexdigest(), payload)
        assert await store.save(RunKey("run", 0, owner), group) == [None] * len(group)
    await store.aclose()


async def _heads(store: SqliteStore) -> dict[str, int]:
    stored = await store.read_run("run")
    assert stored is not None
    return {entry.stream: entry.sequence for entry in stored.streams}


def _chain(stream: str, first: int, last: int) -> list[Checkpoint]:
    return [Checkpoint(stream, n, b"%d" % n) for n in range(first, last + 1)]


# ---------------------------------------------------------------------------------------
# URLs
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["plain", "sqlite:plain", "./plain", Path("plain")])
async def test_url_of_a_folder(
    url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = await open_store(url)
    monkeypatch.chdir("/")
    assert store.url == f"sqlite:{tmp_path / 'plain'}"
    async with store.lock_run("run"):  # a later chdir changes nothing
        pass
    await store.aclose()
    await (await open_store(store.url)).aclose()


@pytest.mark.parametrize("url", ["C:\\x", "./re:2025", "sqlite:re:2025", "a/b:c", "10:30"])
async def test_colon_in_a_folder(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await (await open_store(url)).aclose()
    assert (tmp_path / url.removeprefix("sqlite:") / "state.db").exists()


@pytest.mark.parametrize("url", ["json:x", "postgresql://h/d", "s3://b/p", "re:2025", "SQLITE:x"])
async def test_unknown_scheme(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"no stores of kind '.*:'; known are sqlite:.*memory:"):
        await open_store(url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite:///x", "memory:x", "a\0b"])
async def test_url_that_names_nothing(url: str) -> None:
    with pytest.raises(StoreError):
        await open_store(url)


async def test_settings_arrive(folder: Path) -> None:
    store = await open_store(folder, mac_key=b"key", durability="process")
    assert (store.mac_key, store.durability) == (b"key", "process")
    await store.aclose()
    assert (await open_store("memory:", mac_key=b"key")).mac_key == b"key"


# ---------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------


async def test_only_the_user_may_read_it(folder: Path) -> None:
    payload = b"blob"
    digest = hashlib.sha256(payload).hexdigest()
    store = await SqliteStore.open(folder / "deep" / "deeper")
    async with store.lock_run("run") as owner:
        await store.put_blob(digest, payload)
        await store.save(RunKey("run", 0, owner), [Checkpoint(A, 1, b"", digest)])
        for path in (folder, *folder.rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    await store.aclose()


async def test_not_made_unless_asked(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*store"):
        await open_store(folder, create=False)
    assert not folder.exists()
    await _make(folder)
    await (await open_store(folder, create=False)).aclose()


async def test_file_in_its_place(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(StoreError, match=r"store is a file, not the folder of a store"):
        await open_store(folder)
    with pytest.raises(StoreError, match=r"store/deep: opening the store failed: Not a directory"):
        await open_store(folder / "deep")


async def test_folder_of_somebody_else(folder: Path) -> None:
    """A folder with other things in it is refused, and nothing is added to it."""
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"is not a trio_ckpt store: it holds 'thesis.tex'"):
        await open_store(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


async def test_database_of_somebody_else(folder: Path) -> None:
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("CREATE TABLE runs (id)")
    with pytest.raises(StoreError, match=r"state.db is not a trio_ckpt store"):
        await open_store(folder)
    assert [path.name for path in folder.iterdir()] == ["state.db"]


@pytest.mark.parametrize("left", [(), ("state.db",), ("state.db", "blobs"), ("lock", "blobs")])
async def test_interrupted_making_goes_on(folder: Path, left: tuple[str, ...]) -> None:
    """A crash at any point of making the store leaves what the next start can finish."""
    folder.mkdir()
    for name in left:
        (folder / name).touch() if name == "state.db" else (folder / name).mkdir()
    await _make(folder, *_chain(A, 1, 1))


async def test_newer_version(folder: Path) -> None:
    await _make(folder)
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreVersionError, match=r"format 7, .* knows formats up to 1: update"):
        await open_store(folder)


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE folds",
        "CREATE TABLE more (id)",
        "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM runs; END",
        "PRAGMA user_version = 0",
    ],
)
async def test_other_tables_than_ours(folder: Path, change: str) -> None:
    await _make(folder)
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute(change)
    with pytest.raises(StoreDamagedError, match=r"tables are not those"):
        await open_store(folder)


@pytest.mark.parametrize("member", ["state.db", "blobs", "lock"])
async def test_links_are_refused(folder: Path, tmp_path: Path, member: str) -> None:
    await _make(folder)
    (folder / member).rename(tmp_path / "elsewhere")
    (folder / member).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{member} is a symbolic link: refused"):
        await open_store(folder)


async def test_not_writable(folder: Path) -> None:
    """/proc takes no folders from anybody, root or not."""
    with pytest.raises(StoreError, match=r"/proc/store: opening the store failed: \w+"):
        await open_store("/proc/store")


async def test_no_locks_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_locks, "HAS_FLOCK", False)
    with pytest.raises(StoreError, match=r"has no flock\(2\)"):
        await open_store(folder)


async def test_file_system_refuses_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(_locks.fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"refuses locks \(Operation not supported\)"):
        await open_store(folder)


async def test_journal_mode_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays in the rollback journal would lose acknowledged saves."""
    await _make(folder)
    real = sqlite3.connect

    class Stubborn(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("= WAL", "= DELETE"), *args)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, factory=Stubborn, **k))
    with pytest.raises(StoreError, match="in journal mode 'delete'"):
        await open_store(folder)


async def test_durability_is_set(folder: Path) -> None:
    for durability, level in (("full", 2), ("process", 1)):
        store = await SqliteStore.open(folder, durability=durability)  # type: ignore[arg-type]
        rows = await store._writing.run(_pragmas, store)
        assert rows == ("wal", level, 0)
        await store.aclose()


def _pragmas(store: SqliteStore) -> tuple[Any, ...]:
    names = ("journal_mode", "synchronous", "trusted_schema")
    return tuple(
        store._writer._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names
    )


# ---------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 16, 100])
async def test_damaged_database(folder: Path, start: int) -> None:
    await _make(folder, *_chain(A, 1, 3))
    path = folder / "state.db"
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xa5" * 4096 + content[start + 4096 :])
    with pytest.raises(StoreError, match=r"state.db") as caught:
        await open_store(folder)
    assert isinstance(caught.value, StoreDamagedError) or "not a trio_ckpt store" in str(
        caught.value
    )


async def test_cut_database(folder: Path) -> None:
    """What is missing at the end is noticed, at the latest when it is read."""
    await _make(folder, *[Checkpoint(A, n, bytes(3000)) for n in range(1, 20)])
    path = folder / "state.db"
    os.truncate(path, path.stat().st_size - 3 * 4096)

    async def read() -> None:
        store = await SqliteStore.open(folder)
        async with contextlib.aclosing(store):
            await store.read_run("run")

    with pytest.raises(StoreDamagedError, match=r"state\.db"):
        await read()


async def test_lost_record(folder: Path) -> None:
    """A chain with a hole is refused, by name, where the hole is."""
    await _make(folder, *_chain(A, 1, 9))
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("DELETE FROM log WHERE sequence = 5")
        database.commit()
    store = await SqliteStore.open(folder)
    with pytest.raises(StoreDamagedError, match="checkpoint 5 of stream"):
        await store.read_run("run")
    page = await store.history("run", A, limit=4)
    assert [record.sequence for record in page.records] == [9, 8, 7, 6]
    with pytest.raises(StoreError):
        await store.history("run", A, cursor=page.cursor)
    await store.aclose()


@pytest.mark.parametrize("damage", ["missing", "altered", "cut", "link"])
async def test_damaged_blob(folder: Path, damage: str) -> None:
    payload = b"blob" * 1000
    digest = hashlib.sha256(payload).hexdigest()
    await _make(folder, Checkpoint(A, 1, b"", digest), blobs=(payload,))
    path = folder / "blobs" / digest[:2] / digest
    match damage:
        case "missing":
            path.unlink()
        case "altered":
            path.write_bytes(payload[:-1] + b"x")
        case "cut":
            path.write_bytes(payload[:-1])
        case "link":
            path.rename(folder.parent / "elsewhere")
            path.symlink_to(folder.parent / "elsewhere")
    store = await SqliteStore.open(folder)
    with pytest.raises(StoreError, match=digest) as caught:
        await store.read_run("run")
    assert isinstance(caught.value, StoreDamagedError) or damage == "link"
    with pytest.raises(StoreError, match=digest):
        await store.history("run", A)
    await store.aclose()


async def test_damaged_blob_is_mended_by_putting_it_again(folder: Path) -> None:
    payload = b"blob"
    digest = hashlib.sha256(payload).hexdigest()
    await _make(folder, Checkpoint(A, 1, b"", digest), blobs=(payload,))
    (folder / "blobs" / digest[:2] / digest).write_bytes(b"")
    store = await SqliteStore.open(folder)
    await store.put_blob(digest, payload)
    assert (await store.history("run", A)).records[0].payload == payload
    await store.aclose()


@pytest.mark.parametrize("digest", ["", "x", "../../../etc/passwd", "A" * 64, "a" * 63, "é" * 64])
async def test_blob_names_are_digests(folder: Path, digest: str) -> None:
    store = await SqliteStore.open(folder)
    with pytest.raises(StoreError, match="is not the name of a blob"):
        await store.put_blob(digest, b"")
    async with store.lock_run("run") as owner:
        (outcome,) = await store.save(RunKey("run", 0, owner), [Checkpoint(A, 1, b"", digest)])
        assert isinstance(outcome, StoreError)
    await store.aclose()


async def test_orphans_are_removed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Blobs that no record names go when a run is locked, if nobody else owns one."""
    caplog.set_level(logging.INFO, "trio_ckpt")
    kept, orphan = b"kept", b"orphan"
    names = [hashlib.sha256(payload).hexdigest() for payload in (kept, orphan)]
    await _make(folder, Checkpoint(A, 1, b"", names[0]), blobs=(kept, orphan))
    temporary = folder / "blobs" / "00" / "tmpx.tmp"
    temporary.parent.mkdir(exist_ok=True)
    temporary.touch()
    stranger = folder / "blobs" / "00" / "README"
    stranger.touch()

    def there() -> set[str]:
        return {path.name for path in folder.glob("blobs/??/*")}

    store, other = await SqliteStore.open(folder), await SqliteStore.open(folder)
    async with store.lock_run("run"):
        assert there() == {names[0], "README"}
        await other.put_blob(names[1], orphan)
        async with other.lock_run("another"):
            assert there() == {*names, "README"}
    await store.aclose()
    await other.aclose()
    assert f"{names[1]}, left by a crash" in caplog.text


async def test_orphans_that_cannot_be_removed_are_no_error(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "blobs" / "00" / "x.tmp").mkdir(parents=True)  # unlink(2) takes no folder
    await _make(folder, *_chain(A, 1, 1))
    assert "orphans are left" in caplog.text


# ---------------------------------------------------------------------------------------
# Saves that fail
# ---------------------------------------------------------------------------------------


async def test_bad_values_go_alone(folder: Path) -> None:
    """A value that SQLite cannot take is like any checkpoint that fails: it goes alone."""
    store = await SqliteStore.open(folder)
    bad: list[Any] = [
        Checkpoint('["\ud800"]', 1, b""),
        Checkpoint('["type"]', 1, object()),  # type: ignore[arg-type]  # the bad value
        Checkpoint('["null"]', 1, None),  # type: ignore[arg-type]  # the bad value
        Checkpoint('["big"]', 2**70, b""),
    ]
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for one in bad[:2] + bad[3:]:
            outcomes = await store.save(run, [*_chain(A, 1, 1), one, *_chain(B, 1, 1)])
            assert [outcome is None for outcome in outcomes] == [True, False, True]
            assert isinstance(outcomes[1], StoreError)
            assert outcomes[1].__cause__ is not None
            run = RunKey("run", run.generation + 1, owner)
        assert await _heads(store) == {A: 1, B: 1}
    await store.aclose()


async def test_bad_fold_saves_nothing(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, _chain(A, 1, 1))
        with pytest.raises(StoreError, match="a fold cannot be saved"):
            await store.save(run, _chain(A, 2, 2), [Fold(A, 1, object())])  # type: ignore[arg-type]
        assert await _heads(store) == {A: 1}
        assert await store.save(run, _chain(A, 2, 2)) == [None]
    await store.aclose()


async def test_full_database_saves_nothing_and_goes_on(folder: Path) -> None:
    """SQLITE_FULL is told with the path; when there is room again, saving goes on."""
    store = await SqliteStore.open(folder)

    def limit(pages: int) -> None:
        store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")

    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, _chain(A, 1, 2))
        await store._writing.run(limit, 20)
        big = Checkpoint(A, 3, bytes(500_000))
        with pytest.raises(StoreError, match=r"state.db: saving failed: .*full \(SQLITE_FULL\)"):
            await store.save(run, [*_chain(B, 1, 1), big])
        assert await _heads(store) == {A: 2}
        await store._writing.run(limit, 1_000_000)
        assert await store.save(run, [*_chain(B, 1, 1), big]) == [None, None]
    assert await _heads(store) == {A: 3, B: 1}
    await store.aclose()


_NO_ROOM = """
    import resource, sys, trio
    from trio_ckpt import _errors
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
            except _errors.StoreError as error:
                print(type(error).__name__, error)
            try:
                await store.put_blob("00" * 32, bytes(300_000))
            except _errors.StoreError as error:
                print(type(error).__name__, error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            assert await store.save(run, [Checkpoint("s", saved + 1, b"")]) == [None]
            print(saved + 1)
        await store.aclose()

    trio.run(main)
"""


async def test_disk_takes_no_more(folder: Path) -> None:
    """A real write that fails in the kernel: nothing is half saved, and room lets it go on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_NO_ROOM), folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    saving, blob, last = done.stdout.splitlines()
    assert saving.startswith(f"StoreError {folder}/state.db: saving failed:")
    assert "writing the blob failed: File too large" in blob
    assert not list(folder.glob("blobs/??/*"))
    store = await SqliteStore.open(folder)
    assert await _heads(store) == {"s": int(last)}
    await store.aclose()


class _Cursor:
    """A cursor whose COMMIT raises, after it was done or instead of it."""

    def __init__(self, cursor: sqlite3.Cursor, code: int, *, is_done: bool) -> None:
        self._cursor = cursor
        self._code = code
        self._is_done = is_done

    def execute(self, sql: str, *args: Any) -> Any:
        if sql != "COMMIT":
            return self._cursor.execute(sql, *args)
        if self._is_done:
            self._cursor.execute(sql)
        error = sqlite3.OperationalError("as planned")
        error.sqlite_errorcode = self._code
        raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


@contextlib.contextmanager
def _failing_commit(store: SqliteStore, code: int, *, is_done: bool) -> Iterator[None]:
    writer: Any = store._writer
    real = writer._cursor
    writer._cursor = _Cursor(real, code, is_done=is_done)
    try:
        yield
    finally:
        writer._cursor = real


async def test_commit_that_raised_but_saved(folder: Path) -> None:
    """The heads are read back: what is there was saved, and is not saved again."""
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        with _failing_commit(store, sqlite3.SQLITE_BUSY, is_done=True):
            assert await store.save(run, _chain(A, 1, 2)) == [None, None]
        assert await store.save(run, _chain(A, 3, 3)) == [None]
    await store.aclose()


async def test_commit_that_raised_and_saved_nothing(folder: Path) -> None:
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, _chain(A, 1, 1))
        with (
            _failing_commit(store, sqlite3.SQLITE_FULL, is_done=False),
            pytest.raises(StoreError, match="as planned"),
        ):
            await store.save(run, [*_chain(A, 2, 2), *_chain(B, 1, 1)])
        assert await _heads(store) == {A: 1}
        assert await store.save(run, [*_chain(A, 2, 2), *_chain(B, 1, 1)]) == [None, None]
    await store.aclose()


@pytest.mark.parametrize("is_done", [False, True])
async def test_failed_fsync_leaves_the_outcome_unknown(folder: Path, is_done: bool) -> None:
    """After it nothing more is written, and the run stays locked while the process lives."""
    store = await SqliteStore.open(folder)
    other = await SqliteStore.open(folder)
    with pytest.raises(SaveOutcomeUnknownError, match="cannot be told"):
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            with _failing_commit(store, sqlite3.SQLITE_IOERR_FSYNC, is_done=is_done):
                await store.save(run, _chain(A, 1, 1))
    with pytest.raises(StoreError, match="nothing more is written"):
        await store.save(run, _chain(B, 1, 1))
    for handle in (store, other):
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
            async with handle.lock_run("run"):
                pass
    async with other.lock_run("another"):
        pass
    await store._writing.run(store._writer._connection.close)
    await store.aclose()
    await other.aclose()


async def test_save_that_was_given_up_on_keeps_the_lock(folder: Path) -> None:
    """The cancelled save is still in the thread: nobody may go on before it ended."""
    store = await SqliteStore.open(folder)
    blocker = sqlite3.connect(folder / "state.db", isolation_level=None)
    async with store.lock_run("run") as owner:
        blocker.execute("BEGIN IMMEDIATE")
        with trio.move_on_after(0.05) as scope:
            await store.save(RunKey("run", 0, owner), _chain(A, 1, 1))
        assert scope.cancelled_caught
    with pytest.raises(RunLockedError):
        async with store.lock_run("run"):
            pass
    blocker.execute("COMMIT")
    blocker.close()
    await store._writing.run(store._writer._connection.close)
    await store.aclose()
    again = await SqliteStore.open(folder)
    assert await _heads(again) == {A: 1}  # it landed
    await again.aclose()


async def test_second_writer_with_the_same_owner_is_noticed(folder: Path) -> None:
    """What is remembered of a run is not trusted: the database compares and sets."""
    store, intruder = await SqliteStore.open(folder), await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, _chain(A, 1, 1))
        await intruder.save(run, _chain(A, 2, 2))
        with pytest.raises(StoreConflictError, match="without owning the run"):
            await store.save(run, [*_chain(A, 2, 2), *_chain(B, 1, 1)])
        assert await _heads(store) == {A: 2}
        assert await store.save(run, [*_chain(A, 3, 3), *_chain(B, 1, 1)]) == [None, None]
        await intruder.save(run, _chain(A, 4, 4))
        assert await store.save(run, _chain(A, 5, 5)) == [None]
    await store.aclose()
    await intruder.aclose()


# ---------------------------------------------------------------------------------------
# Reading and closing
# ---------------------------------------------------------------------------------------


async def test_pages_are_bounded_in_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite_reader, "MAX_PAGE_BYTES", 2_500)
    await _make(folder, *[Checkpoint(A, n, bytes(1_000)) for n in range(1, 8)])
    store = await SqliteStore.open(folder)
    sizes, cursor = [], None
    while True:
        page = await store.history("run", A, cursor=cursor)
        sizes.append(len(page.records))
        cursor = page.cursor
        if cursor is None:
            break
    assert sizes == [3, 3, 1]
    await store.aclose()


async def test_reads_do_not_delay_saves(folder: Path) -> None:
    """A read that takes forever leaves the writing thread free."""
    store = await SqliteStore.open(folder)
    begun, release = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def slow_read() -> None:
        token.run_sync_soon(begun.set)
        trio.from_thread.run(release.wait, trio_token=token)

    async with trio.open_nursery() as nursery, store.lock_run("run") as owner:
        nursery.start_soon(store._read, slow_read)
        await begun.wait()
        assert await store.save(RunKey("run", 0, owner), _chain(A, 1, 1)) == [None]
        release.set()
    await store.aclose()


async def test_closing_takes_the_log_in(folder: Path) -> None:
    await _make(folder, *_chain(A, 1, 3))
    assert sorted(path.name for path in folder.iterdir()) == ["blobs", "lock", "state.db"]


async def test_log_does_not_grow_without_bound(folder: Path) -> None:
    store = await SqliteStore.open(folder, durability="process")
    async with store.lock_run("run") as owner:
        for n in range(1, 3_001):
            await store.save(RunKey("run", 0, owner), [Checkpoint(A, n, bytes(2_000))])
        assert (folder / "state.db-wal").stat().st_size < 8 * 2**20
    await store.aclose()


# ---------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------

_SAVER = """
    import os, sys, trio
    from trio_ckpt.abc import Checkpoint, Fold, RunKey
    from trio_ckpt.stores import open_store

    async def main():
        store = await open_store(sys.argv[1])
        async with store.lock_run("run") as owner:
            run = RunKey("run", 0, owner)
            stored = await store.read_run("run")
            heads = {entry.stream: entry.sequence for entry in stored.streams}
            names = [f'["{number}"]' for number in range(5)]
            n = min([heads.get(name, 0) for name in names])
            assert {heads.get(name, 0) for name in names} == {n}, heads
            os.write(1, b"begun\\n")
            while True:
                n += 1
                payload = b"%d" % n
                folds = [Fold(names[0], n, payload)] if n % 50 == 0 else []
                group = [Checkpoint(name, n, payload) for name in names]
                assert await store.save(run, group, folds) == [None] * 5
                os.write(1, b"%d\\n" % n)

    trio.run(main)
"""


def _start(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), folder], stdout=subprocess.PIPE, text=True
    )


async def test_nothing_acknowledged_is_lost_by_kill_9(folder: Path) -> None:
    acknowledged = 0
    for kill in range(KILLS):
        process = _start(_SAVER, folder)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3 + 17 * kill)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        acknowledged = max([acknowledged, *[int(line) for line in lines[1:]]])
        store = await SqliteStore.open(folder)
        stored = await store.read_run("run")
        assert stored is not None
        assert len(stored.streams) == 5
        for entry in stored.streams:
            assert acknowledged <= entry.sequence <= acknowledged + 2
            first = entry.fold.through + 1 if entry.fold else 1
            assert [(record.sequence, record.payload) for record in entry.tail] == [
                (n, b"%d" % n) for n in range(first, entry.sequence + 1)
            ]
        acknowledged = stored.streams[0].sequence
        await store.aclose()
    assert acknowledged > 3 * KILLS


async def test_lock_of_another_process(folder: Path) -> None:
    """It is refused with that process' id, other runs are free, and it dies with it."""
    process = _start(_SAVER, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    store = await SqliteStore.open(folder)
    with pytest.raises(RunLockedError) as caught:
        async with store.lock_run("run"):
            pass
    assert caught.value.pid == process.pid
    async with store.lock_run("another") as owner:  # while the other one is saving
        for n in range(1, 20):
            run = RunKey("another", 0, owner)
            assert await store.save(run, [Checkpoint(A, n, b"")]) == [None]
    process.kill()
    process.stdout.close()
    process.wait()
    async with store.lock_run("run") as owner:
        assert owner == 2
    await store.aclose()


async def test_lock_file_without_a_note(folder: Path) -> None:
    """What the file says is advice; the lock alone decides."""
    store, other = await SqliteStore.open(folder), await SqliteStore.open(folder)
    async with store.lock_run("run"):
        for path in folder.glob("lock/" + "?" * 32):
            path.write_text('{"host": "elsewhere"')
        with pytest.raises(RunLockedError, match="an unknown host"):
            async with other.lock_run("run"):
                pass
    async with other.lock_run("run"):
        pass
    await store.aclose()
    await other.aclose()


async def test_many_handles_open_at_once(folder: Path) -> None:
    """Making the store is safe against others who make it at the same time."""
    stores: list[SqliteStore] = []

    async def opener() -> None:
        stores.append(await SqliteStore.open(folder))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(opener)
    for store in stores:
        await store.aclose()
    assert isinstance(await open_store("memory:"), MemoryStore)
