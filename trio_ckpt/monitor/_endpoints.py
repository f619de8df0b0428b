"""The paths, as one table: the routes and the OpenAPI document are both made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, Literal, get_type_hints

import attrs

from .._journal.acts import MAX_NAME_CHARS, MAX_WHY_CHARS
from .._runs.parallel import MAX_CONCURRENCY
from .._util.plain import MAX_KEY_CHARS, MAX_RUN_ID_CHARS
from ._acts import RunActs
from ._answers import ApiRecord
from ._api import MonitorApi
from ._jobs import Jobs
from ._parameters import MAX_OFFSET, Parameter

JSON = "application/json"

Handler = Callable[..., Awaitable[ApiRecord]]


@attrs.frozen
class Endpoint:
    """One line of the table.

    Attributes:
        path: With parameters in braces.
        summary: What it answers.
        answer: The record of a success; None: it is no JSON.
        handle: Makes it, of the API, the parameter in the path, and those of the query by name.
        parameters: What it takes; anything else is refused.
        method: GET, or POST for an action.
        status: Of a success.
        refusals: Statuses that are its own, and why.
        media_type: Of what is no JSON.
    """

    path: str
    summary: str
    answer: type[ApiRecord] | None = None
    handle: Handler | None = None
    parameters: tuple[Parameter, ...] = ()
    method: Literal["GET", "POST"] = "GET"
    status: int = 200
    refusals: Mapping[int, str] = attrs.field(factory=dict[int, str])
    media_type: str = JSON


RUN = Parameter(
    "run",
    "string",
    "The id of a run.",
    place="path",
    is_required=True,
    max_chars=MAX_RUN_ID_CHARS,
    pattern=r"[^/\\]+",
)
JOB = Parameter(
    "job_id",
    "string",
    "The id of a job.",
    place="path",
    is_required=True,
    pattern="[A-Za-z0-9_.-]+",
)
TASK = attrs.evolve(JOB, name="task_id", description="The id of a work item.", max_chars=120)
PLACES = (
    (RUN, "There is no such run."),
    (JOB, "There is no such job."),
    (TASK, "There is no such work item."),
)
"""What a path may name, and why it is refused."""

MAX_STEP = 2**53 - 2  # a number of JSON that every reader takes as it is
MAX_JOB_PAGE = 1_000  # items of one answer: a line of theirs is short
LIMIT = Parameter("limit", "integer", "How many at most.", default=50, minimum=1)
JOB_LIMIT = attrs.evolve(LIMIT, default=MAX_JOB_PAGE, maximum=MAX_JOB_PAGE)
SEARCH = Parameter(
    "search",
    "string",
    "Only those whose name has this text in it, in small or capital letters.",
    default="",
    max_chars=MAX_KEY_CHARS,
)
AFTER = Parameter("after", "integer", "Leave out so many.", default=0, maximum=MAX_OFFSET)
AFTER_RUN = Parameter(
    "after", "string", "Only runs after this id.", default="", max_chars=MAX_RUN_ID_CHARS
)
STREAM = Parameter(
    "stream",
    "key",
    'The parts of the stream\'s key as a JSON array: ["org/repo1", "pulls"].',
    is_required=True,
    max_chars=2 * MAX_KEY_CHARS,
)
CURSOR = Parameter(
    "cursor", "string", "What the page before gave as next.", pattern="[0-9A-Za-z._-]+"
)
KEEP = Parameter(
    "keep",
    "integer",
    "How many are left, the newest counted.",
    is_required=True,
    minimum=1,
    maximum=1_000_000,
)
WHY = Parameter(
    "why", "string", "The reason, which the history keeps.", default="", max_chars=MAX_WHY_CHARS
)
FIRST = Parameter("first", "integer", "The first batch.", is_required=True, maximum=MAX_STEP)
LAST = attrs.evolve(
    FIRST, name="last", description="The last batch; left out: the first alone.", is_required=False
)
WORKERS = Parameter(
    "count", "integer", "How many workers.", is_required=True, minimum=1, maximum=MAX_CONCURRENCY
)
NAME = Parameter(
    "name",
    "string",
    "The name of what is spent: cost_usd.",
    is_required=True,
    max_chars=MAX_NAME_CHARS,
    pattern=".+",
)
MOST = Parameter(
    "most",
    "string",
    "How much may be spent: 80 or 12.5.",
    is_required=True,
    pattern=r"[0-9]{1,15}(\.[0-9]{1,12})?",
)
REFUSED = "The run refuses it, or its process cannot be reached; the message says why."
LOCKED = "A process has the run, or it is not for now."


def _get(path: str, summary: str, handle: Handler, *query: Parameter) -> Endpoint:
    """A question; the path tells its own parameter, and the handler the record of the answer."""
    answer = get_type_hints(handle)["return"]
    for parameter, unknown in PLACES:
        if f"{{{parameter.name}}}" in path:
            parameters = (parameter, *query)
            return Endpoint(path, summary, answer, handle, parameters, refusals={404: unknown})
    return Endpoint(path, summary, answer, handle, query)


def _post(
    path: str, summary: str, handle: Handler, conflict: str, *query: Parameter, status: int = 200
) -> Endpoint:
    """An action, which is refused where it does not fit what there is."""
    asked = _get(path, summary, handle, *query)
    refusals = {**asked.refusals, 409: conflict}
    return attrs.evolve(asked, method="POST", status=status, refusals=refusals)


def _acts(handle: Handler) -> Handler:
    """The handler that is a method of the acts."""

    @wraps(handle)
    def call(api: MonitorApi, *place: Any, **query: Any) -> Awaitable[ApiRecord]:
        return handle(api.acts, *place, **query)

    return call


def _act(
    name: str, summary: str, handle: Handler, *query: Parameter, status: int = 200
) -> Endpoint:
    """An act on a run."""
    path = f"/api/runs/{{run}}/{name}"
    return _post(path, summary, _acts(handle), REFUSED, *query, WHY, status=status)


def _jobs(handle: Handler) -> Handler:
    """The handler that is a method of the jobs."""

    @wraps(handle)
    def call(api: MonitorApi, *place: Any, **query: Any) -> Awaitable[ApiRecord]:
        return handle(api.jobs, *place, **query)

    return call


ENDPOINTS: tuple[Endpoint, ...] = (
    _get(
        "/api/checkpoints/jobs/{job_id}",
        "A job and its work items",
        _jobs(Jobs.job),
        JOB_LIMIT,
        AFTER,
    ),
    _post(
        "/api/checkpoints/jobs/{job_id}/cancel",
        "Cancel a job",
        _jobs(Jobs.cancel),
        "It is over, or no foreman has it.",
        status=202,
    ),
    _get("/api/checkpoints/tasks/{task_id}", "A work item and its checkpoints", _jobs(Jobs.task)),
    _get(
        "/api/checkpoints/storage-info/{task_id}",
        "Where the checkpoints of a work item are",
        _jobs(Jobs.storage_info),
    ),
    _post(
        "/api/checkpoints/tasks/{task_id}/force-checkpoint",
        "Have a running work item saved now",
        _jobs(Jobs.force_checkpoint),
        "No worker has it.",
        status=202,
    ),
    _post(
        "/api/checkpoints/tasks/{task_id}/release",
        "Have a running work item saved and handed back, so that it goes on elsewhere",
        _jobs(Jobs.release),
        "No worker has it.",
        status=202,
    ),
    _post(
        "/api/checkpoints/tasks/{task_id}/cleanup",
        "Free the checkpoints of a work item that is over",
        _jobs(Jobs.cleanup),
        "It is not over.",
    ),
    _get("/api/runs", "The runs, by id", MonitorApi.runs, LIMIT, AFTER_RUN, SEARCH),
    _get("/api/runs/{run}", "A run with what the page shows of it", MonitorApi.run),
    _get(
        "/api/runs/{run}/statistics", "The numbers of a run at this moment", MonitorApi.statistics
    ),
    _get(
        "/api/runs/{run}/streams",
        "The streams, those first that need attention",
        MonitorApi.streams,
        LIMIT,
        SEARCH,
        AFTER,
    ),
    _get("/api/runs/{run}/pending", "The pending tokens, oldest first", MonitorApi.pending, LIMIT),
    _get(
        "/api/runs/{run}/failures", "What went wrong, the worst first", MonitorApi.failures, LIMIT
    ),
    attrs.evolve(
        _get(
            "/api/runs/{run}/history",
            "The checkpoints of a stream, newest first",
            MonitorApi.history,
            STREAM,
            CURSOR,
            LIMIT,
        ),
        refusals={404: "There is no such run or stream."},
    ),
    _get(
        "/api/runs/{run}/sessions",
        "The sessions of a run, the newest first",
        MonitorApi.sessions,
        LIMIT,
    ),
    _act("stop", "Stop a run in good order", RunActs.stop, status=202),
    _act("pause", "Hand out nothing more until a resume", RunActs.pause),
    _act("resume", "Lift a pause", RunActs.resume),
    _act(
        "snapshot",
        "Have open batches save a snapshot at their next point",
        RunActs.snapshot,
        status=202,
    ),
    _act(
        "requeue",
        "Re-queue batches that are skipped or confirmed",
        RunActs.requeue,
        STREAM,
        FIRST,
        LAST,
    ),
    _act("skip", "Give batches up that are left", RunActs.skip, STREAM, FIRST, LAST),
    _act("concurrency", "Change how many workers run_batches has", RunActs.concurrency, WORKERS),
    _act("limit", "Change what the run may spend", RunActs.limit, NAME, MOST),
    _post(
        "/api/runs/{run}/retry", "Re-queue what was skipped or has failed", MonitorApi.retry, LOCKED
    ),
    _post(
        "/api/runs/{run}/prune",
        "Remove archived generations of a run",
        MonitorApi.prune,
        LOCKED,
        KEEP,
    ),
    Endpoint(
        "/api/events",
        "Server-sent events: pictures of the runs, and of one run, as they change",
        parameters=(attrs.evolve(RUN, place="query", is_required=False),),
        refusals={404: "There is no such run.", 503: "Too many are watching."},
        media_type="text/event-stream",
    ),
    Endpoint("/metrics", "For Prometheus", media_type="text/plain"),
    Endpoint("/openapi.json", "This document"),
)
