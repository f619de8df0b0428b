"""What opening a store needs of a database, and the error where it is not there."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import trio

pytest.importorskip("psycopg", reason="psycopg is not installed")

from tests.ports import keep_port, port_of
from tests.refusing import refuse_all
from tests.stores.postgres.servers import Server, running_server
from trio_ckpt import StoreError, StoreVersionError
from trio_ckpt.abc import Checkpoint, RunKey, Severity
from trio_ckpt.cli import main
from trio_ckpt.stores import open_store
from trio_ckpt.stores._postgres.address import parse_address
from trio_ckpt.stores._postgres.connection import PostgresConnection

Sql = Callable[..., list[tuple[object, ...]]]


@pytest.fixture(autouse=True)
def _with_server(server: Server) -> None:
    """Skip where none is installed, also the tests that start one of their own."""


async def refused(url: str, *, create: bool = True) -> str:
    with pytest.raises(StoreError) as raised:
        await open_store(url, create=create)
    return str(raised.value)


async def test_a_server_that_is_not_there_is_named() -> None:
    with keep_port() as kept:
        port = port_of(kept)
        said = await refused(f"postgresql://me:s3cr3t@127.0.0.1:{port}/db")
    assert f"postgresql://me:***@127.0.0.1:{port}/db: opening failed: " in said
    assert "s3cr3t" not in said


async def test_a_database_that_is_not_there_is_named(server: Server) -> None:
    said = await refused(f"{server.url().rpartition('/')[0]}/nothing")
    assert 'database "nothing" does not exist' in said
    assert said.endswith("create the database, or name another")


async def test_a_store_is_only_made_if_it_may_be(url: str) -> None:
    said = await refused(url, create=False)
    assert "there is no store in schema test_" in said
    assert "make one with: trio-ckpt init postgresql://" in said
    await (await open_store(url)).aclose()
    await (await open_store(url, create=False)).aclose()


async def test_a_store_of_a_newer_format_is_refused(url: str, schema: str, sql: Sql) -> None:
    await (await open_store(url)).aclose()
    sql(f"UPDATE {schema}.format SET version = 99")
    with pytest.raises(StoreVersionError, match=r"the store is of format 99.*upgrade trio_ckpt"):
        await open_store(url)


async def test_tables_of_another_program_are_left_alone(url: str, schema: str, sql: Sql) -> None:
    sql(f"CREATE SCHEMA {schema}")
    sql(f"CREATE TABLE {schema}.runs (x int)")
    assert "tables that are not those of a trio_ckpt store" in await refused(url)
    assert sql(f"SELECT count(*) FROM {schema}.runs") == [(0,)]


async def test_processes_that_open_at_once_make_one_store(url: str) -> None:
    stores = []

    async def open_it() -> None:
        stores.append(await open_store(url))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(open_it)
    assert len(stores) == 8
    for store in stores:
        await store.aclose()


async def test_other_tables_beside_a_store_do_no_harm(url: str, schema: str, sql: Sql) -> None:
    sql(f"CREATE SCHEMA {schema}")
    sql(f"CREATE TABLE {schema}.users (x int)")
    await (await open_store(url)).aclose()


async def test_a_role_needs_no_right_to_make_tables(
    server: Server, url: str, schema: str, sql: Sql
) -> None:
    """The grants are those of the how-to page."""
    await (await open_store(url)).aclose()
    for name in ("writer", "reader", "stranger"):
        sql(f"CREATE ROLE {schema}_{name} LOGIN")
    for name in ("writer", "reader"):
        sql(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_{name}")
    sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {schema}_writer")
    sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {schema}_reader")
    own, options = url.partition("?")[0], f"?schema={schema}"
    writer = await open_store(own.replace("postgres@", f"{schema}_writer@") + options)
    async with writer.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        assert await writer.save(key, [Checkpoint('["a"]', 1, b"one")]) == [None]
        await writer.publish("run", b"seen")
        reader = await open_store(own.replace("postgres@", f"{schema}_reader@") + options)
        assert len(await reader.list_runs()) == 1
        assert await reader.read_live("run") == b"seen"
        with pytest.raises(StoreError, match=r"permission denied.*this role may not do that"):
            await reader.lock_run("other").__aenter__()
    await reader.aclose()
    await writer.aclose()
    said = await refused(own.replace("postgres@", f"{schema}_stranger@") + options)
    assert "permission denied" in said


async def test_a_connection_that_cannot_be_prepared_is_closed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = refuse_all(monkeypatch, pytest.importorskip("psycopg"))
    assert "opening failed: refused" in await refused(url)
    assert {connection.is_closed for connection in opened} == {True}


async def test_a_role_that_may_not_make_a_schema_is_told_so(
    server: Server, schema: str, sql: Sql
) -> None:
    sql(f"CREATE ROLE {schema}_plain LOGIN")
    said = await refused(server.url(f"?schema={schema}", user=f"{schema}_plain"))
    assert "permission denied for database" in said
    assert "this role may not do that" in said


async def test_a_read_only_session_reads_and_is_refused_a_lock(url: str) -> None:
    read_only = f"{url}&options=-cdefault_transaction_read_only%3Don"
    assert "there is no store, and the server is read-only" in await refused(read_only)
    store = await open_store(url)
    async with store.lock_run("run"):
        pass
    await store.aclose()
    store = await open_store(read_only)
    assert [run.run_id for run in await store.list_runs()] == ["run"]
    await store.aclose()


async def test_too_many_connections_are_named() -> None:
    with running_server("max_connections=4", "superuser_reserved_connections=3") as server:
        url = server.url("?connect_timeout=5")
        import psycopg

        with psycopg.connect(url.partition("?")[0]) as connection:
            connection.execute("CREATE ROLE me LOGIN SUPERUSER")
            connection.commit()
            connection.execute("ALTER ROLE me NOSUPERUSER")
            connection.execute("GRANT CREATE ON DATABASE postgres TO me")
            connection.commit()
            said = await refused(url.replace("postgres@", "me@"))
    assert re.search("connection slots|too many clients", said)
    assert said.endswith("(?pooler=transaction)")


async def test_a_wrong_password_is_named_and_not_shown(server: Server) -> None:
    with running_server("password_encryption=md5") as own:
        import psycopg

        with psycopg.connect(own.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE me LOGIN SUPERUSER PASSWORD 'right'")
        rules = own.folder / "data" / "pg_hba.conf"
        rules.write_text("host all me 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 trust\n")
        with psycopg.connect(own.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
        right = own.url(user="me:right")
        await (await open_store(right)).aclose()
        for wrong in ("wr0ng", ""):
            said = await refused(own.url(user=f"me:{wrong}"))
            assert "PGPASSFILE" in said
            assert "wr0ng" not in said
        (own.folder / "pgpass").write_text(f"127.0.0.1:{own.port}:*:me:right\n")
        (own.folder / "pgpass").chmod(0o600)
        store = await open_store(own.url(f"?passfile={own.folder}/pgpass", user="me"))
        assert "right" not in store.url
        await store.aclose()


async def test_durability_is_what_the_server_is_set_up_for(server: Server, url: str) -> None:
    store = await open_store(url)  # the tests' server does not flush
    assert store.durability == "process"
    await store.aclose()
    with running_server() as safe:
        store = await open_store(safe.url())
        assert store.durability == "full"
        await store.aclose()
        store = await open_store(safe.url("?options=-csynchronous_commit%3Doff"))
        assert store.durability == "full"  # the store turns it on in its own sessions
        await store.aclose()
        store = await open_store(safe.url(), durability="process")
        assert store.durability == "process"
        await store.aclose()


async def test_what_the_server_is_good_for_are_findings(url: str) -> None:
    from trio_ckpt.stores._postgres.store import PostgresStore

    store = await open_store(url)
    assert isinstance(store, PostgresStore)
    found = {finding.where: finding for finding in await store.examine_server()}
    await store.aclose()
    assert found["server"].what.startswith("PostgreSQL 1")
    assert (found["fsync"].severity, found["fsync"].advice) == (Severity.DOUBT, "turn it on")
    assert found["full_page_writes"].severity is Severity.GOOD
    assert found["synchronous_commit"].severity is Severity.GOOD
    assert found["replication"].what == "no standby: its disk is the only copy"


def test_the_command_makes_a_store(
    url: str, schema: str, sql: Sql, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", url, "--print"]) == 0
    script = capsys.readouterr().out
    assert sql("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema) == []
    assert main(["doctor", url]) == 1
    assert "there is no store" in capsys.readouterr().out
    for _ in range(2):
        assert main(["init", url]) == 0
        assert capsys.readouterr().out.startswith(f"store {url} is there, durability")
    assert main(["doctor", url]) == 0
    said = capsys.readouterr().out
    assert re.search(r"doubt +fsync +it is off", said)
    assert main(["ls", url]) == 0
    capsys.readouterr()
    columns = (
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = %s ORDER BY 1, 2"
    )
    made = sql(columns, schema)
    sql(f"DROP SCHEMA {schema} CASCADE")
    for statement in script.split(";"):
        sql(statement)
    assert sql(columns, schema) == made
    assert main(["init", url]) == 0


def test_the_command_prints_sql_for_servers_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "memory:", "--print"]) == 2
    assert "postgresql://" in capsys.readouterr().err


def test_a_store_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("trio_ckpt.stores._postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert main(["ls", "postgresql://127.0.0.1/db"]) == 8
    said = capsys.readouterr().err
    assert "a store in PostgreSQL needs psycopg: pip install 'trio-ckpt[postgres]'" in said


def test_a_transaction_has_its_level_whatever_the_default(url: str) -> None:
    default = "options=-c%20default_transaction_isolation%3Dserializable"
    address = parse_address(f"{url}&pooler=transaction&{default}")
    connection = PostgresConnection(address, "full")
    for is_snapshot, level in ((False, "read committed"), (True, "repeatable read")):
        with connection.transaction(is_snapshot=is_snapshot):
            assert connection.query("SHOW transaction_isolation") == [(level,)]
    connection.close()
