"""A foreman, workers and clients in one process, connected in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import trio
import trio.lowlevel

from tests.remote.wires import MemorySocket, closing, socket_pair
from trio_ckpt.abc import Store
from trio_ckpt.remote._client import Client, open_client
from trio_ckpt.remote._foreman.foreman import Foreman, ForemanCore
from trio_ckpt.remote._foreman.peers import Terms, serve_peer
from trio_ckpt.remote._foreman.publisher import ForemanPublisher
from trio_ckpt.remote._wire.errors import ConnectionLostError
from trio_ckpt.remote._wire.reconnect import Dial
from trio_ckpt.remote._worker.worker import Worker

SECRET = b"a secret of 16 bytes or more"
ALLOW = ("tests.remote.functions",)
F = "tests.remote.functions:"


@attrs.define(eq=False)
class Site:
    """All of it.

    Attributes:
        store: The foreman's.
        foreman: The one there is now; None: none is running.
        sockets: The peers' ends of all connections, the newest last, by peer.
        latency_s: How long each frame is on its way.
    """

    store: Store
    nursery: trio.Nursery
    settings: dict[str, Any]
    foreman: ForemanCore | None = None
    sockets: dict[str, MemorySocket] = attrs.field(factory=dict[str, MemorySocket])
    latency_s: float = 0.0
    terms: Terms = attrs.field(factory=lambda: Terms(SECRET))
    cut_off: set[str] = attrs.field(factory=set[str])
    workers: dict[str, Worker] = attrs.field(factory=dict[str, Worker])
    _scopes: dict[str, trio.CancelScope] = attrs.field(factory=dict[str, trio.CancelScope])
    _running: trio.Nursery | None = None

    @property
    def handle(self) -> Foreman:
        """What `serve_foreman` gives of a foreman like the one there is now."""
        assert self.foreman is not None
        return Foreman(self.store, 0, "", self.foreman)

    # -- the foreman --------------------------------------------------------------------------

    async def start_foreman(self) -> ForemanCore:
        await self.nursery.start(self._run_foreman)
        assert self.foreman is not None
        return self.foreman

    async def _run_foreman(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            self._scopes["foreman"] = scope
            async with trio.open_nursery() as nursery:
                foreman = ForemanCore(self.store, **self.settings)
                await foreman.begin(nursery)
                nursery.start_soon(ForemanPublisher(foreman).run)
                self.foreman, self._running = foreman, nursery
                task_status.started()
                await trio.sleep_forever()

    async def kill_foreman(self, store: Store | None = None) -> None:
        """As kill -9 would.

        Args:
            store: What the next one finds.
        """
        self.kill_foreman_now(store)
        await trio.lowlevel.checkpoint()

    def kill_foreman_now(self, store: Store | None = None) -> None:
        """Kill it at this very instruction; connections are cut first, so none says goodbye."""
        for socket in self.sockets.values():
            socket.cut()
        if store is not None:
            self.store = store
        self.foreman = self._running = None
        self._scopes["foreman"].cancel()

    def stop_foreman(self) -> None:
        """End it in good order: it says goodbye to its peers."""
        self.foreman = self._running = None
        self._scopes["foreman"].cancel()

    # -- peers --------------------------------------------------------------------------------

    def dial(self, name: str) -> Dial:
        """The way of one peer to whatever foreman there is."""

        @asynccontextmanager
        async def dialing() -> AsyncGenerator[MemorySocket]:
            await trio.lowlevel.checkpoint()
            if self._running is None or self.foreman is None or name in self.cut_off:
                raise ConnectionLostError("no foreman listens here")
            here, there = socket_pair(latency_s=self.latency_s)
            self.sockets[name] = here
            self._running.start_soon(self._serve, self.foreman, there, name)
            async with closing(here):
                yield here

        return dialing

    async def _serve(self, foreman: ForemanCore, socket: MemorySocket, name: str) -> None:
        async with closing(socket):
            await serve_peer(foreman, self.terms, socket, name)

    async def start_worker(
        self, name: str, *, slots: int = 1, allow: tuple[str, ...] = ALLOW, **settings: Any
    ) -> Worker:
        patience_s = settings.pop("patience_s", 600.0)
        worker = Worker(SECRET, allow, slots, name, patience_s, settings.pop("tracer", None))
        self.workers[name] = worker
        await self.nursery.start(self._run_worker, name, worker)
        return worker

    async def _run_worker(
        self, name: str, worker: Worker, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.CancelScope() as scope:
            self._scopes[name] = scope
            await worker.run(self.dial(name), task_status=task_status)
        if scope.cancelled_caught:
            with suppress(RuntimeError):  # that it has started was said before it was killed
                task_status.started()

    def kill_worker(self, name: str) -> None:
        """As kill -9 would: the connection is cut first, so that neither side says goodbye."""
        self.cut_off.add(name)
        self.sockets[name].cut()
        self._scopes[name].cancel()

    def cut(self, name: str, *, for_good: bool = False) -> None:
        """Cut a peer's connection; it may come back at once."""
        if for_good:
            self.cut_off.add(name)
        self.sockets[name].cut()

    def mute(self, name: str) -> None:
        """Lose all that a peer says from now on, and not tell the foreman."""
        self.cut_off.add(name)
        self.sockets[name].is_mute = True

    @asynccontextmanager
    async def client(self, name: str = "client", secret: bytes = SECRET) -> AsyncGenerator[Client]:
        async with open_client(self.dial(name), secret, name) as client:
            yield client


@asynccontextmanager
async def open_site(store: Store, **settings: Any) -> AsyncGenerator[Site]:
    """A running foreman, and room for peers; leaving ends them all."""
    async with trio.open_nursery() as nursery:
        site = Site(store, nursery, settings)
        await site.start_foreman()
        yield site
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object], within_s: float = 600.0) -> None:
    """Wait until something holds, on trio's clock."""
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110  # what it asks for has no event
            await trio.sleep(0.05)
