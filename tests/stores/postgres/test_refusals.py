"""What a database refuses while runs go on: a clear error, nothing is lost, and they go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed")

from tests.stores.postgres.servers import Server, running_server, unprivileged_user
from tests.stores.tools import A, chain
from trio_ckpt import StoreConflictError, StoreError
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._postgres.connection import PostgresConnection

Sql = Callable[..., list[tuple[object, ...]]]

PAYLOAD = 100_000  # bytes of the records that fill a disk
DISK = 4 * 2**20  # its size


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again while a server does not answer is asked once."""
    monkeypatch.setattr(PostgresConnection.repeat, "__defaults__", (0.0,))


async def records_of(store: Store, run_id: str = "run") -> int:
    stored = await store.read_run(run_id)
    assert stored is not None
    return sum(entry.sequence for entry in stored.streams)


# -- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of `DISK` bytes in a folder; False: this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
    if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        yield False
        return
    try:
        shutil.chown(folder, unprivileged_user() or os.getuid())
        yield True
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def full_disk(server: Server, schema: str, sql: Sql) -> Iterator[Callable[[], object]]:
    """The log of a store is on a small disk, or the server says so; yields what makes room."""
    folder = server.folder.parent / f"disk of {schema}"
    with small_disk(folder) as is_real:
        if is_real:
            sql(f"CREATE TABLESPACE {schema} LOCATION '{folder}'")
            sql(f"ALTER TABLE {schema}.log SET TABLESPACE {schema}")
            yield lambda: subprocess.run(
                ["mount", "-o", f"remount,size={100 * DISK}", folder], check=True
            )
            sql(f"DROP SCHEMA {schema} CASCADE")
            sql(f"DROP TABLESPACE {schema}")
        else:
            sql(
                f"CREATE FUNCTION {schema}.fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF NEW.position > {DISK // PAYLOAD} THEN "
                "RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END IF; "
                "RETURN NEW; END $$"
            )
            sql(
                f"CREATE TRIGGER fill BEFORE INSERT ON {schema}.log FOR EACH ROW "
                f"EXECUTE FUNCTION {schema}.fill()"
            )
            yield lambda: sql(f"DROP TRIGGER fill ON {schema}.log")


@pytest.mark.parametrize("size", [1, 3])
async def test_a_disk_that_is_full_loses_nothing(
    server: Server, url: str, schema: str, sql: Sql, size: int
) -> None:
    store = await open_store(url)
    with full_disk(server, schema, sql) as make_room:
        async with store.lock_run("run") as owner:
            key, saved, said = RunKey("run", 0, owner), 0, ""

            def group() -> list[Checkpoint]:
                numbers = range(saved + 1, saved + size + 1)
                return [Checkpoint(A, number, os.urandom(PAYLOAD)) for number in numbers]

            while not said and saved < 10 * DISK // PAYLOAD:
                try:
                    assert await store.save(key, group()) == [None] * size
                    saved += size
                except StoreError as error:
                    said = str(error)
            assert saved > 3
            assert "(53100); the disk of the server is full: nothing is lost, make room" in said
            assert await records_of(store) == saved
            make_room()
            assert await store.save(key, group()) == [None] * size
            assert await records_of(store) == saved + size
        await store.aclose()


