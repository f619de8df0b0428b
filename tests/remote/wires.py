"""Connections in memory that fail as those of a network do."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio
import trio.lowlevel

from trio_ckpt.remote import _inside


@attrs.define(eq=False)
class MemorySocket(_inside.MemorySocket):
    """One end; `cut` is what a pulled plug is."""

    _latency_s: float
    _due: deque[float]  # when the frames of this end arrive
    _coming: deque[float]  # when those of the other end arrive
    is_mute: bool = False  # what is sent is lost, and neither side is told
    _frame: bytes | None = None

    async def send(self, frame: bytes) -> None:
        if self.is_mute:
            await trio.lowlevel.checkpoint()
            return
        self._due.append(trio.current_time() + self._latency_s)
        try:
            await _inside.MemorySocket.send(self, frame)
        except BaseException:
            self._due.pop()
            raise

    async def receive(self) -> bytes:
        if self._frame is None:
            self._frame = await _inside.MemorySocket.receive(self)
        if self._coming[0] > trio.current_time():
            await trio.sleep_until(self._coming[0])
        self._coming.popleft()
        frame, self._frame = self._frame, None
        return frame

    def cut(self) -> None:
        self.close()


def socket_pair(frames: int = 4, latency_s: float = 0.0) -> tuple[MemorySocket, MemorySocket]:
    """Two ends of one line; so many frames are on the way at most, each for so long."""
    a_out, b_in = trio.open_memory_channel[bytes](frames)
    b_out, a_in = trio.open_memory_channel[bytes](frames)
    there, back = deque[float](), deque[float]()
    return (
        MemorySocket(a_out, a_in, latency_s, there, back),
        MemorySocket(b_out, b_in, latency_s, back, there),
    )


@asynccontextmanager
async def closing(socket: MemorySocket) -> AsyncGenerator[MemorySocket]:
    try:
        yield socket
    finally:
        socket.cut()
