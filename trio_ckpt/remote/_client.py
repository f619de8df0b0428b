"""A client: submits jobs to a foreman and gets their results."""

# The session of a client is in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
import secrets
import ssl
import weakref
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from .._util.arguments import text
from .._util.log import at, get_logger
from .._util.network import check_secret
from .._util.nursery import open_service_nursery
from .._util.patience import give_up_after
from .._util.plain import Plain
from .._util.text import printable
from .._util.threads import check_trio
from ._following import Following, ItemResult as ItemResult, Results as Results, Submitting
from ._wire.errors import ConnectionLostError, JobRefusedError, ProtocolError
from ._wire.job_messages import (
    AttachJob,
    CancelJob,
    Control,
    ControlAction,
    ControlReply,
    JobAccepted,
    JobDone,
    JobItems,
    JobRefused,
    JobResult,
    JobWaits,
    SubmitJob,
)
from ._wire.link import Link
from ._wire.message import MAX_FOLLOWED, MAX_SUBMISSIONS, VERSIONS, Hello, Message
from ._wire.names import check_job_id, new_job_id
from ._wire.reconnect import Dial, ReconnectingSession
from ._wire.submission import JobArguments, checked_submission, job_options, parts_of
from ._wire.tables import PeerRole
from ._worker.worker import checked_name

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python has it from 3.12 on

log = get_logger(__name__)

CONNECT_S = 5.0  # for the first connection: a wrong address fails soon; later ones are waited for
UNKNOWN = "unknown"  # refuses an ATTACH_JOB; every other code refuses a submission
CANCEL_S = 1.0  # for the foreman to report that a job has ended


