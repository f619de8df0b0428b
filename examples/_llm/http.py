"""A small HTTP client: one request for each connection, over trio's streams."""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs
import trio

from trio_ckpt._util.extras import needs_extra

from .apis import ProviderError

with needs_extra("crawler", "the pipeline of language models"):
    import h11

RECEIVE_BYTES = 64 * 1024
LIMIT_S = 30.0
MAX_BODY_BYTES = 64 * 2**20


@attrs.frozen
class HttpClient:
    """Sends requests to one server.

    Attributes:
        url: Its URL, without a slash at its end.
    """

    url: str

    async def request(
        self, method: str, target: str, body: bytes = b"", content_type: str = "application/json"
    ) -> bytes:
        """See `Http.request`."""
        try:
            with trio.fail_after(LIMIT_S):
                status, answer = await self._request(method, target, body, content_type)
        except (trio.TooSlowError, trio.BrokenResourceError, OSError, h11.ProtocolError) as error:
            raise ProviderError(f"{method} {target}: {type(error).__name__}: {error}") from error
        if status != 200:
            raise ProviderError(f"{method} {target}: {status}: {answer[:200]!r}")
        return answer

    async def _request(
        self, method: str, target: str, body: bytes, content_type: str
    ) -> tuple[int, bytes]:
        host = urlsplit(self.url)
        headers = [
            ("Host", host.netloc),
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
        ]
        connection, answer, status = h11.Connection(h11.CLIENT), bytearray(), 0
        request = h11.Request(method=method, target=target, headers=headers)
        async with await trio.open_tcp_stream(host.hostname or "", host.port or 80) as stream:
            for part in (request, h11.Data(data=body), h11.EndOfMessage()):
                if data := connection.send(part):
                    await stream.send_all(data)
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some(RECEIVE_BYTES)))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    answer += event.data
                    if len(answer) > MAX_BODY_BYTES:
                        raise ProviderError(f"{method} {target}: the answer is too large")
        return status, bytes(answer)
