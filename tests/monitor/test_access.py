"""Who may see and do what: the judgement itself, and hostile requests on every route."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from tests.hangs import HANG_S
from tests.monitor.client import ACTION_SECRET, SECRET, Client, serving
from tests.opening import begin
from trio_ckpt._util.network import UnsafeBindingError, new_secret
from trio_ckpt.monitor._access import (
    MAX_TARGET_BYTES,
    OPEN_PATHS,
    Access,
    AccessDenied,
    AccessRole,
    allowed_hosts,
    check_secret,
)
from trio_ckpt.monitor._endpoints import ENDPOINTS
from trio_ckpt.stores import MemoryStore

ACCESS = Access(SECRET, ACTION_SECRET, allowed_hosts("127.0.0.1", 8000, ["ckpt.example"]))


def scope(method: str = "GET", path: str = "/api/runs", **headers: str) -> dict[str, Any]:
    """A request; a header's name has ``_`` for ``-``, and None leaves it out."""
    given = {"host": "127.0.0.1:8000", "authorization": f"Bearer {SECRET}", **headers}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "headers": [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in given.items()
            if value is not None
        ],
    }


def code(verdict: AccessRole | AccessDenied) -> str:
    assert isinstance(verdict, AccessDenied)
    return verdict.code


# -- the judgement -------------------------------------------------------------------------------


def test_each_secret_gives_its_role() -> None:
    assert ACCESS.authorize(scope()) is AccessRole.VIEWER
    assert ACCESS.authorize(scope(authorization=f"Bearer {ACTION_SECRET}")) is AccessRole.ACTOR


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        f"Bearer {SECRET[:-1]}",
        f"Bearer {SECRET}x",
        f"Bearer {SECRET}\x1f",  # white space to Python, not to HTTP
        f"Bearer {SECRET.upper()}",
        SECRET,
        f"Token {SECRET}",
    ],
)
def test_anything_but_the_secret_is_refused(given: str) -> None:
    assert code(ACCESS.authorize(scope(authorization=given))) == "secret_needed"


def test_two_headers_of_one_kind_are_none() -> None:
    twice = scope()
    twice["headers"].append((b"authorization", f"Bearer {SECRET}".encode()))
    assert code(ACCESS.authorize(twice)) == "secret_needed"
    hosts = scope()
    hosts["headers"].append((b"host", b"127.0.0.1:8000"))
    assert code(ACCESS.authorize(hosts)) == "wrong_host"


def test_without_actions_their_secret_is_no_secret() -> None:
    access = Access(SECRET, None, ACCESS.hosts)
    assert code(access.authorize(scope(authorization=f"Bearer {ACTION_SECRET}"))) == "secret_needed"
    zeros = "Bearer " + "\0" * 32
    assert code(access.authorize(scope(authorization=zeros))) == "secret_needed"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "LOCALHOST:8000", "ckpt.example"],
)
def test_our_own_names_are_known(host: str) -> None:
    assert ACCESS.authorize(scope(host=host)) is AccessRole.VIEWER


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1", "127.0.0.1:8001", "localhost.evil.example:8000", "", " "],
)
def test_a_name_that_is_not_ours_is_refused_whatever_else_is_right(host: str) -> None:
    """DNS rebinding: an attacker points a name of theirs at this machine."""
    for path in ("/api/runs", "/", "/metrics"):
        assert code(ACCESS.authorize(scope(path=path, host=host))) == "wrong_host"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "https://ckpt.example"])
def test_our_own_origin_is_known(origin: str) -> None:
    assert ACCESS.authorize(scope(origin=origin)) is AccessRole.VIEWER


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:8001", "file://127.0.0.1:8000", ""],
)
def test_a_foreign_origin_is_refused_though_it_has_the_secret(origin: str) -> None:
    for method in ("GET", "POST"):
        assert code(ACCESS.authorize(scope(method, origin=origin))) == "foreign_origin"


