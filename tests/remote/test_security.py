"""Hostile sockets against a foreman: each loses its connection, no other peer notices."""

from __future__ import annotations

import hmac
import os
import random
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio_websocket

from tests.hangs import HANG_S
from tests.remote.samples import SAMPLES, frames_of, hello
from tests.remote.site import ALLOW, F
from tests.remote.wire.test_sockets import SECRET, serving
from trio_ckpt import remote
from trio_ckpt._util.network import check_binding, check_secret, is_secret
from trio_ckpt.remote import Foreman, UnsafeBindingError, new_secret
from trio_ckpt.remote._foreman import peers, serve
from trio_ckpt.remote._foreman.foreman import ForemanCore
from trio_ckpt.remote._wire import link, sockets
from trio_ckpt.remote._wire.frames import MAX_FRAME_BYTES, decode_frame
from trio_ckpt.remote._wire.job_messages import AttachJob, JobItems
from trio_ckpt.remote._wire.message import (
    MIB,
    VERSIONS,
    Credit,
    Heartbeat,
    Hello,
    MessageKind,
    Refused,
)
from trio_ckpt.remote._wire.tables import PeerRole
from trio_ckpt.remote._wire.task_messages import PutBlob, StoreCall
from trio_ckpt.stores import MemoryStore

HELLO = Hello(VERSIONS, "worker", SECRET.encode(), "evil", "evil", 1, ALLOW)


async def still_works(foreman: Foreman) -> bool:
    """Whether others notice nothing: a job is done over connections of their own."""
    async with trio.open_nursery() as nursery:
        work = partial(remote.run_worker, foreman.url, secret=SECRET, allow=ALLOW)
        await nursery.start(work)
        async with remote.connect(foreman.url, secret=SECRET) as client:
            with trio.fail_after(HANG_S):
                found = await client.map(F + "square", [2, 3])
        nursery.cancel_scope.cancel()
    return found == [4, 9]


async def raw(foreman: Foreman) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", foreman.port)


async def answer_to(foreman: Foreman, request: bytes) -> bytes:
    """The beginning of what comes back to bytes: its status."""
    found = b""
    async with await raw(foreman) as stream:
        await stream.send_all(request)
        with trio.fail_after(HANG_S):
            while len(found) < 12 and (data := await stream.receive_some()):
                found += data
    return found


def upgrade(path: str = "/", **headers: str) -> bytes:
    fields = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (upgrade(), b"101"),
        (upgrade(Host="localhost:9000"), b"101"),
        (upgrade(Host="[::1]:9000"), b"101"),
        (upgrade(Host="evil.example"), b"403"),
        (upgrade(Host="127.0.0.1.evil.example"), b"403"),
        (upgrade(Origin="http://127.0.0.1"), b"403"),
        (upgrade(Origin="null"), b"403"),
        (upgrade("/admin"), b"403"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
    ],
    ids=["good", "localhost", "ipv6", "host", "suffix", "origin", "null", "path", "plain", "tls"],
)
async def test_a_request_is_looked_at_before_anything_is_said(
    request_bytes: bytes, status: bytes
) -> None:
    async with serving() as foreman:
        answer = await answer_to(foreman, request_bytes)
        assert answer[:12].split()[1:2] == [status], answer[:80]
        assert await still_works(foreman)


@asynccontextmanager
async def websocket(foreman: Foreman) -> AsyncGenerator[trio_websocket.WebSocketConnection]:
    async with await raw(foreman) as stream, trio.open_nursery() as nursery:
        connection = await trio_websocket.wrap_client_stream(
            nursery, stream, f"127.0.0.1:{foreman.port}", "/", max_message_size=2**24
        )
        yield connection
        nursery.cancel_scope.cancel()


async def is_closed(connection: trio_websocket.WebSocketConnection) -> bool:
    with trio.move_on_after(HANG_S):
        try:
            while True:
                await connection.get_message()
        except trio_websocket.ConnectionClosed:
            return True
    return False


def damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


