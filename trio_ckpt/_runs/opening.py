"""A run that is poisoned while it opens ends as one that is poisoned later."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from .._commit.group_commit import GroupCommitter
from .._util.errors import (
    EXIT_DRAINED,
    LeaseLostError,
    RunStoppedError,
    StoreConflictError,
    TrioCkptError,
)
from .announce import announce_stop
from .config import RunRequest


@contextmanager
def stopping_if_poisoned(request: RunRequest, committer: GroupCommitter) -> Generator[None]:
    """Open a block of the opening of a run.

    Raises:
        RunStoppedError: the run was poisoned in the block, as by a lost lease: a start goes on.
    """
    try:
        yield
    except TrioCkptError as error:
        poison = committer.poison
        if poison is None or is_replaced(poison) or poison not in (error, error.__cause__):
            raise
        stopped = RunStoppedError(
            request.run_id,
            exit_code=EXIT_DRAINED,
            resume_command=request.command,
            poison=poison,
        )
        announce_stop(request.run_id, stopped)
        raise stopped from poison


def is_replaced(poison: Exception | None) -> bool:
    """Whether a run was poisoned because its store was replaced, which no start mends."""
    return isinstance(poison, StoreConflictError) and not isinstance(poison, LeaseLostError)
