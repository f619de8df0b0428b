"""How a run begins that was paused, notes its code, or is poisoned while it opens."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._commit.group_commit import GroupCommitter
from .._journal.acts import paused_text
from .._util.errors import (
    EXIT_DRAINED,
    LeaseLostError,
    RunStoppedError,
    StoreConflictError,
    TrioCkptError,
)
from .._util.log import at, get_logger
from .._util.plain import Plain
from .announce import announce_stop
from .config import RunRequest
from .open_run import OpenRun
from .session import SessionRecorder

if TYPE_CHECKING:
    from .code import Code, CodeWatch

log = get_logger(__name__)


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


def begin_paused(run: OpenRun, session: SessionRecorder) -> None:
    """Let a run that was paused start paused, and say so."""
    paused = paused_text(session.metadata)
    if not paused:
        return
    run.stop.pause()
    log.warning(
        "run %r starts paused %s; nothing is handed out until: trio-ckpt ctl STORE %s resume",
        run.run_id,
        paused,
        shlex.quote(run.run_id),
        extra=at(run.run_id),
    )


def code_of(code: object) -> Code:
    """Check the argument ``code``; see `checked_code`."""
    from .code import checked_code  # only a run that notes its code needs it

    return checked_code(code)


def code_watch(code: Code, session: SessionRecorder) -> CodeWatch:
    """What notes the code of the streams of a session."""
    from .code import CodeWatch  # as above

    return CodeWatch(code, session.metadata["session"])


async def code_facts_of(code: Code) -> dict[str, Plain]:
    """What a session records of its code; see `read_code_facts`."""
    from .code import read_code_facts  # as above

    return await read_code_facts(code)
