"""While the database fails no acknowledged batch is lost, none is doubled, and no token fails."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.stores.postgres.faults import Faults, save_through
from tests.stores.postgres.servers import LosingProxy, Server, running_pair, running_server

TERMINATE = (
    "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND application_name = 'trio_ckpt'"
)

Sql = Callable[..., list[tuple[int]]]


@pytest.fixture(autouse=True)
def _with_server(server: Server) -> None:
    """Skip where none is installed, also the tests that start one of their own."""


async def test_terminated_backends_lose_and_double_nothing(url: str, sql: Sql) -> None:
    faults = Faults(60, lambda: sql(TERMINATE)[0][0])
    found = await save_through(url, "run", faults)
    assert faults.made >= 60
    assert found["acknowledged"] > 100
    assert (found["lost"], found["doubled"], found["failed"]) == (0, 0, 0)


async def test_servers_that_crash_lose_and_double_nothing() -> None:
    with running_server() as server:

        def crash() -> int:
            server.stop(signal.SIGQUIT)
            server.start()
            return 1

        found = await save_through(server.url("?lease_s=60"), "run", Faults(3, crash))
    assert found["acknowledged"] > 10
    assert (found["lost"], found["doubled"], found["failed"]) == (0, 0, 0)


async def test_a_standby_that_takes_over_has_all_that_was_acknowledged() -> None:
    with running_pair() as (primary, standby):
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&lease_s=60"

        def fail_over() -> int:
            primary.stop(signal.SIGQUIT)
            standby.promote()
            return 1

        found = await save_through(url, "run", Faults(1, fail_over))
    assert found["acknowledged"] > 4
    assert (found["lost"], found["doubled"], found["failed"]) == (0, 0, 0)


async def test_answers_that_are_swallowed_lose_and_double_nothing(
    server: Server, schema: str
) -> None:
    proxy = LosingProxy(server.port)
    with proxy.serve() as port:
        url = server.url(f"?schema={schema}&sslmode=disable", port=port)
        faults = Faults(30, lambda: proxy.lose(faults.made))
        found = await save_through(url, "run", faults)
    assert proxy.answers >= 30
    assert found["acknowledged"] > 100
    assert (found["lost"], found["doubled"], found["failed"]) == (0, 0, 0)
