"""A running run in PostgreSQL is steered through the store, by who may write to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import trio

pytest.importorskip("psycopg", reason="psycopg is not installed")

from tests.crash.act_sweep import kill_at_each_call
from tests.crash.acts import AimedKills, prepare
from tests.fork_server import Told
from tests.opening import begin
from tests.stores.postgres.servers import Server
from trio_ckpt._journal.acts import ActRefusedError, new_act, read_acts
from trio_ckpt._maintenance import ask_inbox
from trio_ckpt._maintenance.steer import steer
from trio_ckpt._util.errors import StoreError
from trio_ckpt._util.index_set import IndexSet
from trio_ckpt.stores import open_store

Sql = Callable[..., list[tuple[object, ...]]]


@pytest.fixture(scope="module")
def acts() -> Iterator[AimedKills]:
    with AimedKills(None) as started:
        yield started


@pytest.mark.parametrize("pooling", ["", "&pooler=transaction"])
async def test_a_running_run_is_steered(
    pooling: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask_inbox, "LOOK_EVERY_S", 0.01)
    url += pooling
    begun: list[int] = []
    store = await open_store(url)
    async with begin(url) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            begun.append(batch.index)
            if batch.index == 1 and len(begun) == 2:
                about = {"stream": ("s",), "indexes": run_indexes(0)}
                reply = await steer(store, "r", new_act("requeue", "ann", **about))
                assert reply.text == "batch 0 is re-queued"
                reply = await steer(store, "r", new_act("status", "ann"))
                assert reply.status["streams"][0]["open"] == 1
                with pytest.raises(ActRefusedError, match="run 'r': it is not paused"):
                    await steer(store, "r", new_act("resume", "ann"))
            batch.complete()
    assert sorted(begun) == [0, 0, 1, 2]
    assert [act.do for act in await read_acts(store, "r")] == ["requeue"]
    assert await store.read_inbox("r") == b""
    await store.aclose()


def run_indexes(*indexes: int) -> IndexSet:
    return IndexSet(indexes)


async def test_a_role_that_only_reads_steers_nothing(
    url: str, schema: str, server: Server, sql: Sql
) -> None:
    async with begin(url):
        sql(f"CREATE ROLE reader_{schema} LOGIN")
        sql(f"GRANT USAGE ON SCHEMA {schema} TO reader_{schema}")
        sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader_{schema}")
        store = await open_store(server.url(f"?schema={schema}", user=f"reader_{schema}"))
        with pytest.raises(StoreError, match="permission denied for table live"):
            await steer(store, "r", new_act("pause", "eve"))
        assert await read_acts(store, "r") == []
        await store.aclose()


@pytest.mark.parametrize("do", ["pause", "requeue", "stop"])
def test_an_act_that_is_killed_was_done_or_never_was(
    do: str, acts: AimedKills, url: str, schema: str, sql: Sql
) -> None:
    def prepare_store() -> str:
        sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        trio.run(prepare, url, do)
        return url

    def end_lease() -> None:
        sql(f"UPDATE {schema}.runs SET expires_at = expires_at - interval '1 year'")

    def ask(point: int) -> Told:
        return acts.kill_at_call(url, do, point)

    kill_at_each_call(ask, prepare_store, do, end_lease)
