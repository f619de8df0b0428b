"""`serve`: the monitor of runs, inside the user's nursery."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import ExitStack

import attrs
import trio

from .._journal.store import Store
from .._runs.run import Run
from .._tokens.coordinator import CheckpointCoordinator
from .._util.arguments import flag, instance, port as check_port, seconds, several, text
from .._util.forks import unshare
from .._util.log import get_logger
from .._util.network import check_binding, new_secret, url_host
from .._util.threads import check_trio
from ..remote import Foreman
from ._access import Access, allowed_hosts, check_secret
from ._api import MonitorApi
from ._guard import guarded
from ._jobs import Jobs
from ._routes import make_app
from ._server import serve_connections
from ._sources import CoordinatorSource, RunSource, StoreSource, WatchedSource

log = get_logger(__name__)

BACKLOG = 128


@attrs.frozen
class Serving:
    """A monitor that is being served.

    Attributes:
        url: Of the page, without the secret.
        page_url: The same with the secret behind ``#``, which no browser sends anywhere.
        secret: Lets people look.
        action_secret: Lets them look and act; None: there are no actions.
        port: The one that is listened on.
    """

    url: str
    page_url: str = attrs.field(repr=False)
    secret: str = attrs.field(repr=False)
    action_secret: str | None = attrs.field(repr=False)
    port: int


async def serve(
    run_or_store: Run | Store | CheckpointCoordinator,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    secret: str | None = None,
    allow_actions: bool = False,
    action_secret: str | None = None,
    hosts: Sequence[str] = (),
    ssl_context: ssl.SSLContext | None = None,
    allow_plain: bool = False,
    stuck_after_s: float | None = None,
    foreman: Foreman | None = None,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Show a run, all runs of a store, or a coordinator's tokens to browsers; until cancelled.

    ``serving = await nursery.start(monitor.serve, run)``, and cancel the nursery when the work is
    done.  Viewers need the secret: it is in ``serving.page_url``, and `serve` logs that URL
    where it made the secret itself.

    Args:
        run_or_store: An open run, seen from inside as it goes on; or a store, seen from
            outside: its records, and what the owners of its runs publish once a second; or a
            coordinator: its pending tokens, by run.
        host: What to listen on.
        port: The port to listen on; 0: any that is free.
        secret: What viewers need; default: a new one.
        allow_actions: Whether to accept actions (stop, retry, prune) from those who have the second
            secret.
        action_secret: The second secret; default: a new one.
        hosts: Other names under which it is reached, by way of a proxy or a network, such as
            ``monitor.example.org``; requests for any other name are refused.
        ssl_context: For TLS.
        allow_plain: Listen beyond this machine without TLS, because something else protects it.
        stuck_after_s: From which age on a pending token is shown as stuck; default: ten times
            of what batches take now.
        foreman: The foreman of this process, for what only its memory knows.
        task_status: For ``nursery.start``.

    Raises:
        ValueError: a bad secret.
        UnsafeBindingError: `host` is beyond this machine, and nothing protects it.
        OSError: it cannot listen there.

    Cancellation: ends it within a moment, whatever is connected; no task, thread, socket or file
        is left.
    """
    check_trio()
    port = check_port("port", port)
    text("host", host)
    for name in several("hosts", hosts, "names of hosts"):
        text("a name of hosts", name)
    flag("allow_actions", allow_actions)
    flag("allow_plain", allow_plain)
    if stuck_after_s is not None:
        stuck_after_s = seconds("stuck_after_s", stuck_after_s, is_endless_allowed=True)
    check_binding(host, ssl_context, allow_plain=allow_plain)
    viewer_secret = check_secret(secret) if secret is not None else new_secret()
    actor_secret: str | None = None
    if allow_actions:
        actor_secret = check_secret(action_secret) if action_secret is not None else new_secret()
        if actor_secret == viewer_secret:
            raise ValueError("the secret that allows actions is another than that of viewers")
    source: WatchedSource
    if isinstance(run_or_store, Run):
        source = RunSource(run_or_store, stuck_after_s)
    elif isinstance(run_or_store, CheckpointCoordinator):
        source = CoordinatorSource(run_or_store, stuck_after_s)
    else:
        wanted = "an open run, an open store or a coordinator"
        store = instance("run_or_store", run_or_store, Store, wanted)
        source = StoreSource(store, stuck_after_s)
    api = MonitorApi(source, Jobs(source.store, foreman), has_actions=allow_actions)
    app = make_app(api)
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    with ExitStack() as stack:
        for listener in listeners:
            stack.callback(listener.socket.close)
            unshare(listener.socket)
        bound = int(listeners[0].socket.getsockname()[1])
        access = Access(viewer_secret, actor_secret, allowed_hosts(host, bound, hosts))
        serving = _serving(host, bound, viewer_secret, actor_secret, is_tls=ssl_context is not None)
        if isinstance(run_or_store, Run):
            stack.enter_context(run_or_store.observing(api.metrics))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.broadcast.run)
            nursery.start_soon(api.sample_throughput)
            if secret is None:
                log.info("the monitor is at %s", serving.page_url)
            task_status.started(serving)
            await serve_connections(listeners, guarded(app, access), ssl_context)


def _serving(
    host: str, port: int, secret: str, action_secret: str | None, *, is_tls: bool
) -> Serving:
    url = f"{'https' if is_tls else 'http'}://{url_host(host)}:{port}/"
    return Serving(url, f"{url}#{secret}", secret, action_secret, port)
