"""Databases and documents that an attacker wrote: refused with a message before they are used."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.stores.test_hostile import make, use
from tests.stores.tools import A
from trio_ckpt._util.errors import StoreDamagedError, StoreError
from trio_ckpt.stores import open_store
from trio_ckpt.stores._json import format
from trio_ckpt.stores._sqlite import schema

# -- SQLite: schemas that are not ours -----------------------------------------------------


def _rewrite_schema(connection: sqlite3.Connection, sql: str, *values: object) -> None:
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(sql, values)
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    connection.execute(f"PRAGMA schema_version = {version + 1}")


def _trigger(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TRIGGER evil AFTER UPDATE ON runs BEGIN DELETE FROM log; END")


def _trigger_with_the_name_of_an_index(connection: sqlite3.Connection) -> None:
    """Before the index of this name, so that a look-up by name finds the index."""
    connection.execute("PRAGMA writable_schema = ON")
    rows = connection.execute(
        "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master"
    ).fetchall()
    (index,) = (row for row in rows if row[1] == "attached_digest")
    connection.execute("DELETE FROM sqlite_master WHERE name = 'attached_digest'")
    evil = "CREATE TRIGGER attached_digest AFTER UPDATE ON runs BEGIN DELETE FROM heads; END"
    insert = "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES (?,?,?,?,?)"
    connection.execute(insert, ("trigger", "attached_digest", "runs", 0, evil))
    connection.execute(insert, index)
    _rewrite_schema(connection, "DELETE FROM sqlite_master WHERE name = ?", "nothing")


def _view_in_place_of_a_table(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE folds RENAME TO real_folds")
    connection.execute("CREATE VIEW folds AS SELECT * FROM real_folds")


def _virtual_table(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE folds")
    connection.execute("CREATE VIRTUAL TABLE folds USING fts5(stream, through, payload)")


def _generated_column(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE folds")
    connection.execute(
        "CREATE TABLE folds (stream INTEGER PRIMARY KEY, through INTEGER NOT NULL, "
        "payload BLOB AS (zeroblob(1000000000)))"
    )


def _index_on_an_expression(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE INDEX evil ON log (abs(id))")


def _check_that_calls(connection: sqlite3.Connection) -> None:
    text = schema.TABLES["heads"].replace(
        "last INTEGER NOT NULL", "last INTEGER CHECK (load_extension('x') IS NULL)"
    )
    _rewrite_schema(connection, "UPDATE sqlite_master SET sql = ? WHERE name = 'heads'", text)


def _two_tables_in_one_place(connection: sqlite3.Connection) -> None:
    """Both read the same pages: what one says, the other says, too."""
    _rewrite_schema(
        connection,
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master "
        "WHERE name = 'heads') WHERE name = 'folds'",
    )


def _one_table_more(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE more (x)")


SCHEMAS = [
    *(_trigger, _trigger_with_the_name_of_an_index, _view_in_place_of_a_table, _virtual_table),
    *(_generated_column, _index_on_an_expression, _check_that_calls, _one_table_more),
]


def change(folder: Path, how: Callable[[sqlite3.Connection], None]) -> None:
    with closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as connection:
        how(connection)


@pytest.mark.parametrize("how", SCHEMAS, ids=lambda how: how.__name__.strip("_"))
async def test_a_schema_that_is_not_ours_is_refused(
    how: Callable[[sqlite3.Connection], None], tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    await make("sqlite", folder)
    change(folder, how)
    with pytest.raises(StoreError, match=r"its tables are not those|malformed|is not a trio_ckpt"):
        await open_store(folder)


async def test_tables_that_share_their_pages_are_damage(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await make("sqlite", folder)
    change(folder, _two_tables_in_one_place)
    refused = await use(f"sqlite:{folder}")
    assert refused
    assert all(isinstance(error, StoreError) for error in refused)


async def test_a_database_with_huge_pages_is_read_as_any(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await make("sqlite", folder)
    with closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 65536")
        connection.execute("VACUUM")
    assert await use(f"sqlite:{folder}") == []


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
async def test_the_log_of_another_database_is_damage_or_harmless(
    suffix: str, tmp_path: Path
) -> None:
    """SQLite takes a log that is whole in itself; what it brings is not what was sealed."""
    folder, other = tmp_path / "store", tmp_path / "other"
    await make("sqlite", folder)
    with closing(sqlite3.connect(other, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE evil (x)")
        connection.execute("INSERT INTO evil VALUES (zeroblob(50000))")
        shutil.copy(f"{other}-wal", folder / f"state.db{suffix}")
    for error in await use(f"sqlite:{folder}"):
        assert str(folder) in str(error)


async def test_a_connection_runs_nothing_that_a_schema_names(tmp_path: Path) -> None:
    """And opens no other database: ATTACH is how one would write elsewhere."""
    with closing(schema.connect(tmp_path / "db")) as connection:
        assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
        assert connection.execute("PRAGMA cell_size_check").fetchone() == (1,)
        with pytest.raises(sqlite3.OperationalError, match="too many attached"):
            connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))
    assert not (tmp_path / "other").exists()


# -- JSON: documents that are hostile ------------------------------------------------------

DEEP, VERY_DEEP = 1_000, 100_000


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def with_check(body: str) -> bytes:
    """A checkpoint.json with the check that fits it."""
    content = body.encode("utf-8", "surrogatepass")
    return b'{\n"check": "%b",\n%b' % (format.digest(content), content)


DOCUMENTS = {
    "NaN": lambda body: body.replace('"owner": 1', '"owner": NaN'),
    "infinity": lambda body: body.replace('"owner": 1', '"owner": 1e999'),
    "a huge integer": lambda body: body.replace('"owner": 1', f'"owner": {"9" * 5_000}'),
    "an integer of 65 bits": lambda body: body.replace('"owner": 1', f'"owner": {2**64}'),
    "a key twice": lambda body: body.replace('"owner": 1', '"owner": 1,\n"owner": 1'),
    "a key that is none": lambda body: body.replace('"owner": 1', '"owner": 1,\n"more": 1'),
    "deep nesting": lambda body: body.replace('"payload":', f'"payload":{nested(DEEP)},"x":'),
    "very deep nesting": lambda body: body.replace('"first": 0', f'"first": {nested(VERY_DEEP)}'),
    "a lone surrogate": lambda body: body.replace('"run_id": "run"', '"run_id": "\ud800"'),
    "an escaped lone surrogate": lambda body: body.replace('"run"', r'"\ud800"'),
    "other spaces": lambda body: body.replace('"owner": 1', '"owner":  1'),
    "a negative generation": lambda body: body.replace('"generation": 0', '"generation": -1'),
    "another run": lambda body: body.replace('"run_id": "run"', '"run_id": "rum"'),
    "a sequence of its own": lambda body: body.replace('"sequence":1', '"sequence":7'),
}


@pytest.mark.parametrize("how", DOCUMENTS.values(), ids=DOCUMENTS)
async def test_a_checkpoint_json_that_fits_its_check_alone_is_refused(
    how: Callable[[str], str], tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    await make("json", folder)
    path = folder / "runs" / "run" / "checkpoint.json"
    body = path.read_bytes().split(b"\n", 2)[2].decode()
    assert path.read_bytes() == with_check(body)
    hostile = how(body)
    assert hostile != body
    path.write_bytes(with_check(hostile))
    store = await open_store(folder)
    with pytest.raises(StoreDamagedError):
        await store.history("run", A)
    await store.aclose()


async def test_invalid_utf_8_in_a_checkpoint_json_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await make("json", folder)
    path = folder / "runs" / "run" / "checkpoint.json"
    content = path.read_bytes().split(b"\n", 2)[2].replace(b'"run"', b'"r\xff"')
    path.write_bytes(b'{\n"check": "%b",\n%b' % (format.digest(content), content))
    store = await open_store(folder)
    with pytest.raises(StoreDamagedError, match="cannot be read"):
        await store.read_run("run")
    await store.aclose()


@pytest.mark.parametrize("depth", [DEEP, VERY_DEEP])
async def test_a_nested_marker_and_a_nested_note_are_refused_or_passed_over(
    depth: int, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    await make("json", folder)
    for note in (folder / "lock").iterdir():
        note.write_text(nested(depth))
    store = await open_store(folder)
    with suppress(StoreError):
        await store.read_owner("run")
    await store.aclose()
    (folder / "store.json").write_text(json.dumps("x") + nested(depth))
    with pytest.raises(StoreError):
        await open_store(f"json:{folder}")
