"""A client: submits jobs to a foreman and gets their results."""

from __future__ import annotations

import itertools
import logging
import secrets
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import attrs
import trio

from .._arguments import text
from .._portal import check_trio
from .._ranges import IndexSet
from .._words import printable
from ._errors import (
    ConnectionLostError,
    JobCancelledError,
    JobFailedError,
    JobRefusedError,
    TaskFailedError,
)
from ._link import Link
from ._messages import (
    VERSIONS,
    AttachJob,
    CancelJob,
    Control,
    ControlReply,
    Hello,
    JobAccepted,
    JobDone,
    JobItems,
    JobMessage,
    JobRefused,
    JobResult,
    JobWaits,
    Message,
    SubmitJob,
    TaskError,
)
from ._names import check_job_id, new_job_id
from ._protocol import Role
from ._secrets import check_secret
from ._session import Dial, Session
from ._submission import Submission, checked_submission, job_options, parts_of
from ._worker import checked_name

log = logging.getLogger("trio_ckpt.remote.client")

CONNECT_S = 5.0  # for the first connection: a wrong address is told soon; later ones are waited
CANCEL_S = 1.0  # for the foreman to say that a job has ended

Errors = Literal["raise", "collect"]


@attrs.frozen
class ItemResult:
    """One item of a job is done.

    Attributes:
        index: Its place.
        value: What its function returned.
        error: Why it was given up, if it was.
    """

    index: int
    value: Any
    error: TaskFailedError | None = None


@attrs.define(eq=False)
class _Following:
    """A job that this client follows."""

    job_id: str
    submission: Submission | None
    is_accepted: bool = False
    is_attached: bool = False
    call: int = 0
    refusal: JobRefused | None = None
    have: IndexSet = attrs.field(factory=IndexSet)
    waiting: deque[ItemResult] = attrs.field(factory=deque[ItemResult])
    done: JobDone | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)

    def touch(self) -> None:
        """Wake who waits for something."""
        self.changed.set()
        self.changed = trio.Event()

    def check(self) -> None:
        """Raise if the foreman does not take the job."""
        if self.refusal is not None:
            raise JobRefusedError(self.refusal.reason, run_id=self.job_id)


@attrs.define(eq=False)
class Results:
    """The results of a job as they come: ``async for result in …``; holds no scope open."""

    _following: _Following

    @property
    def job_id(self) -> str:
        """The job, to attach to it again."""
        return self._following.job_id

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> ItemResult:
        """The next one.

        Raises:
            TaskFailedError: the job failed with an item.
            JobFailedError, JobCancelledError, JobRefusedError: it ended otherwise.

        Cancellation: a cancellation point; nothing is lost, and the job goes on.
        """
        following = self._following
        await trio.lowlevel.checkpoint()
        while not following.waiting:
            following.check()
            if following.done is not None:
                _check_done(following.done)
                raise StopAsyncIteration
            await following.changed.wait()
        return following.waiting.popleft()


def _check_done(done: JobDone) -> None:
    if done.status == "completed":
        return
    if done.status == "cancelled":
        raise JobCancelledError(f"job {done.job_id!r} was cancelled", run_id=done.job_id)
    if done.error is not None and done.index is not None:
        raise _task_error(done.job_id, done.index, done.error)
    why = "" if done.error is None else f": {done.error.type}: {done.error.message}"
    raise JobFailedError(f"job {done.job_id!r} {done.status}{why}", run_id=done.job_id)


def _task_error(job_id: str, index: int, error: TaskError) -> TaskFailedError:
    return TaskFailedError(
        error.type, error.message, index=index, remote_traceback=error.traceback, run_id=job_id
    )


