"""One connection at the foreman: its handshake, its messages, its end.

A peer can end at most its own connection: by a broken rule, by silence, by garbage, or by an
error of the foreman while handling its messages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import msgspec
import trio

from ..._journal.record import describe_error
from ..._util.errors import StoreError, TrioCkptError
from ..._util.log import get_logger
from ..._util.network import is_secret
from ..._util.nursery import open_service_nursery
from ..._util.plain import Plain
from ..._util.text import one_line
from .._wire.errors import (
    ConnectionLostError,
    JobRefusedError,
    NotAllowedError,
    ProtocolError,
    RemoteProtocolError,
)
from .._wire.job_messages import (
    AttachJob,
    CancelJob,
    Control,
    ControlReply,
    JobAccepted,
    JobItems,
    JobRefused,
    SubmitJob,
)
from .._wire.link import HANDSHAKE_S, HEARTBEAT_S, SILENCE_S, Link, Socket, open_link
from .._wire.message import (
    MAX_FOLLOWED,
    MAX_SUBMISSIONS,
    MAX_TEXT_CHARS,
    Goodbye,
    Hello,
    Refused,
    Slots,
    TaskMessage,
    Welcome,
)
from .._wire.names import check_job_id
from .._wire.protocol import Connection, Received, choose_version
from .._wire.submission import MAX_JOB_BYTES, MAX_VALUE_BYTES, JobSubmission, check_function
from .._wire.task_messages import ReleaseTask, StoreCall, TaskCheckpoint, TaskFailed, TaskResult
from .foreman import ForemanCore
from .lease import WorkerHandle
from .live import CONFLICT
from .pool import Pool
from .results import feed_results

log = get_logger(__name__)


@attrs.frozen
class Terms:
    """The terms on which the foreman accepts peers.

    Attributes:
        secret: The secret that peers must send.
        heartbeat_s: Each side sends something at least this often, in seconds.
        silence_s: A peer that is silent for longer is disconnected, in seconds.
    """

    secret: bytes
    heartbeat_s: float = HEARTBEAT_S
    silence_s: float = SILENCE_S


async def serve_peer(foreman: ForemanCore, terms: Terms, socket: Socket, where: str) -> None:
    """Handle one connection until it ends.

    Args:
        foreman: The foreman.
        terms: The terms for peers.
        socket: The connection.
        where: The peer's address, for the log.

    Cancellation: sends GOODBYE, which takes a short time at most.
    """
    try:
        async with open_link(socket, Connection(None)) as link:
            hello = await _greet(link, terms)
            if hello is None:
                return
            try:
                if hello.role == "worker":
                    await _serve_worker(foreman, link, hello)
                else:
                    async with open_service_nursery() as nursery:
                        await _Client(foreman, link).listen(nursery)
            finally:
                await link.say_goodbye("the foreman ends")
    except (ConnectionLostError, ProtocolError) as error:
        log.info("%s: %s", where, one_line(str(error)))


async def _greet(link: Link, terms: Terms) -> Hello | None:
    """Receive HELLO; return None if the peer is refused."""
    with trio.move_on_after(HANDSHAKE_S):
        received = await link.receive()
        link.consumed(received)
        hello = received.message
        if not isinstance(hello, Hello):
            raise RemoteProtocolError("the first message is not a HELLO")
        refusal = None
        version = choose_version(hello.versions)
        if not is_secret(hello.secret, terms.secret):
            refusal = Refused("secret", "the secret does not match")
        elif version is None:
            refusal = Refused("version", f"no version of {hello.versions} is supported here")
        if refusal is not None:
            log.warning("a %s was refused: %s", hello.role, refusal.reason)
            link.send(refusal)
            await link.flush()
            return None
        link.set_times(terms.heartbeat_s, terms.silence_s)
        link.send(Welcome(version or 0, terms.heartbeat_s, terms.silence_s, link.connection.window))
        return hello
    raise ConnectionLostError("no HELLO came in time")


# ---------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------


async def _serve_worker(foreman: ForemanCore, link: Link, hello: Hello) -> None:
    worker = foreman.connect(hello, link)
    is_leaving = False
    try:
        while True:
            received = await link.receive()
            if isinstance(received.message, Goodbye):
                is_leaving = True
                return
            _take(foreman.pool, worker, link, received)
    finally:
        foreman.disconnect(worker, link, is_leaving=is_leaving)


def _take(pool: Pool, worker: WorkerHandle, link: Link, received: Received) -> None:
    """Handle a message about an item; the pool settles the end of an item."""
    message = received.message
    if isinstance(message, Slots):
        worker.slots = message.slots
        pool.touch(worker)
    elif isinstance(message, TaskMessage):
        lease = worker.leases.get(message.task_id)
        if lease is not None and lease.is_offered:
            if lease.number != message.lease:
                raise RemoteProtocolError(
                    f"{message.KIND.name} names lease {message.lease}, not {lease.number}"
                )
            if isinstance(message, TaskCheckpoint | StoreCall):
                reply = partial(_reply, worker, link)
                lease.take_call(message, reply, partial(link.consumed, received))
                return  # no more credit for messages that are kept
            lease.take(message)
        elif isinstance(message, TaskResult | TaskFailed | ReleaseTask):
            pool.touch(worker)
    link.consumed(received)


def _reply(worker: WorkerHandle, link: Link, message: TaskMessage) -> None:
    """Answer on the connection of the call; on another one the call is sent again."""
    if worker.link is link:
        worker.send(message)


# ---------------------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _IncomingJob:
    """A job whose items are arriving."""

    submit: SubmitJob
    items: list[Plain] = attrs.field(factory=list[Plain])
    size: int = 0


def _is_too_large(item: Plain) -> bool:
    return len(msgspec.msgpack.encode(item)) > MAX_VALUE_BYTES


@attrs.define(eq=False)
class _Client:
    """One client's connection."""

    foreman: ForemanCore
    link: Link
    _incoming: dict[str, _IncomingJob] = attrs.field(factory=dict[str, _IncomingJob], init=False)
    _taken: dict[str, trio.Event] = attrs.field(factory=dict[str, trio.Event], init=False)
    _fed: dict[str, trio.CancelScope] = attrs.field(factory=dict[str, trio.CancelScope], init=False)

    async def listen(self, nursery: trio.Nursery) -> None:
        """Handle the client's messages until it leaves."""
        while True:
            received = await self.link.receive()
            match received.message:
                case Goodbye():
                    return
                case SubmitJob() as submit:
                    self._begin(submit, nursery)
                case JobItems() as items:
                    self._add(items, received.cost, nursery)
                case AttachJob() as attach:
                    self._attach(attach, nursery)
                case CancelJob(job_id):
                    self._incoming.pop(job_id, None)
                    nursery.start_soon(self._guard, self._cancel, job_id)
                case Control() as control:
                    nursery.start_soon(self._guard, self._control, control)
                case _:
                    pass
            self.link.consumed(received)

    async def _guard(self, func: Callable[..., Awaitable[None]], *args: object) -> None:
        """Limit an error while handling a request to that request."""
        try:
            await func(*args)
        except ConnectionLostError:
            pass  # `listen` gets the error, too
        except Exception:
            log.exception("the request of a client could not be handled")

    def _begin(self, submit: SubmitJob, nursery: trio.Nursery) -> None:
        job_id = submit.job_id
        try:
            check_job_id(job_id)
            check_function(submit.function)
        except (ValueError, NotAllowedError) as error:
            self._refuse(job_id, "invalid", str(error))
            return
        if len(self._incoming) >= MAX_SUBMISSIONS:
            raise RemoteProtocolError(f"more than {MAX_SUBMISSIONS} jobs are submitted at once")
        self._incoming[job_id] = _IncomingJob(submit)
        self._end_if_whole(job_id, nursery)

    def _add(self, message: JobItems, cost: int, nursery: trio.Nursery) -> None:
        incoming = self._incoming.get(message.job_id)
        if incoming is None:
            return  # the job was refused while this message was in flight
        if message.first != len(incoming.items):
            raise RemoteProtocolError("the items of a job arrive out of order")
        if cost > MAX_VALUE_BYTES and any(map(_is_too_large, message.items)):
            del self._incoming[message.job_id]
            self._refuse(message.job_id, "invalid", f"an item is over {MAX_VALUE_BYTES:,} bytes")
            return
        incoming.items += message.items
        incoming.size += cost
        size = sum(other.size for other in self._incoming.values())
        if size > MAX_JOB_BYTES or len(incoming.items) > incoming.submit.total:
            del self._incoming[message.job_id]
            self._refuse(message.job_id, "invalid", f"its items are over {MAX_JOB_BYTES:,} bytes")
            return
        self._end_if_whole(message.job_id, nursery)

    def _end_if_whole(self, job_id: str, nursery: trio.Nursery) -> None:
        incoming = self._incoming[job_id]
        if len(incoming.items) == incoming.submit.total:
            del self._incoming[job_id]
            submit = incoming.submit
            submission = JobSubmission(submit.function, submit.options, incoming.items)
            taken = self._taken[job_id] = trio.Event()
            nursery.start_soon(self._guard, self._submit, job_id, submission, taken)

    async def _cancel(self, job_id: str) -> None:
        """End a job, also one that is still being submitted."""
        taken = self._taken.get(job_id)
        if taken is not None:
            await taken.wait()
        self.foreman.cancel(job_id)

    async def _submit(self, job_id: str, submission: JobSubmission, taken: trio.Event) -> None:
        try:
            await self.foreman.submit(job_id, submission)
        except JobRefusedError as error:
            self._refuse(job_id, "exists", str(error))
        except TrioCkptError as error:
            self._refuse(job_id, "store", describe_error(error).message)
        else:
            self.link.send(JobAccepted(job_id))
        finally:
            taken.set()
            if self._taken.get(job_id) is taken:
                del self._taken[job_id]

    def _refuse(self, job_id: str, code: str, reason: str) -> None:
        self.link.send(JobRefused(job_id, code, one_line(reason)[:MAX_TEXT_CHARS]))

    def _attach(self, attach: AttachJob, nursery: trio.Nursery) -> None:
        before = self._fed.pop(attach.job_id, None)
        if before is not None:
            before.cancel()
        elif len(self._fed) >= MAX_FOLLOWED:
            raise RemoteProtocolError(f"more than {MAX_FOLLOWED} jobs are attached at once")
        scope = self._fed[attach.job_id] = trio.CancelScope()
        nursery.start_soon(self._guard, self._feed, attach, scope)

    async def _feed(self, attach: AttachJob, scope: trio.CancelScope) -> None:
        with scope:
            await feed_results(self.foreman, self.link, attach)
        if self._fed.get(attach.job_id) is scope:
            del self._fed[attach.job_id]

    async def _control(self, control: Control) -> None:
        try:
            code, reason = await self.foreman.control(control.action, control.task_id)
        except StoreError as error:
            code, reason = CONFLICT, str(error)
        self.link.send(ControlReply(control.call, code, one_line(reason)[:MAX_TEXT_CHARS]))
