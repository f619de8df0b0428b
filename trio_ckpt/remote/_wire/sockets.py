"""WebSockets (RFC 6455) as the transport of frames; the only file that imports trio-websocket."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio

from ..._util.exceptions import leaves_of
from ..._util.extras import needs_extra
from ..._util.forks import unshare
from ..._util.log import get_logger
from ..._util.nursery import open_service_nursery
from .errors import ConnectionLostError, HandshakeRefusedError, RemoteProtocolError
from .frames import MAX_FRAME_BYTES
from .link import HANDSHAKE_S

with needs_extra("remote", "a connection between client, foreman and worker"):
    import trio_websocket
    import wsproto.events

log = get_logger(__name__)

CLOSE_S = 1.0  # for the closing handshake: a peer that does not answer is left
CLOSE_UNHEARD_S = 0.05  # to send the close frame without waiting for an answer
BUFFER_BYTES = 2**16  # read at a time: about one frame
REFUSED = 403  # the HTTP status of a foreman that refuses a peer; its reason is the body
QUEUED_FRAMES = 2  # read but not taken; further frames wait in the kernel and block the sender


@attrs.define(eq=False)
class WebSocket:
    """A WebSocket that carries frames, each as one binary message."""

    _connection: trio_websocket.WebSocketConnection

    async def send(self, frame: bytes) -> None:
        """Send one frame.

        Raises:
            ConnectionLostError: the socket is closed.
        """
        try:
            await self._connection.send_message(frame)
        except trio_websocket.ConnectionClosed as error:
            raise ConnectionLostError(_why(error)) from error

    async def receive(self) -> bytes:
        """Receive one frame.

        Raises:
            ConnectionLostError: the socket is closed.
            RemoteProtocolError: the other side sent a text message.
        """
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as error:
            raise ConnectionLostError(_why(error)) from error
        if not isinstance(message, bytes):
            raise RemoteProtocolError("the peer sent a text message, which is not a frame")
        return message


def _why(error: trio_websocket.ConnectionClosed) -> str:
    reason = error.reason
    return "the connection is closed" if reason is None else f"the connection is closed: {reason}"


@asynccontextmanager
async def dial(url: str, ssl_context: ssl.SSLContext | None) -> AsyncGenerator[WebSocket]:
    """Open a WebSocket for a block.

    Raises:
        ConnectionLostError: no WebSocket server answers there.
        ValueError: `url` is not the URL of a WebSocket.

    Cancellation: the socket is closed, within `CLOSE_S`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"a foreman's URL is ws://host:port or wss://host:port, not {url!r}")
    is_safe = parts.scheme == "wss"
    port = parts.port or (443 if is_safe else 80)
    stream = await _open_stream(url, parts.hostname, port, ssl_context, is_safe=is_safe)
    async with _talking(stream) as nursery:
        try:
            with trio.fail_after(HANDSHAKE_S):
                connection = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,  # type: ignore[arg-type]  # it takes any stream
                    f"{parts.hostname}:{port}",
                    "/",
                    message_queue_size=QUEUED_FRAMES,
                    max_message_size=MAX_FRAME_BYTES,
                    receive_buffer_size=BUFFER_BYTES,
                )
        except trio.TooSlowError as error:
            raise ConnectionLostError(f"{url} does not answer") from error
        try:
            yield WebSocket(connection)
        finally:
            await _close(connection)


async def _open_stream(
    url: str, host: str, port: int, context: ssl.SSLContext | None, *, is_safe: bool
) -> trio.abc.Stream:
    """Open a TCP connection, with TLS for a ``wss:`` URL."""
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(HANDSHAKE_S):
            stream = await trio.open_tcp_stream(host, port)
            unshare(stream.socket)
            if is_safe:
                stream = trio.SSLStream(
                    stream,
                    context or ssl.create_default_context(),
                    server_hostname=host,
                    https_compatible=True,
                )
                await stream.do_handshake()
            return stream
    except BaseException as error:
        if stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
        if not isinstance(error, OSError | trio.TooSlowError | trio.BrokenResourceError):
            raise
        raise ConnectionLostError(f"{url} cannot be reached: {error!r}") from error


async def _close(connection: trio_websocket.WebSocketConnection) -> None:
    """Send a close frame and wait a short time for the other side's.

    A task that is cancelled does not wait, because no task reads the answer.
    """
    is_cancelled = trio.current_effective_deadline() <= trio.current_time()
    with trio.move_on_after(CLOSE_UNHEARD_S if is_cancelled else CLOSE_S, shield=True):
        await connection.aclose()


@asynccontextmanager
async def _talking(stream: trio.abc.Stream) -> AsyncGenerator[trio.Nursery]:
    """A nursery for the tasks of a WebSocket; its failures are lost connections."""
    body_error: Exception | None = None
    try:
        async with open_service_nursery() as nursery:
            try:
                yield nursery
            except Exception as error:  # it says more than a lost connection does
                body_error = error
    except Exception as failure:
        if body_error is None:
            raise _lost_by(leaves_of(failure)[0]) from failure
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
    if body_error is not None:
        raise body_error


def _lost_by(failure: BaseException) -> Exception:
    """What a failure of the tasks of a WebSocket means; only the foreman itself refuses for good.

    It answers 403 with its reason.  Other codes come from something between, such as a proxy whose
    foreman starts again, or are the answer to a request that arrived damaged.
    """
    if isinstance(failure, trio_websocket.ConnectionRejected):
        if failure.status_code == REFUSED and failure.body:
            return HandshakeRefusedError("request", failure.body.decode("utf-8", "replace"))
        return ConnectionLostError(f"the request was answered with HTTP {failure.status_code}")
    return ConnectionLostError(f"the connection was refused or broken: {failure!r}")


def _ignore_end() -> None:
    """The end of the stream is seen by its reader."""


@attrs.define(eq=False)
class _Watched(trio.abc.Stream):
    """A stream that reports its end, which a waiting request handler would not see."""

    _stream: trio.abc.Stream
    ended: Callable[[], None] = _ignore_end

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self.ended()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def accept(
    stream: trio.abc.Stream, refuse: Callable[[trio_websocket.WebSocketRequest], str | None]
) -> AsyncGenerator[WebSocket | None]:
    """Accept a WebSocket for a block; None: it was refused.

    Args:
        stream: The connection; it is closed at the end.
        refuse: Returns why a request is refused; None: it is accepted.

    Raises:
        ConnectionLostError: the other side is gone, or does not speak WebSocket.

    Cancellation: the socket is closed, within `CLOSE_S`.
    """
    async with _talking(stream) as nursery:
        connection: trio_websocket.WebSocketConnection | None = None
        with trio.move_on_after(HANDSHAKE_S) as handshake:
            watched = _Watched(stream, handshake.cancel)
            request = await trio_websocket.wrap_server_stream(
                nursery,
                watched,
                message_queue_size=QUEUED_FRAMES,
                max_message_size=MAX_FRAME_BYTES,
                receive_buffer_size=BUFFER_BYTES,
            )
            reason = refuse(request)
            if reason is not None:
                log.warning("a connection was refused: %s", reason)
                await request.reject(REFUSED, body=reason.encode())
            else:
                watched.ended = _ignore_end
                connection = await request.accept()
        if connection is None:
            yield None
            return
        try:
            yield WebSocket(connection)
        finally:
            await _close(connection)


Request = trio_websocket.WebSocketRequest


def host_header(request: Request) -> str:
    """The Host header of a request, which is not among its `headers`."""
    event: wsproto.events.Request = request._event  # pyright: ignore[reportPrivateUsage]  # no public name
    return event.host
