"""A worker: takes work items from a foreman, runs named functions, saves their states there."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import ssl
import threading
from collections.abc import Collection
from functools import partial

import attrs
import msgspec
import trio

from ..._commit.shutdown import received
from ..._runs.tracing import TaskTracer
from ..._util.arguments import flag, seconds, several, text, whole_number
from ..._util.log import get_logger
from ..._util.network import check_secret
from ..._util.nursery import open_service_nursery
from ..._util.patience import give_up_after
from ..._util.text import plural
from ..._util.threads import check_trio
from .._wire.link import Link
from .._wire.message import (
    MAX_ALLOW_BYTES,
    MAX_ALLOWED,
    MAX_NAME_CHARS,
    MAX_SLOTS,
    VERSIONS,
    HeldItem,
    Hello,
    Message,
    Slots,
    TaskMessage,
)
from .._wire.reconnect import Dial, ReconnectingSession
from .._wire.tables import PeerRole, TaskPhase
from .._wire.task_messages import (
    AssignTask,
    Cancel,
    CheckpointAck,
    ForceCheckpoint,
    NewLease,
    ReleaseTask,
    ResumeTask,
    StoreReply,
    TaskAck,
    TaskFailed,
)
from .calls import PATIENCE_S, RpcClient
from .remote_store import RemoteStore
from .work import check_module
from .work_item import Item

log = get_logger(__name__)

REPORT_EVERY_S = 0.5  # progress is for people, who do not need it more often
DEFAULT_GRACE_S = 30.0
FINAL_MESSAGES_S = 1.0  # to report the end of items that were cancelled


def checked_name(name: str | None) -> str:
    """Return the name of a peer; by default the host and the process id.

    Raises:
        TypeError, ValueError: the name is not a str, is empty, or is too long.
    """
    if name is None:
        return f"{socket.gethostname()}:{os.getpid()}"[:MAX_NAME_CHARS]
    if len(text("name", name)) > MAX_NAME_CHARS:
        raise ValueError(f"name must have at most {MAX_NAME_CHARS} characters, not {len(name)}")
    return name


@attrs.define(eq=False)
class Worker:
    """A worker, across all its connections; made by `run_worker`.

    Attributes:
        secret: The foreman's secret.
        allow: Modules whose functions the worker runs.
        slots: How many items the worker takes at a time.
        name: The worker's name in logs.
        patience_s: How long functions continue without a connection, in seconds.
        tracer: Makes spans; None: no spans are made.
        may_be_interrupted: Whether Ctrl-C raises KeyboardInterrupt in this process.
        items: The work items that the worker has, by id.
    """

    secret: bytes
    allow: tuple[str, ...]
    slots: int
    name: str
    patience_s: float
    tracer: TaskTracer | None = None
    may_be_interrupted: bool = False
    items: dict[str, Item[RpcClient]] = attrs.field(factory=dict[str, Item[RpcClient]], init=False)
    _peer_id: str = attrs.field(factory=partial(secrets.token_hex, 16), init=False)
    _calls: itertools.count[int] = attrs.field(factory=itertools.count, init=False)
    _session: ReconnectingSession | None = attrs.field(default=None, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _stopping: str | None = attrs.field(default=None, init=False)
    _empty: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(
        self, dial: Dial, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run work items until `stop`.

        Cancellation: functions are cancelled; states that were saved stay saved.
        """
        self._session = ReconnectingSession(
            dial, PeerRole.WORKER, self._hello, self._opened, self._received, self._closed
        )
        async with open_service_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._report)
            try:
                await self._session.run(task_status=task_status)
            finally:
                for item in self.items.values():
                    item.host.lose("the worker ends")
                    item.control.scope.cancel()

    async def stop(self, reason: str, grace_s: float) -> None:
        """Save and hand back the running items, then leave.

        Args:
            reason: The reason, as text.
            grace_s: How long functions have to reach a point, in seconds.
        """
        self._stopping = reason
        if self._session is not None:
            self._session.send(Slots(0))
        for item in self.items.values():
            item.control.release_reason = item.control.release_reason or reason
        with give_up_after(grace_s, is_shielded=False):
            await self._wait_empty()
        for item in self.items.values():
            item.control.scope.cancel()
        with give_up_after(FINAL_MESSAGES_S, is_shielded=False):
            await self._wait_empty()
        for item in self.items.values():
            item.host.lose(reason)
        if self._session is not None:
            await self._session.leave(reason)

    async def _wait_empty(self) -> None:
        while self.items:
            self._empty = trio.Event()
            await self._empty.wait()

    # -- the connection -----------------------------------------------------------------------

    def _hello(self) -> Hello:
        held = [
            HeldItem(item.task_id, item.host.lease, item.assigned.attempt)
            for item in self.items.values()
        ]
        return Hello(
            VERSIONS,
            "worker",
            self.secret,
            self.name,
            self._peer_id,
            0 if self._stopping is not None else self.slots,
            self.allow,
            tuple(held[:MAX_SLOTS]),
        )

    def _opened(self, _link: Link) -> None:
        log.info("worker %s connected, with %s", self.name, plural(len(self.items), "item"))

    def _closed(self) -> None:
        for item in self.items.values():
            item.host.disconnect()

    def _received(self, message: Message) -> None:
        if isinstance(message, AssignTask):
            self._begin(message)
        elif isinstance(message, TaskMessage):
            item = self.items.get(message.task_id)
            if item is not None:
                self._received_about(item, message)

    def _received_about(self, item: Item[RpcClient], message: TaskMessage) -> None:
        match message:
            case StoreReply() | CheckpointAck():
                item.host.answer(message)
            case NewLease():
                self._go_on(item, message)
            case ForceCheckpoint():
                item.control.is_checkpoint_due = True
            case ReleaseTask():
                item.control.release_reason = message.reason or "the foreman asks for it"
            case Cancel():
                item.host.lose(message.reason)
                item.control.scope.cancel()
                if item.final_message is not None:  # it was not sent, or is not needed any more
                    ended = ReleaseTask(item.task_id, message.lease, "it had ended")
                    self._send_final(item, ended)
            case TaskAck():
                self._forget(item)
            case _:
                pass

    def _go_on(self, item: Item[RpcClient], message: NewLease) -> None:
        link = self._session.link if self._session is not None else None
        if link is None:
            return
        if item.final_message is not None:
            item.host.lease = message.lease
            self._send_final(item, item.final_message)
        else:
            item.host.connect(link, message.lease)

    # -- items --------------------------------------------------------------------------------

    def _begin(self, assigned: AssignTask) -> None:
        session, nursery = self._session, self._nursery
        if session is None or nursery is None:
            return
        rpc = RpcClient(
            assigned.task_id,
            assigned.lease,
            patience_s=self.patience_s,
            link=session.link,
            numbers=self._calls,
        )
        make_store = partial(RemoteStore, rpc, is_new=not isinstance(assigned, ResumeTask))
        item = Item(assigned, rpc, make_store, self.may_be_interrupted)
        self.items[assigned.task_id] = item
        if self._stopping is not None:
            item.final_message = ReleaseTask(item.task_id, assigned.lease, self._stopping)
            self._send_final(item, item.final_message)
        else:
            nursery.start_soon(self._work_on, item)

    async def _work_on(self, item: Item[RpcClient]) -> None:
        if self.tracer is None:
            await item.run(self.allow)
        else:
            await _run_traced(item, self.allow, self.tracer)
        self._send_final(item, item.final_message)
        if item.host.lost is not None and self._session is not None and self._session.link is None:
            self._forget(item)  # no connection, and no foreman that waits for it

    def _send_final(self, item: Item[RpcClient], message: TaskMessage | None) -> None:
        """Send the end of an item, if there is one and it is due on this connection."""
        session = self._session
        if session is None or session.link is None or message is None:
            return
        phase = session.link.connection.tasks.get(item.task_id)
        if phase in (TaskPhase.RUNNING, TaskPhase.STOPPING):
            session.link.send(msgspec.structs.replace(message, lease=item.host.lease))

    def _forget(self, item: Item[RpcClient]) -> None:
        self.items.pop(item.task_id, None)
        self._empty.set()

    async def _report(self) -> None:
        while True:
            await trio.sleep(REPORT_EVERY_S)
            for item in self.items.values():
                item.report()


