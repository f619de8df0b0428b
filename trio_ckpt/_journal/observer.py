"""The contract of observers, which users can implement: what a run does, as it happens."""

from __future__ import annotations

import enum

import msgspec

from .._util.plain import StreamKey


class Attempt(msgspec.Struct, frozen=True):
    """One attempt at one batch, as observers get it.

    Attributes:
        run_id: The run.
        stream: The key of its stream.
        batch_index: The batch.
        number: The number of the attempt, from 1, counted over all sessions.
    """

    run_id: str
    stream: StreamKey
    batch_index: int
    number: int


class AttemptEnd(enum.Enum):
    """How an attempt ended."""

    CONFIRMED = "confirmed"
    SKIPPED = "skipped"
    DEFERRED = "deferred"  # its batch is handed out again when it is due
    RETRIED = "retried"  # it failed, and the retry table has the batch run again
    FAILED = "failed"  # for good, or the checkpoint was not saved
    WITHDRAWN = "withdrawn"
    INTERRUPTED = "interrupted"  # cancelled before it was settled: it runs again on resume


class Observer:
    """Called with what a run does as it happens, for metrics and traces.

    Derive from it and override the methods of interest; give it to ``open_run(observe=...)`` or
    `Run.observing`.  All methods are called synchronously in the run's own trio thread, so they
    must be quick and must not wait.  An exception of theirs, also SystemExit, is logged and has
    no other effect.
    """

    def attempt_began(self, attempt: Attempt) -> None:
        """Called when a batch is handed out, in the task that works on it."""

    def attempt_settled(self, attempt: Attempt) -> None:
        """Called when the body has settled the batch: its record is about to be saved."""

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        """Called when the attempt is over; where it leaves a record, that is durable.

        Args:
            attempt: The attempt.
            end: How it ended.
            error: What went wrong, as text; None: nothing did.
        """

    def attempt_left(self, attempt: Attempt) -> None:
        """Called after `attempt_ended`, in the task that worked on the batch, as it goes on."""

    def bytes_saved(self, run_id: str, size: int) -> None:
        """Called when the store has saved checkpoints, folds or a blob of `size` bytes."""
