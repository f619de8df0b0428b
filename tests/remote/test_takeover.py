"""How soon the items of a worker that is gone go to another, and what a stopped process is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.engines.jobs import hold
from tests.remote import functions
from tests.remote.functions import seen
from tests.remote.kills import AIMED_STEPS, Cast
from tests.remote.samples import hello, open_pair
from tests.remote.site import SECRET, F, Site, open_site, until
from tests.remote.wires import MemorySocket, socket_pair
from trio_ckpt.remote import read_task
from trio_ckpt.remote._client import open_client
from trio_ckpt.remote._foreman.foreman import ForemanCore
from trio_ckpt.remote._foreman.peers import Terms
from trio_ckpt.remote._wire.errors import ConnectionLostError
from trio_ckpt.remote._wire.link import Link
from trio_ckpt.remote._wire.message import Heartbeat, MessageKind
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import PeerRole
from trio_ckpt.stores import MemoryStore


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


def begun() -> int:
    return seen.count(("begun", "x"))


async def work_under_way(site: Site, nursery: trio.Nursery) -> None:
    """One worker has an item, and another one is idle."""
    await site.start_worker("a")
    client = await nursery.start(_client, site)
    await client.submit(F + "wait", ["x"], job_id="job-t")
    await until(begun)
    await site.start_worker("b")


async def _client(site: Site, task_status: trio.TaskStatus[object]) -> None:
    async with site.client() as client:
        task_status.started(client)
        await trio.sleep_forever()


async def takeover_s() -> float:
    """How long it takes until the item has begun again."""
    started = trio.current_time()
    await until(lambda: begun() == 2)
    return trio.current_time() - started


async def test_a_killed_worker_is_replaced_within_seconds(autojump_clock: MockClock) -> None:
    """Its connection was closed by its system."""
    async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
        await work_under_way(site, nursery)
        site.kill_worker("a")
        assert await takeover_s() <= 2.5
        nursery.cancel_scope.cancel()


async def test_a_worker_that_leaves_is_replaced_at_once(autojump_clock: MockClock) -> None:
    async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
        await work_under_way(site, nursery)
        await site.workers["a"].stop("it leaves", 0.0)
        assert await takeover_s() <= 0.5
        nursery.cancel_scope.cancel()


async def test_a_worker_that_stops_is_given_nothing_more(autojump_clock: MockClock) -> None:
    """Not even what it has just handed back; and it has taken no item down, however often."""
    async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
        client = await nursery.start(_client, site)
        await client.submit(F + "wait", ["x"], job_id="job-t", losses=1)
        for name in ("a", "b", "c"):
            worker = await site.start_worker(name)
            await until(partial(len, worker.items))
            await worker.stop("it stops", 0.0)
        assert begun() == 3
        await site.start_worker("d")
        functions.gates["x"].set()
        assert await client.attach("job-t") == ["x"]
        nursery.cancel_scope.cancel()


async def test_a_silent_worker_is_replaced_when_its_silence_is_over(
    autojump_clock: MockClock,
) -> None:
    """And not a grace later."""
    async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
        await work_under_way(site, nursery)
        site.mute("a")
        assert 15 <= await takeover_s() <= 21.5
        nursery.cancel_scope.cancel()


async def test_a_grace_is_counted_from_the_last_connection(autojump_clock: MockClock) -> None:
    """A worker that was away before has all of it again."""
    async with open_site(MemoryStore(), grace_s=10) as site, trio.open_nursery() as nursery:
        await work_under_way(site, nursery)
        for _ in range(2):
            site.cut("a", for_good=True)
            await trio.sleep(6)
            site.cut_off.discard("a")
            await trio.sleep(3.6)
        await trio.sleep(20)
        assert begun() == 1
        nursery.cancel_scope.cancel()


# -- a process that was stopped -------------------------------------------------------------------


def linked(socket: MemorySocket) -> tuple[Link, Connection]:
    """A link over a socket, and the rules of the other side."""
    peer, foreman = open_pair()
    link = Link(socket, foreman)
    link.heartbeat_s, link.silence_s = 5.0, 20.0
    return link, peer


async def test_a_paused_side_reads_what_came_before_it_calls_a_peer_silent(
    mock_clock: MockClock,
) -> None:
    here, there = socket_pair()
    link, peer = linked(here)

    async def come_late() -> None:
        await wait_all_tasks_blocked()
        mock_clock.jump(50.0)
        await trio.lowlevel.checkpoint()
        peer.send(Heartbeat())
        while (frame := peer.next_frame()) is not None:
            await there.send(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_late)
        received = link.connection.receive(await link._receive_frame())
        assert received is not None
        assert received.message.KIND is MessageKind.HEARTBEAT
        assert not link.is_silent


async def test_a_side_that_stays_silent_is_given_up(autojump_clock: MockClock) -> None:
    here, _there = socket_pair()
    link, _peer = linked(here)
    with pytest.raises(ConnectionLostError, match="silent for 20 s"):
        await link.receive()
    assert link.is_silent
    assert trio.current_time() == pytest.approx(21, abs=0.1)


async def test_an_idle_worker_keeps_to_a_short_silence(autojump_clock: MockClock) -> None:
    """Its writer slept by the default when WELCOME said how often to send something."""
    async with open_site(MemoryStore()) as site:
        site.terms = Terms(SECRET, heartbeat_s=0.25, silence_s=1)
        await site.start_worker("a")
        assert site.foreman is not None
        (worker,) = site.foreman.pool.workers.values()
        await trio.sleep(60)
        assert worker.connections == 1


async def test_a_worker_that_reconnects_in_the_same_moment_is_kept(
    autojump_clock: MockClock,
) -> None:
    """A foreman that was stopped reads at once that a connection was lost, and the next HELLO."""
    async with trio.open_nursery() as nursery:
        foreman = ForemanCore(MemoryStore(), grace_s=10)
        await foreman.begin(nursery)
        (here, _), (there, _) = socket_pair(), socket_pair()
        (lost, _), (link, _) = linked(here), linked(there)
        worker = foreman.connect(hello(PeerRole.WORKER), lost)
        foreman.disconnect(worker, lost, is_leaving=False)
        assert foreman.connect(hello(PeerRole.WORKER), link) is worker
        await trio.sleep(20)
        assert list(foreman.pool.workers.values()) == [worker]
        assert worker.link is link
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["foreman", "worker", "client"])
def test_a_process_that_is_stopped_for_a_while_changes_no_result(kind: str, tmp_path: Path) -> None:
    """SIGSTOP for longer than a silence, as `docker pause` does it."""
    cast = Cast(tmp_path, AIMED_STEPS, slots=1, options=("--silence", "1", "--grace", "0.5"))
    cast.running = [(one, cast.start(one)) for one in ("foreman", "client", "worker", "worker")]
    stopped_at = 0.0
    hold(tmp_path / "marks", AIMED_STEPS // 2)  # so that the job is not over before

    def strike() -> None:
        nonlocal stopped_at
        process = next(process for one, process in cast.running if one == kind)
        if stopped_at == 0.0 and any((tmp_path / "marks").iterdir()):
            os.kill(process.pid, signal.SIGSTOP)
            stopped_at = time.monotonic()
        elif stopped_at > 0 and time.monotonic() > stopped_at + 2.5:
            os.kill(process.pid, signal.SIGCONT)
            hold(tmp_path / "marks", None)
            stopped_at = -1.0

    outcome = cast.play(strike)
    assert outcome.is_right, outcome
    assert not outcome.kills
    assert stopped_at == -1.0


async def test_a_client_that_is_stopped_while_it_connects_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site:
        near = site.dial("client")

        @asynccontextmanager
        async def far() -> AsyncGenerator[MemorySocket]:
            await trio.sleep(1)
            autojump_clock.jump(7_200)
            await trio.sleep(0.5)
            async with near() as socket:
                yield socket

        async with open_client(far, SECRET, "client") as client:
            await site.start_worker("a")
            assert await client.map(F + "square", [3]) == [9]


async def test_a_worker_that_is_stopped_while_it_ends_comes_to_a_point(
    autojump_clock: MockClock,
) -> None:
    async with open_site(MemoryStore()) as site, trio.open_nursery() as nursery:
        worker = await site.start_worker("a")
        client = await nursery.start(_client, site)
        await client.submit(F + "train", [1], job_id="job-t", checkpoint_interval_s=1e6)
        await trio.sleep(3.5)
        before = await read_task(site.store, "job-t.000000")
        nursery.start_soon(worker.stop, "it is told to", 10.0)
        await wait_all_tasks_blocked()
        autojump_clock.jump(60)
        await until(lambda: not worker.items)
        after = await read_task(site.store, "job-t.000000")
        assert after.checkpoint_count == before.checkpoint_count + 1
        nursery.cancel_scope.cancel()