async def _run_traced(item: Item[RpcClient], allow: tuple[str, ...], tracer: TaskTracer) -> None:
    assigned = item.assigned
    attributes: dict[str, str | int] = {
        "trio_ckpt.job": assigned.job_id,
        "trio_ckpt.task": assigned.task_id,
        "trio_ckpt.index": assigned.index,
        "trio_ckpt.attempt": assigned.attempt,
        "code.function": assigned.function,
    }
    with tracer.span(attributes, assigned.trace) as failed:
        await item.run(allow)
        if isinstance(last := item.final_message, TaskFailed):
            failed(f"{last.error.type}: {last.error.message}")


async def run_worker(
    url: str,
    *,
    secret: bytes | str,
    allow: Collection[str],
    slots: int = 1,
    name: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    grace_s: float = DEFAULT_GRACE_S,
    patience_s: float = PATIENCE_S,
    tracer: TaskTracer | None = None,
    handle_signals: bool | None = None,
    task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Work for a foreman until cancelled, or stopped by SIGINT or SIGTERM.

    Functions are run by name, if they are below a module in `allow`; the worker never runs or
    unpickles anything else from the connection.  The foreman saves what a function saves.  When
    the connection is lost, functions continue and the worker reconnects.  It waits for a foreman
    that is not started yet, and logs that it waits.

    Args:
        url: The foreman's URL: ``ws://127.0.0.1:9000`` or ``wss://…``.
        secret: The foreman's secret.
        allow: Modules whose functions it runs, with those of modules below them.
        slots: How many items it runs at a time.
        name: The worker's name in logs; default: its host and process.
        ssl_context: For ``wss:``; default: the certificate authorities of the system.
        grace_s: How long a stop waits for functions to reach a point and save, in seconds.
        patience_s: How long functions continue without a connection, in seconds.
        tracer: From `trio_ckpt.trace_tasks`: an OpenTelemetry span for each attempt.
        handle_signals: Stop in good order on SIGINT and SIGTERM.  Default: in the main thread.
        task_status: Started with True when the foreman accepts the worker for the first time;
            with False if the worker was stopped before that.

    Raises:
        HandshakeRefusedError: the foreman refuses this worker.
        NotAllowedError: a module in `allow` does not exist.
        TypeError, ValueError: an argument is wrong; the message has its name and value.

    Durability: states saved at `Work.point` survive whatever the foreman's store promises.
    Cancellation: functions are cancelled at once; states that were saved stay saved.
    """
    from .._wire.sockets import dial  # trio-websocket is an extra

    check_trio()
    text("url", url)
    slots = whole_number("slots", slots, least=1, most=MAX_SLOTS)
    modules = several("allow", allow, "names of modules")
    for module in modules:
        text("a module of allow", module)
    if not 0 < len(modules) <= MAX_ALLOWED:
        raise ValueError(f"allow must have 1 to {MAX_ALLOWED} names of modules, not {len(modules)}")
    size = sum(len(module.encode()) for module in modules)
    if size > MAX_ALLOW_BYTES:
        raise ValueError(f"allow must have at most {MAX_ALLOW_BYTES:,} bytes, not {size:,}")
    grace_s = seconds("grace_s", grace_s, is_endless_allowed=True)
    patience_s = seconds("patience_s", patience_s, is_endless_allowed=True)
    if handle_signals is not None:
        flag("handle_signals", handle_signals)
    else:
        handle_signals = threading.current_thread() is threading.main_thread()
    worker = Worker(
        check_secret(secret),
        modules,
        slots,
        checked_name(name),
        patience_s,
        tracer,
        may_be_interrupted=not handle_signals
        and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
    )
    for module in modules:
        check_module(module)
    is_let_in, has_ended = False, trio.Event()
    async with open_service_nursery() as nursery:

        async def work(*, task_status: trio.TaskStatus[None]) -> None:
            await worker.run(partial(dial, url, ssl_context), task_status=task_status)
            has_ended.set()

        if handle_signals:
            nursery.start_soon(_stop_on_signals, worker, grace_s, nursery.cancel_scope)
        await nursery.start(work)
        is_let_in = True
        task_status.started(True)
        await has_ended.wait()
    if not is_let_in:
        task_status.started(False)


async def _stop_on_signals(worker: Worker, grace_s: float, scope: trio.CancelScope) -> None:
    with received() as signals:
        async for number in signals:
            log.info("%s: handing back", signal.Signals(number).name)
            break
        await worker.stop("the worker stops", grace_s)
    scope.cancel()  # also ends the wait for a foreman that is not there
