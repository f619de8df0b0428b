"""The foreman's live state for other processes on its machine, and their requests: by its store.

Theory of operation.  A monitor of the foreman's store is another process, and does not have the
foreman's secret.  But a process that may write to the store may do all that a foreman can: so the
store is the channel.  A foreman publishes (`Store.publish`) which items of each job its workers
have, and the name under which it takes requests; another process publishes a request under that
name, and the foreman publishes its answers.  The name is random and new with every start, so a
request to a foreman that was killed is never carried out by the next one.

There is room for one request.  Of two concurrent requests one replaces the other, which is sent
again until its answer arrives.  None of this is durable, and a store without live values
(`Store.has_live`) shows nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal, Protocol, TypeVar

import attrs
import msgspec
import trio

from ..._journal.store import Store
from ..._util.errors import StoreError, text_of
from ..._util.log import get_logger
from ..._util.patience import give_up_after
from ..._util.text import one_line
from .._wire.message import MAX_TEXT_CHARS, Id, Name, Text
from .._wire.names import task_id_of
from .job_views import Live, LiveTask

log = get_logger(__name__)

EVERY_S = 0.5  # how often a foreman reads requests, and publishes what has changed
MAX_COST_FRACTION = 0.02  # of the foreman's time
MAX_ITEMS = 2_000  # of a job: those that were started first
MAX_ANSWERS = 100
ANSWER_S = 5.0  # for a foreman to answer: it may be busy
AGAIN_S = 1.0  # then a request is sent again, in case another one replaced it
POLL_S = 0.1

CONFLICT = 409

T = TypeVar("T")
Action = Literal["force-checkpoint", "release", "cancel"]


class LiveItem(msgspec.Struct, frozen=True, array_like=True):
    """An item that a worker has; see `LiveTask`."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    worker: str
    since: float
    is_running: bool
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None


class LiveJob(msgspec.Struct, frozen=True, array_like=True):
    """The live state of a job.

    Attributes:
        owner: The number under which the foreman owns the job's run; older values do not count.
        foreman: The name under which the foreman takes requests.
        items: The items that workers have.
        waits: Why the other items wait for a worker that is not there; empty: they do not.
    """

    owner: int
    foreman: Name
    items: tuple[LiveItem, ...]
    waits: Text = ""


class ActionRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request.

    Attributes:
        number: Random; the answer repeats it.
        action: The action.
        target: The work item; for "cancel" the job.
    """

    number: Name
    action: Action
    target: Id


class ActionReply(msgspec.Struct, frozen=True, array_like=True):
    """An answer: an HTTP status, and its reason."""

    number: Name
    code: int
    reason: str


_encode = msgspec.msgpack.Encoder().encode
_decode_job = msgspec.msgpack.Decoder(LiveJob)
_decode_request = msgspec.msgpack.Decoder(ActionRequest)
_decode_answers = msgspec.msgpack.Decoder(tuple[ActionReply, ...])


def _read(decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T | None:
    """Decode a published value; None: there is none that can be decoded."""
    try:
        return decoder.decode(payload) if payload else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        log.debug("a published value cannot be decoded: %s", error)
        return None


# ---------------------------------------------------------------------------------------
# The foreman's side
# ---------------------------------------------------------------------------------------


class PublishedJob(Protocol):
    """A job of a foreman, as far as it is published."""

    waits: str

    @property
    def owner(self) -> int | None:
        """The number under which its run is owned; None: it is not owned yet."""
        ...


class PublishedForeman(Protocol):
    """A foreman, as far as it is published."""

    store: Store

    @property
    def jobs(self) -> Mapping[str, PublishedJob]:
        """The jobs that are running."""
        ...

    @property
    def live(self) -> Live:
        """The items that workers have, by their ids."""
        ...

    def cancel(self, job_id: str) -> None:
        """End a job."""
        ...

    async def control(
        self, action: Literal["force-checkpoint", "release"], task_id: str
    ) -> tuple[int, str]:
        """Carry out an action on a work item."""
        ...


@attrs.define(eq=False)
class ForemanPublisher:
    """Publishes a foreman's state and answers requests; `run` is its task."""

    _foreman: PublishedForeman
    _name: str = attrs.field(factory=partial(secrets.token_hex, 16), init=False)
    _shown: dict[str, bytes] = attrs.field(factory=dict[str, bytes], init=False)
    _answers: dict[str, ActionReply] = attrs.field(factory=dict[str, ActionReply], init=False)

    async def run(self) -> None:
        """Publish and answer until cancelled; then remove what was published.

        A store that refuses published values is left alone: it does not end a job.

        Cancellation: ends it; the removal is shielded.
        """
        if not self._foreman.store.has_live:
            return
        pause_s, is_failing = EVERY_S, False
        try:
            while True:
                await trio.sleep(pause_s)
                began = trio.current_time()
                try:
                    await self._answer()
                    await self._show()
                    is_failing = False
                except StoreError as error:
                    if not is_failing:
                        log.warning("jobs cannot be published: %s", one_line(text_of(error)))
                    is_failing = True
                pause_s = max(EVERY_S, (trio.current_time() - began) / MAX_COST_FRACTION)
        finally:
            with trio.CancelScope(shield=True):
                await self._withdraw()

    async def _show(self) -> None:
        jobs, live = self._foreman.jobs, self._foreman.live
        items: dict[str, list[LiveItem]] = {job_id: [] for job_id in jobs}
        for task_id, task in live.items():
            job_id, _, index = task_id.rpartition(".")
            if job_id in items and len(items[job_id]) < MAX_ITEMS:
                items[job_id].append(
                    LiveItem(
                        int(index), task.worker, task.since, task.is_running, task.progress_percent
                    )
                )
        for job_id, job in tuple(jobs.items()):
            if job.owner is not None:
                waits = job.waits[:MAX_TEXT_CHARS]
                shown = LiveJob(job.owner, self._name, tuple(items[job_id]), waits)
                await self._publish(job_id, _encode(shown))
        for job_id in self._shown.keys() - jobs.keys():
            await self._publish(job_id, b"")

    async def _publish(self, job_id: str, payload: bytes) -> None:
        if self._shown.get(job_id, b"") == payload:
            return
        await self._foreman.store.publish(_job_name(job_id), payload)
        if payload:
            self._shown[job_id] = payload
        else:
            self._shown.pop(job_id, None)

    async def _answer(self) -> None:
        store = self._foreman.store
        request = _read(_decode_request, await store.read_live(_request_name(self._name)))
        if request is None or request.number in self._answers:
            return
        code, reason = await self._carry_out(request)
        self._answers[request.number] = ActionReply(request.number, code, reason)
        while len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        await store.publish(_answer_name(self._name), _encode(tuple(self._answers.values())))

    async def _carry_out(self, request: ActionRequest) -> tuple[int, str]:
        if request.action != "cancel":
            return await self._foreman.control(request.action, request.target)
        if request.target not in self._foreman.jobs:
            return CONFLICT, "the job is over"
        self._foreman.cancel(request.target)
        return 202, "the job is being cancelled"

    async def _withdraw(self) -> None:
        names = [_job_name(job_id) for job_id in self._shown]
        if self._answers:
            names += [_request_name(self._name), _answer_name(self._name)]
        for name in names:
            try:
                await self._foreman.store.publish(name, b"")
            except StoreError as error:
                log.debug("published values stay behind: %s", one_line(text_of(error)))


