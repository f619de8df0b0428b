"""Foreman, worker and client over WebSockets on the loopback device, plain and with TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trustme

from tests.hangs import HANG_S
from tests.remote import functions
from tests.remote.site import ALLOW, F
from trio_ckpt import remote
from trio_ckpt.remote import ConnectionLostError, Foreman, HandshakeRefusedError
from trio_ckpt.remote._foreman import peers, publisher
from trio_ckpt.remote._wire import reconnect, sockets
from trio_ckpt.remote._wire.sockets import dial
from trio_ckpt.stores import MemoryStore

SECRET = "a secret of 16 bytes or more"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    functions.reset()
    yield
    functions.reset()


@asynccontextmanager
async def serving(**settings: Any) -> AsyncGenerator[Foreman]:
    """A foreman on a free port."""
    settings = {"secret": SECRET, "port": 0, **settings}
    store = settings.pop("store", None) or MemoryStore()
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(remote.serve_foreman, store, **settings))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_safe", [False, True])
async def test_map_over_a_socket(is_safe: bool) -> None:
    contexts: dict[str, Any] = {}
    server = None
    if is_safe:
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(server)
        client_context = ssl.create_default_context()
        authority.configure_trust(client_context)
        contexts["ssl_context"] = client_context
    async with serving(ssl_context=server) as foreman, trio.open_nursery() as nursery:
        assert foreman.url.startswith("wss" if is_safe else "ws")
        work = partial(
            remote.run_worker, foreman.url, secret=SECRET, allow=ALLOW, slots=4, **contexts
        )
        await nursery.start(work)
        async with remote.connect(foreman.url, secret=SECRET, **contexts) as client:
            big = ["x" * 1_000_000, "y"]
            assert await client.map(F + "echo", big) == big
            assert await client.map(F + "square", range(50)) == [n * n for n in range(50)]
            found = await client.map(F + "train_fast", [5], checkpoint_interval_s=0.01)
            assert found == [functions.trained(5)]
        nursery.cancel_scope.cancel()


async def test_a_worker_with_another_secret_ends() -> None:
    async with serving() as foreman:
        with pytest.raises(HandshakeRefusedError, match="the secret does not match"):
            await remote.run_worker(
                foreman.url, secret=SECRET + "!", allow=ALLOW, handle_signals=False
            )


async def test_tls_is_not_spoken_to_a_stranger() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    async with serving(ssl_context=server) as foreman:
        with pytest.raises(ConnectionLostError, match="cannot be reached"):
            async with dial(foreman.url, None):  # the system's authorities do not know it
                pass


async def test_no_foreman_listens() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        async with dial(f"ws://127.0.0.1:{port}", None):
            pass


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"400 Bad Request\r\nContent-Length: 0", ConnectionLostError, "HTTP 400"),
        (b"502 Bad Gateway\r\nContent-Length: 0", ConnectionLostError, "HTTP 502"),
        (b"403 Forbidden\r\nContent-Length: 0", ConnectionLostError, "HTTP 403"),
        (b"403 Forbidden\r\nContent-Length: 2\r\n\r\nno", HandshakeRefusedError, "no"),
    ],
)
async def test_only_the_foremans_own_words_are_final(
    answer: bytes, kind: type[Exception], text: str, nursery: trio.Nursery
) -> None:
    """A proxy whose foreman starts again answers 502; a request that arrives damaged gets 400."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(4_096)
        await stream.send_all(b"HTTP/1.1 " + answer + b"\r\n\r\n" * (b"\r\n\r\n" not in answer))
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(kind, match=text):
        async with dial(f"ws://127.0.0.1:{port}", None):
            pass
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ws://", "127.0.0.1:9000"])
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        async with dial(url, None):
            pass


async def test_leaving_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a function runs that does not listen.

    Each limit of more than a second is longer than a hang here, so none is waited for.
    """
    monkeypatch.setattr(sockets, "HANDSHAKE_S", 2 * HANG_S)
    monkeypatch.setattr(peers, "HANDSHAKE_S", 2 * HANG_S)
    monkeypatch.setattr(reconnect, "HANDSHAKE_S", 2 * HANG_S)
    monkeypatch.setattr(publisher, "WITHDRAW_S", 2 * HANG_S)
    with trio.fail_after(HANG_S):
        async with (
            serving(grace_s=2 * HANG_S, silence_s=2 * HANG_S) as foreman,
            trio.open_nursery() as nursery,
        ):
            work = partial(remote.run_worker, foreman.url, secret=SECRET, allow=ALLOW)
            await nursery.start(work)
            async with remote.connect(foreman.url, secret=SECRET) as client:
                await client.submit(F + "wait", ["x"])
                while "x" not in functions.gates:  # noqa: ASYNC110  # no event reports it
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
