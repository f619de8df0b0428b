"""Connections in memory: what a network does, without one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio

from trio_ckpt.remote._errors import ConnectionLostError


@attrs.define(eq=False)
class MemorySocket:
    """One end; `cut` is what a pulled plug is."""

    _out: trio.MemorySendChannel[bytes]
    _into: trio.MemoryReceiveChannel[bytes]

    async def send(self, frame: bytes) -> None:
        try:
            await self._out.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLostError("the line is cut") from error

    async def receive(self) -> bytes:
        try:
            return await self._into.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise ConnectionLostError("the line is cut") from error

    def cut(self) -> None:
        self._out.close()
        self._into.close()


def socket_pair(frames: int = 4) -> tuple[MemorySocket, MemorySocket]:
    """Two ends of one line; so many frames are on the way at most."""
    a_out, b_in = trio.open_memory_channel[bytes](frames)
    b_out, a_in = trio.open_memory_channel[bytes](frames)
    return MemorySocket(a_out, a_in), MemorySocket(b_out, b_in)


@asynccontextmanager
async def closing(socket: MemorySocket) -> AsyncGenerator[MemorySocket]:
    try:
        yield socket
    finally:
        socket.cut()
