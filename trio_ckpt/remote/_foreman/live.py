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
from typing import Literal, TypeVar

import msgspec
import trio

from ..._journal.store import Store
from ..._util.log import get_logger
from ..._util.patience import give_up_after
from .._wire.message import Id, Name, Text
from .._wire.names import task_id_of
from .job_views import LiveTask

log = get_logger(__name__)

ANSWER_S = 5.0  # for a foreman to answer: it may be busy
AGAIN_S = 1.0  # then a request is sent again, in case another one replaced it
POLL_S = 0.1

ACCEPTED, NOT_FOUND, CONFLICT = 202, 404, 409  # answers of a foreman, as in HTTP

T = TypeVar("T")
Action = Literal["force-checkpoint", "release", "cancel"]


class LiveJob(msgspec.Struct, frozen=True, array_like=True):
    """The live state of a job.

    Attributes:
        owner: The number under which the foreman owns the job's run; older values do not count.
        foreman: The name under which the foreman takes requests.
        items: The items that workers have, by index.
        waits: Why the other items wait for a worker that is not there; empty: they do not.
    """

    owner: int
    foreman: Name
    items: dict[int, LiveTask]
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


encode = msgspec.msgpack.Encoder().encode
_decode_job = msgspec.msgpack.Decoder(LiveJob)
_decode_answers = msgspec.msgpack.Decoder(tuple[ActionReply, ...])


def read_published(decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T | None:
    """Decode a published value; None: there is none that can be decoded."""
    try:
        return decoder.decode(payload) if payload else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        log.debug("a published value cannot be decoded: %s", error)
        return None


def job_name(job_id: str) -> str:
    """The name of the published state of a job."""
    return f"{job_id} at its foreman"


def request_name(foreman: str) -> str:
    """The name of the newest request to a foreman."""
    return f"a question to foreman {foreman}"


def answer_name(foreman: str) -> str:
    """The name of the newest answers of a foreman."""
    return f"answers of foreman {foreman}"


def names_of(foreman: str) -> tuple[str, str]:
    """The names of what a foreman and those who ask it tell each other."""
    return request_name(foreman), answer_name(foreman)


async def read_live_job(store: Store, job_id: str, owner: int) -> LiveJob | None:
    """Read what the foreman that owns a job has published of it; None: nothing valid.

    Args:
        store: The foreman's store.
        job_id: The job.
        owner: The number of the newest owner of its run, which is alive.

    Raises:
        StoreError: the store cannot be read.
    """
    found = read_published(_decode_job, await store.read_live(job_name(job_id)))
    return found if found is not None and found.owner == owner else None


def tasks_of(job_id: str, job: LiveJob | None) -> dict[str, LiveTask]:
    """The items that workers have, by their ids."""
    return {} if job is None else {task_id_of(job_id, n): task for n, task in job.items.items()}


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
            await store.publish(request_name(foreman), encode(request))
            again_at = trio.current_time() + AGAIN_S
            while trio.current_time() < again_at:
                await trio.sleep(POLL_S)
                answers = read_published(
                    _decode_answers, await store.read_live(answer_name(foreman))
                )
                for answer in answers or ():
                    if answer.number == request.number:
                        return answer.code, answer.reason
    return CONFLICT, f"no answer from the foreman for {ANSWER_S:g} s: it may still act on it"
