"""A run whose owner was killed or stopped is taken over; the former owner changes nothing more."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

pytest.importorskip("psycopg", reason="psycopg is not installed")

from tests.stores.postgres.owner import STREAM
from tests.stores.postgres.servers import Server
from trio_ckpt import RunLockedError, StoreConflictError
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._postgres.address import parse_address
from trio_ckpt.stores._postgres.connection import UNMARK, PostgresConnection
from trio_ckpt.stores._postgres.owning import GRACE_S, Suspect, grace_of
from trio_ckpt.stores._postgres.process import this_host
from trio_ckpt.stores._postgres.store import PostgresStore

ROOT = Path(__file__).parents[3]
LEASE_S = 1.5


@pytest.fixture
def url(server: Server, schema: str) -> str:
    return server.url(f"?schema={schema}&lease_s={LEASE_S}")


@contextmanager
def owning_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the run and saves, until the block ends."""
    command = [sys.executable, "-m", "tests.stores.postgres.owner", url, "run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("own ")
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def take_over(store: Store) -> AsyncGenerator[int]:
    """Lock the run as soon as the lease of its owner has ended."""
    while True:
        with suppress(RunLockedError):
            async with store.lock_run("run") as owner:
                yield owner
                return
        await trio.sleep(0.02)


async def owners_of_records(store: Store) -> list[bytes]:
    stored = await store.read_run("run")
    assert stored is not None
    (entry,) = stored.streams
    assert [record.sequence for record in entry.tail] == list(range(1, entry.sequence + 1))
    return [record.payload for record in entry.tail]


async def test_a_run_is_taken_over_from_an_owner_that_was_killed(url: str) -> None:
    with owning_process(url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved 1\n"
    store = await open_store(url)
    async with take_over(store) as owner:
        assert owner == 2
        sequence = len(await owners_of_records(store)) + 1
        group = [Checkpoint(STREAM, sequence, b"2")]
        assert await store.save(RunKey("run", 0, owner), group) == [None]
    assert (await owners_of_records(store))[-2:] == [b"1", b"2"]
    await store.aclose()


async def wake_after_takeover(url: str) -> tuple[str, int]:
    """Stop an owner, take its run over, save, and wake it.

    Returns:
        What the owner said last, and how many saves it calls saved that came after the takeover.
    """
    store = await open_store(url)
    with owning_process(url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved 1\n"
        process.send_signal(signal.SIGSTOP)
        async with take_over(store) as owner:
            sequence = len(await owners_of_records(store)) + 1
            group = [Checkpoint(STREAM, sequence, b"2")]
            assert await store.save(RunKey("run", 0, owner), group) == [None]
            process.send_signal(signal.SIGCONT)
            *saved, last = process.stdout.read().splitlines()
            records = await owners_of_records(store)
            assert records == [b"1"] * (sequence - 1) + [b"2"]
    await store.aclose()
    return last, sum(int(line.split()[1]) >= sequence for line in saved)


async def test_an_owner_that_was_stopped_saves_nothing_when_it_wakes(url: str) -> None:
    assert await wake_after_takeover(url) == ("fenced", 0)


async def test_who_was_killed_is_not_waited_for_until_its_lease_ends(
    server: Server, schema: str, autojump_clock: MockClock
) -> None:
    url = server.url(f"?schema={schema}&lease_s=3600")
    store = await open_store(url)
    with owning_process(url) as process:
        with pytest.raises(RunLockedError):  # it lives
            await store.lock_run("run").__aenter__()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(RunLockedError):  # it may wake
            await store.lock_run("run").__aenter__()
    owner = 0
    while not owner:  # the server notices the end of a connection in its own time
        with suppress(RunLockedError):
            async with store.lock_run("run") as owner:
                pass
    assert owner == 2
    assert trio.current_time() <= 2 * GRACE_S  # its process is gone: no renewal is waited for
    await store.aclose()


def test_only_a_process_that_is_known_to_be_gone_is_not_waited_for() -> None:
    def grace(host: str, pid: int) -> float:
        return grace_of(30, Suspect(1, datetime.now(UTC), host, pid, 30.0))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert grace(this_host(), process.pid) == 10 + GRACE_S
    assert grace(this_host(), process.pid) == GRACE_S
    assert grace(socket.gethostname(), process.pid) == 10 + GRACE_S


async def test_an_owner_without_a_mark_shows_that_it_lives(
    server: Server,
    schema: str,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease_s = 300
    url = server.url(f"?schema={schema}&lease_s={lease_s}")
    store, other = await open_store(url), await open_store(url)
    monkeypatch.setattr(PostgresConnection, "keep_mark", lambda *_: None)
    monkeypatch.setattr(
        PostgresConnection,
        "take_marked",
        lambda self, statement, values, _: self.query(
            statement, {**values, "schema": schema, "is_marking": False}
        ),
    )
    async with store.lock_run("run") as owner, trio.open_nursery() as nursery:

        async def renew() -> None:
            await trio.sleep(lease_s / 3)
            assert await store.save(RunKey("run", 0, owner), []) == []

        nursery.start_soon(renew)
        with pytest.raises(RunLockedError):
            await other.lock_run("run").__aenter__()
        async with other.lock_run("run") as following:  # it does not renew again
            assert following == owner + 1
    await store.aclose()
    await other.aclose()


def test_sessions_of_one_owner_share_its_mark(url: str) -> None:
    address = parse_address(url)
    former, newer, other = [PostgresConnection(address, "full") for _ in range(3)]
    for connection in (former, newer):
        connection.keep_mark("run", 1)
        connection.query("SELECT 1")  # opens it, with its marks
    assert not other.is_unmarked("run", 1)
    former.query(UNMARK, former.mark_values("run", 1))
    assert not other.is_unmarked("run", 1)
    newer.query(UNMARK, newer.mark_values("run", 1))
    assert other.is_unmarked("run", 1)
    for connection in (former, newer, other):
        connection.close()


async def test_a_run_that_was_given_back_has_no_mark(url: str) -> None:
    """Also none of a session that the handle opens later."""
    store, other = await open_store(url), PostgresConnection(parse_address(url), "full")
    async with store.lock_run("run") as owner:
        assert not other.is_unmarked("run", owner)
    assert other.is_unmarked("run", owner)
    assert isinstance(store, PostgresStore)
    store._writing.connection.close()
    async with store.lock_run("another"):
        assert other.is_unmarked("run", owner)
    await store.aclose()
    other.close()


async def test_an_owner_that_lost_its_connection_keeps_its_run(
    server: Server, schema: str, sql: Callable[..., list[object]]
) -> None:
    url = server.url(f"?schema={schema}&lease_s=3600")
    store, other = await open_store(url), await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        ended = "FROM pg_stat_activity WHERE application_name = 'trio_ckpt'"
        sql(f"SELECT pg_terminate_backend(pid) {ended}")
        while sql(f"SELECT pid {ended}"):  # the server ends them in its own time
            pass
        assert await store.save(key, []) == []
        with pytest.raises(RunLockedError):
            await other.lock_run("run").__aenter__()
        assert await store.save(key, [Checkpoint(STREAM, 1, b"1")]) == [None]
    async with other.lock_run("run") as owner:
        assert owner == 2
    await store.aclose()
    await other.aclose()


async def test_an_owner_keeps_its_run_when_the_one_before_it_goes(
    server: Server, schema: str, sql: Callable[..., object]
) -> None:
    url = server.url(f"?schema={schema}&lease_s=3600")
    former, store, other = [await open_store(url) for _ in range(3)]
    async with former.lock_run("run"):
        sql(f"UPDATE {schema}.runs SET expires_at = clock_timestamp()")
        owning = store.lock_run("run")
        assert await owning.__aenter__() == 2
    with pytest.raises(RunLockedError):
        await other.lock_run("run").__aenter__()
    await owning.__aexit__(None, None, None)
    for handle in (former, store, other):
        await handle.aclose()


async def test_a_save_of_nothing_keeps_the_lease(
    server: Server, schema: str, sql: Callable[..., object]
) -> None:
    url = server.url(f"?schema={schema}&lease_s=3600")
    store, other = await open_store(url), await open_store(url)
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        for _ in range(2):
            sql(f"UPDATE {schema}.runs SET expires_at = clock_timestamp()")
            assert await other.read_owner("run") is None
            assert await store.save(key, []) == []
            with pytest.raises(RunLockedError):
                await other.lock_run("run").__aenter__()
            assert await other.read_owner("run") is not None
    await store.aclose()
    await other.aclose()


async def test_an_owner_whose_lease_ended_may_go_on_until_it_is_fenced(
    server: Server, schema: str, sql: Callable[..., object]
) -> None:
    url = server.url(f"?schema={schema}&lease_s=3600")
    store, other = await open_store(url), await open_store(url)
    end_lease = f"UPDATE {schema}.runs SET expires_at = clock_timestamp()"
    async with store.lock_run("run") as owner:
        key = RunKey("run", 0, owner)
        sql(end_lease)
        assert await other.read_owner("run") is None
        assert await store.save(key, [Checkpoint(STREAM, 1, b"1")]) == [None]
        assert await other.read_owner("run") is not None
        sql(end_lease)
        async with other.lock_run("run") as following:
            assert following == owner + 1
            with pytest.raises(StoreConflictError):
                await store.save(key, [Checkpoint(STREAM, 2, b"1")])
    assert await other.read_owner("run") is None
    assert await owners_of_records(other) == [b"1"]
    await store.aclose()
    await other.aclose()
