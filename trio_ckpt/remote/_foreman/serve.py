"""A foreman on the network: which connections it accepts, and the limits on them before HELLO.

Theory of operation.  A connection is counted before any byte is read from it, and closed at once
if there are too many.  TLS, the upgrade to a WebSocket and HELLO have a time limit each; until
then a peer can make the foreman hold one frame.  Browsers are refused (they send an Origin), and
so are requests for another host than this one, so that no web page can talk to a foreman on the
machine of its reader.

An error in one connection ends only that connection: each has a nursery of its own, and no
exception leaves it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import attrs
import trio

from ..._journal.store import Store
from ..._util.arguments import (
    flag,
    instance,
    port as check_port,
    seconds,
    several,
    text,
    whole_number,
)
from ..._util.forks import unshare
from ..._util.log import get_logger
from ..._util.network import check_binding, check_secret, is_address, is_unspecified, url_host
from ..._util.nursery import open_service_nursery
from ..._util.text import one_line
from ..._util.threads import check_trio
from .._wire.errors import ConnectionLostError
from .._wire.link import HANDSHAKE_S, HEARTBEAT_S, SILENCE_S
from .foreman import DEFAULT_GRACE_S, Foreman, ForemanCore
from .peers import Terms, serve_peer
from .publisher import ForemanPublisher

if TYPE_CHECKING:
    from .._wire.sockets import Request, WebSocket

log = get_logger(__name__)

DEFAULT_PORT = 9_000
DEFAULT_CONNECTIONS = 1_000
Accept = Callable[
    [trio.abc.Stream, "Callable[[Request], str | None]"],
    "AbstractAsyncContextManager[WebSocket | None]",
]

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
BACKLOG = 256  # connections that the kernel queues


async def serve_foreman(
    store: Store,
    *,
    secret: bytes | str,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    ssl_context: ssl.SSLContext | None = None,
    allow_plain: bool = False,
    hosts: Collection[str] = (),
    max_connections: int = DEFAULT_CONNECTIONS,
    grace_s: float = DEFAULT_GRACE_S,
    heartbeat_s: float | None = None,
    silence_s: float = SILENCE_S,
    rebalance: bool = False,
    task_status: trio.TaskStatus[Foreman] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept jobs from clients and let workers run them, until cancelled.

    All that a foreman knows is in the store: kill it at any time and restart it, and jobs
    continue; workers that are still running continue their items.

    Args:
        store: The store for jobs, results and checkpoints.  A foreman owns the runs of its jobs,
            so each job has one foreman; other programs may use the store for other runs.
        secret: The secret that peers must know, 16 bytes or more.
        host: The address to listen on.
        port: The port; 0: any free one.
        ssl_context: For TLS, with the certificate loaded.
        allow_plain: Whether to listen beyond this machine even without TLS.
        hosts: Further host names of this foreman, besides `host` and those of this machine.
        max_connections: The limit on connections; further ones are closed at once.
        grace_s: How long a worker whose connection was closed may take to reconnect, in seconds;
            then its items go to others.  A live worker is back within a tenth of a second.
        heartbeat_s: Each side of a connection sends something at least this often, in seconds;
            default: 5, or a quarter of `silence_s` if that is less.
        silence_s: A peer that is silent for so many seconds is lost, and its items go to others.
        rebalance: Whether a worker with two items more than an idle one is asked for one of them.
        task_status: Started with the `Foreman` when it listens.

    Raises:
        UnsafeBindingError: `host` is beyond this machine, and there is no TLS.
        StoreError: the store cannot be read.
        RunStoppedError: the lease of a job's run could not be renewed, so another foreman may take
            its jobs over; start this one again.
        OSError: the port is taken.
        TypeError, ValueError: an argument is wrong; the message has its name and value.

    Durability: an accepted job, an acknowledged checkpoint and a result that was sent survive
        whatever the store promises.
    Cancellation: ends it; functions on workers continue and wait for the next foreman.
    """
    check_trio()
    instance("store", store, Store, "an open store")
    port = check_port("port", port)
    text("host", host)
    names = several("hosts", hosts, "names of hosts")
    for name in names:
        text("a name of hosts", name)
    max_connections = whole_number("max_connections", max_connections, least=1)
    grace_s = seconds("grace_s", grace_s, is_endless_allowed=True)
    silence_s = seconds("silence_s", silence_s, is_zero_allowed=False)
    if heartbeat_s is None:
        heartbeat_s = min(HEARTBEAT_S, silence_s / 4)
    heartbeat_s = seconds("heartbeat_s", heartbeat_s, is_zero_allowed=False)
    flag("allow_plain", allow_plain)
    flag("rebalance", rebalance)
    if heartbeat_s >= silence_s:
        raise ValueError(f"heartbeat_s must be less than silence_s, not {heartbeat_s!r}")
    terms = Terms(check_secret(secret), heartbeat_s, silence_s)
    check_binding(host, ssl_context, allow_plain=allow_plain)
    from .._wire.sockets import accept  # trio-websocket is an extra: fail before listening

    listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    for listener in listeners:
        unshare(listener.socket)
    core = ForemanCore(store, grace_s, rebalance)
    port = int(listeners[0].socket.getsockname()[1])
    url = f"{'ws' if ssl_context is None else 'wss'}://{url_host(host)}:{port}"
    foreman = Foreman(store, port, url, core)
    acceptor = Acceptor(
        core, terms, ssl_context, frozenset({*names, host}), max_connections, accept
    )
    async with open_service_nursery() as nursery:
        await core.begin(nursery)
        nursery.start_soon(ForemanPublisher(core).run)
        log.info("listening on %s", foreman.url)
        task_status.started(foreman)
        await trio.serve_listeners(acceptor.accept, listeners)


