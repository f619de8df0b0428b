"""Pruned generations are gone at once; their rows go in parts, also those that a kill left."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed")

from trio_ckpt import StoreConflictError
from trio_ckpt.abc import Checkpoint, Fold, Pruned, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._postgres.connection import NONE, PostgresConnection, Row, Values

A = '["a"]'
CHUNK = 10_000
PART_BYTES = 2**20

Sql = Callable[..., list[tuple[object, ...]]]


async def save_chain(store: Store, key: RunKey, count: int) -> None:
    for first in range(1, count + 1, 4_096):
        last = min(count, first + 4_095)
        group = [Checkpoint(A, n, b"%8d" % n) for n in range(first, last + 1)]
        assert await store.save(key, group) == [None] * len(group)


async def test_rows_are_removed_in_parts(url: str, schema: str, sql: Sql) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        await save_chain(store, RunKey("run", 0, owner), CHUNK + 10)
        await save_chain(store, RunKey("run", 1, owner), 10)
        await save_chain(store, RunKey("run", 2, owner), 5)
        pruned = await store.prune(RunKey("run", 2, owner), keep=1)
        assert pruned == Pruned(2, CHUNK + 20, 8 * (CHUNK + 20))
        assert sql(f"SELECT count(*) FROM {schema}.log") == [(5,)]
        assert sql(f"SELECT count(*) FROM {schema}.streams") == [(1,)]
    assert [finding async for finding in store.check()] == []
    await store.aclose()


async def test_a_short_run_is_removed_by_one_statement(
    url: str, schema: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(url)
    asked, real = list[object](), PostgresConnection.query

    def query(self: PostgresConnection, text: str, values: Values = NONE) -> list[Row]:
        asked.append(text)
        return real(self, text, values)

    for is_attached in (False, True):
        async with store.lock_run("run") as owner:
            generation = 1 if is_attached else 0
            key = RunKey("run", generation, owner)
            blobs = (await store.put_blob(key, b"a blob"),) if is_attached else ()
            group = [Checkpoint(A, n, b"%8d" % n, None, blobs) for n in (1, 2, 3)]
            fold = Fold(A, 2, b"folded")
            assert await store.save(key, group, [fold]) == [None] * 3
            asked.clear()
            with monkeypatch.context() as patch:
                patch.setattr(PostgresConnection, "query", query)
                pruned = await store.prune(key, keep=0)
            assert pruned == Pruned(1, 3, 3 * 8 + 6 + 6 * is_attached)
            assert is_attached or len(asked) == 1
            for table in ("log", "streams", "attached", "blobs", "parts"):
                assert sql(f"SELECT count(*) FROM {schema}.{table}") == [(0,)]
            with pytest.raises(StoreConflictError):
                await store.save(key, [Checkpoint(A, 4, b"to a pruned generation")])
    assert [finding async for finding in store.check()] == []
    await store.aclose()


async def test_a_former_owner_removes_no_short_run(url: str, schema: str, sql: Sql) -> None:
    store, other = await open_store(url), await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        await save_chain(store, key, 3)
        sql(f"UPDATE {schema}.runs SET expires_at = clock_timestamp()")
        async with other.lock_run("run"):
            with pytest.raises(StoreConflictError):
                await store.prune(key, keep=0)
        assert sql(f"SELECT count(*) FROM {schema}.log") == [(3,)]
    await store.aclose()
    await other.aclose()


async def test_what_a_killed_prune_left_goes_with_the_next(url: str, schema: str, sql: Sql) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        await save_chain(store, RunKey("run", 0, owner), 30)
        await save_chain(store, RunKey("run", 1, owner), 5)
        sql(f"UPDATE {schema}.runs SET first = 1")
        assert await store.read_run("run", 0) is None
        found = [finding async for finding in store.check()]
        assert [(one.generation, one.is_damage) for one in found] == [(0, False)]
    async with store.lock_run("run") as owner:
        pruned = await store.prune(RunKey("run", 1, owner), keep=1)
        assert pruned == Pruned(0, 30, 240)
        assert sql(f"SELECT count(*) FROM {schema}.log") == [(5,)]
    assert [finding async for finding in store.check()] == []
    await store.aclose()


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 5_000_000])
async def test_blobs_come_back_in_parts_of_any_size(url: str, size: int) -> None:
    payload = os.urandom(size)
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        for _ in range(2):
            cuts = [payload[:7], payload[7 : size // 2], payload[max(7, size // 2) :]]
            name = await store.put_blob(key, cuts if size > 14 else payload)
            assert name == hashlib.sha256(payload).hexdigest()
        assert await store.save(key, [Checkpoint(A, 1, b"", name)]) == [None]
        for offset in {0, 1, PART_BYTES - 1, PART_BYTES, size // 2, size}:
            if offset <= size:
                found = await store.read_blob("run", name, offset)
                assert found == payload[offset:]
    stored = await store.read_run("run")
    assert stored is not None
    assert stored.streams[0].tail[0].payload == payload
    await store.aclose()


async def test_what_a_kill_left_of_a_blob_goes_with_the_next_lock(
    url: str, schema: str, sql: Sql
) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        name = await store.put_blob(key, os.urandom(10))
        await store.put_blob(key, os.urandom(20))
        await store.save(key, [Checkpoint(A, 1, b"", name)])
        sql(f"INSERT INTO {schema}.parts SELECT run, 7, 0, 'x' FROM {schema}.blobs LIMIT 1")
        sql(f"UPDATE {schema}.runs SET expires_at = clock_timestamp()")
        other = await open_store(url)
        async with other.lock_run("run"):
            assert sql(f"SELECT count(*) FROM {schema}.parts") == [(1,)]
            assert len(await other.read_blob("run", name)) == 10
    await other.aclose()
    await store.aclose()


async def test_a_removal_that_lands_late_spares_what_came_since(
    url: str, schema: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[tuple[PostgresConnection, str, Values]] = []
    query = PostgresConnection.query

    def remember(self: PostgresConnection, statement: str, values: Values = NONE) -> list[Row]:
        if "DELETE" in statement:
            late.append((self, statement, dict(values)))
        return query(self, statement, values)

    monkeypatch.setattr(PostgresConnection, "query", remember)
    store = await open_store(url)
    part = f"INSERT INTO {schema}.parts SELECT id, %s, 0, 'x' FROM {schema}.runs"
    async with store.lock_run("run"):
        sql(part, 7)
    async with store.lock_run("run") as owner:
        assert sql(f"SELECT count(*) FROM {schema}.parts") == [(0,)]
        key = RunKey("run", 0, owner)
        digest = await store.put_blob(key, b"content")
        await store.save(key, [Checkpoint(A, 1, b"", blobs=(digest,))])
        assert await store.drop_blobs(key, A, [1]) == len(b"content")
        assert sql(f"SELECT count(*) FROM {schema}.parts") == [(0,)]
        assert await store.put_blob(key, b"content") == digest
        sql(part, 8)  # as of an upload under way
        assert len(late) >= 3
        for connection, statement, values in late:
            query(connection, statement, values)
        assert await store.read_blob("run", digest) == b"content"
        assert sql(f"SELECT count(*) FROM {schema}.parts WHERE upload = 8") == [(1,)]
        assert await store.save(key, [Checkpoint(A, 2, b"", blobs=(digest,))]) == [None]
    await store.aclose()
