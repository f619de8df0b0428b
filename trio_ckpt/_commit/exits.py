"""The law of the exits: how a batch can be left, and what the gate does then.

`GATE` is the whole law as a table, a row for each state of an attempt, a column for each exit; a
test has each of its cells.  `trio_ckpt._commit.gate` carries it out.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec
import trio

from .._journal.observer import AttemptEnd
from .._tokens.token import CANCELLED, WITHDRAWN, Failure
from .._util.errors import BatchFailedError, RunStoppedError, StreamFailedError
from .._util.exceptions import leaves_of
from .batch import AnyBatch, AttemptState, staged_of


class Ending(msgspec.Struct, frozen=True):
    """How an attempt ended, as its record says it.

    Attributes:
        end: The kind of its end.
        error: What went wrong; None: nothing did, or no reason was given.
        retryable: Whether a plain resume may try the batch again.
        is_chosen: Whether the body decided it, by a skip with a text as its reason.
        due: Until when the batch is deferred; Unix time, s; None: it is not.
    """

    end: AttemptEnd
    error: BaseException | str | None = None
    retryable: bool = True
    is_chosen: bool = False
    due: float | None = None

    @property
    def is_failure(self) -> bool:
        """Whether the attempt has failed: it is neither confirmed nor withdrawn nor chosen."""
        if self.end is AttemptEnd.DEFERRED:
            return self.error is not None
        ends = (AttemptEnd.FAILED, AttemptEnd.RETRIED, AttemptEnd.SKIPPED)
        return self.end in ends and not self.is_chosen


CONFIRMED = Ending(AttemptEnd.CONFIRMED)


class Exit(enum.Enum):
    """An exit of a batch: how an attempt is left."""

    NEXT = "next batch"
    CONFIRM = "confirm()"
    COMMIT = "transaction() ends"
    EXIT = "block left normally"
    ERROR = "left by an exception"
    CANCEL = "left by cancellation"

    __hash__ = object.__hash__


class GateAction(enum.Enum):
    """What the gate does."""

    PASS = "nothing"  # noqa: S105  # no password
    REFUSE = "TokenNeverSettledError; the token stays PENDING"
    FORGOTTEN = "fail with TokenNeverSettledError, save, raise it"
    FAIL = "fail with the exception, save"
    CANCEL = "BatchCancelledError for waiters; no record"
    SAVE = "check, capture, save, confirm"
    REJECT = "FAILED, runs again; no record"
    SAVE_OR_REJECT = "save, shielded; with a state: as OPEN"
    WAIT = "wait for its outcome"
    DECIDE = "as the retry table says: save, then again, go on, or raise"
    GIVE_UP = "save, raise BatchFailedError"
    RECORD = "save"
    END = "save; the loop ends"
    FORGET = "WITHDRAWN; no record"
    ILLEGAL = "RuntimeError"


GATE: dict[AttemptState, dict[Exit, GateAction]] = {
    AttemptState.OVER: dict.fromkeys(Exit, GateAction.PASS),
    AttemptState.OPEN: {
        Exit.NEXT: GateAction.FORGOTTEN,
        Exit.CONFIRM: GateAction.REFUSE,
        Exit.COMMIT: GateAction.REFUSE,
        Exit.EXIT: GateAction.FORGOTTEN,
        Exit.ERROR: GateAction.FAIL,
        Exit.CANCEL: GateAction.CANCEL,
    },
    AttemptState.COMPLETED: {
        Exit.NEXT: GateAction.SAVE,
        Exit.CONFIRM: GateAction.SAVE,
        Exit.COMMIT: GateAction.SAVE,
        Exit.EXIT: GateAction.SAVE,
        Exit.ERROR: GateAction.REJECT,
        Exit.CANCEL: GateAction.SAVE_OR_REJECT,
    },
    AttemptState.SUBMITTED: dict.fromkeys(Exit, GateAction.WAIT),
    AttemptState.FAILED: {
        Exit.NEXT: GateAction.DECIDE,
        Exit.CONFIRM: GateAction.GIVE_UP,
        Exit.COMMIT: GateAction.PASS,
        Exit.EXIT: GateAction.GIVE_UP,
        Exit.ERROR: GateAction.RECORD,
        Exit.CANCEL: GateAction.RECORD,
    },
    AttemptState.SKIPPED: dict.fromkeys(Exit, GateAction.RECORD) | {Exit.COMMIT: GateAction.PASS},
    AttemptState.DEFERRED: dict.fromkeys(Exit, GateAction.RECORD) | {Exit.COMMIT: GateAction.PASS},
    AttemptState.WITHDRAWN: {
        Exit.NEXT: GateAction.END,
        Exit.CONFIRM: GateAction.ILLEGAL,
        Exit.COMMIT: GateAction.PASS,
        Exit.EXIT: GateAction.END,
        Exit.ERROR: GateAction.FORGET,
        Exit.CANCEL: GateAction.FORGET,
    },
}


def exit_of(error: BaseException) -> Exit:
    """The exit that an exception takes: ERROR for the batch's own, CANCEL for one from outside.

    Cancellation, a stop of the run, and the exceptions that end a program come from outside.
    """
    outside = (trio.Cancelled, RunStoppedError, KeyboardInterrupt, SystemExit, GeneratorExit)
    is_outside = all(isinstance(leaf, outside) for leaf in leaves_of(error))
    return Exit.CANCEL if is_outside else Exit.ERROR


def is_ended_from_outside(batch: AnyBatch) -> bool:
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


def raised_for(error: BaseException, verdicts: Sequence[BatchFailedError]) -> BaseException:
    """The verdict of the retry table on an exception of a handler, else the exception."""
    return next((verdict for verdict in verdicts if verdict.__cause__ is error), error)


def verdicts_in(error: BaseException, verdicts: Sequence[BatchFailedError]) -> list[BaseException]:
    """The exceptions of a group, each replaced by the verdict on it where there is one."""
    parts = leaves_of(error, lambda part: raised_for(part, verdicts) is not part)
    return [raised_for(part, verdicts) for part in parts]


def decisive(errors: Sequence[BaseException]) -> BaseException:
    """The failure that decides what a resume may do: the least retryable of several."""

    def rank(error: BaseException) -> int:
        if isinstance(error, BatchFailedError | StreamFailedError):
            return 1 if error.retryable else 0
        return 2

    return min(errors, key=rank)


def settled_ending(batch: AnyBatch) -> Ending:
    """How an attempt ended that its body has failed, skipped or deferred."""
    staged = staged_of(batch)
    if batch.state is AttemptState.SKIPPED:
        why = staged.error or "it was skipped"
        is_chosen = isinstance(why, str)  # an exception is a failure: see `Limits`
        return Ending(AttemptEnd.SKIPPED, why, is_chosen=is_chosen)
    if batch.state is AttemptState.DEFERRED:
        return Ending(AttemptEnd.DEFERRED, due=staged.due)
    return Ending(AttemptEnd.FAILED, staged.error or "it failed")


def end_of(failure: Failure) -> AttemptEnd:
    """How an attempt ended that leaves no record."""
    if failure is WITHDRAWN:
        return AttemptEnd.WITHDRAWN
    return AttemptEnd.INTERRUPTED if failure is CANCELLED else AttemptEnd.FAILED
