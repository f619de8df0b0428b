"""The SQLite store: its folder, damage, reading and closing."""

# ruff: noqa: ASYNC240  # a test may block its own loop

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.stores.tools import A, B, chain, make, owned, path_of_blob
from trio_ckpt._util.errors import (
    StoreDamagedError,
    StoreError,
    StoreVersionError,
)
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores import SqliteStore, open_store
from trio_ckpt.stores._local import blobs, files, locks
from trio_ckpt.stores._local.files import hashed_name
from trio_ckpt.stores._sqlite import schema

# ---------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------


async def test_only_the_user_may_read_it(folder: Path) -> None:
    payload = b"blob"
    digest = hashlib.sha256(payload).hexdigest()
    store = await SqliteStore.open(folder / "deep" / "deeper")
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.put_blob(run, payload)
        await store.save(run, [Checkpoint(A, 1, b"", digest)])
        for path in (folder, *folder.rglob("*")):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    await store.aclose()


async def test_not_made_unless_asked(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*store"):
        await open_store(folder, create=False)
    assert not folder.exists()
    await make(folder)
    await (await open_store(folder, create=False)).aclose()


async def test_file_in_its_place(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(StoreError, match=r"store is a file, not the folder of a store"):
        await open_store(folder)
    with pytest.raises(StoreError, match=r"store/deep: opening the store failed: Not a directory"):
        await open_store(folder / "deep")


async def test_folder_with_foreign_files(folder: Path) -> None:
    """A folder with other things in it is refused, and nothing is added to it."""
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"is not a trio_ckpt store: it holds 'thesis.tex'"):
        await open_store(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


async def test_database_of_another_program(folder: Path) -> None:
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("CREATE TABLE runs (id)")
    with pytest.raises(StoreError, match=r"state.db is not a trio_ckpt store"):
        await open_store(folder)
    assert [path.name for path in folder.iterdir()] == ["state.db"]


async def test_the_database_is_whole_and_durable_when_it_gets_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves of one that is being made could not always be undone."""
    synced: list[int] = []
    sync_file, replace = files.sync_file, os.replace

    def watch_sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        sync_file(fd)

    def watch_replace(new: Path, goal: Path) -> None:
        assert goal == folder / "state.db"
        assert not goal.exists()
        assert synced == [new.stat().st_ino]
        with contextlib.closing(sqlite3.connect(f"file:{new}?immutable=1", uri=True)) as database:
            found = database.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")
            assert {name for (name,) in found} == set(schema.TABLES)
        replace(new, goal)

    monkeypatch.setattr(schema, "sync_file", watch_sync)
    monkeypatch.setattr(schema.os, "replace", watch_replace)
    store = await SqliteStore.open(folder)
    assert synced
    await store.aclose()
    assert sorted(path.name for path in folder.iterdir()) == ["blobs", "lock", "state.db"]


@pytest.mark.parametrize(
    "left",
    [(), ("state.db",), ("state.db", "blobs"), ("lock", "blobs"), ("state.db.new", "blobs")],
)
async def test_interrupted_making_goes_on(folder: Path, left: tuple[str, ...]) -> None:
    """A crash at any point of making the store leaves what the next start can finish."""
    folder.mkdir()
    for name in left:
        (folder / name).touch() if "state" in name else (folder / name).mkdir()
    await make(folder, *chain(A, 1, 1))
    assert not (folder / "state.db.new").exists()


async def test_another_version(folder: Path) -> None:
    await make(folder)
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreVersionError, match=r"format 7, .* reads format 3: update"):
        await open_store(folder)


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE folds",
        "CREATE TABLE more (id)",
        "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM runs; END",
    ],
)
async def test_other_tables_than_ours(folder: Path, change: str) -> None:
    await make(folder)
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute(change)
    with pytest.raises(StoreDamagedError, match=r"tables are not those"):
        await open_store(folder)


async def test_a_format_that_never_was(folder: Path) -> None:
    await make(folder)
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("PRAGMA user_version = 0")
    with pytest.raises(StoreDamagedError, match="format 0, which never existed"):
        await open_store(folder)


@pytest.mark.parametrize("member", ["state.db", "blobs", "lock"])
async def test_links_are_refused(folder: Path, tmp_path: Path, member: str) -> None:
    await make(folder)
    (folder / member).rename(tmp_path / "elsewhere")
    (folder / member).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{member} is a symbolic link: refused"):
        await open_store(folder)


async def test_not_writable(folder: Path) -> None:
    """/proc takes no folders from any user, root or not."""
    with pytest.raises(StoreError, match=r"/proc/store: opening the store failed: \w+"):
        await open_store("/proc/store")


async def test_no_locks_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HAS_FLOCK", False)
    with pytest.raises(StoreError, match=r"has no flock\(2\)"):
        await open_store(folder)
    assert not folder.exists()


async def test_file_system_refuses_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"refuses locks \(Operation not supported\)"):
        await open_store(folder)


async def test_journal_mode_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays in the rollback journal would lose acknowledged saves."""
    await make(folder)
    real = sqlite3.connect

    class Stubborn(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("= WAL", "= DELETE"), *args)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": Stubborn}))
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
    await make(folder, *chain(A, 1, 3))
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
    await make(folder, *[Checkpoint(A, n, bytes(3000)) for n in range(1, 20)])
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
    await make(folder, *chain(A, 1, 9))
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


async def test_record_of_another_place(folder: Path) -> None:
    await make(folder, *chain(A, 1, 9))
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        database.execute("UPDATE log SET sequence = 6 WHERE sequence = 5")
        database.commit()
    store = await SqliteStore.open(folder)
    with pytest.raises(StoreDamagedError, match="checkpoint 5 of stream"):
        await store.read_run("run")
    await store.aclose()


async def test_cursor_of_another_stream_is_not_damage(folder: Path) -> None:
    await make(folder, *chain(A, 1, 9), *chain(B, 1, 9))
    store = await SqliteStore.open(folder)
    page = await store.history("run", B, limit=4)
    with pytest.raises(StoreError, match="is not a cursor of this stream's history") as caught:
        await store.history("run", A, cursor=page.cursor)
    assert not isinstance(caught.value, StoreDamagedError)
    await store.aclose()


@pytest.mark.parametrize("damage", ["missing", "altered", "cut", "link"])
async def test_damaged_blob(folder: Path, damage: str) -> None:
    payload = b"blob" * 1000
    digest = hashlib.sha256(payload).hexdigest()
    await make(folder, Checkpoint(A, 1, b"", digest), blobs=(payload,))
    path = path_of_blob(folder, digest)
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
    await make(folder, Checkpoint(A, 1, b"", digest), blobs=(payload,))
    path_of_blob(folder, digest).write_bytes(b"")
    store = await SqliteStore.open(folder)
    async with owned(store) as run:
        await store.put_blob(run, payload)
    assert (await store.history("run", A)).records[0].payload == payload
    await store.aclose()


@pytest.mark.parametrize("digest", ["", "x", "../../../etc/passwd", "A" * 64, "a" * 63, "é" * 64])
async def test_blob_names_are_digests(folder: Path, digest: str) -> None:
    store = await SqliteStore.open(folder)
    with pytest.raises(StoreError, match="is not the name of a blob"):
        await store.read_blob("run", digest)
    async with store.lock_run("run") as owner:
        (outcome,) = await store.save(RunKey("run", 0, owner), [Checkpoint(A, 1, b"", digest)])
        assert isinstance(outcome, StoreError)
    await store.aclose()


async def test_blob_is_durable_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's content, then the name, then the folders that hold the name."""
    store = await SqliteStore.open(folder)
    digest = hashlib.sha256(b"blob").hexdigest()
    done: list[str] = []

    def spy(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            done.append(f"{name} {Path(args[-1]).name}" if name != "file" else name)
            real(*args)

        return call

    monkeypatch.setattr(blobs, "sync_data", spy("file", blobs.sync_data))
    for module in (blobs, files):
        monkeypatch.setattr(module, "sync_folder", spy("folder", files.sync_folder))
    monkeypatch.setattr(os, "replace", spy("rename", os.replace))
    async with owned(store) as run:
        done.clear()
        await store.put_blob(run, b"blob")
        ends = [f"folder {hashed_name('run')}", "folder blobs"]
        assert done == ["folder blobs", "file", f"rename {digest}", *ends]
        done.clear()
        await store.put_blob(run, b"blob")
        assert done == ["file", *ends]
    await store.aclose()


# ---------------------------------------------------------------------------------------
# Reading and closing
# ---------------------------------------------------------------------------------------


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
        assert await store.save(RunKey("run", 0, owner), chain(A, 1, 1)) == [None]
        release.set()
    await store.aclose()


async def test_closing_takes_the_log_in(folder: Path) -> None:
    await make(folder, *chain(A, 1, 3))
    assert sorted(path.name for path in folder.iterdir()) == ["blobs", "live", "lock", "state.db"]


async def test_closing_beside_another_handle_empties_the_log(folder: Path) -> None:
    await make(folder)
    other = await SqliteStore.open(folder)
    await other.list_runs()
    store = await SqliteStore.open(folder)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
    assert (folder / "state.db-wal").stat().st_size > 0
    await store.aclose()
    assert (folder / "state.db-wal").stat().st_size == 0
    await other.aclose()


async def test_log_does_not_grow_without_bound(folder: Path) -> None:
    store = await SqliteStore.open(folder, durability="process")
    async with store.lock_run("run") as owner:
        for n in range(1, 3_001):
            await store.save(RunKey("run", 0, owner), [Checkpoint(A, n, bytes(2_000))])
        assert (folder / "state.db-wal").stat().st_size < 8 * 2**20
    await store.aclose()


async def test_a_store_that_is_being_made_can_be_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever SQLite has beside the new database in that moment."""
    real = schema.make_tables

    def make_beside_another(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE something (inside)")
        schema.make_folders(folder, create=True)
        connection.execute("ROLLBACK")
        real(connection)

    monkeypatch.setattr(schema, "make_tables", make_beside_another)
    store = await SqliteStore.open(folder)
    assert set(os.listdir(folder)) <= {*schema.FILES, *schema.FOLDERS}
    await store.aclose()
