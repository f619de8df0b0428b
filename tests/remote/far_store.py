"""A store on the other side of a connection, for the checks that are made for stores.

A worker's store is for the run that it was given. Here as many are given as are asked for: each
run that a handle locks, or only looks at, is a work item of one worker.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import msgspec
import trio
import trio.lowlevel

from tests.remote.samples import exchange, hello
from tests.remote.wires import socket_pair
from trio_ckpt._util.errors import StoreError
from trio_ckpt.abc import (
    BlobPayload,
    Checkpoint,
    Fold,
    HistoryPage,
    RunKey,
    Store,
    StoredRun,
)
from trio_ckpt.remote._foreman.store_proxy import StoreProxy
from trio_ckpt.remote._wire.link import Link, open_link
from trio_ckpt.remote._wire.message import Welcome
from trio_ckpt.remote._wire.protocol import Connection
from trio_ckpt.remote._wire.tables import PeerRole
from trio_ckpt.remote._wire.task_messages import (
    AssignTask,
    CheckpointAck,
    StoreCall,
    StoreReply,
    TaskCheckpoint,
)
from trio_ckpt.remote._worker.calls import RpcClient
from trio_ckpt.remote._worker.remote_store import RemoteStore
from trio_ckpt.testing._faulty import WrappedStore


@attrs.define(eq=False)
class Far:
    """A worker and a foreman that are connected.

    Attributes:
        worker: The one's link.
        foreman: The other's.
    """

    worker: Link
    foreman: Link
    rpcs: dict[str, RpcClient] = attrs.field(factory=dict[str, RpcClient])
    proxies: dict[str, StoreProxy] = attrs.field(factory=dict[str, StoreProxy])
    _names: itertools.count[int] = attrs.field(factory=itertools.count)
    _calls: itertools.count[int] = attrs.field(factory=itertools.count)

    async def give(self, proxy: StoreProxy) -> RpcClient:
        """Let the worker have a run."""
        task_id = f"t{next(self._names)}"
        lease = max(proxy.owner, 1)
        self.proxies[task_id] = proxy
        self.foreman.send(AssignTask(task_id, lease, "job-1", 0, "pkg:f", None))
        while task_id not in self.worker.connection.tasks:
            await trio.lowlevel.checkpoint()
        rpc = self.rpcs[task_id] = RpcClient(task_id, lease, link=self.worker, numbers=self._calls)
        return rpc

    async def read_as_worker(self) -> None:
        while True:
            received = await self.worker.receive()
            message = received.message
            if isinstance(message, StoreReply | CheckpointAck):
                self.rpcs[message.task_id].answer(message)
            self.worker.consumed(received)

    async def read_as_foreman(self, nursery: trio.Nursery) -> None:
        while True:
            received = await self.foreman.receive()
            message = received.message
            if isinstance(message, StoreCall):
                nursery.start_soon(self._answer, message)
            elif isinstance(message, TaskCheckpoint):
                nursery.start_soon(self._save, message)
            self.foreman.consumed(received)

    async def _answer(self, message: StoreCall) -> None:
        for reply in await self.proxies[message.task_id].answer(message):
            self.foreman.send(reply)

    async def _save(self, message: TaskCheckpoint) -> None:
        self.foreman.send(await self.proxies[message.task_id].save(message))


@asynccontextmanager
async def open_far() -> AsyncGenerator[Far]:
    """Connect a worker and a foreman."""
    peer, foreman = Connection(PeerRole.WORKER), Connection(None)
    peer.send(hello(PeerRole.WORKER))
    exchange(peer, foreman)
    foreman.send(Welcome(1, 5.0, 20.0, foreman.window))
    exchange(foreman, peer)
    here, there = socket_pair()
    async with (
        open_link(here, peer) as worker_link,
        open_link(there, foreman) as foreman_link,
        trio.open_nursery() as nursery,
    ):
        far = Far(worker_link, foreman_link)
        nursery.start_soon(far.read_as_worker)
        nursery.start_soon(far.read_as_foreman, nursery)
        yield far
        nursery.cancel_scope.cancel()


class FarStore(WrappedStore):
    """A store that is used over a connection, as far as a worker's verbs go.

    What a worker cannot do is done on the foreman's side, whose store is the handle.
    """

    def __init__(self, near: Store, far: Far) -> None:
        super().__init__(near)
        self.address, self.mac_key = "far:", None  # a worker has no key
        self._far = far
        self._runs: dict[str, RemoteStore] = {}
        self._is_closed = False

    async def _run(self, run_id: str) -> RemoteStore:
        if self._is_closed:
            raise StoreError("the store is closed")
        if run_id not in self._runs:
            rpc = await self._far.give(StoreProxy(self.handle, run_id, 0))
            self._runs[run_id] = RemoteStore(rpc)
        return self._runs[run_id]

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        if self._is_closed:
            raise StoreError("the store is closed")
        async with self.handle.lock_run(run_id) as owner:
            rpc = await self._far.give(StoreProxy(self.handle, run_id, owner))
            store = self._runs[run_id] = RemoteStore(rpc)
            async with store.lock_run(rpc.task_id) as given:
                assert given == owner
                yield owner

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        store = await self._run(run.run_id)
        outcomes = await store.save(
            msgspec.structs.replace(run, run_id=store._rpc.task_id), group, folds
        )
        if summary is not None:  # a work item has none
            await self.handle.save(run, [], summary=summary)
        return outcomes

    async def read_run(self, run_id: str, generation: int | None = None) -> StoredRun | None:
        store = await self._run(run_id)
        return await store.read_run(store._rpc.task_id, generation)

    async def history(
        self,
        run_id: str,
        stream: str,
        *,
        generation: int | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> HistoryPage:
        store = await self._run(run_id)
        return await store.history(
            store._rpc.task_id, stream, generation=generation, cursor=cursor, limit=limit
        )

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        store = await self._run(run.run_id)
        key = msgspec.structs.replace(run, run_id=store._rpc.task_id)
        return await store.put_blob(key, payload)

    async def read_blob(
        self, run_id: str, digest: str, offset: int = 0, size: int | None = None
    ) -> bytes:
        store = await self._run(run_id)
        return await store.read_blob(store._rpc.task_id, digest, offset, size)

    async def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> int:
        store = await self._run(run.run_id)
        key = msgspec.structs.replace(run, run_id=store._rpc.task_id)
        return await store.drop_blobs(key, stream, sequences)

    async def aclose(self) -> None:
        self._is_closed = True
        await super().aclose()


def far_maker(far: Far, maker: Callable[[], Awaitable[Store]]) -> Callable[[], Awaitable[Store]]:
    """Handles onto a store that is on the other side."""

    async def make() -> Store:
        return FarStore(await maker(), far)

    return make
