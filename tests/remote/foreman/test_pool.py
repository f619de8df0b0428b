"""The one place that brings items and workers together: each cell of its table, and each way in
which a connection, a last word and a claim can overtake each other."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.remote.samples import exchange, hello
from trio_ckpt.remote._foreman.lease import Lease, Lost, WorkerHandle
from trio_ckpt.remote._foreman.pool import DUE, Due, ItemOnConnection, Pool
from trio_ckpt.remote._foreman.waiting import PendingItem
from trio_ckpt.remote._wire.frames import decode_frame
from trio_ckpt.remote._wire.job_messages import JobOptions
from trio_ckpt.remote._wire.link import Link
from trio_ckpt.remote._wire.message import HeldItem, Hello, MessageKind, TaskMessage, Welcome
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import PeerRole, TaskPhase
from trio_ckpt.remote._wire.task_messages import AssignTask, NewLease, ReleaseTask

FUNCTION = "pkg:f"
X, Y = "job-1.000000", "job-1.000001"
NUMBER = 6  # under which a worker of these tests holds an item


class _NoSocket:
    """Nothing is carried here: what is queued is looked at."""

    async def send(self, frame: bytes) -> None:
        raise NotImplementedError

    async def receive(self) -> bytes:
        raise NotImplementedError


@attrs.define(eq=False)
class Peer:
    """Both ends of one worker's connection."""

    pool: Pool
    handle: WorkerHandle
    connection: Connection

    def reconnect(self, *held: HeldItem, slots: int = 1) -> None:
        """Come back on a new connection, and name what is held."""
        self.connection, foreman = Connection(PeerRole.WORKER), Connection(None)
        first = greeting(held, slots)
        self.connection.send(first)
        exchange(self.connection, foreman)
        foreman.send(Welcome(1, 5.0, 20.0, foreman.window))
        exchange(foreman, self.connection)
        self.handle.disconnect()
        self.handle.connect(Link(_NoSocket(), foreman), first)
        self.pool.touch(self.handle)

    @property
    def foreman(self) -> Connection:
        assert self.handle.link is not None
        return self.handle.link.connection

    def told(self) -> list[MessageKind]:
        """What the worker is told now, which arrives."""
        kinds: list[MessageKind] = []
        while (frame := self.foreman.next_frame()) is not None:
            kinds.append(decode_frame(frame).kind)
            self.connection.receive(frame)
        return kinds

    def say(self, message: TaskMessage) -> None:
        """What the worker says, which arrives."""
        self.connection.send(message)
        exchange(self.connection, self.foreman)
        lease = self.handle.leases.get(message.task_id)
        if lease is not None:
            lease.take(message)
        self.pool.touch(self.handle)


def greeting(held: tuple[HeldItem, ...], slots: int) -> Hello:
    return msgspec.structs.replace(hello(PeerRole.WORKER), slots=slots, held=held)


def new_pool(is_open: Callable[[str], bool] = lambda _task_id: True) -> Pool:
    return Pool(is_open)


def new_peer(pool: Pool, name: str, *held: HeldItem, slots: int = 1) -> Peer:
    handle = WorkerHandle(name, name, slots, ("pkg",))
    pool.workers[name] = handle
    peer = Peer(pool, handle, Connection(PeerRole.WORKER))
    peer.reconnect(*held, slots=slots)
    return peer


def wanted(task_id: str, attempt: int = 1) -> PendingItem:
    index = int(task_id[-6:])
    return PendingItem("job-1", index, task_id, FUNCTION, index, attempt, JobOptions())


@asynccontextmanager
async def waiting(pool: Pool, *task_ids: str, attempt: int = 1) -> AsyncGenerator[list[Lease]]:
    """Items that wait in the pool; yields what they are promised."""
    promised: list[Lease] = []

    async def take(task_id: str) -> None:
        promised.append(await pool.take(wanted(task_id, attempt), 0.0))

    async with trio.open_nursery() as nursery:
        for task_id in task_ids:
            nursery.start_soon(take, task_id)
        await wait_all_tasks_blocked()
        yield promised
        nursery.cancel_scope.cancel()


async def match(pool: Pool) -> None:
    pool.match()
    await wait_all_tasks_blocked()


def assign(lease: Lease, number: int = NUMBER) -> None:
    """Keep a promise."""
    message = AssignTask(lease.task_id, number, "job-1", 0, FUNCTION, 0)
    assert lease.offer(number, None, message)


