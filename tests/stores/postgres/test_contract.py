"""The store in PostgreSQL keeps the whole contract, however it is reached."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.stores.postgres.servers import Server
from trio_ckpt.stores import open_store
from trio_ckpt.testing import check_store


async def test_the_contract(url: str) -> None:
    await check_store(lambda: open_store(url))


async def test_the_contract_with_its_lease(url: str) -> None:
    await check_store(lambda: open_store(f"{url}&lease_s=2"), lease_s=2.0)


async def test_the_contract_without_prepared_statements(url: str) -> None:
    await check_store(lambda: open_store(f"{url}&pooler=transaction"))


async def test_the_contract_durable_for_the_process(url: str) -> None:
    await check_store(lambda: open_store(url, durability="process"))


async def test_the_contract_through_pgbouncer(server: Server, pooler: int, schema: str) -> None:
    url = server.url(f"?schema={schema}&pooler=transaction", port=pooler)
    await check_store(lambda: open_store(url))


async def test_the_contract_under_a_jumping_clock(url: str, autojump_clock: MockClock) -> None:
    """No call to the server lets virtual time pass."""
    await check_store(lambda: open_store(url))
    assert trio.current_time() == 0
