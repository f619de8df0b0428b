"""A client for the tests of the monitor: HTTP/1.1 by h11 over a real socket, as rude as asked."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio

from tests.hangs import HANG_S
from trio_ckpt import Run, monitor
from trio_ckpt.abc import Store
from trio_ckpt.monitor import Serving

SECRET = "viewers-secret-1234567890"
ACTION_SECRET = "actors-secret-1234567890"


@attrs.frozen
class Reply:
    """What was answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The word of a refusal."""
        code: str = self.json["error"]["code"]
        return code


@attrs.define
class Client:
    """Asks one server; with the secret, unless told otherwise."""

    port: int
    secret: str | None = SECRET

    def _headers(self, more: Iterable[tuple[str, str]], host: str | None) -> list[tuple[str, str]]:
        headers = list(more)
        names = {name.lower() for name, _ in headers}
        if host is None and "host" not in names:
            headers.append(("Host", f"127.0.0.1:{self.port}"))
        elif host:
            headers.append(("Host", host))
        if self.secret is not None and "authorization" not in names:
            headers.append(("Authorization", f"Bearer {self.secret}"))
        return headers

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        host: str | None = None,
        body: bytes = b"",
        http_version: str = "1.1",
    ) -> AsyncGenerator[tuple[int, dict[str, str], AsyncIterator[bytes]]]:
        """Ask, and read the body as it comes."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            connection = h11.Connection(h11.CLIENT)
            every = self._headers(headers, host)
            if body:
                every.append(("Content-Length", str(len(body))))
            if http_version == "1.0":
                lines = [f"{method} {target} HTTP/1.0", *(f"{n}: {v}" for n, v in every), "", ""]
                connection.send(h11.Request(method=method, target=target, headers=every))
                await stream.send_all("\r\n".join(lines).encode())
            else:
                request = h11.Request(method=method, target=target, headers=every)
                data = connection.send(request) or b""
                if body:
                    data += connection.send(h11.Data(data=body)) or b""
                data += connection.send(h11.EndOfMessage()) or b""
                await stream.send_all(data)
            if http_version == "1.0":
                connection.send(h11.EndOfMessage())

            async def event() -> Any:
                while (found := connection.next_event()) is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                return found

            response = await event()
            found = {n.decode().lower(): v.decode() for n, v in response.headers}

            yield response.status_code, found, _Pieces(event)

    async def ask(self, method: str, target: str, *args: Any, **options: Any) -> Reply:
        """Ask, and read all of the answer."""
        with trio.fail_after(HANG_S):
            async with self.open(method, target, *args, **options) as (status, headers, pieces):
                body = b"".join([piece async for piece in pieces])
        return Reply(status, headers, body)

    async def get(self, target: str, *args: Any, **options: Any) -> Reply:
        return await self.ask("GET", target, *args, **options)

    async def post(self, target: str, *args: Any, **options: Any) -> Reply:
        return await self.ask("POST", target, *args, **options)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes that are no HTTP, and read until the server has had enough."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            answer = b""
            try:
                with trio.fail_after(HANG_S):
                    await stream.send_all(data)
                    await stream.send_eof()
                    while piece := await stream.receive_some():
                        answer += piece
            except trio.BrokenResourceError:
                pass
            return answer


@attrs.define
class _Pieces:
    """The pieces of a body; no generator, so that it may be left anywhere."""

    _event: Callable[[], Awaitable[Any]]

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._event()
        if not isinstance(piece, h11.Data):
            raise StopAsyncIteration
        return bytes(piece.data)


@attrs.define
class events:  # noqa: N801  # it reads as a function
    """The events of a stream, comments left out."""

    _pieces: AsyncIterator[bytes]
    _buffer: bytes = b""

    def __aiter__(self) -> events:
        return self

    async def __anext__(self) -> tuple[str, Any]:
        while True:
            while b"\n\n" not in self._buffer:
                self._buffer += await anext(self._pieces)
            block, _, self._buffer = self._buffer.partition(b"\n\n")
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            if b"event" in fields:
                return fields[b"event"].decode(), json.loads(fields[b"data"])


@asynccontextmanager
async def serving(
    run_or_store: Run | Store, **options: Any
) -> AsyncGenerator[tuple[Client, Serving]]:
    """A monitor, and a client that knows its secret."""
    options.setdefault("secret", SECRET)
    if options.get("allow_actions"):
        options.setdefault("action_secret", ACTION_SECRET)

    async def begin(*, task_status: trio.TaskStatus[Serving]) -> None:
        await monitor.serve(run_or_store, port=0, task_status=task_status, **options)

    async with trio.open_nursery() as nursery:
        found: Serving = await nursery.start(begin)
        try:
            yield Client(found.port, found.secret), found
        finally:
            nursery.cancel_scope.cancel()
