"""An HTTP/1.1 client for one purpose: GET many pages of few sites, and know how each one failed.

h11 speaks the protocol over trio's streams, as h11's documentation shows; around it is what a
crawler needs: keep-alive, limits on everything, and a small tree of errors. A general client
(httpx, httpcore) costs 4 to 6 times the CPU per request (benchmarks/crawl_parts.py prints it).

Theory of operation
===================

A connection belongs to one request at a time, and goes back to the pool only when the response
was read to its end and nothing else came with it. In every other case, cancellation included, it
is closed; so no response can be taken for the answer to another request.

A server may close an idle connection at any time, also while the next request is on its way.
Then no byte of an answer comes, or a 408 that is about the idle time: the request is sent once
more, on a fresh connection. What happens on that one is the server's answer.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from urllib.parse import quote, urlsplit

import attrs
import h11
import trio

from . import urls
from .bodies import decode_body
from .errors import (
    BadResponse as BadResponse,
    BodyTooLarge as BodyTooLarge,
    ConnectionReset as ConnectionReset,
    FetchError as FetchError,
    FetchTimeout as FetchTimeout,
    NoConnection as NoConnection,
    TruncatedBody as TruncatedBody,
)
from .heads import Headers, mended

DEFAULT_MAX_BODY_BYTES = 16 * 1024 * 1024
# Security policies and cookies make heads of 20 KB; h11's own limit is 16 KB.
MAX_HEAD_BYTES = 64 * 1024
# Common servers close idle connections after 5 s and more, so few of ours are closed already.
MAX_IDLE_S = 4.0
# With this some servers say goodbye to an idle connection (RFC 9110, section 15.5.9).
REQUEST_TIMEOUT = 408
RECEIVE_BYTES = 64 * 1024
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_EVERYTHING_READ = (b"", False)


@attrs.frozen(kw_only=True)
class Response:
    """A complete response, its body decoded."""

    url: str
    status: int
    headers: Headers
    body: bytes = attrs.field(repr=False)

    @property
    def content_type(self) -> str:
        """The header's value, or an empty string."""
        return self.headers.get("content-type", "")

    @property
    def location(self) -> str | None:
        """Where a redirect leads, absolute and normalized; None for everything else."""
        location = self.headers.get("location")
        if self.status not in REDIRECTS or location is None:
            return None
        raw = location.encode("latin-1")  # as it was sent; mostly UTF-8, though not allowed
        try:
            location = raw.decode("utf-8")
        except UnicodeDecodeError:
            location = quote(raw, safe=bytes(range(0x80)))
        return urls.normalize(location, self.url)


# ---------------------------------------------------------------------------------- connections


class _StaleConnection(Exception):  # noqa: N818 - named for what happened
    """A reused connection ended before the server answered this request."""


