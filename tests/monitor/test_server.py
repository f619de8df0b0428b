"""Connections: how they end, how many there may be, and what a rude client costs."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import ssl
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from tests.hangs import HANG_S
from tests.monitor.client import SECRET, Client, events, serving
from tests.opening import begin
from trio_ckpt._runs.open_run import OpenRun
from trio_ckpt._tokens.token import touch
from trio_ckpt.monitor import _server
from trio_ckpt.monitor._guard import REQUEST_TIMEOUT_S
from trio_ckpt.stores import MemoryStore


async def first_picture(client: Client, seen: trio.Event, **options: Any) -> None:
    """Watch until cut off."""
    try:
        async with client.open("GET", "/api/events?run=r", **options) as (_, _, pieces):
            async for name, _ in events(pieces):
                if name == "run":
                    seen.set()
    except (trio.BrokenResourceError, Exception):  # how it is cut is not the claim
        pass


@pytest.mark.usefixtures("nothing_left")
async def test_leaving_the_nursery_ends_everything_though_many_watch() -> None:
    async with begin() as run:
        async with trio.open_nursery() as viewers:
            async with serving(run) as (client, _):
                watching = [trio.Event() for _ in range(50)]
                for seen in watching:
                    viewers.start_soon(first_picture, client, seen)
                with trio.fail_after(HANG_S):
                    for seen in watching:
                        await seen.wait()
                began = time.perf_counter()
            assert time.perf_counter() - began < HANG_S


@pytest.mark.usefixtures("nothing_left")
async def test_a_viewer_who_takes_nothing_does_not_hold_the_nursery_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hypercorn shields its sends; a client with a full buffer would hold them for ever."""
    sending, send = 0, _server.ClientConnection.send_all

    async def counted(self: _server.ClientConnection, data: bytes) -> None:
        nonlocal sending
        sending += 1
        try:
            await send(self, data)
        finally:
            sending -= 1

    monkeypatch.setattr(_server.ClientConnection, "send_all", counted)
    async with begin() as run:
        for index in range(400):  # pictures as large as they get
            name = f"{index}-" + "x" * 900
            async with run.open_stream(name) as stream, stream.open_batch() as batch:
                batch.skip("y" * 1_000)
        async with AsyncExitStack() as stack:  # so that the client is there to the end
            async with serving(run) as (client, _):
                stream = await trio.open_tcp_stream("127.0.0.1", client.port)
                await stack.enter_async_context(stream)
                stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 2_048)
                for _ in range(60):  # pipelined, and never read
                    await stream.send_all(
                        b"GET /api/runs/r/failures?limit=200 HTTP/1.1\r\n"
                        b"Host: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n\r\n"
                        % (client.port, SECRET.encode())
                    )
                await trio.testing.wait_all_tasks_blocked(0.5)  # the server waits to send
                assert sending == 1
                began = time.perf_counter()
            assert time.perf_counter() - began < HANG_S
            assert sending == 0


@pytest.mark.usefixtures("nothing_left")
async def test_a_viewer_who_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "SEND_TIMEOUT_S", 0.3)
    async with begin() as run:
        async with serving(run) as (client, _):
            wire_ended = trio.Event()
            stream = await trio.open_tcp_stream("127.0.0.1", client.port)
            async with stream:
                asked = (
                    b"GET /monitor.js HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % client.port
                ) * 400
                with trio.move_on_after(5):
                    await stream.send_all(asked)
                await trio.sleep(1.0)
                with trio.fail_after(HANG_S):
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass
                    wire_ended.set()
            assert wire_ended.is_set()
            assert (await client.get("/api/runs")).status == 200


async def test_there_is_a_limit_on_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "MAX_CONNECTIONS", 3)
    async with begin() as run:
        async with serving(run) as (client, _):
            held = [await trio.open_tcp_stream("127.0.0.1", client.port) for _ in range(3)]
            await trio.testing.wait_all_tasks_blocked(0.05)
            refused = await trio.open_tcp_stream("127.0.0.1", client.port)
            with trio.fail_after(HANG_S):
                assert await ended(refused)
            for stream in [*held, refused]:
                await stream.aclose()
            with trio.fail_after(HANG_S):
                while True:
                    try:
                        assert (await client.get("/api/runs")).status == 200
                        break
                    except Exception:  # until the three have been taken note of
                        await trio.sleep(0.05)


