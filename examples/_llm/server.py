"""The provider's server, on the loopback: h11 speaks the protocol, over trio's streams.

python -m examples._llm.server --port 8000 --file provider.jsonl --takes 2
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NoReturn

import trio

from trio_ckpt._util.extras import needs_extra

from .._command import command_of, seconds
from .provider import Provider

with needs_extra("crawler", "the example provider"):
    import h11

HOST = "127.0.0.1"
RECEIVE_BYTES = 64 * 1024
IDLE_LIMIT_S = 60.0  # a client that asks nothing for so long has forgotten us
MAX_BODY_BYTES = 16 * 2**20


async def serve(
    provider: Provider,
    port: int = 0,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve on the loopback until cancelled; starts with the URL (no slash at its end).

    Cancellation: closes all connections.
    """
    listeners = await trio.open_tcp_listeners(port, host=HOST)
    url = f"http://{HOST}:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, partial(_serve_one, provider), listeners)
        task_status.started(url)
    raise AssertionError("the listeners serve until they are cancelled")


async def _serve_one(provider: Provider, stream: trio.SocketStream) -> None:
    """Answer the one request of a connection; whatever a peer does ends no more than this."""
    connection, body = h11.Connection(h11.SERVER), bytearray()
    request: h11.Request | None = None
    async with stream:
        try:
            while not isinstance(event := await _next_event(connection, stream), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data) and len(body) < MAX_BODY_BYTES:
                    body += event.data
                else:
                    return
            if request is not None:
                await _send_answer(provider, connection, stream, request, bytes(body))
        except (h11.ProtocolError, trio.BrokenResourceError, trio.TooSlowError):
            pass


async def _send_answer(
    provider: Provider,
    connection: h11.Connection,
    stream: trio.SocketStream,
    request: h11.Request,
    body: bytes,
) -> None:
    content_type = dict(request.headers).get(b"content-type", b"").decode("latin-1")
    method, target = request.method.decode("ascii"), request.target.decode("ascii")
    status, answer = provider.answer(method, target, body, content_type)
    headers = [("Content-Length", str(len(answer))), ("Connection", "close")]
    head = h11.Response(status_code=status, headers=headers)
    for part in (head, h11.Data(data=answer), h11.EndOfMessage()):
        if data := connection.send(part):
            await stream.send_all(data)


async def _next_event(
    connection: h11.Connection, stream: trio.SocketStream
) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    while (event := connection.next_event()) is h11.NEED_DATA:
        with trio.fail_after(IDLE_LIMIT_S):
            connection.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))
    return event


async def run_server(provider: Provider, port: int) -> None:
    """Serve until the process is interrupted, and say where."""
    async with trio.open_nursery() as nursery:
        print(await nursery.start(serve, provider, port), flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog=command_of("_llm.server"),
        description="Serve batch APIs of the kind that providers of language models have.",
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (8000)")
    parser.add_argument("--file", type=Path, required=True, help="what was submitted")
    parser.add_argument(
        "--takes", type=seconds(), default=1.0, metavar="S", help="how long a batch takes (1)"
    )
    options = parser.parse_args()
    try:
        trio.run(run_server, Provider.of_file(options.file, options.takes), options.port)
    except* KeyboardInterrupt:  # it is how people end it
        pass


if __name__ == "__main__":
    main()
