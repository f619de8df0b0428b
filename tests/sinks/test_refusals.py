"""What a database or a sink refuses, word for word."""

from __future__ import annotations

import builtins
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.opening import begin
from tests.refusing import refuse_all
from tests.sinks.program import connect, is_postgres, open_sink, read_rows
from tests.sinks.test_transactions import EMPTY, insert, run_one
from tests.stores.postgres.servers import Server, running_server
from trio_ckpt import Batch, MissingExtraError, SinkError
from trio_ckpt.sinks import PostgresSink, Sink, SqliteSink
from trio_ckpt.stores import MemoryStore

SECRET = "s3cr3t-word"


async def complete_one(sink: Sink, store: MemoryStore | None = None, **options: Any) -> None:
    """Write a row for one batch."""
    async with (
        begin(store or MemoryStore(), **options) as run,
        run.open_stream("s", sink=sink) as stream,
    ):
        async for batch in stream.batches(range(1)):
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.complete()


def change(database: str, *statements: str) -> None:
    connection = connect(database)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def name_of(database: str) -> str:
    """A database as messages name it."""
    if not is_postgres(database):
        return f"database {database!r}"
    return f"database {database.partition('?')[0].replace('postgres@', '')}"


async def refusal(sink: Sink, store: MemoryStore | None = None, **options: Any) -> str:
    with pytest.raises(SinkError) as refused:
        await complete_one(sink, store, **options)
    return str(refused.value)


async def test_a_database_that_lost_its_table_is_refused(database: str) -> None:
    store, sink = MemoryStore(), open_sink(database)
    await complete_one(sink, store)
    change(database, "DROP TABLE trio_ckpt_markers")
    expected = (
        f"{name_of(database)} has no markers of run 'r', stream 's', which has 1 confirmed batch: "
        "it is another database, or has lost its table trio_ckpt_markers; name the right one, "
        "restore it from a copy, or rewind the stream to before its first batch, so that all rows "
        "are written again"
    )
    assert await refusal(sink, store.after_crash()) == expected
    assert await refusal(sink, store.after_crash()) == expected  # no table was made
    assert read_rows(database)[0] == [(0, 0)]


async def test_a_database_that_lost_its_markers_is_refused(database: str) -> None:
    store, sink = MemoryStore(), open_sink(database)
    await complete_one(sink, store)
    change(database, "DELETE FROM trio_ckpt_markers")
    assert "has no markers of run 'r', stream 's'" in await refusal(sink, store.after_crash())


async def test_markers_of_another_run_are_refused(database: str) -> None:
    sink = open_sink(database)
    await complete_one(sink)
    said = await refusal(sink)
    assert said.startswith(f"{name_of(database)} has markers of another run 'r', stream 's', begun")
    assert said.endswith(
        "name another database or run, or remove those rows, and the markers of run 'r' from the "
        "table trio_ckpt_markers"
    )
    change(database, "DELETE FROM pages", "DELETE FROM trio_ckpt_markers WHERE run = 'r'")
    await complete_one(sink)


async def test_a_sink_has_one_stream_of_a_name_open(database: str) -> None:
    sink = open_sink(database)
    async with begin() as run, run.open_stream("s", sink=sink) as stream:
        with pytest.raises(SinkError, match="run 'r', stream 's' is open with this sink already"):
            async with begin() as other, other.open_stream("s", sink=sink):
                raise AssertionError
        async for batch in stream.batches(range(1)):
            async with sink.transaction(batch) as connection:
                await insert(connection)
                batch.complete()
    assert read_rows(database)[0] == [(0, 0)]


async def test_markers_of_an_older_generation_are_refused(database: str) -> None:
    store, sink = MemoryStore(), open_sink(database)
    await complete_one(sink, store)
    assert "has markers of another run 'r'" in await refusal(sink, store, fresh=True)


async def test_a_damaged_marker_is_refused(database: str) -> None:
    store, sink = MemoryStore(), open_sink(database)
    await complete_one(sink, store)
    change(database, "UPDATE trio_ckpt_markers SET batch = 7 WHERE slot = 1")
    assert await refusal(sink, store.after_crash()) == (
        f"{name_of(database)}: the marker of batch 7 of run 'r', stream 's' is damaged (it is of "
        "another batch); restore the table trio_ckpt_markers from a copy"
    )
    hostile = "x'c1'" if not is_postgres(database) else r"'\xc1'"
    change(database, f"UPDATE trio_ckpt_markers SET record = {hostile} WHERE slot = 1")
    assert "the marker of batch 7 of run 'r', stream 's' is damaged (" in await refusal(
        sink, store.after_crash()
    )


async def test_a_table_that_is_missing_is_named(database: str) -> None:
    async def body(sink: Sink, batch: Batch[Any]) -> None:
        async with sink.transaction(batch) as connection:
            await connection.execute("INSERT INTO words VALUES (1)")
            batch.complete()

    with pytest.raises(Exception, match="words") as missing:
        await run_one(database, body)
    assert not isinstance(missing.value, SinkError)  # the database's own, for `except`
    assert missing.value.__notes__ == [
        f"{name_of(database)}: make the table before the run is opened"
    ]


