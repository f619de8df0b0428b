"""The names of jobs, of their work items, and of the streams of both.

A job is a run of the foreman's store, and so is each work item that saves its state.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

from ..._util.arguments import text
from .errors import UnknownJobError

JOB_PREFIX = "job-"  # of runs that are jobs
ITEMS_STREAM = ("items",)  # of a job's run: one batch for each item
TASK_STREAM = ("task",)  # of an item's run: one batch, whose states are snapshots inside it

MAX_JOB_ID_CHARS = 100  # an item's id is longer by its index
INDEX_DIGITS = 6  # at least, so that names sort as indexes do
_RANDOM_BYTES = 9

_JOB_ID = re.compile(r"job-[A-Za-z0-9_-]{1,96}", re.ASCII)
_TASK_ID = re.compile(rf"(job-[A-Za-z0-9_-]{{1,96}})\.([0-9]{{{INDEX_DIGITS},9}})", re.ASCII)


def new_job_id() -> str:
    """Return a random job id."""
    return JOB_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def check_job_id(job_id: str) -> str:
    """Return `job_id` if it is well-formed.

    Raises:
        TypeError: it is not a str.
        ValueError: it is not ``job-`` and up to 96 letters, digits, ``_`` and ``-``.
    """
    if _JOB_ID.fullmatch(text("job_id", job_id)) is None:
        raise ValueError(
            f"a job's id is 'job-' and up to {MAX_JOB_ID_CHARS - len(JOB_PREFIX)} letters, digits, "
            f"'_' and '-', not {job_id!r}"
        )
    return job_id


def is_job_id(run_id: str) -> bool:
    """Whether a run is a job, judged by its name."""
    return _JOB_ID.fullmatch(run_id) is not None


def task_id_of(job_id: str, index: int) -> str:
    """Return the id of a work item, which is also the id of its run."""
    return f"{job_id}.{index:0{INDEX_DIGITS}d}"


def split_task_id(task_id: str) -> tuple[str, int]:
    """Return the job id and the index of a work item.

    Raises:
        UnknownJobError: `task_id` is not the id of a work item.
    """
    match = _TASK_ID.fullmatch(task_id)
    if match is None or task_id_of(match[1], int(match[2])) != task_id:
        raise UnknownJobError(f"{task_id!r} is not the id of a work item, such as job-x.000012")
    return match[1], int(match[2])


def is_allowed(module: str, allow: Collection[str]) -> bool:
    """Whether a list of modules names this module or one of its parents."""
    return any(module == name or module.startswith(f"{name}.") for name in allow)