@attrs.define(eq=False)
class Client:
    """A client of a foreman; from `connect`.

    The connection may be lost and made anew meanwhile: jobs go on, and so does what is awaited.
    """

    _secret: bytes
    _name: str
    _nursery: trio.Nursery
    _peer_id: str = attrs.field(factory=partial(secrets.token_hex, 16), init=False)
    _session: Session = attrs.field(init=False)
    _jobs: dict[str, _Following] = attrs.field(factory=dict[str, _Following], init=False)
    _calls: itertools.count[int] = attrs.field(factory=itertools.count, init=False)
    _replies: dict[int, ControlReply | None] = attrs.field(
        factory=dict[int, "ControlReply | None"], init=False
    )
    _replied: trio.Event = attrs.field(factory=trio.Event, init=False)

    def start(self, dial: Dial) -> Session:
        """Make its way to the foreman."""
        self._session = Session(
            dial, Role.CLIENT, self._hello, self._opened, self._received, _nothing
        )
        return self._session

    # -- jobs ---------------------------------------------------------------------------------

    async def map(
        self,
        function: str,
        items: Iterable[Any],
        *,
        checkpoint_interval_s: float | None = None,
        errors: Errors = "raise",
        attempts: int = 1,
        losses: int = 5,
        max_age_s: float = 3_600.0,
        keep_checkpoints: bool = False,
        job_id: str | None = None,
        trace: dict[str, str] | None = None,
    ) -> list[Any]:
        """Have a function called with each item on the workers; the results, in order.

        Args:
            function: ``module:function``, called as ``function(item, work)``; see `Work`.
            items: JSON-like values.
            checkpoint_interval_s: How often a running item saves its state, at most; None: it
                saves nothing, and begins again if its worker is lost.
            errors: "raise": the first item that fails for good fails the job.  "collect": its
                error takes the place of its result, and the others go on.
            attempts: How often an item is tried whose function raises.
            losses: How many workers an item may take down before it is given up.
            max_age_s: A saved state that was older than this when its worker was lost is not
                gone on from.
            keep_checkpoints: Whether saved states stay when their item is done.
            job_id: A name, ``job-…``: whoever maps the same again under it gets the results of
                what was done, and the rest is done.
            trace: Passed on to ``work.trace``; `trio_ckpt.trace_context` gives that of
                OpenTelemetry, and workers that trace go on with it.

        Returns:
            One result for each item; with ``errors="collect"`` a `TaskFailedError` where one was
            given up.

        Raises:
            TaskFailedError: an item failed; the others are cancelled.
            JobRefusedError: the foreman does not take the job.
            JobCancelledError, JobFailedError: it ended otherwise.
            NotEncodableError: an item is not JSON-like.

        Durability: a job that was taken goes on whatever happens to this process.
        Cancellation: cancels the job, on the workers, too.
        """
        job_id = new_job_id() if job_id is None else check_job_id(job_id)
        try:
            await self.submit(
                function,
                items,
                checkpoint_interval_s=checkpoint_interval_s,
                errors=errors,
                attempts=attempts,
                losses=losses,
                max_age_s=max_age_s,
                keep_checkpoints=keep_checkpoints,
                job_id=job_id,
                trace=trace,
            )
            return await self.attach(job_id)
        except trio.Cancelled:
            await self._cancel_now(job_id)
            raise

    async def submit(
        self,
        function: str,
        items: Iterable[Any],
        *,
        checkpoint_interval_s: float | None = None,
        errors: Errors = "raise",
        attempts: int = 1,
        losses: int = 5,
        max_age_s: float = 3_600.0,
        keep_checkpoints: bool = False,
        job_id: str | None = None,
        trace: dict[str, str] | None = None,
    ) -> str:
        """Submit a job, and do not wait for it.

        Args, Raises: as for `map`.

        Returns:
            Its name, for `results` and `attach`, of this client or any other.

        Durability: when this returns the job is durable at the foreman.
        Cancellation: it may have been submitted or not.
        """
        options = job_options(
            checkpoint_interval_s=checkpoint_interval_s,
            errors=errors,
            attempts=attempts,
            losses=losses,
            max_age_s=max_age_s,
            keep_checkpoints=keep_checkpoints,
            trace=trace,
        )
        job_id = new_job_id() if job_id is None else check_job_id(job_id)
        submission = checked_submission(function, items, options)
        following = self._jobs[job_id] = _Following(job_id, submission)
        self._nursery.start_soon(self._send_job, following)
        while not following.is_accepted:
            following.check()
            await following.changed.wait()
        following.submission = None
        return job_id

    def results(self, job_id: str) -> Results:
        """The results of a job as they come, those that are there first.

        Args:
            job_id: Of this client, or of any other.
        """
        following = self._jobs.get(job_id)
        if following is None or following.is_attached:
            following = self._jobs[job_id] = _Following(check_job_id(job_id), None, True)
        following.is_attached = True
        self._attach(following)
        return Results(following)

    def _attach(self, following: _Following) -> None:
        following.call = next(self._calls)
        have = tuple(following.have.to_steps())
        self._session.send(AttachJob(following.job_id, following.call, have))

    async def map_unordered(self, function: str, items: Iterable[Any], **options: Any) -> Results:
        """The same as `map`, but the results as they come: ``async for result in await …``.

        Args:
            function, items, options: As for `map`.  Results say their index.

        Cancellation: the job goes on; `cancel` ends it.
        """
        return self.results(await self.submit(function, items, **options))

    async def attach(self, job_id: str) -> list[Any]:
        """Wait for all results of a job, in order; of this client, or one that died.

        Raises, Returns: as for `map`.

        Cancellation: the job goes on.
        """
        found: dict[int, Any] = {}
        async for result in self.results(job_id):
            found[result.index] = result.value if result.error is None else result.error
        return [found[index] for index in sorted(found)]

    async def cancel(self, job_id: str) -> None:
        """End a job, on the workers, too; nothing happens if it is over.

        Cancellation: it may have been asked for or not.
        """
        self._session.send(CancelJob(check_job_id(job_id)))
        await trio.lowlevel.checkpoint()

    async def control(
        self, action: Literal["force-checkpoint", "release", "cleanup"], task_id: str
    ) -> tuple[int, str]:
        """Do something to a work item; see `Foreman.control`.

        Raises:
            ConnectionLostError: there is no connection.
        """
        call = next(self._calls)
        self._replies[call] = None
        try:
            if not self._session.send(Control(call, action, task_id)):
                raise ConnectionLostError("there is no connection to the foreman now")
            while (reply := self._replies[call]) is None:
                if self._session.link is None:
                    raise ConnectionLostError("the connection was lost before an answer came")
                with trio.move_on_after(1.0):
                    await self._replied.wait()
            return reply.code, reply.reason
        finally:
            del self._replies[call]

    async def _cancel_now(self, job_id: str) -> None:
        following = self._jobs.get(job_id)
        with trio.move_on_after(CANCEL_S, shield=True):
            await self.cancel(job_id)
            while following is not None and following.done is None:
                await following.changed.wait()

    # -- the connection -----------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(VERSIONS, "client", self._secret, self._name, self._peer_id)

    def _opened(self, _link: Link) -> None:
        for following in self._jobs.values():
            if not following.is_accepted and following.refusal is None:
                self._nursery.start_soon(self._send_job, following)
            elif following.is_attached and following.done is None:
                self._attach(following)

    async def _send_job(self, following: _Following) -> None:
        """Say what a job is, in parts; the next connection says it again if this one is lost."""
        submission, link = following.submission, self._session.link
        if submission is None or link is None:
            return
        items = submission.items
        try:
            link.send(
                SubmitJob(following.job_id, submission.function, submission.options, len(items))
            )
            for first, part in parts_of(items):
                link.send(JobItems(following.job_id, first, part))
                await link.drain()
        except ConnectionLostError:
            log.info("the connection was lost while %s was submitted", following.job_id)

    def _received(self, message: Message) -> None:
        if isinstance(message, ControlReply):
            if message.call in self._replies:
                self._replies[message.call] = message
                self._replied.set()
                self._replied = trio.Event()
            return
        if not isinstance(message, JobMessage):
            return
        following = self._jobs.get(message.job_id)
        if following is None:
            return
        match message:
            case JobAccepted():
                following.is_accepted = True
            case JobRefused():
                following.refusal = message
            case JobResult(job_id, call, index, value, error) if call == following.call:
                if following.have.add(index):
                    failure = None if error is None else _task_error(job_id, index, error)
                    following.waiting.append(ItemResult(index, value, failure))
            case JobWaits() if message.call == following.call:
                if message.reason:
                    log.warning("%s waits: %s", message.job_id, printable(message.reason))
            case JobDone() if message.call == following.call:
                following.done = message
            case _:
                return
        following.touch()