async def assigned(pool: Pool, task_id: str = X, number: int = NUMBER) -> Lease:
    """An item that a worker was given just now."""
    async with waiting(pool, task_id) as promised:
        await match(pool)
        assign(promised[0], number)
    return promised[0]


# -- the table ------------------------------------------------------------------------------------

CELLS = list(itertools.product(DUE, ItemOnConnection))
SENT = {
    Due.NOTHING: [],
    Due.TAKE: [],
    Due.LEASE: [MessageKind.LEASE],
    Due.CANCEL: [MessageKind.CANCEL],
    Due.ACK: [MessageKind.TASK_ACK],
}


def lease_of(pool: Pool, peer: Peer, ending: Lost | None) -> None:
    lease = Lease(X, FUNCTION, peer.handle, None, NUMBER)
    lease.ending = ending
    pool._holders[X] = peer.handle
    peer.handle.leases[X] = pool.leases[X] = lease


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[0].value}-{cell[1].name}")
async def test_each_cell_says_what_is_due(cell: tuple[TaskPhase, ItemOnConnection]) -> None:
    phase, standing = cell
    pool = new_pool(lambda _task_id: standing is not ItemOnConnection.UNWANTED)
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    peer.connection.tasks[X] = peer.foreman.tasks[X] = phase
    if standing in (ItemOnConnection.LEASED, ItemOnConnection.CHANGING):
        lease_of(pool, peer, None if standing is ItemOnConnection.LEASED else Lost.WORKER)
    async with waiting(pool, *([X] if standing is ItemOnConnection.WAITING else [])) as promised:
        await match(pool)
        due = DUE[phase][standing]
        assert peer.told() == SENT[due]
        assert (NUMBER in [lease.was for lease in promised]) is (due is Due.TAKE)


def test_no_item_stays_on_a_connection_for_ever() -> None:
    """Nothing is due only where something else is sure to come: the last word of a worker, the end
    of a lease, or the decision about an item that is held."""
    for phase, standing in CELLS:
        is_to_come = (
            phase is TaskPhase.STOPPING
            or standing in (ItemOnConnection.LEASED, ItemOnConnection.CHANGING)
            or (phase, standing) == (TaskPhase.HELD, ItemOnConnection.OPEN)
        )
        assert is_to_come or DUE[phase][standing] is not Due.NOTHING


# -- what overtakes what --------------------------------------------------------------------------


async def test_the_slot_of_a_held_item_that_is_done_becomes_free() -> None:
    pool = new_pool(lambda task_id: task_id != X)
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    async with waiting(pool, Y) as promised:
        await match(pool)
        assert peer.told() == [MessageKind.CANCEL]
        peer.say(ReleaseTask(X, NUMBER, "it had ended"))
        await match(pool)
        assert peer.told() == [MessageKind.TASK_ACK]
        assert [lease.task_id for lease in promised] == [Y]


async def test_a_worker_is_not_assigned_what_it_holds() -> None:
    """It goes on with it instead, though it has a free slot."""
    pool = new_pool()
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1), slots=2)
    async with waiting(pool, X, Y) as promised:
        await match(pool)
        assert {lease.task_id: lease.was for lease in promised} == {X: NUMBER, Y: None}
        assert peer.handle.free == 0


async def test_what_is_held_is_decided_when_its_item_waits() -> None:
    """The worker is there first, and its slot is not given away meanwhile."""
    pool = new_pool()
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    async with waiting(pool, Y):
        await match(pool)
        assert (peer.told(), peer.handle.free) == ([], 0)
        async with waiting(pool, X) as promised:
            await match(pool)
            assert [lease.was for lease in promised] == [NUMBER]


async def test_a_lease_that_never_arrived_is_said_again() -> None:
    """The worker names the number from before: it is this worker's item all the same."""
    pool = new_pool()
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    async with waiting(pool, X) as promised:
        await match(pool)
        (lease,) = promised
        assert lease.offer(9, None, NewLease(X, 9, NUMBER))
        peer.reconnect(HeldItem(X, NUMBER, 1))
        await match(pool)
        assert (peer.told(), lease.ending) == ([MessageKind.LEASE], None)
        peer.reconnect(HeldItem(X, 9, 1))
        await match(pool)
        assert (peer.told(), lease.ending) == ([MessageKind.LEASE], None)


async def test_an_assignment_that_never_arrived_ends_its_lease() -> None:
    pool = new_pool()
    peer = new_peer(pool, "a")
    lease = await assigned(pool)
    peer.reconnect()
    await match(pool)
    assert lease.ending is Lost.MESSAGE
    pool.end(lease)
    await match(pool)
    assert peer.handle.free == 1


