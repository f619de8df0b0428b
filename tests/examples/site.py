"""A web site inside the test: pages by path, faults by script, and a count of every hit.

    site = Site({"/": links("/a"), "/a": first(reset, then=html("hello"))})
    site.url = await nursery.start(site.serve)

Raw TCP on the loopback, so that every byte a client meets is one that a test wrote. (The clock is
the real one: a MockClock that jumps would not wait for the kernel.)
"""

from __future__ import annotations

import gzip
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeAlias

import attrs
import trio


class ConnectionEnded(Exception):  # noqa: N818 - ends the connection's loop; not an error
    """Raised by a handler that has closed the connection."""


@attrs.define(eq=False)
class Exchange:
    """One request, and the ways to answer it."""

    path: str
    headers: Mapping[str, str]
    # 1 for the first request of this path.
    hit: int
    stream: trio.SocketStream

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def respond(
        self, body: bytes = b"", *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole response."""
        await self.send(head(status, {"Content-Length": str(len(body)), **(headers or {})}) + body)

    async def close(self) -> None:
        """Close with FIN, and end the connection."""
        await self.stream.aclose()
        raise ConnectionEnded

    async def reset(self) -> None:
        """Close with RST: a lingering time of 0 discards what is unsent (socket(7))."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.close()


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The status line and the headers."""
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


# ------------------------------------------------------------------------------------ good pages


def page(
    body: bytes | str = b"", *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Handler:
    """Always the same response."""
    content = body.encode() if isinstance(body, str) else body
    return lambda exchange: exchange.respond(content, status=status, headers=headers)


def html(body: bytes | str, *, status: int = 200) -> Handler:
    """A page of HTML."""
    return page(body, status=status, headers={"Content-Type": "text/html; charset=utf-8"})


def links(*hrefs: str, title: str = "") -> Handler:
    """A page of HTML with these links."""
    anchors = "".join(f'<a href="{href}">x</a>' for href in hrefs)
    return html(f"<!doctype html><title>{title}</title>{anchors}")


def redirect(location: str, status: int = 302) -> Handler:
    """A redirect."""
    return page(status=status, headers={"Location": location})


def busy(retry_after: str, status: int = 429) -> Handler:
    """429 or 503 with Retry-After."""
    return page(b"later", status=status, headers={"Retry-After": retry_after})


def chunked(*chunks: bytes, headers: Mapping[str, str] | None = None) -> Handler:
    """A body in chunks."""

    async def handle(exchange: Exchange) -> None:
        await exchange.send(head(200, {"Transfer-Encoding": "chunked", **(headers or {})}))
        for chunk in chunks:
            await exchange.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await exchange.send(b"0\r\n\r\n")

    return handle


def first(*faults: Handler, then: Handler) -> Handler:
    """The k-th hit meets the k-th fault; later ones meet ``then``."""

    async def handle(exchange: Exchange) -> None:
        chosen = faults[exchange.hit - 1] if exchange.hit <= len(faults) else then
        await chosen(exchange)

    return handle


# ---------------------------------------------------------------------------------------- faults


async def reset(exchange: Exchange) -> None:
    """Reset before any byte of an answer."""
    await exchange.reset()


async def close_silently(exchange: Exchange) -> None:
    """Close before any byte of an answer."""
    await exchange.close()


async def never(exchange: Exchange) -> None:
    """Never answer."""
    await trio.sleep_forever()


def raw(data: bytes) -> Handler:
    """Whatever bytes, then close."""

    async def handle(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.close()

    return handle


garbage = raw(b"\x00\x01 no HTTP at all\r\n\r\n")


def truncated(body: bytes = b"half of it", announced: int = 1000) -> Handler:
    """Close before the announced length is reached."""
    return raw(head(200, {"Content-Length": str(announced)}) + body)


truncated_chunked = raw(head(200, {"Transfer-Encoding": "chunked"}) + b"ff\r\nonly a part")


async def reset_in_body(exchange: Exchange) -> None:
    """Reset in the middle of the body, when the client has read the first part."""
    await exchange.send(head(200, {"Content-Length": "1000"}) + b"part")
    # The client acknowledges nothing; give its kernel the bytes before the RST discards them.
    await trio.sleep(0.02)
    await exchange.reset()


def then_close(handler: Handler) -> Handler:
    """Answer as if the connection were kept, then close it: its next use finds it stale."""

    async def handle(exchange: Exchange) -> None:
        await handler(exchange)
        await exchange.close()

    return handle


async def trickle(exchange: Exchange) -> None:
    """One byte every 10 ms, for ever: no single read takes long."""
    await exchange.send(head(200, {"Content-Length": "1000000"}))
    while True:
        await exchange.send(b".")
        await trio.sleep(0.01)


def huge(size: int, *, announced: bool) -> Handler:
    """A body of ``size`` bytes, announced or only found out while reading."""

    async def handle(exchange: Exchange) -> None:
        headers = {"Content-Length": str(size)} if announced else {"Connection": "close"}
        await exchange.send(head(200, headers))
        block = b"x" * 65536
        for _ in range(size // len(block) + 1):
            await exchange.send(block)
        await exchange.close()

    return handle


def gzip_bomb(decoded_bytes: int) -> Handler:
    """A small body that decodes to very much."""
    return page(gzip.compress(bytes(decoded_bytes)), headers={"Content-Encoding": "gzip"})


# -------------------------------------------------------------------------------------- the site


def _handler_of(content: Handler | bytes | str) -> Handler:
    return html(content) if isinstance(content, bytes | str) else content


@attrs.define(eq=False)
class Site:
    """The site; paths that it does not have are 404."""

    pages: dict[str, Handler | bytes | str] = attrs.Factory(dict)
    latency_s: float = 0.0
    url: str = ""
    hits: Counter[str] = attrs.Factory(Counter)
    # In the order in which they came.
    requests: list[Exchange] = attrs.Factory(list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; starts with the URL of the site (no slash at its end)."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        serve = partial(trio.serve_listeners, self._serve_connection, listeners)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            task_status.started(self.url)

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        received = b""
        try:
            async with stream:
                while True:
                    while b"\r\n\r\n" not in received:
                        data = await stream.receive_some(65536)
                        if not data:
                            return
                        received += data
                    request, _, received = received.partition(b"\r\n\r\n")
                    await self._answer(request, stream)
        except (ConnectionEnded, trio.BrokenResourceError):
            pass  # either side may go at any time; what the client makes of it is under test

    async def _answer(self, request: bytes, stream: trio.SocketStream) -> None:
        request_line, *header_lines = request.decode("latin-1").split("\r\n")
        path = request_line.split(" ")[1]
        pairs = (line.partition(": ") for line in header_lines)
        headers = {name.lower(): value for name, _, value in pairs}
        self.hits[path] += 1
        exchange = Exchange(path, headers, self.hits[path], stream)
        self.requests.append(exchange)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency_s:
                await trio.sleep(self.latency_s)
            handler = self.pages.get(path)
            await (page(status=404) if handler is None else _handler_of(handler))(exchange)
        finally:
            self.in_flight -= 1
