"""A live connection: the protocol over a socket, with heartbeats.

One task writes: all that the protocol has queued, and a heartbeat after a pause.  The owner
reads.  A peer that is silent for too long, does not read, or breaks the rules is disconnected:
`ConnectionLostError` or `RemoteProtocolError` leave `Link.receive`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import trio

from ..._util.nursery import open_service_nursery
from ..._util.patience import give_up_after
from .errors import ConnectionLostError, ProtocolError
from .message import MIB, Credit, Goodbye, Heartbeat, Message
from .protocol import Connection, Received
from .tables import ConnectionPhase

HEARTBEAT_S = 5.0
SILENCE_S = 20.0  # four heartbeats: a live peer may miss one or two
HANDSHAKE_S = 10.0  # for everything that comes before WELCOME
RECHECK_S = 1.0  # this process may have been stopped: bytes that arrived are not read yet
GOODBYE_S = 1.0  # to send what is queued
HIGH_WATER_BYTES = 4 * MIB  # a sender of more than this waits until less is queued


class Socket(Protocol):
    """A transport of frames: a WebSocket, or two channels of one process."""

    async def send(self, frame: bytes) -> None:
        """Send one frame; raises ConnectionLostError if the socket is closed."""
        ...

    async def receive(self) -> bytes:
        """Receive one frame; ConnectionLostError: closed, RemoteProtocolError: not a frame."""
        ...


@attrs.define(eq=False)
class Link:
    """One connection; from `open_link`.

    Attributes:
        connection: The state of the protocol.
        heartbeat_s: This side sends something at least this often, in seconds.
        silence_s: The other side is disconnected after this many seconds of silence.
        is_silent: Whether the other side was disconnected for its silence.
    """

    _socket: Socket
    connection: Connection
    heartbeat_s: float = HEARTBEAT_S
    silence_s: float = HANDSHAKE_S
    is_silent: bool = attrs.field(default=False, init=False)
    _failure: Exception | None = attrs.field(default=None, init=False)
    _wake: trio.Event = attrs.field(factory=trio.Event, init=False)
    _drained: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _reading: trio.CancelScope | None = attrs.field(default=None, init=False)
    _writing: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    @property
    def is_open(self) -> bool:
        """Whether the handshake is complete, and neither side has left or is lost."""
        return self._failure is None and self.connection.phase is ConnectionPhase.OPEN

    def send(self, message: Message) -> bool:
        """Queue a message.

        Returns:
            False: the connection is over, and the message was not queued.

        Raises:
            LocalProtocolError: the message is not allowed now.
        """
        if self._failure is not None or self.connection.phase is ConnectionPhase.CLOSED:
            return False
        self.connection.send(message)
        self._wake.set()
        return True

    def end(self, reason: str) -> None:
        """Drop the connection as if it were lost; `receive` raises from now on."""
        self._fail(ConnectionLostError(reason))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._drained.unpark_all()
        if self._reading is not None:
            self._reading.cancel()

    async def drain(self) -> None:
        """Wait until little is queued; for use after sending much.

        Cancellation: a cancellation point.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        while self._failure is None and self.connection.queued_bytes > HIGH_WATER_BYTES:
            await self._drained.park()
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure

    async def receive(self) -> Received:
        """Return the next message; heartbeats and credit are handled here.

        Call `consumed` when the message is handled.

        Cancellation: a cancellation point; no message is lost.

        Raises:
            ConnectionLostError: the other side is gone or silent.
            RemoteProtocolError: the other side breaks the rules.
        """
        while True:
            received = self.connection.receive(await self._receive_frame())
            if received is None:
                continue
            if isinstance(received.message, Credit):
                self._wake.set()
            elif not isinstance(received.message, Heartbeat):
                return received

    async def _receive_frame(self) -> bytes:
        frame: bytes | None = None
        if self._failure is None:
            again_s = min(RECHECK_S, self.heartbeat_s)
            limit_s = self.silence_s + again_s
            with give_up_after(limit_s, again_s=again_s, is_shielded=False) as self._reading:
                frame = await self._socket.receive()
            self._reading = None
        if self._failure is not None:
            raise self._failure
        if frame is None:
            self.is_silent = True
            silent = ConnectionLostError(f"the other side was silent for {self.silence_s:g} s")
            self._fail(silent)
            raise silent
        return frame

    def set_times(self, heartbeat_s: float, silence_s: float) -> None:
        """Set both times, in seconds; a heartbeat that is due sooner now is sent sooner."""
        self.heartbeat_s, self.silence_s = heartbeat_s, silence_s
        self._wake.set()

    def consumed(self, received: Received) -> None:
        """Mark a message as handled, so that the other side may send more."""
        self.connection.consumed(received)
        if self.connection.queued_bytes:  # it may have returned credit
            self._wake.set()

    async def say_goodbye(self, reason: str) -> None:
        """Leave on purpose; what is queued is sent first, within `GOODBYE_S`.

        Cancellation: shielded, for `GOODBYE_S`.
        """
        if not self.is_open:
            return
        self.send(Goodbye(reason))
        await self.flush()

    async def flush(self) -> None:
        """Wait until nothing is queued, at most `GOODBYE_S`.

        Cancellation: shielded, for `GOODBYE_S`.
        """
        with trio.move_on_after(GOODBYE_S, shield=True):
            while self.connection.queued_bytes and self._failure is None:
                await self._drained.park()

    async def write(self) -> None:
        """Send all that is queued; a background task of the link.

        Cancellation: shielded, so that a side that is cancelled can still say goodbye;
        `stop_writing` ends it.
        """
        self._writing.shield = True
        try:
            with self._writing:
                while True:
                    with trio.CancelScope() as waiting:  # one for many waits: a scope costs more
                        await self._write_until_over(waiting)
                    if self.connection.phase is ConnectionPhase.OPEN:
                        self.connection.send(Heartbeat())
        except (ConnectionLostError, ProtocolError) as error:
            self._fail(error)
        finally:
            self._drained.unpark_all()

    def stop_writing(self) -> None:
        """End `write`; messages that are still queued are lost."""
        self._writing.cancel()

    async def _write_until_over(self, waiting: trio.CancelScope) -> None:
        """Write until nothing was queued for `heartbeat_s`, which cancels the scope."""
        while not waiting.cancel_called:
            waiting.deadline = math.inf  # no frame is cut
            await self._write_queued()
            waiting.deadline = trio.current_time() + self.heartbeat_s
            await self._wake.wait()

    async def _write_queued(self) -> None:
        self._wake = trio.Event()
        frame = self.connection.next_frame()
        if frame is None:
            return
        limit = give_up_after(self.silence_s, is_shielded=False)
        with limit as sending:
            while frame is not None:
                await self._socket.send(frame)
                limit.restart()
                if self.connection.queued_bytes <= HIGH_WATER_BYTES:
                    self._drained.unpark_all()
                frame = self.connection.next_frame()
        if sending.cancelled_caught:
            raise ConnectionLostError(f"the other side has taken nothing for {self.silence_s:g} s")


@asynccontextmanager
async def open_link(socket: Socket, connection: Connection) -> AsyncGenerator[Link]:
    """Run a connection over a socket for a block; exceptions leave without a group.

    Cancellation: queued messages may be lost; see `Link.say_goodbye`.
    """
    link = Link(socket, connection)
    async with open_service_nursery() as nursery:
        nursery.start_soon(link.write)
        try:
            yield link
        finally:
            link.stop_writing()