@attrs.define(eq=False)
class _Connection:
    """One connection to one site; ``fetch`` one response after the other."""

    site: str
    stream: trio.abc.Stream
    max_body_bytes: int
    protocol: h11.Connection = attrs.Factory(lambda: _open_protocol())
    idle_since: float = 0.0
    is_reused: bool = False
    # What is received of the response being read, up to the end of its head.
    received: bytearray = attrs.Factory(bytearray)
    has_head: bool = False
    is_mended: bool = False
    is_closed_by_peer: bool = False

    async def fetch(self, url: str, request: h11.Request) -> Response:
        """Send the request and read the response to its end.

        Raises:
            FetchError: As its leaves say.
            _StaleConnection: If it is worth another connection.

        Cancellation: the connection is of no use afterwards; `close` it.
        """
        self.received.clear()
        self.has_head = False
        try:
            await self.stream.send_all(_send(self.protocol, request))
            response = await self._read_response(url, request)
        except h11.RemoteProtocolError as error:
            raise self._explained(url, error) from error
        except (trio.BrokenResourceError, OSError) as error:
            self._refuse_stale(error)
            raise self._broken(url, error) from error
        if self.is_reused and response.status == REQUEST_TIMEOUT:
            raise _StaleConnection
        return response

    async def _read_response(self, url: str, request: h11.Request) -> Response:
        while not isinstance(head := await self._next_event(request), h11.Response):
            if not isinstance(head, h11.InformationalResponse):
                raise BadResponse(url, f"unexpected {head!r:.80}")
        self.has_head = True
        headers = Headers.of(head.headers)
        try:
            body = await self._read_body(url, request, headers)
        except (FetchError, h11.RemoteProtocolError, trio.BrokenResourceError, OSError):
            if head.status_code < 300:
                raise
            body = b""  # the head of a redirect or an error says it all
        return Response(url=url, status=head.status_code, headers=headers, body=body)

    async def _read_body(self, url: str, request: h11.Request, headers: Headers) -> bytes:
        length = headers.get("content-length", "0").partition(",")[0]
        if int(length) > self.max_body_bytes:  # h11 has checked that it is a number
            raise BodyTooLarge(url, f"body of {length} bytes")
        pieces: list[bytes] = []
        room = self.max_body_bytes
        while isinstance(event := await self._next_event(request), h11.Data):
            room -= len(event.data)
            if room < 0:
                raise BodyTooLarge(url, f"body of more than {self.max_body_bytes} bytes")
            pieces.append(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise BadResponse(url, f"unexpected {event!r:.80}")
        body = b"".join(pieces)
        if "content-encoding" in headers:
            body = decode_body(body, headers["content-encoding"], self.max_body_bytes, url)
        return body

    async def _next_event(
        self, request: h11.Request
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            try:
                event = self.protocol.next_event()
            except h11.RemoteProtocolError:
                if self.has_head or not self._mend(request):
                    raise
                continue
            if event is not h11.NEED_DATA:
                return event
            data = bytes(await self.stream.receive_some(RECEIVE_BYTES))
            if not data:
                self.is_closed_by_peer = True
                self._refuse_stale(None)
            if not self.has_head:
                self.received += data
            self.protocol.receive_data(data)

    def _mend(self, request: h11.Request) -> bool:
        """Begin to read once more, without the faults of the head; False: there is none."""
        head = mended(bytes(self.received))
        if head == self.received:
            return False
        self.received[:] = head
        self.is_mended = True
        self.protocol = _open_protocol()
        _send(self.protocol, request)
        self.protocol.receive_data(head)
        if self.is_closed_by_peer:
            self.protocol.receive_data(b"")
        return True

    def _refuse_stale(self, cause: BaseException | None) -> None:
        if self.is_reused and not self.received and not self.has_head:
            raise _StaleConnection from cause

    def _explained(self, url: str, error: h11.RemoteProtocolError) -> FetchError:
        if not self.is_closed_by_peer:
            return BadResponse(url, f"not HTTP ({error})")
        if not self.has_head:
            return ConnectionReset(url, "closed before the head of a response")
        return TruncatedBody(url, f"closed in the middle of the body ({error})")

    def _broken(self, url: str, error: BaseException) -> FetchError:
        if isinstance(error.__cause__, ssl.CertificateError):
            return BadResponse(url, f"certificate refused ({error.__cause__})")
        return ConnectionReset(url, f"connection reset ({error.__cause__ or error})")

    def make_reusable(self) -> bool:
        """After a complete response: whether another request may use this connection."""
        if self.protocol.trailing_data != _EVERYTHING_READ:
            return False  # bytes that no request asked for would answer the next one
        if self.is_mended:
            return False  # where a head is faulty, it is not sure where the body ended
        if self.protocol.our_state is not h11.DONE or self.protocol.their_state is not h11.DONE:
            return False
        self.protocol.start_next_cycle()
        self.is_reused = True
        self.idle_since = trio.current_time()
        return True

    async def close(self) -> None:
        """Close at once, without the farewells of TLS."""
        await trio.aclose_forcefully(self.stream)


def _open_protocol() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)


def _send(protocol: h11.Connection, request: h11.Request) -> bytes:
    return protocol.send(request) + protocol.send(h11.EndOfMessage())


async def _open_stream(site: str, url: str, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    parts = urlsplit(site)
    host, port = parts.hostname or "", parts.port
    try:
        if parts.scheme == "http":
            return await trio.open_tcp_stream(host, port or 80)
        context = tls or ssl.create_default_context()
        return await trio.open_ssl_over_tcp_stream(
            host, port or 443, ssl_context=context, https_compatible=True
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA refuses
        reason = error.__cause__ or error  # trio tells of many attempts in one error
        if isinstance(reason, ExceptionGroup):
            reason = reason.exceptions[0]
        raise NoConnection(url, f"no connection to {parts.netloc} ({reason})") from error


# ------------------------------------------------------------------------------------ the client


@attrs.define(eq=False)
class Client:
    """GETs over a pool of kept connections. Made by `open_client`."""

    user_agent: str
    timeout_s: float
    max_body_bytes: int
    _tls: ssl.SSLContext | None = attrs.field(alias="tls")
    # One for each connection that may be open, busy or idle.
    _slots: trio.Semaphore = attrs.field(alias="slots")
    # Oldest first; the newest is taken first, so that what a lull leaves over can age.
    _idle: list[_Connection] = attrs.Factory(list)

    async def get(self, url: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
        """One GET, without following redirects; any status is a response.

        Waits while all connections are in use; the timeout starts after that.

        Args:
            url: What is fetched.
            headers: Of the request, beside those that each one has.

        Raises:
            FetchError: As its leaves say.
            ValueError: If this is not a URL that can be fetched.

        Cancellation: safe at any time; the connection is closed.
        """
        normalized = urls.normalize(url)
        if normalized is None:
            raise ValueError(f"not an absolute http or https URL: {url[:200]!r}")
        async with self._slots:
            try:
                with trio.fail_after(self.timeout_s):
                    return await self._get(normalized, headers)
            except trio.TooSlowError as error:
                raise FetchTimeout(normalized, f"not complete in {self.timeout_s} s") from error

    async def _get(self, url: str, headers: Mapping[str, str]) -> Response:
        site = urls.site_of(url)
        request = self._request(site, url, headers)
        kept = await self._take_idle(site)
        if kept is not None:
            with contextlib.suppress(_StaleConnection):
                return await self._fetch_over(kept, url, request)
        stream = await _open_stream(site, url, self._context(site))
        fresh = _Connection(site, stream, self.max_body_bytes)
        return await self._fetch_over(fresh, url, request)

    def _request(self, site: str, url: str, headers: Mapping[str, str]) -> h11.Request:
        all_headers = [
            ("Host", site.partition("://")[2]),
            ("User-Agent", self.user_agent),
            ("Accept", "*/*"),
            ("Accept-Encoding", "gzip, deflate"),
            *headers.items(),
        ]
        return h11.Request(method="GET", target=url[len(site) :], headers=all_headers)

    async def _fetch_over(
        self, connection: _Connection, url: str, request: h11.Request
    ) -> Response:
        is_kept = False
        try:
            response = await connection.fetch(url, request)
            is_kept = connection.make_reusable()
        finally:
            if not is_kept:
                await connection.close()
        if is_kept:
            self._idle.append(connection)
        return response

    async def _take_idle(self, site: str) -> _Connection | None:
        """The newest idle connection to the site; closes those that aged or are over the limit."""
        expired_before = trio.current_time() - MAX_IDLE_S
        while self._idle and self._idle[0].idle_since < expired_before:
            await self._idle.pop(0).close()
        for position in reversed(range(len(self._idle))):
            if self._idle[position].site == site:
                return self._idle.pop(position)
        while len(self._idle) > self._slots.value:
            await self._idle.pop(0).close()
        return None

    def _context(self, site: str) -> ssl.SSLContext | None:
        # Reading the trusted certificates takes 10 ms and more: only if there is an https site.
        if self._tls is None and site.startswith("https:"):
            self._tls = ssl.create_default_context()
        return self._tls

    async def _close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


@contextlib.asynccontextmanager
async def open_client(
    *,
    user_agent: str,
    connections: int = 16,
    timeout_s: float = 30.0,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """A client; its connections are closed with the block.

    Args:
        user_agent: Who we are; politeness asks for a name and a way to reach us.
        connections: How many may be open at once, over all sites.
        timeout_s: For a whole request, from looking up the name to the last byte.
        max_body_bytes: For a body, as sent and as decoded.
        tls: Instead of the system's trusted certificates.
    """
    if connections < 1:
        raise ValueError(f"connections must be at least 1, not {connections}")
    client = Client(
        user_agent=user_agent,
        timeout_s=timeout_s,
        max_body_bytes=max_body_bytes,
        tls=tls,
        slots=trio.Semaphore(connections),
    )
    try:
        yield client
    finally:
        await client._close()
