"""What a foreman publishes of its jobs, and its answers to requests; `live` says how."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

import attrs
import msgspec
import trio

from ..._journal.store import Store
from ..._util.errors import StoreError
from ..._util.exceptions import text_of
from ..._util.log import get_logger
from ..._util.patience import give_up_after
from ..._util.text import one_line
from .._wire.message import MAX_TEXT_CHARS
from .._wire.names import split_task_id
from .job import Job
from .job_views import LiveTask
from .live import (
    Action,
    ActionReply,
    ActionRequest,
    LiveJob,
    answer_name,
    encode,
    job_name,
    names_of,
    read_published,
    request_name,
)

log = get_logger(__name__)

EVERY_S = 0.5  # how often a foreman reads requests, and publishes what has changed
MAX_COST_FRACTION = 0.02  # of the foreman's time
MAX_ITEMS = 2_000  # of a job: those that were started first
MAX_ANSWERS = 100
WITHDRAW_S = 5.0  # for a store that hangs: what stays behind is of no owner, so it is not shown

_decode_request = msgspec.msgpack.Decoder(ActionRequest)
_decode_job = msgspec.msgpack.Decoder(LiveJob)


class JobsHere(Protocol):
    """The jobs that this process runs: a foreman's, or that of an engine's driver."""

    @property
    def store(self) -> Store:
        """The store with the jobs."""
        ...

    @property
    def jobs(self) -> Mapping[str, Job]:
        """The jobs that are running."""
        ...

    @property
    def live(self) -> Mapping[str, LiveTask]:
        """The items that workers have, by their ids, as far as is known."""
        ...

    async def control(self, action: Action, target: str) -> tuple[int, str]:
        """Carry out an action; see `Foreman.control`."""
        ...


@attrs.define(eq=False)
class ForemanPublisher:
    """Publishes a foreman's state and answers requests."""

    _foreman: JobsHere
    _name: str = attrs.field(factory=partial(secrets.token_hex, 16), init=False)
    _shown: dict[str, bytes] = attrs.field(factory=dict[str, bytes], init=False)
    _answers: dict[str, ActionReply] = attrs.field(factory=dict[str, ActionReply], init=False)

    async def run(self) -> None:
        """Publish and answer until cancelled; then remove what was published.

        A store that refuses published values is left alone: it does not end a job.

        Cancellation: ends it; the removal is shielded, and takes `WITHDRAW_S` at most.
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
            with give_up_after(WITHDRAW_S):
                await self._withdraw()

    async def _show(self) -> None:
        jobs, live = self._foreman.jobs, self._foreman.live
        items: dict[str, dict[int, LiveTask]] = {job_id: {} for job_id in jobs}
        for task_id, task in live.items():
            job_id, index = split_task_id(task_id)
            if job_id in items and len(items[job_id]) < MAX_ITEMS:
                items[job_id][index] = task
        for job_id, job in tuple(jobs.items()):
            if job.owner is not None:
                waits = job.waits[:MAX_TEXT_CHARS]
                shown = LiveJob(job.owner, self._name, items[job_id], waits)
                await self._publish(job_id, encode(shown))
        for job_id in self._shown.keys() - jobs.keys():
            await self._publish(job_id, b"")

    async def _publish(self, job_id: str, payload: bytes) -> None:
        if self._shown.get(job_id, b"") == payload:
            return
        if job_id not in self._shown:
            await self._remove_former(job_id)
        await self._foreman.store.publish(job_name(job_id), payload)
        if payload:
            self._shown[job_id] = payload
        else:
            self._shown.pop(job_id, None)

    async def _remove_former(self, job_id: str) -> None:
        """Remove the requests to a foreman that was killed while it had the job."""
        published = await self._foreman.store.read_live(job_name(job_id))
        former = read_published(_decode_job, published)
        if former is not None and former.foreman != self._name:
            await self._remove(names_of(former.foreman))

    async def _answer(self) -> None:
        store = self._foreman.store
        request = read_published(_decode_request, await store.read_live(request_name(self._name)))
        if request is None or request.number in self._answers:
            return
        code, reason = await self._foreman.control(request.action, request.target)
        self._answers[request.number] = ActionReply(request.number, code, reason)
        while len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        await store.publish(answer_name(self._name), encode(tuple(self._answers.values())))

    async def _withdraw(self) -> None:
        names = [job_name(job_id) for job_id in self._shown]
        if self._answers:
            names += names_of(self._name)
        try:
            await self._remove(names)
        except StoreError as error:  # each of the others would wait for the store as long
            log.debug("published values stay behind: %s", one_line(text_of(error)))

    async def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            await self._foreman.store.publish(name, b"")