def _job_name(job_id: str) -> str:
    return f"{job_id} at its foreman"


def _request_name(foreman: str) -> str:
    return f"a question to foreman {foreman}"


def _answer_name(foreman: str) -> str:
    return f"answers of foreman {foreman}"


# ---------------------------------------------------------------------------------------
# The side of other processes
# ---------------------------------------------------------------------------------------


async def read_live_job(store: Store, job_id: str, owner: int) -> LiveJob | None:
    """Read what the foreman that owns a job has published of it; None: nothing valid.

    Args:
        store: The foreman's store.
        job_id: The job.
        owner: The number of the newest owner of its run, which is alive.

    Raises:
        StoreError: the store cannot be read.
    """
    found = _read(_decode_job, await store.read_live(_job_name(job_id)))
    return found if found is not None and found.owner == owner else None


def tasks_of(job_id: str, job: LiveJob | None) -> dict[str, LiveTask]:
    """The items that workers have, by their ids."""
    return {
        task_id_of(job_id, item.index): LiveTask(
            item.worker, item.since, item.is_running, item.percent
        )
        for item in (() if job is None else job.items)
    }


async def request_action(store: Store, job_id: str, action: Action, target: str) -> tuple[int, str]:
    """Send a request to the foreman of a job through its store.

    Args:
        store: The foreman's store.
        job_id: The job.
        action: The action.
        target: The work item; for "cancel" the job.

    Returns:
        As `Foreman.control`.

    Raises:
        StoreError: the store cannot be read or written.

    Cancellation: the action may or may not be carried out.
    """
    owner, stored = await store.read_owner(job_id), await store.read_run(job_id)
    if owner is None or stored is None:
        return CONFLICT, "no foreman has the job now"
    job = None
    with give_up_after(ANSWER_S if store.has_live else 0, is_shielded=False):
        while job is None:  # it may have taken the job a moment ago
            job = await read_live_job(store, job_id, stored.owner)
            await trio.sleep(0 if job is not None else POLL_S)
    if job is None:
        return CONFLICT, "its foreman publishes nothing here: ask in the foreman's own process"
    return await _send_request(
        store, job.foreman, ActionRequest(secrets.token_hex(16), action, target)
    )


async def _send_request(store: Store, foreman: str, request: ActionRequest) -> tuple[int, str]:
    """Publish a request and wait for its answer."""
    with give_up_after(ANSWER_S, is_shielded=False):
        while True:
            await store.publish(_request_name(foreman), _encode(request))
            again_at = trio.current_time() + AGAIN_S
            while trio.current_time() < again_at:
                await trio.sleep(POLL_S)
                answers = _read(_decode_answers, await store.read_live(_answer_name(foreman)))
                for answer in answers or ():
                    if answer.number == request.number:
                        return answer.code, answer.reason
    return CONFLICT, f"no answer from the foreman for {ANSWER_S:g} s: it may still act on it"
