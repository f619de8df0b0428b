"""Phases: named parts of a run that are done once, such as discovery before collection.

A phase is a stream of the library's own, ``("@phase", name)``, whose records say that it
was begun, failed or completed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio

from ._errors import text_of
from ._gate import Way, way_of
from ._lane import Lane
from ._records import ErrorInfo, Kind, Opened, Record, Status, describe_error
from ._saver import Saver
from ._words import printable

log = logging.getLogger("trio_ckpt.run")


@attrs.frozen
class Phase:
    """One phase of a run, as its block has it.

    Attributes:
        name: Its name.
        complete: Whether an earlier block of it ended well: there is nothing left to do.
        error: What the last block of it failed with, if it did.
    """

    name: str
    complete: bool
    error: ErrorInfo | None


@asynccontextmanager
async def open_phase(saver: Saver, lane: Lane) -> AsyncGenerator[Phase]:
    """Begin a phase, and complete it when the block ends without an exception."""
    progress = lane.progress
    is_complete = progress.status is Status.COMPLETE
    phase = Phase(lane.key[1], is_complete, progress.error)
    if is_complete:
        await trio.lowlevel.checkpoint()
        yield phase
        return
    now = time.time()
    await saver.save(lane, Record(kind=Kind.SAVE, at=now, opened=Opened(now, 0)))
    try:
        yield phase
    except BaseException as error:
        if way_of(error) is Way.ERROR and saver.poison is None:
            failure = Record(kind=Kind.FAIL, at=time.time(), error=describe_error(error))
            with trio.CancelScope(shield=True):
                try:
                    await saver.save(lane, failure)
                except Exception as problem:
                    log.error(
                        "phase %r failed, and saving that failed: %s",
                        phase.name,
                        printable(text_of(problem)),
                    )
        raise
    await saver.save(lane, Record(kind=Kind.FINISH, at=time.time()))
