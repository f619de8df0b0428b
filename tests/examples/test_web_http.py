"""The client gets pages, keeps connections, and names every way in which it did not work."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from functools import partial

import attrs
import pytest
import trio

from examples._web import http
from examples._web.http import Client, Response, decode_body, open_client
from tests.examples.site import (
    Exchange,
    Handler,
    Site,
    chunked,
    close_silently,
    first,
    garbage,
    gzip_bomb,
    head,
    html,
    huge,
    never,
    page,
    raw,
    redirect,
    reset,
    reset_in_body,
    then_close,
    trickle,
    truncated,
    truncated_chunked,
)
from tests.hangs import HANG_S

LIMIT = 100_000


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_client(user_agent="bot/1.0", connections=4, max_body_bytes=LIMIT) as client:
        yield client


def two_for_one(body: bytes) -> Handler:
    """A response with another one behind it, which answers no request."""
    smuggled = head(200, {"Content-Length": "7"}) + b"smuggle"

    async def handle(exchange: Exchange) -> None:
        await exchange.send(head(200, {"Content-Length": str(len(body))}) + body + smuggled)

    return handle


async def get(client: Client, site: Site, handler: Handler) -> Response:
    site.pages["/page"] = handler
    return await client.get(f"{site.url}/page")


async def test_a_page(site: Site, client: Client) -> None:
    response = await get(client, site, html("<p>hello"))
    assert response.url == f"{site.url}/page"
    assert (response.status, response.body) == (200, b"<p>hello")
    assert response.content_type == "text/html; charset=utf-8"
    assert response.headers["CONTENT-LENGTH"] == "8"


async def test_the_request_names_host_agent_and_target(site: Site, client: Client) -> None:
    await client.get(f"{site.url}/a%7e b?q=1#part")
    request = site.requests[0]
    assert request.path == "/a~%20b?q=1"
    assert request.headers["host"] == site.url.removeprefix("http://")
    assert request.headers["user-agent"] == "bot/1.0"


async def test_any_status_is_a_response(site: Site, client: Client) -> None:
    assert (await get(client, site, page(b"no", status=503))).status == 503


async def test_a_chunked_page(site: Site, client: Client) -> None:
    assert (await get(client, site, chunked(b"one ", b"two"))).body == b"one two"


async def test_a_page_that_ends_with_the_connection(site: Site, client: Client) -> None:
    assert (await get(client, site, raw(b"HTTP/1.0 200 OK\r\n\r\nall of it"))).body == b"all of it"


async def test_informational_responses_are_passed_over(site: Site, client: Client) -> None:
    early = raw(b"HTTP/1.1 103 Early\r\n\r\n" + head(200, {"Content-Length": "2"}) + b"ok")
    assert (await get(client, site, early)).body == b"ok"


async def test_repeated_headers_are_joined(site: Site, client: Client) -> None:
    twice = raw(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n")
    assert (await get(client, site, twice)).headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/caf\u00e9".encode(), "/caf%C3%A9"),
        ("/caf\u00e9".encode("latin-1"), "/caf%E9"),
        ("?q=a\u2013b".encode(), "/page?q=a%E2%80%93b"),
        (b"/x%C3%A9", "/x%C3%A9"),
        (b"/a\\b", "/a/b"),
        (b"/first\r\nLocation: /second", "/first"),
    ],
)
async def test_a_location_is_read_as_browsers_read_it(
    site: Site, client: Client, location: bytes, path: str
) -> None:
    answer = raw(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
    assert (await get(client, site, answer)).location == site.url + path


@pytest.mark.parametrize(
    "lines",
    [
        b"X-Y : y",
        b"X Powered: y",
        b"nonsense",
        b"nonsense\r\n that goes on",
        b": no name",
        b"X: a\x01\x02b",
        b"Transfer-Encoding: identity",
        b"Content-Length: many",
        b"Content-Length: -1",
        "N\u00e4me: x".encode("latin-1"),
    ],
)
async def test_header_lines_that_are_none_are_passed_over(
    site: Site, client: Client, lines: bytes
) -> None:
    odd = b"\r\nHTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n" + lines + b"\r\nX-Z: z\r\n\r\n"
    response = await get(client, site, raw(odd + b"the nonsense : \r\n\r\n body"))
    assert response.body == b"the nonsense : \r\n\r\n body"
    assert response.headers["x-z"] == "z"


async def test_a_blank_before_the_colon_changes_nothing_else(site: Site, client: Client) -> None:
    odd = raw(b"HTTP/1.1 200 OK\nContent-Length : 2\nContent-Type :text/html\n\nok, and more")
    response = await get(client, site, odd)
    assert (response.body, response.content_type) == (b"ok", "text/html")


async def test_a_connection_with_a_faulty_head_is_not_kept(site: Site, client: Client) -> None:
    async def odd(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nodd\r\nContent-Length: 2\r\n\r\nok")

    for _ in range(2):
        assert (await get(client, site, odd)).body == b"ok"
    assert site.connections == 2


async def test_a_faulty_head_in_pieces(site: Site, client: Client) -> None:
    async def trickling(exchange: Exchange) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nodd\r\nX : y\r\nContent-Length: 2\r\n\r\nok":
            await exchange.send(bytes([byte]))

    response = await get(client, site, trickling)
    assert (response.body, response.headers["x"]) == (b"ok", "y")


async def test_redirects_are_not_followed_but_resolved(site: Site, client: Client) -> None:
    response = await get(client, site, redirect("../other#part"))
    assert response.location == f"{site.url}/other"
    assert (await get(client, site, redirect("http://["))).location is None
    assert (await get(client, site, redirect("/x", status=200))).location is None


@pytest.mark.parametrize("url", ["", "site.test", "ftp://site.test/", "http://user@site.test/"])
async def test_what_is_no_url_is_the_callers_error(client: Client, url: str) -> None:
    with pytest.raises(ValueError, match="not an absolute http or https URL"):
        await client.get(url)


# -------------------------------------------------------------------------------------- codings


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


def named_gzip(body: bytes) -> bytes:
    """With a file name, a comment, an extra field and a checksum in its header (RFC 1952)."""
    plain = gzip.compress(body, mtime=0)
    header = plain[:3] + bytes([4 | 8 | 16 | 2]) + plain[4:10]
    header += b"\x03\x00abc" + b"name\0" + b"comment\0"
    return header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") + plain[10:]


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"hello " * 100)),
        ("gzip", named_gzip(b"hello " * 100)),
        ("X-GZIP", gzip.compress(b"hello " * 100)),
        ("gzip", gzip.compress(b"hello " * 40) + gzip.compress(b"hello " * 60)),
        ("gzip", gzip.compress(b"hello " * 100) + bytes(10)),
        ("deflate", zlib.compress(b"hello " * 100)),
        ("deflate", raw_deflate(b"hello " * 100)),
        ("deflate, gzip", gzip.compress(zlib.compress(b"hello " * 100))),
        ("identity", b"hello " * 100),
    ],
)
async def test_codings(site: Site, client: Client, coding: str, body: bytes) -> None:
    response = await get(client, site, page(body, headers={"Content-Encoding": coding}))
    assert response.body == b"hello " * 100


async def test_an_empty_body_needs_no_decoding(site: Site, client: Client) -> None:
    assert (await get(client, site, page(headers={"Content-Encoding": "gzip"}))).body == b""


async def test_codings_are_offered(site: Site, client: Client) -> None:
    await get(client, site, html("x"))
    assert site.requests[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("coding", "body"),
    [("br", b"x"), ("gzip", b"no gzip"), ("deflate", b"\xff\xff"), ("gzip,gzip,gzip", b"x")],
)
async def test_what_cannot_be_decoded(site: Site, client: Client, coding: str, body: bytes) -> None:
    with pytest.raises(http.BadResponse):
        await get(client, site, page(body, headers={"Content-Encoding": coding}))


SOME_BYTES = bytes(number * number % 251 for number in range(1_000))


@pytest.mark.parametrize(
    ("coding", "body", "checksum_bytes"),
    [
        ("gzip", gzip.compress(SOME_BYTES), 8),
        ("gzip", named_gzip(SOME_BYTES), 8),
        ("gzip", gzip.compress(b"first") + gzip.compress(SOME_BYTES), 8),
        ("deflate", zlib.compress(SOME_BYTES), 4),
    ],
)
async def test_a_body_needs_its_data_and_not_its_checksum(
    site: Site, client: Client, coding: str, body: bytes, checksum_bytes: int
) -> None:
    headers = {"Content-Encoding": coding}
    for missing in (1, checksum_bytes):
        response = await get(client, site, page(body[:-missing], headers=headers))
        assert response.body.endswith(SOME_BYTES)
    for missing in (checksum_bytes + 1, checksum_bytes + 50):
        with pytest.raises(http.TruncatedBody):
            await get(client, site, page(body[:-missing], headers=headers))


# --------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        pytest.param(reset, http.ConnectionReset, id="reset"),
        pytest.param(close_silently, http.ConnectionReset, id="closed"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nCont"), http.ConnectionReset, id="cut head"),
        pytest.param(reset_in_body, http.ConnectionReset, id="reset in body"),
        pytest.param(truncated(), http.TruncatedBody, id="truncated"),
        pytest.param(truncated_chunked, http.TruncatedBody, id="truncated chunk"),
        pytest.param(garbage, http.BadResponse, id="garbage"),
        pytest.param(raw(b"SSH-2.0-x\r\n\r\n"), http.BadResponse, id="other protocol"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99_999), http.BadResponse, id="head"),
        pytest.param(huge(LIMIT + 1, announced=True), http.BodyTooLarge, id="announced"),
        pytest.param(huge(LIMIT + 1, announced=False), http.BodyTooLarge, id="found out"),
        pytest.param(gzip_bomb(LIMIT + 1), http.BodyTooLarge, id="bomb"),
    ],
)
async def test_every_fault_has_its_name(
    site: Site, client: Client, handler: Handler, error: type[http.FetchError]
) -> None:
    with pytest.raises(http.FetchError) as caught:
        await get(client, site, handler)
    assert type(caught.value) is error
    assert caught.value.url == f"{site.url}/page"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    # The client works on, over another connection.
    assert (await get(client, site, html("fine"))).body == b"fine"
    assert site.hits["/page"] == 2


BROKEN_BODIES = {
    "truncated": b"Content-Length: 50\r\n\r\nhalf",
    "too large": b"Content-Length: 999999999\r\n\r\nhalf",
    "no chunks": b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    "no gzip": b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nhalf",
}


@pytest.mark.parametrize("broken", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
@pytest.mark.parametrize("status", [b"301 Moved", b"404 Not Found", b"503 Unavailable"])
async def test_redirects_and_errors_need_no_body(
    site: Site, client: Client, status: bytes, broken: bytes
) -> None:
    line = b"HTTP/1.1 " + status + b"\r\nLocation: /there\r\n"
    response = await get(client, site, raw(line + broken))
    assert response.status == int(status[:3])
    assert response.location == (f"{site.url}/there" if response.status == 301 else None)
    assert (await get(client, site, html("fine"))).body == b"fine"
    assert site.connections == 2


async def test_an_announced_excess_is_refused_unread(site: Site, client: Client) -> None:
    async def announce(exchange: Exchange) -> None:
        await exchange.send(head(200, {"Content-Length": "999999999"}))
        await trio.sleep_forever()

    with pytest.raises(http.BodyTooLarge, match="body of 999999999 bytes"):
        await get(client, site, announce)


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(64 * LIMIT))
    tracemalloc.start()
    try:
        with pytest.raises(http.BodyTooLarge):
            decode_body(bomb, "gzip", LIMIT, "http://e.test/")
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


async def test_limits_are_inclusive(site: Site, client: Client) -> None:
    assert len((await get(client, site, page(bytes(LIMIT)))).body) == LIMIT
    assert len((await get(client, site, gzip_bomb(LIMIT))).body) == LIMIT


async def test_a_refused_connection(client: Client) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(http.NoConnection, match="no connection to"):
        await client.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("handler", [never, trickle], ids=["silent", "trickling"])
async def test_the_timeout_is_for_the_whole_response(site: Site, handler: Handler) -> None:
    async with open_client(user_agent="bot", timeout_s=0.1) as client:
        with pytest.raises(http.FetchTimeout, match=r"not complete in 0\.1 s"):
            await get(client, site, handler)


# ---------------------------------------------------------------------------------- connections


async def test_a_connection_is_kept(site: Site, client: Client) -> None:
    for _ in range(5):
        await get(client, site, html("x"))
    assert site.connections == 1


async def test_connection_close_is_obeyed(site: Site, client: Client) -> None:
    for _ in range(2):
        await get(client, site, page(b"x", headers={"Connection": "close"}))
    assert site.connections == 2


close_header = {"Connection": "close"}
ends_the_connection = pytest.mark.parametrize(
    "last",
    [
        pytest.param(page(b"x", headers=close_header), id="close"),
        pytest.param(page(b"x", status=404, headers=close_header), id="error that closes"),
        pytest.param(chunked(b"x", headers=close_header), id="chunked and close"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\n\r\nx"), id="no length"),
        pytest.param(raw(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"), id="HTTP/1.0"),
        pytest.param(two_for_one(b"x"), id="more than was asked for"),
    ],
)


@ends_the_connection
async def test_a_connection_that_is_over_is_not_used_again(
    site: Site, client: Client, last: Handler
) -> None:
    for round_ in (1, 2, 3):
        for _ in range(2):  # the connection is a kept one when it ends
            assert (await get(client, site, html("kept"))).body == b"kept"
        assert (await get(client, site, last)).body == b"x"
        assert site.connections == round_


async def test_a_408_to_a_kept_connection_is_about_its_idle_time(
    site: Site, client: Client
) -> None:
    site.pages |= {"/warm": html("x"), "/page": first(page(status=408), then=html("second"))}
    await client.get(f"{site.url}/warm")
    assert (await client.get(f"{site.url}/page")).body == b"second"
    assert (await get(client, site, first(then=page(status=408)))).status == 408


async def test_a_stale_connection_is_replaced_silently(site: Site, client: Client) -> None:
    for _ in range(3):
        assert (await get(client, site, then_close(html("x")))).body == b"x"
    assert site.connections == 3


@pytest.mark.parametrize("fault", [reset, close_silently])
async def test_a_kept_connection_that_dies_is_tried_once_more(
    site: Site, client: Client, fault: Handler
) -> None:
    site.pages["/page"] = first(fault, then=html("second"))
    site.pages["/warm"] = html("x")
    await client.get(f"{site.url}/warm")
    assert (await client.get(f"{site.url}/page")).body == b"second"
    assert site.connections == 2


async def test_once_more_is_once(site: Site, client: Client) -> None:
    site.pages["/warm"] = html("x")
    await client.get(f"{site.url}/warm")
    with pytest.raises(http.ConnectionReset):
        await get(client, site, close_silently)
    assert site.hits["/page"] == 2


async def test_a_kept_connection_that_dies_in_the_answer_is_no_stale_one(
    site: Site, client: Client
) -> None:
    site.pages["/warm"] = html("x")
    await client.get(f"{site.url}/warm")
    with pytest.raises(http.TruncatedBody):
        await get(client, site, truncated())
    assert site.hits["/page"] == 1


async def test_bytes_after_a_response_never_answer_the_next_request(
    site: Site, client: Client
) -> None:
    assert (await get(client, site, two_for_one(b"ok"))).body == b"ok"
    assert (await get(client, site, html("right"))).body == b"right"
    assert site.connections == 2


async def test_an_aged_connection_is_not_used(
    site: Site, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await get(client, site, html("x"))
    monkeypatch.setattr(http, "MAX_IDLE_S", -1.0)
    await get(client, site, html("x"))
    assert site.connections == 2


async def test_no_more_connections_than_allowed(site: Site) -> None:
    site.latency_s = 0.005
    site.pages["/page"] = html("x")
    async with (
        open_client(user_agent="bot", connections=3) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(12):
            nursery.start_soon(client.get, f"{site.url}/page")
    assert site.most_in_flight == 3
    assert site.connections == 3


async def test_idle_connections_count_and_make_room(site: Site, nursery: trio.Nursery) -> None:
    other = Site({"/page": html("other")})
    await nursery.start(other.serve)
    async with open_client(user_agent="bot", connections=1) as client:
        for _ in range(2):
            assert (await get(client, site, html("x"))).body == b"x"
            assert (await client.get(f"{other.url}/page")).body == b"other"
    assert (site.connections, other.connections) == (2, 2)


async def test_a_cancelled_request_leaves_a_client_that_works(site: Site) -> None:
    async with open_client(user_agent="bot", connections=1) as client:
        await get(client, site, html("x"))
        with trio.move_on_after(0.05) as scope:
            await get(client, site, never)
        assert scope.cancelled_caught
        assert (await get(client, site, html("fine"))).body == b"fine"
    assert site.connections == 2


async def test_leaving_the_block_closes_the_connections(site: Site, nursery: trio.Nursery) -> None:
    closed = trio.Event()

    async def watch(exchange: Exchange) -> None:
        await exchange.respond(b"x")
        assert await exchange.stream.receive_some(1) == b""
        closed.set()
        await exchange.close()

    async with open_client(user_agent="bot") as client:
        await get(client, site, watch)
    with trio.fail_after(HANG_S):
        await closed.wait()


async def test_a_client_needs_a_connection() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        async with open_client(user_agent="bot", connections=0):
            pass


# ------------------------------------------------------------------------------------------ TLS


@attrs.frozen
class Certificates:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Certificates(server, client)


async def serve_over_tls(nursery: trio.Nursery, context: ssl.SSLContext) -> str:
    """A server that answers every connection once; its URL."""

    async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(head(200, {"Content-Length": "6"}) + b"secret")
            await stream.receive_some()

    serve = partial(trio.serve_ssl_over_tcp, answer, 0, context, host="127.0.0.1")
    listeners: list[trio.SSLListener[trio.SocketStream]] = await nursery.start(serve)
    transport = listeners[0].transport_listener
    assert isinstance(transport, trio.SocketListener)
    port = transport.socket.getsockname()[1]
    return f"https://127.0.0.1:{port}/"


async def test_https(nursery: trio.Nursery, certificates: Certificates) -> None:
    url = await serve_over_tls(nursery, certificates.server)
    async with open_client(user_agent="bot", tls=certificates.client) as client:
        assert (await client.get(url)).body == b"secret"


async def test_a_certificate_of_an_unknown_issuer_is_refused(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    url = await serve_over_tls(nursery, certificates.server)
    async with open_client(user_agent="bot") as client:
        with pytest.raises(http.BadResponse, match="certificate refused"):
            await client.get(url)
