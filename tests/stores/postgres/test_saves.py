"""A save lands once or not at all, whatever becomes of the connection, and says which."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import trio

pytest.importorskip("psycopg", reason="psycopg is not installed")

import psycopg

from trio_ckpt import SaveOutcomeUnknownError, StoreConflictError, StoreError
from trio_ckpt.abc import Checkpoint, Fold, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._postgres import save as saving
from trio_ckpt.stores._postgres.connection import (
    NONE,
    PostgresConnection,
    Statement,
    Values,
)
from trio_ckpt.stores._postgres.save import APPEND, APPEND_ONE, FOLD_EVERY, RENEW, SAVE

A, B = '["a"]', '["b"]'

Sql = Callable[..., list[tuple[object, ...]]]


class Losses:
    """What is lost of the next saves: "question", "answer" or nothing; and what is sent.

    Attributes:
        next: The losses to come.
        sent: The names of the statements that were sent.
        between: Called after a loss.
    """

    def __init__(self) -> None:
        self.next: list[str] = []
        self.sent: list[str] = []
        self.between: Callable[[], object] = lambda: None


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    found = Losses()
    run = PostgresConnection.run

    def lossy(self: PostgresConnection, statement: Statement, values: Sequence[bytes]) -> int:
        loss = found.next.pop(0) if found.next else ""
        count = 0 if loss == "question" else run(self, statement, values)
        found.sent.append(statement.name)
        if loss:
            self.close()
            found.between()
            raise psycopg.OperationalError("the connection was cut")
        return count

    monkeypatch.setattr(PostgresConnection, "run", lossy)
    return found


def chain(stream: str, first: int, last: int) -> list[Checkpoint]:
    return [Checkpoint(stream, n, b"%d" % n) for n in range(first, last + 1)]


async def saved(store: Store, run_id: str = "run", generation: int | None = None) -> dict[str, int]:
    stored = await store.read_run(run_id, generation)
    assert stored is not None
    for entry in stored.streams:
        first = 1 if entry.fold is None else entry.fold.through + 1
        wanted = [(n, b"%d" % n) for n in range(first, entry.sequence + 1)]
        assert [(record.sequence, record.payload) for record in entry.tail] == wanted
    return {entry.stream: entry.sequence for entry in stored.streams}


@pytest.mark.parametrize("options", ["", "&pooler=transaction"])
@pytest.mark.parametrize(
    "lost", [["question"], ["answer"], ["question", "answer"], ["answer", "answer", "question"]]
)
async def test_a_save_is_sent_again_and_lands_once(
    url: str, losses: Losses, lost: list[str], options: str
) -> None:
    store = await open_store(url + options)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        for number in range(1, 4):
            losses.next = list(lost)
            group = [*chain(A, 2 * number - 1, 2 * number), *chain(B, number, number)]
            assert await store.save(key, group) == [None] * 3
            assert not losses.next
        for summary in (None, b"summary"):
            losses.next = list(lost)
            assert await store.save(key, [], [Fold(A, number, b"sum")], summary=summary) == []
        losses.next = list(lost)
        assert await store.save(key, []) == []
    assert await saved(store) == {A: 6, B: 3}
    await store.aclose()


@pytest.mark.parametrize("lost", ["question", "answer"])
@pytest.mark.parametrize("count", [0, 2])
async def test_a_generation_begins_once(url: str, losses: Losses, lost: str, count: int) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), chain(A, 1, 3)) == [None] * 3
        losses.next = [lost]
        await store.save(RunKey("run", 1, owner), chain(A, 1, count))
        await store.save(RunKey("run", 1, owner), chain(A, count + 1, 5))
    assert await saved(store) == {A: 5}
    assert await saved(store, generation=0) == {A: 3}
    await store.aclose()


@pytest.mark.parametrize("lost", ["question", "answer"])
async def test_a_takeover_before_a_save_is_sent_again_hides_its_outcome(
    url: str, schema: str, sql: Sql, losses: Losses, lost: str
) -> None:
    store, other = await open_store(url), await open_store(url)
    expire = f"UPDATE {schema}.runs SET expires_at = clock_timestamp() - interval '1 s'"
    take = f"UPDATE {schema}.runs SET owner = owner + 1, nonce = 1"
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        await store.save(key, chain(A, 1, 1))
        losses.next, losses.between = [lost], lambda: sql(take)
        with pytest.raises(SaveOutcomeUnknownError, match="is seen by the next one"):
            await store.save(key, chain(A, 2, 2))
    losses.between = lambda: None
    sql(expire)
    async with other.lock_run("run"):
        assert await saved(other) == {A: 2 if lost == "answer" else 1}
    await store.aclose()
    await other.aclose()


async def test_who_gives_up_prevents_the_save_from_landing_late(
    url: str, schema: str, sql: Sql, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S", 0.0)
    late: list[tuple[PostgresConnection, Statement, Sequence[bytes]]] = []
    run = PostgresConnection.run

    def remember(self: PostgresConnection, statement: Statement, values: Sequence[bytes]) -> int:
        late.append((self, statement, values))
        return run(self, statement, values)

    monkeypatch.setattr(PostgresConnection, "run", remember)
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        await store.save(key, chain(A, 1, 1))
        losses.next = ["question"]
        with pytest.raises(StoreError, match="nothing was saved"):
            await store.save(key, chain(A, 2, 2))
        assert late[-1][0].run(*late[-1][1:]) == 0
        assert await saved(store) == {A: 1}
        assert await store.save(key, chain(A, 2, 3)) == [None, None]
    assert await saved(store) == {A: 3}
    found = [finding async for finding in store.check()]
    assert found == []
    await store.aclose()


async def test_an_outcome_that_cannot_be_found_out_is_unknown(
    url: str, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "RETRY_S", 0.0)
    store, other = await open_store(url), await open_store(url)
    query = PostgresConnection.query

    def unreachable(self: PostgresConnection, statement: str, values: Values = NONE) -> object:
        if "position = position + 1" in statement:
            raise psycopg.OperationalError("no route to host")
        return query(self, statement, values)

    with monkeypatch.context() as patch:
        async with store.lock_run("run") as owner:
            losses.next = ["answer"]
            patch.setattr(PostgresConnection, "query", unreachable)
            with pytest.raises(SaveOutcomeUnknownError, match="no route to host"):
                await store.save(RunKey("run", 0, owner), chain(A, 1, 1))
    assert await other.read_owner("run") is not None  # until the lease ends
    assert await saved(other) == {A: 1}
    await store.aclose()
    await other.aclose()


async def test_a_lock_whose_answer_is_lost_is_one_lock(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(url)
    query = PostgresConnection.query
    lost = 2

    def lossy(self: PostgresConnection, statement: str, values: Values = NONE) -> object:
        nonlocal lost
        rows = query(self, statement, values)
        if "ON CONFLICT (run_id)" in statement and lost:
            lost -= 1
            self.close()
            raise psycopg.OperationalError("the connection was cut")
        return rows

    monkeypatch.setattr(PostgresConnection, "query", lossy)
    async with store.lock_run("run") as owner:
        assert (owner, lost) == (1, 0)
        await store.save(RunKey("run", 0, owner), chain(A, 1, 1))
    async with store.lock_run("run") as owner:
        assert owner == 2
    await store.aclose()


async def test_a_common_save_is_one_short_statement(url: str, losses: Losses) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        await store.save(key, chain(A, 1, 1))
        losses.sent.clear()
        await store.save(key, chain(A, 2, 65))
        await store.save(key, [])
        await store.save(key, chain(A, 66, 66))
        await store.save(key, chain(B, 1, 1))
        assert losses.sent == [APPEND.name, RENEW.name, APPEND_ONE.name, SAVE.name]
    assert await saved(store) == {A: 66, B: 1}
    await store.aclose()


@pytest.mark.parametrize("options", ["", "&pooler=transaction"])
async def test_payloads_alone_and_together_come_back(url: str, options: str) -> None:
    store = await open_store(url + options)
    payloads = [b"first", b"", bytes(70_000), b"\0\xff", b"x", b"", b"y"]
    cuts = (0, 1, 2, 3, 5, 7)  # the first makes the stream; of one and of two records
    group = [Checkpoint(A, n, payload) for n, payload in enumerate(payloads, 1)]
    async with store.lock_run("run") as owner:
        for start, end in itertools.pairwise(cuts):
            outcomes = await store.save(RunKey("run", 0, owner), group[start:end])
            assert outcomes == [None] * (end - start)
    stored = await store.read_run("run")
    assert stored is not None
    assert [record.payload for record in stored.streams[0].tail] == payloads
    await store.aclose()


async def test_heads_are_written_now_and_then_and_readers_add_the_rest(
    url: str, schema: str, sql: Sql
) -> None:
    store, other = await open_store(url), await open_store(url)
    heads = f"SELECT sequence FROM {schema}.streams WHERE key = '[\"a\"]'"
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        await store.save(key, chain(A, 1, 10))
        assert sql(heads) == [(0,)]
        assert await saved(other) == {A: 10}
        await store.save(key, chain(A, 11, FOLD_EVERY))
        assert sql(heads) == [(FOLD_EVERY,)]
        await store.save(key, [*chain(A, FOLD_EVERY + 1, FOLD_EVERY + 5), *chain(B, 1, 3)])
        assert sql(heads) == [(FOLD_EVERY,)]
        assert await saved(other) == {A: FOLD_EVERY + 5, B: 3}
        page = await other.history("run", A, limit=10)
        newest = FOLD_EVERY + 5
        assert [r.sequence for r in page.records] == list(range(newest, newest - 10, -1))
        await store.save(key, [], [Fold(A, newest - 2, b"sum")])
        assert sql(heads) == [(newest,)]
        await store.save(key, chain(A, newest + 1, newest + 1))
        # As a process that is killed leaves it.
        sql(f"UPDATE {schema}.runs SET expires_at = clock_timestamp()")
        async with other.lock_run("run") as heir:
            assert await saved(other) == {A: newest + 1, B: 3}
            outcomes = await other.save(RunKey("run", 0, heir), chain(A, newest + 2, newest + 2))
            assert outcomes == [None]
            with pytest.raises(StoreConflictError):
                await store.save(key, chain(A, newest + 2, newest + 2))
        assert sql(heads) == [(newest + 2,)]
    assert [finding async for finding in other.check()] == []
    await store.aclose()
    await other.aclose()


async def test_a_key_that_is_no_text_of_the_database_is_refused_alone(url: str) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        group = [Checkpoint("\ud800", 1, b""), *chain(A, 1, 1)]
        outcomes = await store.save(RunKey("run", 0, owner), group)
        assert [outcome is None for outcome in outcomes] == [False, True]
        with pytest.raises(StoreError):
            await store.lock_run("\ud800").__aenter__()
    assert await saved(store) == {A: 1}
    await store.aclose()


async def test_a_read_is_made_again_where_its_connection_broke(url: str, sql: Sql) -> None:
    store = await open_store(url)
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), chain(A, 1, 3))
        for _ in range(3):
            sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'trio_ckpt'"
            )
            assert await saved(store) == {A: 3}
    await store.aclose()


async def test_many_runs_of_one_handle_are_kept_apart(url: str) -> None:
    store = await open_store(url)

    async def own(number: int) -> None:
        async with store.lock_run(f"run {number}") as owner:
            for sequence in range(1, 11):
                group = [Checkpoint(A, sequence, b"%d" % sequence)]
                assert await store.save(RunKey(f"run {number}", 0, owner), group) == [None]

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(own, number)
    for number in range(8):
        assert await saved(store, f"run {number}") == {A: 10}
    await store.aclose()
