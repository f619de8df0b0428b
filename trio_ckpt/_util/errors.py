"""The root of every error of the library, and most of the errors.

An error says what happened, to which batch, and what to do.  Its type says who is to blame.
Leaves also inherit the builtin that fits.  None inherits `OSError`: the system's own errors are
causes.

    to blame            builtin         errors
    ------------------  --------------  ---------------------------------------------------------
    the program's code  `RuntimeError`  CannotRunAgainError, CodeChangedError,
                                        DuplicateCheckpointError, ForkedProcessError,
                                        PartitionsLeftError, StreamBusyError,
                                        StreamsStillOpenError, TokenNeverSettledError
    what it is given    `ValueError`,   ConfigChangedError, NotEncodableError, OutputClaimedError,
                        `LookupError`   SourceChangedError, UnknownRunError, UnknownStreamError
    the work itself     `ValueError`    BatchFailedError, OutputInvalidError, StreamFailedError,
                        for an output   StreamEndedError, CheckpointFailedError
    another process     none            LeaseLostError, RunLockedError, SinkFencedError,
                                        StoreConflictError
    the disk            none            CannotRedoError, OutputError, OutputExistsError,
                                        OutputsMissingError, SaveOutcomeUnknownError,
                                        SinkClosedError, SinkError, StoreDamagedError, StoreError,
                                        StoreVersionError
    the machine         `RuntimeError`  ArchiveError, NoThreadError
    none: it has ended  `SystemExit`    BatchCancelledError, BatchWithdrawnError, RunStoppedError
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    from pathlib import Path


MAX_PATH_CHARS = 200  # of the path to a leaf in a message: its keys may have any length


_PACKAGE = __name__.partition(".")[0]


def _public_module(name: str) -> str:
    """The public module of a class of this package: the names before the first private one."""
    return name.partition("._")[0] if name.startswith(f"{_PACKAGE}.") else name


class TrioCkptError(Exception):
    """The root: ``except TrioCkptError`` catches all errors of this library.

    Attributes:
        run_id: The run in which it happened; None: none.
        stream: The parts of the stream's key; ``()``: none.
        batch_index: The batch to which it happened; None: none.
        details: JSON-like values that are saved beside its text with the attempt that it ended.
    """

    details: Mapping[str, object] = MappingProxyType({})

    def __init_subclass__(cls, *, is_internal: bool = False, **more: object) -> None:
        """Give a public error the name in tracebacks by which programs import it."""
        super().__init_subclass__(**more)
        if not is_internal:
            cls.__module__ = _public_module(cls.__module__)

    def __init__(
        self,
        message: str,
        *,
        run_id: str | None = None,
        stream: tuple[str, ...] = (),
        batch_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.stream = stream
        self.batch_index = batch_index


TrioCkptError.__module__ = _PACKAGE


class ErrorPlace(TypedDict, total=False):
    """The run, the stream and the batch of an error, as far as it has them."""

    run_id: str | None
    stream: tuple[str, ...]
    batch_index: int | None


def describe_batch(
    run_id: str | None = None, stream: tuple[str, ...] = (), batch_index: int | None = None
) -> str:
    """A batch as every message names it: ``batch 3 of run 'r', stream 'repo/pulls'``."""
    where = f"run {run_id!r}" if run_id is not None else "no run"
    if stream:
        where = f"{where}, stream {'/'.join(stream)!r}"
    return where if batch_index is None else f"batch {batch_index} of {where}"


# ---------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------


class CheckpointFailedError(TrioCkptError):
    """`CheckpointToken.wait` raises this when the checkpoint will never be confirmed.

    Attributes:
        reason: The text of the failure.  The exception that caused it, if any, is ``__cause__``.
    """

    def __init__(self, reason: str, **place: Unpack[ErrorPlace]) -> None:
        super().__init__(f"{describe_batch(**place)} failed: {reason}", **place)
        self.reason = reason


class BatchCancelledError(CheckpointFailedError):
    """The batch was cancelled, or its owner closed, before it was settled."""


class BatchWithdrawnError(CheckpointFailedError):
    """The batch does not exist: its loop has withdrawn it with ``withdraw()``."""


class BatchFailedError(CheckpointFailedError):
    """The batch failed for good: no rule of the retry table lets it run again.

    Attributes:
        retryable: Whether a plain resume tries it again.
    """

    def __init__(self, reason: str, *, retryable: bool = True, **place: Unpack[ErrorPlace]) -> None:
        super().__init__(reason, **place)
        self.retryable = retryable


class TokenNeverSettledError(TrioCkptError, RuntimeError):
    """A batch was left without ``complete``, ``fail``, ``skip`` or ``withdraw``."""


class DuplicateCheckpointError(TrioCkptError, RuntimeError):
    """A token for this batch is pending already."""


# ---------------------------------------------------------------------------------------
# Runs and streams
# ---------------------------------------------------------------------------------------


class RunLockedError(TrioCkptError):
    """Another live process (or another `open_run` of this one) owns the run.

    Attributes:
        host: Its host name.
        pid: Its process id.
        since: When it took the run, ISO 8601, UTC.
        lease_left_s: How long its lease lasts unless that process renews it, in seconds; None: it
            has a lock that ends with its process.
    """

    def __init__(
        self, run_id: str, *, host: str, pid: int, since: str, lease_left_s: float | None = None
    ) -> None:
        message = f"run {run_id!r} is owned by process {pid} on {host} since {since}; "
        if lease_left_s is not None:
            message += (
                f"its lease ends in {lease_left_s:.1f} s unless that process renews it: wait for "
                "that (wait_for_lock_s), or stop the process"
            )
        elif (host, pid) == (socket.gethostname(), os.getpid()):
            message = f"run {run_id!r} is open here already: process {pid} on {host} since {since}"
        else:
            message += "wait for it to end or stop it: the lock goes with its process"
        super().__init__(message, run_id=run_id)
        self.host = host
        self.pid = pid
        self.since = since
        self.lease_left_s = lease_left_s


class RunStoppedError(TrioCkptError, SystemExit):
    """The run was stopped on request; start it again to resume it.

    It is a `SystemExit`, too: where the program does not catch it, the process ends with
    `exit_code` and without a traceback.  ``except Exception`` catches it as any error.

    Attributes:
        exit_code: The exit code for a command: 75 when every open batch was saved or the run is
            poisoned, 130 or 143 when the stop was forced.
        resume_command: A shell line that resumes the run; None: it is not known.
        reason: Why it stopped by itself, such as the limit that it has reached; None: a signal or
            the program stopped it.
        next_due: When a start has something to do, if all that was left was deferred; None: a
            start goes on at once.
    """

    def __init__(
        self,
        run_id: str,
        *,
        exit_code: int,
        resume_command: str | None,
        poison: Exception | None = None,
        reason: str | None = None,
        next_due: float | None = None,
    ) -> None:
        how = "every open batch is saved" if exit_code == EXIT_DRAINED else "at once"
        how = how if poison is None else f"nothing more can be saved: {poison}"
        why = f" by its {reason}" if reason else ""
        then = f"; go on with: {resume_command}" if resume_command else ""
        super().__init__(f"run {run_id!r} was stopped{why} ({how}){then}", run_id=run_id)
        self.code = self.exit_code = exit_code  # `code` is what Python ends a process with
        self.resume_command = resume_command
        self.reason = reason
        self.next_due = None if next_due is None else datetime.fromtimestamp(next_due, UTC)


EXIT_COMPLETE = 0
EXIT_SKIPPED = 3
EXIT_FAILED = 69  # EX_UNAVAILABLE of sysexits.h: trying again changes nothing
EXIT_DRAINED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_SIGINT = 130  # a forced stop exits with 128 + its signal, as in shells
EXIT_SIGTERM = 143


class StreamsStillOpenError(TrioCkptError, RuntimeError):
    """`open_run` was left while streams of it were open in other tasks."""


class StreamBusyError(TrioCkptError, RuntimeError):
    """A stream was used by a task that does not own it, by an old loop, or opened twice."""


class StreamFailedError(TrioCkptError):
    """The stream failed, now or in an earlier session.

    Attributes:
        reason: Why, as text.
        retryable: Whether a plain resume retries it.
    """

    def __init__(self, reason: str, *, retryable: bool = True, **place: Unpack[ErrorPlace]) -> None:
        super().__init__(f"{describe_batch(**place)} failed: {reason}", **place)
        self.reason = reason
        self.retryable = retryable


class UnknownRunError(TrioCkptError, LookupError):
    """The store has no such run."""


class UnknownStreamError(TrioCkptError, LookupError):
    """The run has no such stream."""


class StreamEndedError(TrioCkptError):
    """A stream ended without the batches that a task waits for."""


class SourceChangedError(TrioCkptError, ValueError):
    """The items of confirmed batches have changed, or the source ends before batches left to do.

    Attributes:
        was: The item in the record of the batch.
        now: The item that the source gives at that index now.
    """

    def __init__(
        self, was: str, now: str, *, is_done: bool = True, **place: Unpack[ErrorPlace]
    ) -> None:
        where = describe_batch(**place)
        what = f"was worked with item {was}" if is_done else f"is left of {was}"
        super().__init__(
            f"the source changed{' under what is confirmed' if is_done else ''}: {where} {what}, "
            f"the source now gives {now}; give the whole list that it was, from its first item on "
            "(start= and end= narrow it to a part, several lists are chained into one), use a "
            "Frontier for work without an order, or start over with fresh=True",
            **place,
        )
        self.was = was
        self.now = now


class CodeChangedError(TrioCkptError, RuntimeError):
    """The code of a stream is not the one that confirmed its batches, and that is refused."""


class ConfigChangedError(TrioCkptError, ValueError):
    """The configuration differs from the one the run was begun with.

    Attributes:
        changes: ``(field, was, now)`` for each difference, sorted by field.
    """

    def __init__(
        self,
        run_id: str,
        changes: tuple[tuple[str, str, str], ...],
        *,
        remedy: str = "restore it, or choose on_config_change='accept' to go on with the new one "
        "or 'restart' to archive the run and begin again",
    ) -> None:
        lines = "".join(f"\n  {name}: {was} -> {now}" for name, was, now in changes)
        super().__init__(
            f"the configuration of run {run_id!r} changed:{lines}\n{remedy}", run_id=run_id
        )
        self.changes = changes


class PartitionsLeftError(TrioCkptError, RuntimeError):
    """A collection cannot be finished: some of its partitions are not complete.

    Attributes:
        failed: The runs of the partitions that failed for good.
        left: The runs of those that were left with work, and that no process owns.
    """

    def __init__(self, name: str, failed: tuple[str, ...], left: tuple[str, ...]) -> None:
        parts: list[str] = []
        if failed:
            parts.append(f"{len(failed):,} failed for good, such as {failed[0]!r}")
        if left:
            parts.append(f"{len(left):,} were left with work, such as {left[0]!r}")
        then = "start it again" if left else "start it again with retry_failed=True"
        super().__init__(
            f"collection {name!r} cannot be finished: of its partitions {', '.join(parts)}; {then}",
            run_id=name,
        )
        self.failed = failed
        self.left = left


class CannotRunAgainError(TrioCkptError, RuntimeError):
    """A run, or a stream of it, cannot begin from its last generation; the message says why."""


# ---------------------------------------------------------------------------------------
# Results, outputs, state
# ---------------------------------------------------------------------------------------


class NotEncodableError(TrioCkptError, ValueError):
    """A value cannot be stored.

    Attributes:
        path: The path of the bad leaf in the value, ``metadata.loss[3]``; the message shortens a
            long one.
        problem: What is wrong with that leaf, as text.
    """

    def __init__(self, path: str, problem: str) -> None:
        ends = path
        if len(path) > MAX_PATH_CHARS:
            ends = f"{path[: MAX_PATH_CHARS // 2]}…{path[-MAX_PATH_CHARS // 2 :]}"
        super().__init__(f"{ends} cannot be stored: {problem}")
        self.path = path
        self.problem = problem


_PREDICATES = ("is ", "has ", "was ", "cannot ")  # of a problem whose subject is the output


class OutputError(TrioCkptError):
    """Something is wrong with an output file.

    Attributes:
        path: The output, relative to the run's output folder; empty: none.
    """

    def __init__(self, path: str | Path | None, problem: str, **place: Unpack[ErrorPlace]) -> None:
        joint = "" if problem.startswith(_PREDICATES) else ":"
        message = problem if path is None else f"output {str(path)!r}{joint} {problem}"
        super().__init__(message, **place)
        self.path = "" if path is None else str(path)


class OutputClaimedError(OutputError, ValueError):
    """Another batch has confirmed a file of this name already."""


class OutputExistsError(OutputError):
    """A file that is older than the run has the name of an output: it is not overwritten."""


class OutputInvalidError(OutputError, ValueError):
    """An output does not pass the stream's ``validate=``.

    Attributes:
        field: The place in the output, ``lines[3].text``; empty: the whole output.
        reason: What is wrong there.
    """

    def __init__(self, path: str, field: str, reason: str, **place: Unpack[ErrorPlace]) -> None:
        super().__init__(path, reason, **place)
        self.args = (": ".join(part for part in (path, field, reason) if part),)
        self.field = field
        self.reason = reason


class OutputsMissingError(OutputError):
    """So many confirmed outputs are missing that the folder may be the wrong one."""


class CannotRedoError(OutputError):
    """A confirmed output is damaged and its batch cannot be redone alone."""


class SinkClosedError(OutputError):
    """An append file could not be written; it takes no more lines in this session."""


# ---------------------------------------------------------------------------------------
# Databases of users
# ---------------------------------------------------------------------------------------


class SinkError(TrioCkptError):
    """A database of the user cannot be used with a stream; the message says which and why."""


class SinkFencedError(SinkError):
    """The database knows a newer owner of the stream: this process commits nothing more there."""


# ---------------------------------------------------------------------------------------
# Stores
# ---------------------------------------------------------------------------------------


class StoreError(TrioCkptError):
    """A store cannot be opened, read or written; the message says which and why."""


class StoreConflictError(StoreError):
    """Another owner has the run now or the caller has not locked it, or the store was replaced."""


class LeaseLostError(StoreConflictError):
    """The lease of a run could not be renewed in time, or another process has taken the run over.

    The run is poisoned: this process saves nothing more.  `open_run` ends with `RunStoppedError`,
    this as its cause.
    """


class StoreDamagedError(StoreError):
    """What the store returned is not what was saved: refused, never guessed."""


class StoreVersionError(StoreError):
    """The store was written by another version of the library, or by another program."""


class ForkedProcessError(TrioCkptError, RuntimeError):
    """A forked child used a run, a store or a thread, which belong to its parent."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked from the one that opened the run or the store, and has none "
            "of its locks, threads and connections; open another store here, or end the child "
            "with os._exit()"
        )


class NoThreadError(TrioCkptError, RuntimeError):
    """The system starts no more threads for this process; the call that needs one did not begin."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"no thread can be started ({error}), so nothing was begun: raise the limit on threads "
            "(ulimit -u, or that of the container), free memory, or run less at once"
        )


class ArchiveError(TrioCkptError, RuntimeError):
    """A run cannot be exported to an archive, or imported from one; the message says why."""


class SaveOutcomeUnknownError(StoreError):
    """A save has neither ended nor failed, so that its outcome is unknown.

    The run is poisoned: this process saves nothing more.  The next start reads the
    store and learns what is durable.
    """