async def ended(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_connection_close_gets_the_whole_answer(version: str) -> None:
    async with begin() as run:
        async with serving(run) as (client, _):
            close = [("Connection", "close")]
            reply = await client.get("/monitor.js", close, http_version=version)
            assert reply.status == 200
            assert reply.body.rstrip().endswith(b"begin();")
            assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_connection_close_does_not_end_a_stream_of_events(version: str) -> None:
    async with begin() as run:
        async with serving(run) as (client, _):
            close = [("Connection", "close")]
            options = {"http_version": version}
            async with client.open("GET", "/api/events?run=r", close, **options) as (
                status,
                headers,
                pieces,
            ):
                assert (status, headers["content-type"]) == (200, "text/event-stream")
                seen = 0
                with trio.fail_after(HANG_S):
                    async for name, _ in events(pieces):
                        seen += name == "run"
                        touch(run.coordinator.registry)
                        if seen == 3:
                            break


async def test_one_connection_may_ask_many_times() -> None:
    async with begin() as run:
        async with serving(run) as (client, _):
            ask = (
                b"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n\r\n"
                % (client.port, SECRET.encode())
            )
            async with await trio.open_tcp_stream("127.0.0.1", client.port) as stream:
                answer = b""
                with trio.fail_after(HANG_S):
                    await stream.send_all(ask * 5)
                    while answer.count(b"HTTP/1.1 200") < 5:
                        answer += await stream.receive_some()


async def test_the_port_is_free_again_at_once() -> None:
    async with begin() as run:
        async with serving(run) as (client, _):
            port = client.port
        async with trio.open_nursery() as nursery:

            async def again(*, task_status: Any) -> None:
                from trio_ckpt import monitor

                await monitor.serve(run, port=port, secret=SECRET, task_status=task_status)

            found = await nursery.start(again)
            assert found.port == port
            assert (await Client(port).get("/api/runs")).status == 200
            nursery.cancel_scope.cancel()


async def test_a_secret_is_made_and_logged_where_none_is_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "trio_ckpt.monitor"):
        async with begin() as run:
            async with serving(run, secret=None) as (client, found):
                assert found.page_url == f"{found.url}#{found.secret}"
                assert (await client.get("/api/runs")).status == 200
    assert found.page_url in caplog.text


@pytest.mark.usefixtures("nothing_left")
async def test_with_tls() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with begin() as run:
        async with serving(run, ssl_context=context) as (client, found):
            assert found.url == f"https://127.0.0.1:{client.port}/"
            stream = await trio.open_ssl_over_tcp_stream(
                "localhost", client.port, ssl_context=trusting, https_compatible=True
            )
            ask = (
                b"GET /api/runs HTTP/1.1\r\nHost: localhost:%d\r\nAuthorization: Bearer %s\r\n"
                b"Connection: close\r\n\r\n" % (client.port, SECRET.encode())
            )
            answer = b""
            with trio.fail_after(HANG_S):
                await stream.send_all(ask)
                while piece := await stream.receive_some():
                    answer += piece
            assert answer.startswith(b"HTTP/1.1 200")
            await trio.aclose_forcefully(stream)
            assert not (await client.raw(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_an_error_of_the_monitor_itself_shows_no_details(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with begin() as run:
        async with serving(run) as (client, _):

            def broken(self: OpenRun) -> Any:
                raise ZeroDivisionError("a secret detail in /some/path")

            monkeypatch.setattr(OpenRun, "view", broken)
            reply = await client.get("/api/runs")
            monkeypatch.undo()
            assert (reply.status, reply.code) == (500, "internal")
            assert b"secret detail" not in reply.body
            assert b"Traceback" not in reply.body
            assert "a secret detail" in caplog.text  # the log has it
            assert (await client.get("/api/runs")).status == 200


async def test_a_store_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_ckpt.monitor._guard.REQUEST_TIMEOUT_S", 0.2)
    assert REQUEST_TIMEOUT_S < 60

    class Slow(MemoryStore):
        async def list_runs(
            self, prefix: str = "", after: str | None = None, limit: int = 1000
        ) -> Any:
            await trio.sleep_forever()

    async with serving(Slow()) as (client, _):
        reply = await client.get("/api/runs")
    assert (reply.status, reply.code) == (503, "too_slow")