async def test_an_old_try_that_is_held_is_not_gone_on_with() -> None:
    """Its failure was recorded, and the worker was not told: the second try is a new one."""
    pool = new_pool()
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    async with waiting(pool, X, attempt=2) as promised:
        await match(pool)
        assert (peer.told(), promised) == ([MessageKind.CANCEL], [])


async def test_what_was_handed_back_is_not_gone_on_with() -> None:
    """The worker has said so, and its connection was lost before that was acknowledged."""
    pool = new_pool()
    peer = new_peer(pool, "a")
    lease = await assigned(pool)
    peer.told()
    peer.say(ReleaseTask(X, NUMBER, "it stops"))
    pool.end(lease)
    peer.reconnect(HeldItem(X, NUMBER, 1))
    async with waiting(pool, X):
        await match(pool)
        assert peer.told() == [MessageKind.CANCEL]


async def test_a_worker_back_late_goes_on_if_no_other_has_its_item() -> None:
    """Also while it is written down that it was lost."""
    pool = new_pool()
    peer = new_peer(pool, "a")
    lease = await assigned(pool)
    lease.lose(Lost.WORKER, 1.0)
    late = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    await match(pool)
    assert late.told() == []
    pool.end(lease)
    async with waiting(pool, X) as promised:
        await match(pool)
        assert [lease.was for lease in promised] == [NUMBER]
        assert promised[0].holder is late.handle
    assert peer.handle is not late.handle


async def test_a_promise_ends_with_its_connection() -> None:
    """What the worker holds then decides, not what it was about to get."""
    pool = new_pool()
    peer = new_peer(pool, "a", HeldItem(X, NUMBER, 1))
    async with waiting(pool, X) as promised:
        await match(pool)
        (lease,) = promised
        peer.reconnect(HeldItem(X, NUMBER, 1))
        assert not lease.offer(9, None, NewLease(X, 9, NUMBER))
        await match(pool)
        assert peer.told() == []
        pool.end(lease)
        async with waiting(pool, X) as again:
            await match(pool)
            assert [lease.was for lease in again] == [NUMBER]


async def test_an_item_goes_past_a_worker_that_is_still_stopping_it() -> None:
    """The items after it are not kept waiting for that."""
    pool = new_pool()
    peer = new_peer(pool, "a", slots=2)
    lease = await assigned(pool)
    pool.end(lease)  # its last word could not be stored, say
    async with waiting(pool, X, Y) as promised:
        await match(pool)
        assert peer.told() == [MessageKind.ASSIGN_TASK, MessageKind.CANCEL]
        assert [lease.task_id for lease in promised] == [Y]


async def test_a_promise_to_a_taker_that_is_cancelled_is_given_back() -> None:
    """It was cancelled, had not run yet, and was promised a slot meanwhile."""
    pool = new_pool()
    peer = new_peer(pool, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.take, wanted(X), 0.0)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        pool.match()
        assert peer.handle.free == 0
    assert peer.handle.free == 1
    assert (pool.leases, pool.waiting) == ({}, 0)


async def test_an_item_that_was_begun_waits_for_the_worker_that_has_it(
    autojump_clock: MockClock,
) -> None:
    """So long as it may come back; then any worker gets it."""
    pool = new_pool()
    new_peer(pool, "idle")
    got: list[tuple[float, Lease]] = []

    async def take(claims_until: float) -> None:
        lease = await pool.take(wanted(X), claims_until)
        got.append((trio.current_time(), lease))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        nursery.start_soon(take, trio.current_time() + 5)
        began = trio.current_time()
        await trio.sleep(6)
        assert got[0][0] - began == pytest.approx(5)
        pool.end(got[0][1])
        nursery.start_soon(take, trio.current_time() + 5)
        await trio.sleep(1)
        holder = new_peer(pool, "holder", HeldItem(X, NUMBER, 1))
        pool._newest.clear()
        await trio.sleep(1)
        assert got[1][1].holder is holder.handle
        nursery.cancel_scope.cancel()


# -- items that are to be alone ------------------------------------------------------------------