FIRST: dict[str, list[bytes | str]] = {
    "text": ["hello"],
    "nothing": [b""],
    "garbage": [random.Random(1).randbytes(500)],
    "a damaged frame": [damaged(frames_of(HELLO)[0])],
    "no hello": frames_of(SAMPLES[MessageKind.HEARTBEAT]),
    "a large kind first": frames_of(JobItems("job-1", 0, ["x" * 100_000])),
    "a wrong secret": frames_of(hello(PeerRole.WORKER)),
    "hello twice": [*frames_of(HELLO), *frames_of(HELLO)],
    "what only a client may": [*frames_of(HELLO), *frames_of(SAMPLES[MessageKind.CANCEL_JOB])],
    "what only a foreman may": [*frames_of(HELLO), *frames_of(SAMPLES[MessageKind.ASSIGN_TASK])],
    "a result of what it has not": [
        *frames_of(HELLO),
        *frames_of(SAMPLES[MessageKind.TASK_RESULT]),
    ],
    "a save of what it has not": [
        *frames_of(HELLO),
        *frames_of(SAMPLES[MessageKind.TASK_CHECKPOINT]),
    ],
    "too long a frame": [*frames_of(HELLO), b"\1" * (MAX_FRAME_BYTES + 1)],
    "credit that was not used": [*frames_of(HELLO), *frames_of(Credit(2**30))],
}


@pytest.mark.parametrize("messages", FIRST.values(), ids=FIRST.keys())
async def test_who_breaks_the_rules_loses_the_connection_and_nothing_else(
    messages: list[bytes | str],
) -> None:
    async with serving() as foreman:
        async with websocket(foreman) as connection:
            for message in messages:
                await connection.send_message(message)
            assert await is_closed(connection)
        assert await still_works(foreman)


async def send_for_ever(stream: trio.SocketStream, data: bytes) -> None:
    with trio.fail_after(HANG_S):
        while True:
            await stream.send_all(data)


async def test_a_flood_of_bytes_that_are_no_websocket() -> None:
    async with serving() as foreman:
        async with await raw(foreman) as stream:
            await stream.send_all(upgrade())
            junk = os.urandom(2**16)
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever(stream, junk)
        assert await still_works(foreman)


async def test_an_endless_header_is_refused() -> None:
    async with serving() as foreman:
        async with await raw(foreman) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nX: ")
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever(stream, b"x" * 2**16)
        assert await still_works(foreman)


@pytest.mark.parametrize("start", [b"", upgrade()[:30], upgrade()], ids=["tcp", "http", "hello"])
async def test_who_says_nothing_is_not_waited_for(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sockets, peers, serve):
        monkeypatch.setattr(module, "HANDSHAKE_S", 0.3)
    async with serving() as foreman, await raw(foreman) as stream:
        # The foreman may close it before `start` is sent: a send is refused then.
        with trio.fail_after(HANG_S), suppress(trio.BrokenResourceError):
            if start:
                await stream.send_all(start)
            while await stream.receive_some():
                pass


async def test_who_is_silent_later_is_given_up() -> None:
    async with serving(heartbeat_s=0.1, silence_s=0.4) as foreman:
        async with websocket(foreman) as connection:
            await connection.send_message(frames_of(HELLO)[0])
            assert await is_closed(connection)
        assert await still_works(foreman)


async def test_more_connections_than_allowed_are_closed() -> None:
    async with serving(max_connections=3) as foreman:
        streams = [await raw(foreman) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked(0.1)  # they are counted
        async with await raw(foreman) as one_more:
            with trio.fail_after(HANG_S):
                assert await one_more.receive_some() == b""
        for stream in streams:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert await still_works(foreman)


async def test_an_error_of_ours_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: Any) -> Any:
        raise ZeroDivisionError("a bug")

    async with serving() as foreman:
        with monkeypatch.context() as patch:
            patch.setattr(ForemanCore, "connect", broken)
            async with websocket(foreman) as connection:
                await connection.send_message(frames_of(HELLO)[0])
                assert await is_closed(connection)
        assert await still_works(foreman)
        assert "a bug" in caplog.text