def test_requests_of_a_foreign_page_are_refused_but_a_link_is_not() -> None:
    for site in ("cross-site", "same-site"):
        assert code(ACCESS.authorize(scope(sec_fetch_site=site))) == "foreign_origin"
    link = scope(path="/", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    assert ACCESS.authorize(link) is AccessRole.PUBLIC
    assert ACCESS.authorize(scope(sec_fetch_site="same-origin")) is AccessRole.VIEWER
    assert ACCESS.authorize(scope(sec_fetch_site="none")) is AccessRole.VIEWER


def test_only_the_files_of_the_page_itself_need_no_secret() -> None:
    for path in OPEN_PATHS:
        assert ACCESS.authorize(scope(path=path, authorization="")) is AccessRole.PUBLIC
        assert code(ACCESS.authorize(scope("POST", path, authorization=""))) == "secret_needed"
    for endpoint in ENDPOINTS:
        assert (
            code(ACCESS.authorize(scope(path=endpoint.path, authorization=""))) == "secret_needed"
        )


def test_form_comes_first() -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 100):
        assert code(ACCESS.authorize(scope(method))) == "wrong_method"
    assert code(ACCESS.authorize(scope(content_length="1"))) == "body_not_taken"
    assert code(ACCESS.authorize(scope(transfer_encoding="chunked"))) == "body_not_taken"
    assert ACCESS.authorize(scope(content_length="0")) is AccessRole.VIEWER
    assert code(ACCESS.authorize(scope(path="/" + "x" * MAX_TARGET_BYTES))) == "too_long"
    assert code(ACCESS.authorize({**scope(), "http_version": "2"})) == "wrong_version"


def test_browsers_leave_the_default_port_out() -> None:
    assert "localhost" in allowed_hosts("0.0.0.0", 80, [])
    assert "localhost" not in allowed_hosts("0.0.0.0", 8000, [])
    assert "[::]:8000" in allowed_hosts("::", 8000, [])
    assert "a.example:9" in allowed_hosts("127.0.0.1", 8000, ["A.example:9"])


def test_secrets_are_long_and_fit_into_a_header() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert check_secret(new_secret())
    for bad in ("short", "with space in it 123", "umlaut-äöü-1234567", "line\nend-123456789"):
        with pytest.raises(ValueError, match="secret"):
            check_secret(bad)


# -- every route ---------------------------------------------------------------------------------


def routes() -> list[tuple[str, str]]:
    """Every route with its method, its parameters filled in."""
    filled = [
        (endpoint.method, endpoint.path.replace("{run}", "r").replace("{job_id}", "job-1"))
        for endpoint in ENDPOINTS
    ]
    return [(m, p.replace("{task_id}", "job-1.000000")) for m, p in filled] + [
        ("GET", path) for path in sorted(OPEN_PATHS)
    ]


async def attack(client: Client, method: str, target: str) -> list[tuple[str, int]]:
    """What a route answers to each kind of hostile request."""
    own = f"127.0.0.1:{client.port}"
    stranger = Client(client.port, None)
    viewer = Client(client.port, SECRET)
    asked = {
        "rebinding": await viewer.ask(method, target, host="evil.example"),
        "no secret": await stranger.ask(method, target),
        "wrong secret": await Client(client.port, "w" * 32).ask(method, target),
        "secret in the query": await stranger.ask(method, f"{target}?secret={SECRET}"),
        "cookie": await stranger.ask(method, target, [("Cookie", f"secret={SECRET}")]),
        "foreign origin": await viewer.ask(method, target, [("Origin", "https://evil.example")]),
        "cross site": await viewer.ask(method, target, [("Sec-Fetch-Site", "cross-site")]),
        "method": await viewer.ask("DELETE", target),
        "method override": await viewer.ask("PUT", target, [("X-HTTP-Method-Override", "GET")]),
        "body": await viewer.ask(method, target, body=b"x" * 100),
        "forwarded": await viewer.ask(
            method, target, [("X-Forwarded-Host", own)], host="evil.example"
        ),
        "absolute target": await viewer.ask(method, f"http://evil.example{target}"),
    }
    return [(name, reply.status) for name, reply in asked.items()]


EXPECTED = {
    "rebinding": {421},
    "no secret": {401},
    "wrong secret": {401},
    "secret in the query": {401},
    "cookie": {401},
    "foreign origin": {403},
    "cross site": {403},
    "method": {405},
    "method override": {405},
    "body": {413},
    "forwarded": {421},
    "absolute target": {401, 403, 404, 405},
}


@pytest.mark.parametrize(("method", "target"), routes())
async def test_hostile_requests_are_refused_on_every_route(method: str, target: str) -> None:
    async with begin(MemoryStore()) as run:
        async with serving(run, allow_actions=True) as (client, _):
            answers = await attack(client, method, target)
    is_open = target in OPEN_PATHS
    without_secret = {"no secret", "wrong secret", "secret in the query", "cookie"}
    for name, status in answers:
        if is_open and name in without_secret:
            assert status == 200, name
        elif is_open and name == "absolute target":
            assert status in (200, 404), name
        else:
            assert status in EXPECTED[name], name