@asynccontextmanager
async def alone(pool: Pool, task_id: str = X) -> AsyncGenerator[list[Lease]]:
    """An item that waits for a worker of its own; yields what it is promised."""
    promised: list[Lease] = []

    async def take() -> None:
        promised.append(await pool.take(wanted(task_id), 0.0, is_alone=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        yield promised
        nursery.cancel_scope.cancel()


def named(numbers: range) -> list[str]:
    return [f"job-1.{number:06d}" for number in numbers]


def ended(pool: Pool, lease: Lease) -> None:
    """An item is done, and its slot free."""
    pool.end(lease)
    pool.match()


async def test_an_item_that_is_to_be_alone_waits_for_one_worker_only() -> None:
    pool = new_pool()
    peer = new_peer(pool, "a", slots=2)
    async with waiting(pool, *named(range(1, 9))) as others:
        pool.match()
        await wait_all_tasks_blocked()
        first, second = others
        async with alone(pool) as lone:
            pool.match()
            ended(pool, first)
            await wait_all_tasks_blocked()
            assert (len(others), lone) == (2, [])  # the slot stays free: six others wait
            ended(pool, second)
            await wait_all_tasks_blocked()
            assert (len(others), [lease.holder for lease in lone]) == (2, [peer.handle])
            assert peer.handle.free == 0
            ended(pool, lone[0])
            await wait_all_tasks_blocked()
            assert len(others) == 4


async def test_while_an_item_waits_to_be_alone_other_workers_go_on() -> None:
    pool = new_pool()
    peers = [new_peer(pool, name, slots=2) for name in "abc"]
    async with waiting(pool, *named(range(1, 30))) as others:
        pool.match()
        await wait_all_tasks_blocked()
        busy = next(lease for lease in others if lease.holder is peers[1].handle)
        async with alone(pool) as lone:
            ended(pool, busy)  # it has the least to do, and gets nothing more
            for _ in range(5):
                for peer in (peers[0], peers[2]):
                    ended(pool, next(iter(peer.handle.leases.values())))
                    await wait_all_tasks_blocked()
            assert [peer.handle.running for peer in peers] == [2, 1, 2]
            ended(pool, next(iter(peers[1].handle.leases.values())))
            await wait_all_tasks_blocked()
            assert [lease.holder for lease in lone] == [peers[1].handle]


async def test_a_worker_that_is_kept_for_an_item_may_leave() -> None:
    pool = new_pool()
    peers = [new_peer(pool, name, slots=2) for name in "ab"]
    async with waiting(pool, *named(range(1, 30))) as others:
        pool.match()
        await wait_all_tasks_blocked()
        async with alone(pool) as lone:
            for lease in [lease for lease in others if lease.holder is peers[0].handle][:1]:
                ended(pool, lease)
            assert peers[0].handle.running == 1
            peers[0].handle.disconnect()
            del pool.workers["a"]
            for lease in tuple(peers[1].handle.leases.values()):
                ended(pool, lease)
            await wait_all_tasks_blocked()
            assert [lease.holder for lease in lone] == [peers[1].handle]


async def test_no_worker_is_kept_for_an_item_that_it_does_not_get() -> None:
    """One that leaves, one of other functions, and none for an item that is not wanted."""
    pool = new_pool()
    leaving, other = new_peer(pool, "a", slots=0), new_peer(pool, "b", slots=2)
    async with alone(pool) as lone:
        other.handle.allow = ("other",)
        pool.match()
        await wait_all_tasks_blocked()
        assert (lone, leaving.handle.leases, other.handle.leases) == ([], {}, {})
        other.handle.allow = ("pkg",)
        async with waiting(pool, Y):
            pool.match()
            await wait_all_tasks_blocked()
            assert [lease.holder for lease in lone] == [other.handle]
    pool = new_pool()
    peer = new_peer(pool, "a", slots=2)
    async with waiting(pool, *named(range(1, 9))) as others:
        pool.match()
        await wait_all_tasks_blocked()
        async with alone(pool):
            ended(pool, others[0])
            await wait_all_tasks_blocked()
            assert len(others) == 2
        pool.match()
        await wait_all_tasks_blocked()
        assert (len(others), peer.handle.running) == (3, 2)


# -- a foreman that was stopped ------------------------------------------------------------------


async def test_a_foreman_stopped_at_its_start_waits_for_busy_workers(
    autojump_clock: MockClock,
) -> None:
    """Else what a worker is at would be begun a second time by another one."""
    pool = new_pool()
    new_peer(pool, "idle")
    got: list[Lease] = []

    async def take() -> None:
        got.append(await pool.take(wanted(X), trio.current_time() + 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        nursery.start_soon(take)
        await trio.sleep(1)
        autojump_clock.jump(7_200)
        await trio.sleep(1)
        holder = new_peer(pool, "holder", HeldItem(X, NUMBER, 1))
        await trio.sleep(1)
        assert [lease.holder for lease in got] == [holder.handle]
        nursery.cancel_scope.cancel()