@attrs.define(eq=False)
class Acceptor:
    """Accepts or refuses connections.

    Attributes:
        foreman: Its jobs and workers.
        terms: The terms for peers.
        ssl_context: For TLS.
        names: Host names of this foreman.
        max_connections: The limit on connections.
        connections: The number of open connections.
    """

    foreman: ForemanCore
    terms: Terms
    ssl_context: ssl.SSLContext | None
    names: frozenset[str]
    max_connections: int
    _accept: Accept
    connections: int = attrs.field(default=0, init=False)

    async def accept(self, stream: trio.SocketStream) -> None:
        """Handle one connection; no exception leaves it.

        Cancellation: closes the connection.
        """
        if self.connections >= self.max_connections:
            log.warning("over %d connections: one more was closed", self.max_connections)
            await trio.aclose_forcefully(stream)
            return
        self.connections += 1
        unshare(stream.socket)
        where = "a connection"
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            where = _where(stream)
            await self._serve(stream, where)
        except (ConnectionLostError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.info("%s: %s", where, one_line(str(error) or "it was too slow"))
        except Exception:
            log.exception("%s could not be handled", where)
        finally:
            self.connections -= 1
            await _close(stream)

    async def _serve(self, stream: trio.SocketStream, where: str) -> None:
        outer: trio.abc.Stream = stream
        if self.ssl_context is not None:
            safe = trio.SSLStream(stream, self.ssl_context, server_side=True, https_compatible=True)
            with trio.fail_after(HANDSHAKE_S):
                await safe.do_handshake()
            outer = safe
        async with self._accept(outer, self._refuse) as found:
            if found is not None:
                await serve_peer(self.foreman, self.terms, found, where)

    def _refuse(self, request: Request) -> str | None:
        """Say why a request is refused before the upgrade; None: it is accepted."""
        from .._wire.sockets import host_header  # trio-websocket is an extra

        headers = dict(request.headers)
        if b"origin" in headers:
            return "a foreman is not for browsers"
        if request.path != "/":
            return "there is nothing at this path"
        name = host_of(host_header(request))
        if name not in self.names | LOCAL_NAMES and not self._is_any(name):
            return "this is another host"
        return None

    def _is_any(self, name: str) -> bool:
        """Whether the foreman listens on all addresses, and the request names one of them."""
        is_on_all = any(is_unspecified(own) for own in self.names)
        return is_on_all and (is_address(name) or name == socket.gethostname())


def host_of(header: str) -> str:
    """Return the host in a Host header, without its port; empty if there is none."""
    text = header.strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _where(stream: trio.SocketStream) -> str:
    try:
        address = stream.socket.getpeername()
    except OSError:
        return "a connection that is gone"
    return f"{address[0]}:{address[1]}"


async def _close(stream: trio.SocketStream) -> None:
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)
