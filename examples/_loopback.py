"""Servers on the loopback for the examples that bring their own: h11 over trio's streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

import trio

from trio_ckpt._util.extras import needs_extra
from trio_ckpt._util.nursery import open_service_nursery

with needs_extra("crawler", "the servers of the examples"):
    import h11

HOST = "127.0.0.1"
RECEIVE_BYTES = 64 * 1024
IDLE_LIMIT_S = 60.0  # a client that asks nothing for so long has forgotten us

Handler = Callable[[h11.Connection, trio.SocketStream], Awaitable[None]]
"""Answers the requests of one connection, which is closed when it returns."""


async def serve(
    handler: Handler,
    port: int = 0,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve on the loopback until cancelled; starts with the URL (no slash at its end).

    Cancellation: closes all connections.
    """

    async def serve_one(stream: trio.SocketStream) -> None:
        # Whatever a peer does ends no more than its connection.
        with suppress(h11.ProtocolError, trio.BrokenResourceError, trio.TooSlowError):
            async with stream:
                await handler(h11.Connection(h11.SERVER), stream)

    listeners = await trio.open_tcp_listeners(port, host=HOST)
    url = f"http://{HOST}:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve_one, listeners)
        task_status.started(url)
    raise AssertionError("the listeners serve until they are cancelled")


async def next_event(
    connection: h11.Connection, stream: trio.SocketStream
) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    """Wait for the next event of a client, for at most `IDLE_LIMIT_S`."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        with trio.fail_after(IDLE_LIMIT_S):
            connection.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))
    return event


async def send_answer(
    connection: h11.Connection,
    stream: trio.SocketStream,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
) -> None:
    """Send an answer; its length is added to the headers."""
    all_headers = [*headers.items(), ("Content-Length", str(len(body)))]
    head = h11.Response(status_code=status, headers=all_headers)
    for part in (head, h11.Data(data=body), h11.EndOfMessage()):
        if data := connection.send(part):
            await stream.send_all(data)


@asynccontextmanager
async def open_server(handler: Handler) -> AsyncGenerator[str]:
    """Serve as long as the block runs; yields the URL."""
    async with open_service_nursery() as nursery:
        yield await nursery.start(serve, handler)


def run_server(handler: Handler, port: int) -> None:
    """Serve until the process is interrupted, and print the URL."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            print(await nursery.start(serve, handler, port), flush=True)

    try:
        trio.run(main)
    except* KeyboardInterrupt:  # it is how people end it
        pass
