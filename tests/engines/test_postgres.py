"""Engines on a store in PostgreSQL: what an item costs there, and that it runs once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.engines import items
from tests.engines.drivers import TwiceExecutor, pool, sum_to, work
from tests.engines.items import durable_again, steps_in
from tests.engines.kills import kill_one
from tests.hangs import HANG_S, PROGRAM_S
from tests.stores.postgres.servers import Server, running_server
from trio_ckpt.engines import map_tasks, open_map
from trio_ckpt.stores import open_store

N, LEASE_S = 20, 6.0
WORKERS = 2
WORKER_TRANSACTIONS = 4  # of an item in the process that runs it
TRANSACTIONS = 8  # of an item in all: with its result in the job, and the end of its own run
JOB_TRANSACTIONS = 25  # of the job itself: its run, and the first items of its workers

_STATEMENT = re.compile(r"^(\d+) LOG: +(?:statement|execute [^:]*): (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def logged(server: Server) -> Iterator[Server]:
    """A server of this module's own, which logs each statement with the process that got it."""
    settings = ("fsync=off", "log_statement=all", "log_line_prefix=%p ", "autovacuum=off")
    with running_server(*settings) as running:
        yield running


async def run_items(url: str, side: Path, count: int, engine: Any, job_id: str) -> None:
    found = await map_tasks(
        items.count_up,
        work(side, count, N, 0.001),
        engine=engine,
        store=url,
        job_id=job_id,
        checkpoint_interval_s=1_000.0,
    )
    assert found == [sum_to(N)] * count


@attrs.frozen
class ServerLog:
    """The statements that a server has logged since, by its process for a connection."""

    path: Path
    since: int

    @classmethod
    def begin(cls, server: Server) -> ServerLog:
        path = server.folder / "log"
        return cls(path, path.stat().st_size)

    def transactions(self, sessions: Collection[int] | None = None) -> int:
        """How many transactions there were: statements, but for those of one BEGIN.

        Those of live views are left out: they come by time, not by item.
        """
        text, count = self.path.read_bytes()[self.since :].decode(), 0
        is_inside = dict[str, bool]()
        for session, statement in _STATEMENT.findall(text):
            is_live = ".live " in statement
            if (sessions is None or int(session) in sessions) and not is_live:
                count += not is_inside.get(session, False)
            begins = statement.startswith("BEGIN")
            is_inside[session] = begins or (
                is_inside.get(session, False) and statement not in ("COMMIT", "ROLLBACK")
            )
        return count


def sessions_of(server: Server) -> set[int]:
    """The server's processes for connections of the library."""
    import psycopg

    with psycopg.connect(server.url()) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'trio_ckpt'"
        return {pid for (pid,) in connection.execute(query)}


async def test_an_item_costs_few_transactions(logged: Server, tmp_path: Path) -> None:
    url, few, many = logged.url("?schema=costs"), 10, 30
    all_of, workers_of = dict[int, int](), dict[int, int]()
    with pool(WORKERS) as executor:
        await run_items(url, tmp_path / "side", 2 * WORKERS, executor, "job-first")
        with trio.fail_after(HANG_S):  # else a process has more than one connection
            # Sessions of the driver may be about to end, of which the server tells nothing.
            while len(workers := sessions_of(logged)) > WORKERS:  # noqa: ASYNC110
                await trio.sleep(0.05)
        for count in (few, many):
            log = ServerLog.begin(logged)
            await run_items(url, tmp_path / "side", count, executor, f"job-{count}")
            all_of[count], workers_of[count] = log.transactions(), log.transactions(workers)
    assert workers_of[many] - workers_of[few] <= (many - few) * WORKER_TRANSACTIONS
    assert all_of[many] <= JOB_TRANSACTIONS + many * TRANSACTIONS


async def test_results_come_from_open_map_as_they_are_durable(url: str, tmp_path: Path) -> None:
    """Again from the store, where the job is over."""
    side = tmp_path / "side"
    for _ in range(2):
        found = dict[int, object]()
        async with open_map(
            items.count_up,
            work(side, 6, N, 0.001),
            engine=pool,
            store=url,
            job_id="job-open",
            checkpoint_interval_s=1_000.0,
        ) as results:
            async for index, outcome in results:
                assert index not in found
                found[index] = outcome
        assert found == dict.fromkeys(range(6), sum_to(N))
    assert len(steps_in(side)) == 6 * N, "a step was made twice"


async def test_an_item_that_is_started_twice_runs_once(url: str, tmp_path: Path) -> None:
    side = tmp_path / "side"
    with TwiceExecutor(8) as executor:
        await run_items(url, side, 4, executor, "job-twice")
    assert len(steps_in(side)) == 4 * N, "a step was made twice"
    async with aclosing(await open_store(url)) as store:
        assert [run.run_id for run in await store.list_runs()] == ["job-twice"]


async def test_a_killed_process_gives_its_items_up_before_their_leases_end(
    server: Server, schema: str, tmp_path: Path
) -> None:
    """Its session has ended, which the next owner sees; the lease alone would last much longer."""
    side, url = tmp_path / "side", server.url(f"?schema={schema}&lease_s={LEASE_S}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, kill_one, side, N - 2)
        with trio.fail_after(PROGRAM_S):
            found = await map_tasks(
                items.count_up,
                work(side, 4, N),
                engine=pool,
                store=url,
                checkpoint_interval_s=0.1,
            )
    assert found == [sum_to(N)] * 4
    assert len({step.pid for step in steps_in(side)}) > 2, "no process was killed"
    assert durable_again(side) == []
