"""A store of the format before gets what the present one adds, whole or not at all."""

# a test may block its own loop

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

import trio_ckpt
from tests.formats.test_formats import check_what_was_saved, unpack
from trio_ckpt import StoreDamagedError
from trio_ckpt._journal.history import find_run
from trio_ckpt.stores import open_store
from trio_ckpt.stores._json.files import FORMAT_VERSION as JSON_VERSION
from trio_ckpt.stores._sqlite.schema import FORMAT_VERSION, TABLES


def format_of(folder: Path) -> tuple[int, dict[str, str]]:
    """The version of a database, and the texts of its tables."""
    with contextlib.closing(sqlite3.connect(folder / "store/state.db")) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        rows = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return version, dict(rows.fetchall())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in path.parts
    }


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_a_run_without_a_summary_is_listed_and_gets_one(kind: str, tmp_path: Path) -> None:
    store = await open_store(unpack(f"{kind}-2", tmp_path))
    await check_what_was_saved(store)
    line = await find_run(store, "old")
    assert line is not None
    assert (line.summary, line.updated_at, line.is_complete) == (b"", None, False)
    assert (line.is_owned, line.streams) == (False, 5)
    async with trio_ckpt.open_run("old", store=store, handle_signals=False):
        pass
    line = await find_run(store, "old")
    assert line is not None
    assert line.is_current
    assert line.updated_at is not None
    await store.aclose()


async def test_a_database_of_format_2_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    url = unpack("sqlite-2", tmp_path)
    assert format_of(tmp_path)[0] == 2
    for _ in range(2):
        await (await open_store(url)).aclose()
        assert format_of(tmp_path) == (FORMAT_VERSION, TABLES)


async def test_several_processes_may_open_a_store_of_format_2(tmp_path: Path) -> None:
    """Handles stand for them: the upgrade is made under the lock of opening."""
    url = unpack("sqlite-2", tmp_path)
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            store = await open_store(url)
            await check_what_was_saved(store)
            await store.aclose()

        for _ in range(4):
            nursery.start_soon(look)
    assert format_of(tmp_path) == (FORMAT_VERSION, TABLES)


_KILLED = """
    import os, sqlite3, sys, trio
    from trio_ckpt.stores import open_store
    from trio_ckpt.stores._sqlite import schema, writer

    left = [int(sys.argv[2])]

    def connect(database):
        connection = schema.connect(database)

        def trace(statement):
            if statement.startswith(("BEGIN IMM", "ALTER", "CREATE", "PRAGMA user", "COMMIT")):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        connection.set_trace_callback(trace)
        return connection

    writer.connect = connect
    trio.run(open_store, sys.argv[1])
    os._exit(0)
"""


def killed_at(statement: int, url: str) -> int:
    """Open a store in a process that ends at a statement; its exit code."""
    command = [sys.executable, "-c", textwrap.dedent(_KILLED), url, str(statement)]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize("statement", range(1, 8))
async def test_a_kill_during_the_upgrade_loses_nothing(statement: int, tmp_path: Path) -> None:
    """At each of its statements; the last runs are over before the kill."""
    url = unpack("sqlite-2", tmp_path)
    code = killed_at(statement, url)
    assert code in (0, 9)
    if code == 9:
        version, tables = format_of(tmp_path)
        assert (version, "summaries" in tables) in {(2, False), (FORMAT_VERSION, True)}
    else:
        assert statement > 5
    store = await open_store(url)
    await check_what_was_saved(store)
    await store.aclose()
    assert format_of(tmp_path) == (FORMAT_VERSION, TABLES)


@pytest.mark.parametrize("change", ["DROP TABLE folds", "CREATE TABLE more (id)"])
async def test_tables_that_are_not_of_format_2_are_left(change: str, tmp_path: Path) -> None:
    url = unpack("sqlite-2", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "store/state.db")) as database:
        database.execute(change)
    before = format_of(tmp_path)
    with pytest.raises(StoreDamagedError, match="its tables are not those"):
        await open_store(url)
    assert format_of(tmp_path) == before


async def test_a_process_of_the_older_version_goes_on_saving(tmp_path: Path) -> None:
    """Its statements, prepared before the upgrade, are those of format 2."""
    url = unpack("sqlite-2", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "store/state.db")) as older:
        older.execute("UPDATE heads SET sequence = sequence, last = last WHERE stream = 1")
        older.commit()
        await (await open_store(url)).aclose()
        older.execute("INSERT INTO heads (stream, sequence, last) VALUES (99, 0, 0)")
        older.execute("UPDATE heads SET sequence = sequence, last = last WHERE stream = 1")
        older.execute("DELETE FROM heads WHERE stream = 99")
        older.commit()
    store = await open_store(url)
    await check_what_was_saved(store)
    await store.aclose()


async def test_a_json_store_of_format_2_gets_the_newer_marker(tmp_path: Path) -> None:
    """Its other files are valid as they are, and stay."""
    url = unpack("json-2", tmp_path)
    before = contents(tmp_path)
    for _ in range(2):
        await (await open_store(url)).aclose()
        after = contents(tmp_path)
        marker = json.loads(after.pop("store/store.json"))
        assert marker["version"] == JSON_VERSION
        assert after == {name: it for name, it in before.items() if name != "store/store.json"}


async def test_a_kill_leaves_the_marker_of_one_format_or_the_other(tmp_path: Path) -> None:
    """A half-written one has another name."""
    url = unpack("json-2", tmp_path)
    (tmp_path / "store/store.json.tmp").write_bytes(b'{"format":"trio_ck')
    store = await open_store(url)
    await check_what_was_saved(store)
    await store.aclose()
    assert not (tmp_path / "store/store.json.tmp").exists()