async def test_memory_of_one_peer_is_bounded_by_the_window() -> None:
    """Who begins messages and never ends them is stopped when the window is full."""
    big = StoreCall("t", 1, 1, PutBlob("d" * 64, 6 * MIB, 0, b"x" * (6 * MIB)))
    async with serving() as foreman:
        async with websocket(foreman) as connection:
            await connection.send_message(frames_of(HELLO)[0])
            for number in range(3):
                for frame in frames_of(big, number)[:-1]:
                    try:
                        await connection.send_message(frame)
                    except trio_websocket.ConnectionClosed:
                        break
            assert await is_closed(connection)
        assert await still_works(foreman)


async def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client asks for results and takes none."""
    async with serving(heartbeat_s=0.2, silence_s=1.0) as foreman:
        async with trio.open_nursery() as nursery:
            work = partial(remote.run_worker, foreman.url, secret=SECRET, allow=ALLOW)
            await nursery.start(work)
            async with remote.connect(foreman.url, secret=SECRET) as client:
                await client.map(F + "echo", ["x" * 2_000_000] * 12, job_id="job-big")
            nursery.cancel_scope.cancel()
        async with await raw(foreman) as stream, trio.open_nursery() as nursery:
            connection = await trio_websocket.wrap_client_stream(
                nursery, stream, f"127.0.0.1:{foreman.port}", "/", message_queue_size=1
            )
            greeting = Hello(VERSIONS, "client", SECRET.encode(), "slow", "slow")
            await connection.send_message(frames_of(greeting)[0])
            await connection.send_message(frames_of(AttachJob("job-big", 1))[0])
            with trio.fail_after(HANG_S):
                while True:  # it says that it is there, and takes nothing
                    try:
                        await connection.send_message(frames_of(Heartbeat())[0])
                    except trio_websocket.ConnectionClosed:
                        break
                    await trio.sleep(0.1)
                    if foreman_has_given_up(stream):
                        break
            nursery.cancel_scope.cancel()
        assert await still_works(foreman)


def foreman_has_given_up(stream: trio.SocketStream) -> bool:
    """Whether the other side has closed, though nothing was read here."""
    info = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    (state,) = struct.unpack("B", info[:1])
    return state != 1  # 1 is ESTABLISHED


# -- where to listen ------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
async def test_listening_beyond_this_machine_without_tls_is_refused(host: str) -> None:
    with pytest.raises(UnsafeBindingError, match="TLS"):
        await remote.serve_foreman(MemoryStore(), secret=SECRET, host=host, port=0)
    check_binding(host, None, allow_plain=True)
    check_binding(host, ssl.create_default_context(), allow_plain=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_tls(host: str) -> None:
    check_binding(host, None, allow_plain=False)


async def test_a_foreman_on_all_addresses_is_asked_for_by_any_of_them() -> None:
    async with serving(host="0.0.0.0", allow_plain=True, hosts=["foreman.example"]) as foreman:
        for host, status in (
            ("192.168.7.7:9000", b"101"),
            ("foreman.example", b"101"),
            ("evil.example", b"403"),
        ):
            async with await raw(foreman) as stream:
                await stream.send_all(upgrade(Host=host))
                assert (await stream.receive_some())[:12].split()[1] == status, host


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["", "short", "x" * 2_000, b"15 bytes, so no"])
async def test_a_secret_that_is_none_is_refused(secret: str | bytes) -> None:
    with pytest.raises(ValueError, match="secret"):
        check_secret(secret)
    with pytest.raises(ValueError, match="secret"):
        await remote.serve_foreman(MemoryStore(), secret=secret, port=0)


def test_secrets_are_compared_whole() -> None:
    secret = check_secret(new_secret())
    assert is_secret(secret, secret)
    for wrong in (b"", secret[:-1], secret + b"x", secret[:-1] + b"\0", b"\0" + secret[1:]):
        assert not is_secret(wrong, secret)


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    whole = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return whole(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert not is_secret(b"x", b"a much longer secret than that")
    ((a, b),) = compared
    assert len(a) == len(b) == 32


def test_a_refusal_says_nothing_of_the_secret() -> None:
    frame = frames_of(Refused("secret", "the secret does not match"))[0]
    assert SECRET.encode() not in bytes(decode_frame(frame).payload)
    assert link.HANDSHAKE_S <= 10
