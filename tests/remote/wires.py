"""Connections in memory: what a network does, without one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio
import trio.lowlevel

from trio_ckpt.remote._wire.errors import ConnectionLostError


@attrs.define(eq=False)
class MemorySocket:
    """One end; `cut` is what a pulled plug is."""

    _out: trio.MemorySendChannel[tuple[float, bytes]]
    _into: trio.MemoryReceiveChannel[tuple[float, bytes]]
    _latency_s: float = 0.0
    is_mute: bool = False  # what is sent is lost, and neither side is told
    _coming: tuple[float, bytes] | None = None

    async def send(self, frame: bytes) -> None:
        if self.is_mute:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._out.send((trio.current_time() + self._latency_s, frame))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLostError("the line is cut") from error

    async def receive(self) -> bytes:
        try:
            if self._coming is None:
                self._coming = await self._into.receive()
            at, frame = self._coming
            if at > trio.current_time():
                await trio.sleep_until(at)
            self._coming = None
            return frame
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise ConnectionLostError("the line is cut") from error

    def cut(self) -> None:
        self._out.close()
        self._into.close()


def socket_pair(frames: int = 4, latency_s: float = 0.0) -> tuple[MemorySocket, MemorySocket]:
    """Two ends of one line; so many frames are on the way at most, each for so long."""
    a_out, b_in = trio.open_memory_channel[tuple[float, bytes]](frames)
    b_out, a_in = trio.open_memory_channel[tuple[float, bytes]](frames)
    return MemorySocket(a_out, a_in, latency_s), MemorySocket(b_out, b_in, latency_s)


@asynccontextmanager
async def closing(socket: MemorySocket) -> AsyncGenerator[MemorySocket]:
    try:
        yield socket
    finally:
        socket.cut()
