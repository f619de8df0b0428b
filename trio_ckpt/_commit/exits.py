"""The exits of a batch, and which of them an exception takes."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import trio

from .._util.errors import BatchFailedError, RunStoppedError, StreamFailedError, leaves_of
from .batch import AttemptState, Batch, staged_of


class Exit(enum.Enum):
    """An exit of a batch: how an attempt is left."""

    NEXT = "next batch"
    CONFIRM = "confirm()"
    EXIT = "block left normally"
    ERROR = "left by an exception"
    CANCEL = "left by cancellation"

    __hash__ = object.__hash__


def exit_of(error: BaseException) -> Exit:
    """The exit that an exception takes: ERROR for the batch's own, CANCEL for one from outside.

    Cancellation, a stop of the run, and the exceptions that end a program come from outside.
    """
    outside = (trio.Cancelled, RunStoppedError, KeyboardInterrupt, SystemExit, GeneratorExit)
    is_outside = all(isinstance(leaf, outside) for leaf in leaves_of(error))
    return Exit.CANCEL if is_outside else Exit.ERROR


def is_ended_from_outside(batch: Batch[Any]) -> bool:
    """Whether a batch was failed or skipped because of a stop or a cancellation.

    ``except Exception as error: batch.fail(error)`` also catches the RunStoppedError of a call
    that the body awaits.  It says nothing about the batch: retries and skips are for failures.
    """
    if batch.state not in (AttemptState.FAILED, AttemptState.SKIPPED):
        return False
    error = staged_of(batch).error
    return isinstance(error, BaseException) and all(
        isinstance(leaf, trio.Cancelled | RunStoppedError) for leaf in leaves_of(error)
    )


def decisive(errors: Sequence[BaseException]) -> BaseException:
    """The failure that decides what a resume may do: the least retryable of several."""

    def rank(error: BaseException) -> int:
        if isinstance(error, BatchFailedError | StreamFailedError):
            return 1 if error.retryable else 0
        return 2

    return min(errors, key=rank)
