"""`check` finds what is wrong with the rows of a store, and says of which run and stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trio_ckpt import StoreDamagedError, StoreError
from trio_ckpt.abc import Checkpoint, Finding, Fold, RunKey
from trio_ckpt.stores import open_store

A, B = '["a"]', '["b"]'

Sql = Callable[..., list[tuple[object, ...]]]

DAMAGE = {
    "a record is missing": ("DELETE FROM {s}.log WHERE position = 2", "does not follow"),
    "the newest is missing": ("DELETE FROM {s}.log WHERE position = 4", "newest record is missing"),
    "a chain leads astray": ("UPDATE {s}.log SET prev = 1 WHERE position = 4", "does not follow"),
    "a sequence is wrong": (
        "UPDATE {s}.log SET sequence = 9 WHERE position = 3",
        "does not follow",
    ),
    "a record is of no stream": ("UPDATE {s}.log SET stream = 9 WHERE position = 3", "no stream"),
    "a record is too late": ("UPDATE {s}.runs SET position = 3, folded = 3", "end of the log"),
    "a stream is of no generation": (
        "UPDATE {s}.streams SET generation = 5 WHERE number = 1",
        "a generation that is not there",
    ),
    "a fold is ahead": ("UPDATE {s}.streams SET through = 7 WHERE number = 1", "ahead of"),
    "the numbers of a run are wrong": ("UPDATE {s}.runs SET first = 9", "do not fit"),
    "a run is gone": ("DELETE FROM {s}.runs", "that is not there"),
    "a blob is missing": ("DELETE FROM {s}.blobs", "it is missing, and a record names it"),
    "a blob was altered": ("UPDATE {s}.parts SET content = 'other on'", "does not match its name"),
    "a blob is too short": ("UPDATE {s}.parts SET content = 'x'", "does not match its name"),
    "a blob hangs on nothing": ("UPDATE {s}.attached SET sequence = 9", "a record that is not"),
}


@pytest.mark.parametrize(("statement", "said"), DAMAGE.values(), ids=DAMAGE.keys())
async def test_damage_is_found(url: str, schema: str, sql: Sql, statement: str, said: str) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        name = await store.put_blob(key, b"attached")
        group = [Checkpoint(A, n, b"%d" % n) for n in (1, 2, 3)]
        await store.save(key, [*group, Checkpoint(A, 4, b"4", None, (name,))])
        await store.save(key, [Checkpoint(B, 1, b"1")], [Fold(A, 2, b"sum")])
    assert [finding async for finding in store.check()] == []
    sql(statement.replace("{s}", schema))
    found = [finding async for finding in store.check() if finding.is_damage]
    assert any(said in finding.what for finding in found), found
    await store.aclose()


async def test_blobs_without_a_name_are_a_note(url: str, schema: str, sql: Sql) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        await store.put_blob(RunKey("run", 0, owner), b"not named yet")
        found: list[Finding] = [finding async for finding in store.check()]
    assert [(one.what, one.run_id, one.is_damage) for one in found] == [
        ("no record names it", "run", False)
    ]
    assert [finding async for finding in store.check()] == []
    await store.aclose()


async def test_a_damaged_chain_is_refused_by_readers(url: str, schema: str, sql: Sql) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        group = [Checkpoint(A, n, b"%d" % n) for n in range(1, 6)]
        await store.save(RunKey("run", 0, owner), group)
    sql(f"DELETE FROM {schema}.log WHERE position = 3")
    with pytest.raises(StoreDamagedError, match=r'stream \["a"\] has a gap'):
        await store.read_run("run")
    with pytest.raises(StoreDamagedError, match="checkpoint 3 of stream"):
        await store.history("run", A)
    page = await store.history("run", A, limit=2)
    assert [record.sequence for record in page.records] == [5, 4]
    with pytest.raises(StoreError, match="not a cursor"):
        await store.history("run", A, cursor=page.cursor)
    await store.aclose()
