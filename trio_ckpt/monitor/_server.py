"""Connections: how many, how slow, and how they end.

Hypercorn speaks HTTP on each of them.  It is given the connections one by one, not the
listening socket, for three reasons.  There is a limit on how many there are.  A client that
takes nothing is cut off: hypercorn shields its sends from cancellation and sets no limit of
time, so one such client would hold the nursery open for ever.  And leaving the nursery cuts
all of them, at once, whatever they are doing.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any, cast

import attrs
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from .._util.forks import unshare
from .._util.log import get_logger
from ._guard import App

log = get_logger(__name__)

MAX_CONNECTIONS = 1_000  # open files are few on many machines
SEND_TIMEOUT_S = 20.0  # for one piece: a phone on a train gets it, one in a tunnel is cut off
MAX_HEADER_BYTES = 16_384
IDLE_TIMEOUT_S = 15.0  # before a request, and between two


@attrs.define(eq=False)
class ClientConnection(trio.abc.HalfCloseableStream):
    """A connection that can be cut, and that cuts a client who takes nothing.

    Attributes:
        context: Hypercorn's; one per connection, so that it ends as soon as its client is gone.
    """

    _stream: trio.SocketStream
    context: WorkerContext = attrs.field(factory=lambda: WorkerContext(None))

    @property
    def socket(self) -> trio.socket.SocketType:
        """Hypercorn asks it for the addresses."""
        return self._stream.socket

    def cut(self) -> None:
        """End every wait for the other side, shielded or not."""
        with suppress(OSError):
            self._stream.socket.shutdown(trio.socket.SHUT_RDWR)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`; BrokenResourceError also if it takes too long."""
        with trio.move_on_after(SEND_TIMEOUT_S) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            self.cut()
            raise trio.BrokenResourceError("the client takes nothing")

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        data = await self._stream.receive_some(max_bytes)
        if not data:  # else hypercorn keeps what is left of the connection until it is idle
            await self.context.terminated.set()
        return data

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()


def hypercorn_config() -> Config:
    """The configuration of hypercorn for one connection."""
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.h2_max_concurrent_streams = 1  # HTTP/2 is refused, but hypercorn reads until then
    config.h2_max_header_list_size = MAX_HEADER_BYTES
    config.keep_alive_timeout = IDLE_TIMEOUT_S
    config.ssl_handshake_timeout = IDLE_TIMEOUT_S
    config.include_server_header = False
    config.websocket_max_message_size = 1
    return config


async def serve_connections(
    listeners: list[trio.SocketListener], app: App, ssl_context: ssl.SSLContext | None
) -> None:
    """Answer those who connect, until cancelled.

    Cancellation: every connection is cut at once, and nothing is left of any.
    """
    config = hypercorn_config()
    wrapped = ASGIWrapper(cast("Any", app))
    connections: set[ClientConnection] = set()

    async def handle(stream: trio.SocketStream) -> None:
        if len(connections) >= MAX_CONNECTIONS:
            log.warning("a connection is refused: there are %d", len(connections))
            await trio.aclose_forcefully(stream)
            return
        unshare(stream.socket)
        connection = ClientConnection(stream)
        connections.add(connection)
        secured: Any = connection
        if ssl_context is not None:
            secured = trio.SSLStream(
                connection, ssl_context, server_side=True, https_compatible=True
            )
        try:
            await TCPServer(wrapped, config, connection.context, ConnectionState({}), secured)
        except* Exception as errors:  # of one client: the others are not affected
            log.debug("a connection ended badly: %r", errors.exceptions)
        finally:
            connections.discard(connection)
            await trio.aclose_forcefully(connection)

    async with trio.open_nursery() as nursery:
        try:
            await trio.serve_listeners(handle, listeners, handler_nursery=nursery)
        finally:
            for connection in connections:
                connection.cut()
