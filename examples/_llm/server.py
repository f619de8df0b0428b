"""The provider's server, on the loopback.

python -m examples._llm.server --port 8000 --file provider.jsonl --takes 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trio

from trio_ckpt._util.extras import needs_extra

from .._command import command_of, seconds
from .._loopback import Handler, next_event, run_server, send_answer
from .provider import Provider

with needs_extra("crawler", "the example provider"):
    import h11

MAX_BODY_BYTES = 16 * 2**20


def handler_of(provider: Provider) -> Handler:
    """What answers the one request of a connection."""

    async def handle(connection: h11.Connection, stream: trio.SocketStream) -> None:
        request, body = None, bytearray()
        while not isinstance(event := await next_event(connection, stream), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data) and len(body) < MAX_BODY_BYTES:
                body += event.data
            else:
                return
        if request is not None:
            content_type = dict(request.headers).get(b"content-type", b"").decode("latin-1")
            method, target = request.method.decode("ascii"), request.target.decode("ascii")
            status, answer = provider.answer(method, target, bytes(body), content_type)
            await send_answer(connection, stream, status, {"Connection": "close"}, answer)

    return handle


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
    provider = Provider.of_file(options.file, options.takes)
    run_server(handler_of(provider), options.port)


if __name__ == "__main__":
    main()
