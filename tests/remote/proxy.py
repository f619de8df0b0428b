"""A network that goes wrong where it is told to: a proxy between peers and a foreman."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio

HANDSHAKE_CHUNKS = 2  # of a direction: of HTTP, and the first message
CHUNK_BYTES = 4_096


@attrs.define(eq=False)
class Proxy:
    """What it does to what passes; may be changed at any time.

    Attributes:
        port: Where it listens.
        delay_s: Each piece waits for so long.
        bytes_per_s: No faster than that; 0: as fast as may be.
        is_silent: Nothing passes any more, and neither side learns of it: half-open.  A connection
            that has lost a piece stays so: TCP delivers nothing after what it has lost.
        corrupt_next: One bit of one of the next pieces is turned.
        is_closed: New connections are refused.
    """

    port: int
    _target: int
    _nursery: trio.Nursery
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    is_silent: bool = False
    corrupt_next: bool = False
    is_closed: bool = False
    corrupted: int = 0
    _streams: set[trio.SocketStream] = attrs.field(factory=set[trio.SocketStream])
    _rng: random.Random = attrs.field(factory=lambda: random.Random(3))

    async def serve(self, stream: trio.SocketStream) -> None:
        """Carry one connection."""
        if self.is_closed:
            await trio.aclose_forcefully(stream)
            return
        try:
            other = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        ends = {stream, other}
        self._streams |= ends
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, stream, other, nursery.cancel_scope)
                nursery.start_soon(self._carry, other, stream, nursery.cancel_scope)
        finally:
            self._streams -= ends
            for end in ends:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(end)

    async def _carry(
        self, source: trio.SocketStream, goal: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        has_lost, chunks = False, 0
        try:
            while data := await source.receive_some(CHUNK_BYTES):
                chunks += 1
                if self.delay_s:
                    await trio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await trio.sleep(len(data) / self.bytes_per_s)
                if self.is_silent or has_lost:
                    has_lost = True
                    continue
                await goal.send_all(self._maybe_corrupted(bytes(data), chunks))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        scope.cancel()

    def _maybe_corrupted(self, data: bytes, number: int) -> bytes:
        """Turn a bit if asked to, but not in a handshake: a secret that differs is final."""
        if not self.corrupt_next or len(data) < 100 or number <= HANDSHAKE_CHUNKS:
            return data
        self.corrupt_next = False
        self.corrupted += 1
        place = self._rng.randrange(60, len(data))  # behind the headers of what begins with it
        changed = bytearray(data)
        changed[place] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    async def cut(self) -> None:
        """End all connections in good order."""
        for stream in tuple(self._streams):
            await trio.aclose_forcefully(stream)

    async def reset(self) -> None:
        """End all connections with a reset (RST)."""
        streams = tuple(self._streams)
        for stream in streams:  # before the first is closed, for that closes its other end, too
            stream.setsockopt(
                trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        for stream in streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_proxy(target: int) -> AsyncGenerator[Proxy]:
    """A proxy for the foreman at a port of this machine."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        proxy = Proxy(port, target, nursery)
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
