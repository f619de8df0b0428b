"""The paths, as one table: the routes and the OpenAPI document are both made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import attrs

from .._util.plain import MAX_KEY_CHARS, MAX_RUN_ID_CHARS
from ._answers import (
    ApiRecord,
    Done,
    FailureList,
    HistoryAnswer,
    RunDetail,
    RunList,
    SessionList,
    Statistics,
    StreamPage,
    TokenList,
)
from ._api import MonitorApi
from ._jobs import JobAnswer, StorageInfo, TaskAnswer
from ._parameters import MAX_OFFSET, Parameter

JSON = "application/json"

Values = Mapping[str, Any]
Handler = Callable[[MonitorApi, Values], Awaitable[ApiRecord]]


@attrs.frozen
class Endpoint:
    """One line of the table.

    Attributes:
        path: With parameters in braces.
        summary: What it answers.
        answer: The record of a success; None: it is no JSON.
        handle: Makes it.
        parameters: What it takes; anything else is refused.
        method: GET, or POST for an action.
        status: Of a success.
        refusals: Statuses that are its own, and why.
        media_type: Of what is no JSON.
    """

    path: str
    summary: str
    answer: type[ApiRecord] | None
    handle: Handler | None
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
LIMIT = Parameter("limit", "integer", "How many at most.", default=50, minimum=1)
SEARCH = Parameter(
    "search",
    "string",
    "Only those whose name has this text in it, in small or capital letters.",
    default="",
    max_chars=MAX_KEY_CHARS,
)
NOT_FOUND = {404: "There is no such run."}
LOCKED = {404: "There is no such run.", 409: "A process has the run, or it is not for now."}


def _runs(api: MonitorApi, values: Values) -> Awaitable[ApiRecord]:
    return api.runs(after=values["after"], limit=values["limit"], search=values["search"])


def _history(api: MonitorApi, values: Values) -> Awaitable[ApiRecord]:
    return api.history(
        values["run"], stream=values["stream"], cursor=values["cursor"], limit=values["limit"]
    )


MAX_JOB_PAGE = 1_000  # items of one answer: a line of theirs is short

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "/api/checkpoints/jobs/{job_id}",
        "A job and its work items",
        JobAnswer,
        lambda api, values: api.jobs.job(
            values["job_id"], after=values["after"], limit=values["limit"]
        ),
        (
            JOB,
            attrs.evolve(LIMIT, default=MAX_JOB_PAGE, maximum=MAX_JOB_PAGE),
            Parameter("after", "integer", "Leave out so many.", default=0, maximum=MAX_OFFSET),
        ),
        refusals={404: "There is no such job."},
    ),
    Endpoint(
        "/api/checkpoints/jobs/{job_id}/cancel",
        "Cancel a job",
        Done,
        lambda api, values: api.jobs.cancel(values["job_id"]),
        (JOB,),
        method="POST",
        status=202,
        refusals={404: "There is no such job.", 409: "It is over, or no foreman has it."},
    ),
    Endpoint(
        "/api/checkpoints/tasks/{task_id}",
        "A work item and its checkpoints",
        TaskAnswer,
        lambda api, values: api.jobs.task(values["task_id"]),
        (TASK,),
        refusals={404: "There is no such work item."},
    ),
    Endpoint(
        "/api/checkpoints/storage-info/{task_id}",
        "Where the checkpoints of a work item are",
        StorageInfo,
        lambda api, values: api.jobs.storage_info(values["task_id"]),
        (TASK,),
        refusals={404: "There is no such work item."},
    ),
    Endpoint(
        "/api/checkpoints/tasks/{task_id}/force-checkpoint",
        "Have a running work item saved now",
        Done,
        lambda api, values: api.jobs.force_checkpoint(values["task_id"]),
        (TASK,),
        method="POST",
        status=202,
        refusals={404: "There is no such work item.", 409: "No worker has it."},
    ),
    Endpoint(
        "/api/checkpoints/tasks/{task_id}/release",
        "Have a running work item saved and handed back, so that it goes on elsewhere",
        Done,
        lambda api, values: api.jobs.release(values["task_id"]),
        (TASK,),
        method="POST",
        status=202,
        refusals={404: "There is no such work item.", 409: "No worker has it."},
    ),
    Endpoint(
        "/api/checkpoints/tasks/{task_id}/cleanup",
        "Free the checkpoints of a work item that is over",
        Done,
        lambda api, values: api.jobs.cleanup(values["task_id"]),
        (TASK,),
        method="POST",
        refusals={404: "There is no such work item.", 409: "It is not over."},
    ),
    Endpoint(
        "/api/runs",
        "The runs, by id",
        RunList,
        _runs,
        (
            LIMIT,
            Parameter(
                "after",
                "string",
                "Only runs after this id.",
                default="",
                max_chars=MAX_RUN_ID_CHARS,
            ),
            SEARCH,
        ),
    ),
    Endpoint(
        "/api/runs/{run}",
        "A run with what the page shows of it",
        RunDetail,
        lambda api, values: api.run(values["run"]),
        (RUN,),
        refusals=NOT_FOUND,
    ),
    Endpoint(
        "/api/runs/{run}/statistics",
        "The numbers of a run at this moment",
        Statistics,
        lambda api, values: api.statistics(values["run"]),
        (RUN,),
        refusals=NOT_FOUND,
    ),
    Endpoint(
        "/api/runs/{run}/streams",
        "The streams, those first that need attention",
        StreamPage,
        lambda api, values: api.streams(
            values["run"],
            after=values["after"],
            limit=values["limit"],
            search=values["search"],
        ),
        (
            RUN,
            LIMIT,
            SEARCH,
            Parameter("after", "integer", "Leave out so many.", default=0, maximum=MAX_OFFSET),
        ),
        refusals=NOT_FOUND,
    ),
    Endpoint(
        "/api/runs/{run}/pending",
        "The pending tokens, oldest first",
        TokenList,
        lambda api, values: api.pending(values["run"], limit=values["limit"]),
        (RUN, LIMIT),
        refusals=NOT_FOUND,
    ),
    Endpoint(
        "/api/runs/{run}/failures",
        "What went wrong, the worst first",
        FailureList,
        lambda api, values: api.failures(values["run"], limit=values["limit"]),
        (RUN, LIMIT),
        refusals=NOT_FOUND,
    ),
    Endpoint(
        "/api/runs/{run}/history",
        "The checkpoints of a stream, newest first",
        HistoryAnswer,
        _history,
        (
            RUN,
            Parameter(
                "stream",
                "key",
                'The parts of the stream\'s key as a JSON array: ["org/repo1", "pulls"].',
                is_required=True,
                max_chars=2 * MAX_KEY_CHARS,
            ),
            Parameter(
                "cursor", "string", "What the page before gave as next.", pattern="[0-9A-Za-z._-]+"
            ),
            LIMIT,
        ),
        refusals={404: "There is no such run or stream."},
    ),
    Endpoint(
        "/api/runs/{run}/sessions",
        "The sessions of a run, the newest first",
        SessionList,
        lambda api, values: api.sessions(values["run"], limit=values["limit"]),
        (RUN, LIMIT),
        refusals=NOT_FOUND,
    ),
    Endpoint(
        "/api/runs/{run}/stop",
        "Stop a run in good order (only in the monitor of its own process)",
        Done,
        lambda api, values: api.stop(values["run"]),
        (RUN,),
        method="POST",
        status=202,
        refusals=LOCKED,
    ),
    Endpoint(
        "/api/runs/{run}/retry",
        "Re-queue what was skipped or has failed",
        Done,
        lambda api, values: api.retry(values["run"]),
        (RUN,),
        method="POST",
        refusals=LOCKED,
    ),
    Endpoint(
        "/api/runs/{run}/prune",
        "Remove archived generations of a run",
        Done,
        lambda api, values: api.prune(values["run"], keep=values["keep"]),
        (
            RUN,
            Parameter(
                "keep",
                "integer",
                "How many are left, the newest counted.",
                is_required=True,
                minimum=1,
                maximum=1_000_000,
            ),
        ),
        method="POST",
        refusals=LOCKED,
    ),
    Endpoint(
        "/api/events",
        "Server-sent events: pictures of the runs, and of one run, as they change",
        None,
        None,
        (attrs.evolve(RUN, place="query", is_required=False),),
        refusals={404: "There is no such run.", 503: "Too many are watching."},
        media_type="text/event-stream",
    ),
    Endpoint("/metrics", "For Prometheus", None, None, media_type="text/plain"),
    Endpoint("/openapi.json", "This document", None, None),
)
