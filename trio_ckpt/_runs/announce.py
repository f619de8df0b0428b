"""The two lines of the log that each user sees: how a run resumes, and how to go on after a stop.

They have a logger of their own, so that a program that reports them itself can silence them.
"""

from __future__ import annotations

import logging

from .._util.errors import RunStoppedError
from .._util.log import at, get_logger
from .session import ResumeReport

log = get_logger(__name__)


def announce_start(run_id: str, found: ResumeReport, *, is_of_program: bool) -> None:
    """Log how a run begins or resumes.

    Args:
        run_id: The run.
        found: What the store has of it.
        is_of_program: Whether the run is the program itself, which leaves signals to it: the line
            is a WARNING then, which Python shows without any configuration.
    """
    if not found.sessions:
        log.info("run %r begins: %s", run_id, found, extra=at(run_id))
        return
    level = logging.WARNING if is_of_program else logging.INFO
    log.log(level, "run %r resumes: %s", run_id, found, extra=at(run_id))


def announce_stop(run_id: str, stopped: RunStoppedError) -> None:
    """Log the line that goes on: once, here, wherever the program catches the error."""
    log.warning("%s", stopped, extra=at(run_id))