def _nothing() -> None:
    """What is awaited goes on with the next connection."""


@asynccontextmanager
async def open_client(dial: Dial, secret: bytes, name: str) -> AsyncGenerator[Client]:
    """Be connected over sockets of any kind; see `connect`."""
    body_error: BaseException | None = None
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            client = Client(secret, name, nursery)
            session = client.start(dial)
            with trio.move_on_after(CONNECT_S) as connecting:
                await nursery.start(session.run)
            if connecting.cancelled_caught:
                raise ConnectionLostError(
                    f"no foreman has answered for {CONNECT_S:g} s: {session.problem}; start it, "
                    "or see that the address is its own"
                )
            try:
                yield client
            except BaseException as error:
                body_error = error
            await session.leave("done")
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        _, failures = group.split(trio.Cancelled)
        if failures is None:
            raise
        failure = failures.exceptions[0] if len(failures.exceptions) == 1 else failures
    if failure is not None:
        failure.__context__ = body_error
        raise failure
    if body_error is not None:
        raise body_error


@asynccontextmanager
async def connect(
    url: str,
    *,
    secret: bytes | str,
    name: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[Client]:
    """Be connected to a foreman for a block.

    Args:
        url: The foreman's: ``ws://127.0.0.1:9000`` or ``wss://…``.
        secret: What lets it in.
        name: What people call this client; default: its host and process.
        ssl_context: For ``wss:``; default: the system's authorities.

    Yields:
        The client.

    Raises:
        HandshakeRefusedError: the foreman does not want it.
        ConnectionLostError: no foreman has answered within `CONNECT_S`.
        TypeError, ValueError: an argument is wrong; the message has its name and value.

    Cancellation: jobs go on, but those of a `Client.map` that is cancelled.
    """
    from ._sockets import dial  # trio-websocket is an extra

    check_trio()
    way = partial(dial, text("url", url), ssl_context)
    async with open_client(way, check_secret(secret), checked_name(name)) as client:
        yield client