async def test_a_wrong_password_is_named_and_not_shown(server: Server) -> None:
    with running_server("password_encryption=md5") as own:
        import psycopg

        with psycopg.connect(own.url(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE me LOGIN PASSWORD '{SECRET}'".encode())
        hba = own.folder / "data" / "pg_hba.conf"
        hba.write_text("host all me 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 trust\n")
        with psycopg.connect(own.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
        for wrong in (
            f"postgresql://me:{SECRET}x@127.0.0.1:{own.port}/postgres",
            f"host=127.0.0.1 port={own.port} user=me password={SECRET}x dbname=postgres",
        ):
            said = await refusal(PostgresSink(wrong))
            assert said.startswith(
                f"database postgresql://127.0.0.1:{own.port}/postgres: beginning"
            )
            assert 'password authentication failed for user "me"' in said
            assert said.endswith(
                "the password is wrong: libpq reads it from the URL, PGPASSFILE or a service file"
            )
            assert SECRET not in said + repr(PostgresSink(wrong))


def test_an_address_that_cannot_be_read_is_not_shown() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(SinkError) as refused:
        PostgresSink(f"postgresql://me:{SECRET}@[::1/db")
    assert str(refused.value) == (
        "the address of the PostgreSQL database is not one that libpq can read; it is not shown, "
        "because it may have a password"
    )
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_an_error_that_repeats_the_password_does_not_show_it() -> None:
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    driver = PostgresSink(f"host=h password={SECRET}")._driver
    error = psycopg.OperationalError(f"no such user: me:{SECRET}")
    said = str(driver.sink_error("connecting", error))
    assert said == "database postgresql://h/: connecting failed: no such user: me:***"


async def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    said = await refusal(PostgresSink(f"postgresql://me:{SECRET}@127.0.0.1:1/db"))
    assert said.startswith("database postgresql://127.0.0.1:1/db: beginning a transaction failed:")
    assert SECRET not in said


async def test_a_connection_that_cannot_be_prepared_is_closed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its server keeps it until the collector finds it."""
    module = pytest.importorskip("psycopg") if is_postgres(database) else sqlite3
    sink, opened = open_sink(database), refuse_all(monkeypatch, module)
    assert "refused" in await refusal(sink)
    assert {connection.is_closed for connection in opened} == {True}


async def test_a_database_of_postgres_that_is_read_only_is_named(postgres: str) -> None:
    said = await refusal(PostgresSink(f"{postgres}%20-cdefault_transaction_read_only%3Don"))
    assert "cannot execute" in said
    assert said.endswith(
        "it is read-only, a standby maybe: name the primary, or a role that may write"
    )
    assert read_rows(postgres) == EMPTY


async def test_a_role_that_may_make_no_table_is_told_what_to_do(
    postgres: str, server: Server
) -> None:
    schema = postgres.rpartition("%3D")[2]
    change(
        postgres,
        f"CREATE ROLE reader_{schema} LOGIN",
        f"GRANT USAGE ON SCHEMA {schema} TO reader_{schema}",
    )
    said = await refusal(PostgresSink(postgres.replace("postgres@", f"reader_{schema}@")))
    assert "permission denied" in said
    assert said.endswith("grant this role what it needs; docs/how-to/databases.md has it")


async def test_a_file_of_sqlite_that_is_read_only_is_named(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = SqliteSink(sqlite)
    monkeypatch.setattr(
        sink._driver,
        "connect",
        lambda: sqlite3.connect(
            f"file:{sqlite}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        ),
    )
    assert await refusal(sink) == (
        f"database {sqlite!r}: reading the markers failed: attempt to write a readonly database; "
        "the file, or its folder, is read-only: give this process the right to write both"
    )


async def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "missing" / "rows.db")
    assert await refusal(SqliteSink(path)) == (
        f"database {path!r}: beginning a transaction failed: unable to open database file; its "
        "folder has to exist, and this process may have to write there"
    )


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    path.write_bytes(b"no database" * 1000)
    said = await refusal(SqliteSink(path))
    assert said.endswith("file is not a database; the file is another one")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("psycopg", "trio_ckpt.sinks._p"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    load = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "psycopg":
            raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError) as missing:
        PostgresSink("postgresql://host/db")
    assert str(missing.value) == "PostgresSink needs psycopg: pip install 'trio-ckpt[postgres]'"


@pytest.mark.parametrize("kind", ["lines", "arrays"])
async def test_what_the_transaction_cannot_contain_is_refused(
    database: str, tmp_path: Path, kind: str
) -> None:
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")
    sink = open_sink(database)
    state: Any = None if kind == "lines" else numpy.zeros(10**5)
    noise = numpy.random.default_rng(0).random(10**5)

    async def work() -> None:
        async with (
            begin(output_dir=tmp_path / "out") as run,
            run.open_stream("s", sink=sink, state=state) as stream,
        ):
            async for batch in stream.batches(range(1)):
                async with sink.transaction(batch) as connection:
                    await insert(connection)
                    if kind == "lines":
                        batch.append_json("lines.jsonl", 1)
                    else:
                        stream.state[:] = noise
                    batch.complete()

    with pytest.raises(SinkError) as refused:
        await work()
    assert str(refused.value) == (
        "batch 0 of run 'r', stream 's' has rows in a database, and also lines of an append file "
        "or a state with large arrays, which their transaction cannot contain: put them into "
        "another stream"
    )
    assert read_rows(database) == EMPTY


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="path must be a path"):
        SqliteSink(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="undo must be a function"):
        SqliteSink("rows.db", undo="DELETE")  # type: ignore[arg-type]


async def test_a_stream_takes_only_a_sink() -> None:
    async with begin() as run:
        with pytest.raises(TypeError, match="sink must be a Sink"):
            async with run.open_stream("s", sink="rows.db"):  # type: ignore[call-overload]
                raise AssertionError