# -- connections, permissions, another database --------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_role_with_one_connection_saves_and_does_not_read(
    server: Server, url: str, schema: str, sql: Sql
) -> None:
    await (await open_store(url)).aclose()
    sql(f"CREATE ROLE {schema}_one LOGIN CONNECTION LIMIT 1")
    sql(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_one")
    sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {schema}_one")
    store = await open_store(server.url(f"?schema={schema}", user=f"{schema}_one"))
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        assert await store.save(key, chain(A, 1, 1)) == [None]
        with pytest.raises(StoreError, match=r"too many connections.*raise max_connections, or"):
            await store.read_run("run")
        assert await store.save(key, chain(A, 2, 2)) == [None]
        sql(f"ALTER ROLE {schema}_one CONNECTION LIMIT 2")
        assert await records_of(store) == 2
    await store.aclose()


async def write_everything(store: Store, key: RunKey) -> None:
    """Write to each table; its first records are the second of one stream and the first of one."""
    digest = await store.put_blob(key, b"content")
    await store.save(key, [Checkpoint(A, 2, b"", blobs=(digest,))])
    await store.publish("run", b"seen")
    await store.save(key, [Checkpoint('["b"]', 1, b"")])


@pytest.mark.parametrize("table", ["log", "streams", "attached", "blobs", "parts", "live", "runs"])
async def test_a_permission_that_is_missing_is_named_with_its_table(
    server: Server, url: str, schema: str, sql: Sql, table: str
) -> None:
    await (await open_store(url)).aclose()
    role = f"{schema}_writer"
    sql(f"CREATE ROLE {role} LOGIN")
    sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}")
    store = await open_store(server.url(f"?schema={schema}", user=role))
    said = rf"permission denied for table {table} \(42501\); this role may not do that"
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        assert await store.save(key, chain(A, 1, 1)) == [None]
        sql(f"REVOKE INSERT, UPDATE ON {schema}.{table} FROM {role}")
        with pytest.raises(StoreError, match=said) as raised:
            await write_everything(store, key)
        assert type(raised.value) is StoreError
        sql(f"GRANT INSERT, UPDATE ON {schema}.{table} TO {role}")
        number = await records_of(store)
        assert number == (2 if table == "live" else 1)
        assert await store.save(key, chain(A, number + 1, number + 1)) == [None]
    await store.aclose()


@pytest.mark.usefixtures("impatient")
async def test_a_database_that_is_read_only_takes_no_lock(url: str) -> None:
    await (await open_store(url)).aclose()
    store = await open_store(f"{url}&options=-cdefault_transaction_read_only%3Don")
    with pytest.raises(StoreError, match=r"read-only transaction \(25006\).*name the primary"):
        await store.lock_run("run").__aenter__()
    await store.aclose()


async def test_an_owner_changes_nothing_in_another_database(
    url: str, schema: str, sql: Sql
) -> None:
    """As where a name leads to another server: its rows have the same numbers."""
    store = await open_store(url)
    lock = store.lock_run("one")
    key = RunKey("one", 0, await lock.__aenter__())
    sql(f"DROP SCHEMA {schema} CASCADE")
    other = await open_store(url)
    async with other.lock_run("two") as owner:
        assert sql(f"SELECT id, owner, position FROM {schema}.runs") == [(1, key.owner, 0)]
        for group in (chain(A, 1, 1), chain(A, 1, 2), []):
            with pytest.raises(StoreConflictError, match="does not have the run any more"):
                await store.save(key, group)
        with pytest.raises(StoreConflictError):
            await store.put_blob(key, b"content")
        with pytest.raises(StoreConflictError):
            await store.drop_blobs(key, A, [1])
        with pytest.raises(StoreConflictError):
            await store.prune(key, keep=0)
        await lock.__aexit__(None, None, None)
        assert await other.read_owner("two") is not None
        assert await other.save(RunKey("two", 0, owner), chain(A, 1, 1)) == [None]
        assert await records_of(other, "two") == 1
    await store.aclose()
    await other.aclose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresq://127.0.0.1/db", "postgresql"),
        ("postgresql://127.0.0.1:543x2/db", "543x2"),
        ("postgresql://127.0.0.1/db?schema=a&schem=b", "did you mean 'schema'?"),
        ("postgresql://127.0.0.1/db?sslmod=require", "did you mean 'sslmode'?"),
    ],
)
async def test_a_url_with_a_typo_says_what_was_meant(url: str, said: str) -> None:
    with pytest.raises(StoreError) as raised:
        await open_store(url)
    assert said in str(raised.value)


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_goes_away_is_named() -> None:
    with running_server() as own:
        store = await open_store(own.url())
        own.stop()
        with pytest.raises(StoreError, match=r"reading failed: .*refused"):
            await store.list_runs()
        with pytest.raises(StoreError, match="locking run 'run' failed: "):
            await store.lock_run("run").__aenter__()
        own.start()
        assert await store.list_runs() == ()
        await store.aclose()