async def test_the_secret_of_viewers_allows_no_action() -> None:
    actions = [(m, t) for m, t in routes() if m == "POST"]
    assert len(actions) >= 5
    async with begin(MemoryStore()) as run:
        async with serving(run, allow_actions=True) as (client, found):
            assert found.action_secret == ACTION_SECRET
            for method, target in actions:
                reply = await client.ask(method, target)
                assert (reply.status, reply.code) == (403, "action_secret_needed")
        async with serving(run) as (client, found):
            assert found.action_secret is None
            for method, target in actions:
                reply = await Client(client.port, ACTION_SECRET).ask(method, target)
                assert reply.status == 401
                reply = await client.ask(method, target)
                assert (reply.status, reply.code) == (403, "read_only")
        assert not run.is_stopping


async def test_every_answer_carries_what_keeps_a_browser_safe() -> None:
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            for target in ("/", "/monitor.js", "/api/runs", "/nothing", "/metrics"):
                for asker in (client, Client(client.port, None)):
                    headers = (await asker.get(target)).headers
                    policy = headers["content-security-policy"]
                    assert "default-src 'none'" in policy
                    assert "unsafe" not in policy
                    assert headers["x-content-type-options"] == "nosniff"
                    assert headers["referrer-policy"] == "no-referrer"
                    assert headers["cache-control"] == "no-store"
                    assert "access-control-allow-origin" not in headers
                    assert "server" not in headers


GARBAGE = {
    "no http": b"\x00\xff" * 500,
    "tls": bytes.fromhex("160301") + b"\x02\x00" * 100,
    "half a line": b"GET /api/ru",
    "a header without end": b"GET / HTTP/1.1\r\nHost: " + b"x" * 40_000,
    "very many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5_000,
    "no host": b"GET /api/runs HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "http/1.0 without a host": b"GET /api/runs HTTP/1.0\r\n\r\n",
    "smuggling": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "http/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "a length that lies": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Length: 99999999999\r\n\r\n",
    "not ascii": "GET /\u20ac HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
    "a null": b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_ends_its_connection_and_nothing_else(data: bytes) -> None:
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            answer = await client.raw(data)
            assert not answer.startswith(b"HTTP/1.1 200")
            assert b"Traceback" not in answer
            assert (await client.get("/api/runs")).status == 200


async def test_a_websocket_is_refused() -> None:
    upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            for target in ("/", "/api/events"):
                reply = await client.get(target, upgrade)
                assert reply.status == 403
            assert (await client.get("/api/runs")).status == 200


async def test_http_2_is_refused_though_hypercorn_speaks_it() -> None:
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            connection = h2.connection.H2Connection(
                h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
            )
            connection.initiate_connection()
            connection.send_headers(
                1,
                [
                    (":method", "GET"),
                    (":path", "/api/runs"),
                    (":scheme", "http"),
                    (":authority", f"127.0.0.1:{client.port}"),
                    ("authorization", f"Bearer {SECRET}"),
                ],
                end_stream=True,
            )
            status = None
            async with await trio.open_tcp_stream("127.0.0.1", client.port) as stream:
                await stream.send_all(connection.data_to_send())
                with trio.fail_after(HANG_S):
                    while status is None:
                        for found in connection.receive_data(await stream.receive_some()):
                            if isinstance(found, h2.events.ResponseReceived):
                                status = dict(found.headers)[":status"]
            assert status == "505"


async def test_one_listens_beyond_this_machine_only_with_protection() -> None:
    async with begin(MemoryStore()) as run:
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
            with pytest.raises(ExceptionGroup) as caught:
                async with serving(run, host=host):
                    pass
            assert caught.group_contains(UnsafeBindingError, match="without TLS")
        async with serving(run, host="0.0.0.0", allow_plain=True) as (client, found):
            assert found.url == f"http://127.0.0.1:{client.port}/"
            assert (await client.get("/api/runs")).status == 200
        for options in (
            {"secret": "short"},
            {"allow_actions": True, "action_secret": SECRET},
        ):
            with pytest.raises(ExceptionGroup) as caught:
                async with serving(run, **options):
                    pass
            assert caught.group_contains(ValueError, match="secret")


async def test_the_log_of_a_server_that_was_given_a_secret_never_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(0)
    async with begin(MemoryStore()) as run:
        async with serving(run, allow_actions=True) as (client, found):
            assert (await client.get("/api/runs")).status == 200
            assert (await client.get(f"/x?secret={SECRET}")).status == 404
            assert SECRET not in repr(found)
    assert SECRET not in caplog.text
    assert ACTION_SECRET not in caplog.text