@attrs.define(eq=False)
class Client:
    """A client of a foreman; from `connect`.

    The connection may be lost and made again: jobs continue, and so do the calls that wait.
    """

    _dial: Dial
    _secret: bytes
    _name: str
    _nursery: trio.Nursery
    _peer_id: str = attrs.field(factory=partial(secrets.token_hex, 16), init=False)
    _session: ReconnectingSession = attrs.field(init=False)
    _submitting: dict[str, Submitting] = attrs.field(factory=dict[str, Submitting], init=False)
    _locks: weakref.WeakValueDictionary[str, trio.Lock] = attrs.field(
        factory=weakref.WeakValueDictionary[str, trio.Lock], init=False
    )
    _following: dict[str, Following] = attrs.field(factory=dict[str, Following], init=False)
    _room: trio.Semaphore = attrs.field(
        factory=partial(trio.Semaphore, MAX_SUBMISSIONS), init=False
    )
    _unwanted: set[str] = attrs.field(factory=set[str], init=False)
    _calls: itertools.count[int] = attrs.field(factory=itertools.count, init=False)
    _replies: dict[int, ControlReply | None] = attrs.field(
        factory=dict[int, "ControlReply | None"], init=False
    )
    _replied: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._session = ReconnectingSession(
            self._dial, PeerRole.CLIENT, self._hello, self._opened, self._received, self._closed
        )

    # -- jobs ---------------------------------------------------------------------------------

    async def map(
        self,
        function: str,
        items: Iterable[object],
        *,
        job_id: str | None = None,
        **options: Unpack[JobArguments],
    ) -> list[Plain]:
        """Call a function with each item on the workers; return the results in order.

        Args:
            function: ``module:function``, called as ``function(item, work)``; see `Work`.
            items: JSON-like values.
            checkpoint_interval_s: How often a running item saves its state, at most, in seconds;
                None, the default: it saves nothing, and starts from the beginning if its worker is
                lost.
            errors: "raise", the default: the first item that fails for good fails the job.
                "collect": its error takes the place of its result, and the other items continue.
            attempts: How often an item is tried when its function raises; default: 1.
            losses: How many workers may be lost with an item before the item fails; default: 5.
            max_age_s: An item does not resume from a saved state that was older than this, in
                seconds, when its worker was lost; default: 3,600.
            keep_checkpoints: Whether saved states are kept after their item is done; default: no.
            job_id: A name, ``job-…``: the same function and items under the same name are the same
                job; finished items are not run again.  The newest options count: with more
                `attempts`, say, items that failed are tried again.
            trace: Passed on to ``work.trace``; `trio_ckpt.trace_context` returns the OpenTelemetry
                context, and workers that trace continue it.

        Returns:
            One result for each item; with ``errors="collect"`` a `TaskFailedError` for each item
            that failed for good.

        Raises:
            TaskFailedError: an item failed; the other items are cancelled.
            JobRefusedError: the foreman refuses the job.
            JobCancelledError, JobFailedError: the job was cancelled, or ended without its results.
            NotEncodableError: an item is not JSON-like.

        Durability: an accepted job continues even if this process ends.
        Cancellation: cancels the job, also on the workers.
        """
        job_id = new_job_id() if job_id is None else check_job_id(job_id)
        try:
            await self.submit(function, items, job_id=job_id, **options)
            return await self.attach(job_id)
        except trio.Cancelled:
            await self._cancel_now(job_id)
            raise

    async def submit(
        self,
        function: str,
        items: Iterable[object],
        *,
        job_id: str | None = None,
        **options: Unpack[JobArguments],
    ) -> str:
        """Submit a job and return without waiting for its results.

        Args, Raises: as for `map`.

        Returns:
            The job's name, for `results` and `attach` of any client.

        Durability: when this returns the job is durable at the foreman.
        Cancellation: the job may or may not have been submitted.
        """
        job_id = new_job_id() if job_id is None else check_job_id(job_id)
        submission = checked_submission(function, items, job_options(**options))
        lock = self._locks.setdefault(job_id, trio.Lock())  # submissions of one name take turns
        async with lock, self._room:
            self._unwanted.discard(job_id)
            submitting = self._submitting[job_id] = Submitting(job_id, submission)
            try:
                self._nursery.start_soon(self._send_job, submitting)
                await submitting.wait()
            finally:
                del self._submitting[job_id]
        return job_id

    def results(self, job_id: str) -> Results:
        """Iterate over the results of a job as they arrive; existing ones come first.

        Args:
            job_id: A job of this client or of any other.

        Raises:
            JobRefusedError: this client follows too many jobs.
        """
        following = self._following.get(check_job_id(job_id))
        if following is None:
            self._forget_unread()
            if len(self._following) >= MAX_FOLLOWED:
                raise JobRefusedError(
                    f"a client follows at most {MAX_FOLLOWED:,} jobs at a time: read the results "
                    "of some before attaching to more",
                    run_id=job_id,
                )
            following = self._following[job_id] = Following(job_id)
        results = Results(following)
        following.readers.add(results)
        self._attach(following)
        return results

    def _forget_unread(self) -> None:
        """Drop the jobs whose results have no reader any more."""
        self._following = {key: one for key, one in self._following.items() if one.readers}

    def _attach(self, following: Following) -> None:
        following.call = next(self._calls)
        self._session.send(AttachJob(following.job_id, following.call, following.have))

    async def map_unordered(
        self,
        function: str,
        items: Iterable[object],
        *,
        job_id: str | None = None,
        **options: Unpack[JobArguments],
    ) -> Results:
        """Submit a job and iterate over its results: ``async for result in await …``.

        Args:
            function, items, job_id, options: As for `map`.  Each result has its index.

        Durability: when this returns the job is durable at the foreman.
        Cancellation: the job continues; `cancel` ends it.
        """
        return self.results(await self.submit(function, items, job_id=job_id, **options))

    async def attach(self, job_id: str) -> list[Plain]:
        """Wait for all results of a job, in order; also of a job whose client has died.

        Raises, Returns: as for `map`.

        Cancellation: the job continues.
        """
        found: dict[int, Plain] = {}
        async for result in self.results(job_id):
            found[result.index] = result.value if result.error is None else result.error
        return [found[index] for index in sorted(found)]

    async def cancel(self, job_id: str) -> None:
        """End a job, also on the workers; does nothing if the job is over.

        If the connection is lost, the request is sent again on the next one.

        Durability: none yet; the job is over when the foreman has recorded its end.
        Cancellation: the request was sent all the same.
        """
        self._unwanted.add(check_job_id(job_id))
        self._session.send(CancelJob(job_id))
        await trio.lowlevel.checkpoint()

    async def control(self, action: ControlAction, task_id: str) -> tuple[int, str]:
        """Send a request about a work item; see `Foreman.control`.

        Raises:
            ConnectionLostError: there is no connection.

        Cancellation: a cancellation point; the action may or may not be carried out.
        """
        call = next(self._calls)
        self._replies[call] = None
        try:
            if not self._session.send(Control(call, action, task_id)):
                raise ConnectionLostError("the foreman is not connected now; try again later")
            while (reply := self._replies[call]) is None:
                if self._session.link is None:
                    raise ConnectionLostError("the connection was lost before the foreman answered")
                await self._replied.wait()
            return reply.code, reply.reason
        finally:
            del self._replies[call]

    async def _cancel_now(self, job_id: str) -> None:
        following = self._following.get(job_id)
        with give_up_after(CANCEL_S):
            await self.cancel(job_id)
            while following is not None and following.done is None and self._session.link:
                await following.changed.wait()

    # -- the connection -----------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(VERSIONS, "client", self._secret, self._name, self._peer_id)

    def _opened(self, _link: Link) -> None:
        for submitting in self._submitting.values():
            self._nursery.start_soon(self._send_job, submitting)
        self._forget_unread()
        for following in self._following.values():
            self._attach(following)
        for job_id in self._unwanted:
            self._session.send(CancelJob(job_id))

    def _closed(self) -> None:
        """Wake the calls that cannot be answered now; those about results wait further."""
        for following in self._following.values():
            following.touch()
        self._replied.set()
        self._replied = trio.Event()

    async def _send_job(self, submitting: Submitting) -> None:
        """Send the job in parts; the next connection sends it again if this one is lost."""
        link = self._session.link
        if link is None or submitting.sent_on is link:
            return
        submitting.sent_on = link
        job_id, submission = submitting.job_id, submitting.submission
        items = submission.items
        try:
            link.send(SubmitJob(job_id, submission.function, submission.options, len(items)))
            for first, part in parts_of(items):
                if submitting.refusal is not None or job_id in self._unwanted:
                    return
                link.send(JobItems(job_id, first, part))
                await link.drain()
        except (ConnectionLostError, ProtocolError):
            log.info("the connection was lost while submitting %s", job_id, extra=at(job_id))

    def _received(self, message: Message) -> None:
        match message:
            case ControlReply():
                if message.call in self._replies:
                    self._replies[message.call] = message
                    self._replied.set()
                    self._replied = trio.Event()
            case JobAccepted(job_id):
                self._answer(job_id, None)
            case JobRefused(job_id, code) if code != UNKNOWN:
                self._answer(job_id, message)
            case JobWaits() if message.reason and self._is_followed(message.job_id, message.call):
                log.warning(
                    "%s waits: %s",
                    message.job_id,
                    printable(message.reason),
                    extra=at(message.job_id),
                )
            case JobResult(job_id, call) if self._is_followed(job_id, call):
                self._following[job_id].take(message)
            case JobRefused(job_id) if job_id in self._following:
                self._following.pop(job_id).take(message)
            case JobDone(job_id, call) if self._is_followed(job_id, call):
                self._unwanted.discard(job_id)
                self._following.pop(job_id).take(message)
            case _:
                pass

    def _answer(self, job_id: str, refusal: JobRefused | None) -> None:
        submitting = self._submitting.get(job_id)
        if submitting is not None:
            submitting.end(refusal)

    def _is_followed(self, job_id: str, call: int) -> bool:
        """Whether a message answers the newest attach request of its job."""
        following = self._following.get(job_id)
        return following is not None and following.call == call


@asynccontextmanager
async def open_client(dial: Dial, secret: bytes, name: str) -> AsyncGenerator[Client]:
    """Connect over sockets of any kind; see `connect`."""
    async with open_service_nursery() as nursery:
        client = Client(dial, secret, name, nursery)
        session, staying = client._session, trio.CancelScope()

        async def stay(*, task_status: trio.TaskStatus[None]) -> None:
            with staying:
                await session.run(task_status=task_status)

        with give_up_after(CONNECT_S, is_shielded=False) as connecting:
            await nursery.start(stay)
        if connecting.cancelled_caught:
            raise ConnectionLostError(
                f"no foreman answered within {CONNECT_S:g} s: {session.problem}; start it, "
                "or check its address",
            )
        staying.shield = True  # a block that is cancelled may still end its jobs
        try:
            yield client
        finally:
            try:
                await session.leave("done")
            finally:  # also where Ctrl-C ends the farewell
                staying.cancel()


@asynccontextmanager
async def connect(
    url: str,
    *,
    secret: bytes | str,
    name: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[Client]:
    """Stay connected to a foreman for the length of a block.

    Args:
        url: The foreman's URL: ``ws://127.0.0.1:9000`` or ``wss://…``.
        secret: The foreman's secret.
        name: The name of this client in logs; default: its host and process.
        ssl_context: For ``wss:``; default: the certificate authorities of the system.

    Yields:
        The client.

    Raises:
        HandshakeRefusedError: the foreman refuses this client.
        ConnectionLostError: no foreman answered within `CONNECT_S`.
        TypeError, ValueError: an argument is wrong; the message has its name and value.

    Cancellation: jobs continue, except those of a `Client.map` that is cancelled.
    """
    from ._wire.sockets import dial  # trio-websocket is an extra

    check_trio()
    way = partial(dial, text("url", url), ssl_context)
    async with open_client(way, check_secret(secret), checked_name(name)) as client:
        yield client
