"""Every error of the library, under one root.

An error says what happened, to which batch, and what to do now.  Leaves also
inherit the builtin that fits: `RuntimeError` for a caller's bug, `ValueError`
for bad input, `OSError` is never imitated: the system's own errors are causes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from pathlib import Path


_CLASS_NAME = type.__dict__["__qualname__"]
_PARTS = BaseExceptionGroup.__dict__["exceptions"]
_MESSAGE = BaseExceptionGroup.__dict__["message"]

NURSERY_MESSAGES = frozenset(
    {"Exceptions from Trio nursery", "unhandled errors in a TaskGroup", "multiple tasks failed"}
)
"""What trio, asyncio and anyio write into their groups: it says nothing of what happened."""

MAX_PATH_CHARS = 200  # of the path to a leaf in a message: its keys may have any length
MAX_TOLD = 5  # different texts of the exceptions in a group


def leaves_of(
    error: BaseException, is_leaf: Callable[[BaseException], bool] | None = None
) -> list[BaseException]:
    """The exceptions of a group, each once, whatever groups are in it; of another one itself.

    Args:
        error: A group, or not; of any class.
        is_leaf: Which groups are not looked into.
    """
    found, left, seen = list[BaseException](), [error], set[int]()
    while left:  # not by recursion: a program may nest groups deeper than the stack is
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        is_group = issubclass(type(part), BaseExceptionGroup)
        if is_group and not (is_leaf is not None and is_leaf(part)):
            left += reversed(_PARTS.__get__(part))
        else:
            found.append(part)
    return found


def failures_in(error: BaseException) -> list[BaseException]:
    """The exceptions of a group that are not trio's cancellation of a task."""
    leaves = leaves_of(error)
    return [leaf for leaf in leaves if not issubclass(type(leaf), trio.Cancelled)]


def class_name(error: BaseException) -> str:
    """The name of an exception's class, whatever its metaclass makes of names.

    A plain group of nothing but exceptions of one class has the name of that class.
    """
    kind: type[BaseException] = type(error)
    if kind in (ExceptionGroup, BaseExceptionGroup):
        kinds = set(map(type, failures_in(error) or leaves_of(error)))
        kind = kinds.pop() if len(kinds) == 1 else kind
    name: str = _CLASS_NAME.__get__(kind)
    return name


def text_of(error: BaseException) -> str:
    """What an exception says; the name of its class where it says nothing.

    The exception may be of a user's class, whose ``__str__`` raises, exits, or returns anything:
    then the text says so.  This is the one place that asks a foreign exception for its text.
    A group says what its exceptions say.
    """
    try:
        if type(error).__str__ is BaseExceptionGroup.__str__:
            return _text_of_group(error)
        text = str.__str__(str(error))  # not that of a subclass of str
    except BaseException as problem:
        return f"{class_name(error)}, whose text cannot be made: {class_name(problem)}"
    return text or class_name(error)


def _text_of_group(group: BaseException) -> str:
    """The texts of the exceptions in a group, behind its own where that says something."""
    leaves = failures_in(group) or leaves_of(group)
    is_mixed = len(set(map(type, leaves))) > 1
    counts = dict[str, int]()
    for leaf in leaves:
        kind, text = class_name(leaf), text_of(leaf)
        if is_mixed and not text.startswith(kind):
            text = f"{kind}: {text}"
        counts[text] = counts.get(text, 0) + 1
    told = [text if count == 1 else f"{text} ({count} times)" for text, count in counts.items()]
    if len(told) > MAX_TOLD:
        told[MAX_TOLD:] = [f"and {len(told) - MAX_TOLD} more"]
    message = str.__str__(_MESSAGE.__get__(group))
    head = "" if message in NURSERY_MESSAGES else f"{message}: "
    return head + "; ".join(told)


class TrioCkptError(Exception):
    """The root: ``except TrioCkptError`` catches whatever this library raises.

    Attributes:
        run_id: The run it happened in, if it happened in one.
        stream: The parts of the stream's key; ``()`` where no stream is meant.
        batch_index: The batch, if it happened to one.
        details: What is stored beside its text with the attempt that it ended; JSON-like.
    """

    details: Mapping[str, Any] = MappingProxyType({})

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


def describe_batch(run_id: str | None, stream: tuple[str, ...], batch_index: int | None) -> str:
    """Name a batch the way every message does: ``batch 3 of 'run' ('repo', 'pulls')``."""
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
        reason: The text of the failure.  The exception that caused it, if there was
            one, is ``__cause__``.
    """

    def __init__(
        self,
        reason: str,
        *,
        run_id: str | None = None,
        stream: tuple[str, ...] = (),
        batch_index: int | None = None,
    ) -> None:
        where = describe_batch(run_id, stream, batch_index)
        super().__init__(
            f"the checkpoint of {where} failed: {reason}",
            run_id=run_id,
            stream=stream,
            batch_index=batch_index,
        )
        self.reason = reason


class BatchCancelledError(CheckpointFailedError):
    """The batch was cancelled, or its owner closed, before it was settled."""


class BatchWithdrawnError(CheckpointFailedError):
    """There was no such batch after all: its loop took it back with ``withdraw()``."""


class BatchFailedError(CheckpointFailedError):
    """The batch failed for good: nothing in the retry table lets it run again.

    Attributes:
        retryable: Whether a plain resume tries it again.
    """

    def __init__(
        self,
        reason: str,
        *,
        run_id: str | None = None,
        stream: tuple[str, ...] = (),
        batch_index: int | None = None,
        retryable: bool = True,
    ) -> None:
        super().__init__(reason, run_id=run_id, stream=stream, batch_index=batch_index)
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
    """

    def __init__(self, run_id: str, *, host: str, pid: int, since: str) -> None:
        if (host, pid) == (socket.gethostname(), os.getpid()):
            message = f"run {run_id!r} is open here already: process {pid} on {host} since {since}"
        else:
            message = (
                f"run {run_id!r} is owned by process {pid} on {host} since {since}; "
                "wait for it to end or stop it: the lock goes with its process"
            )
        super().__init__(message, run_id=run_id)
        self.host = host
        self.pid = pid
        self.since = since


class RunStoppedError(TrioCkptError, SystemExit):
    """The run was asked to stop and did so; start it again to go on.

    It is a `SystemExit`, too: where the program catches it nowhere, the process ends with
    `exit_code` and without a traceback.  ``except Exception`` catches it as any error.

    Attributes:
        exit_code: What a command should exit with: 75 when every open batch was
            saved or the run is poisoned, 130 or 143 when the stop was forced.
        resume_command: A shell line that goes on, or None where it is not known.
    """

    def __init__(
        self,
        run_id: str,
        *,
        exit_code: int,
        resume_command: str | None,
        poison: Exception | None = None,
    ) -> None:
        how = "every open batch is saved" if exit_code == EXIT_DRAINED else "at once"
        how = how if poison is None else f"nothing more can be saved: {poison}"
        then = f"; go on with: {resume_command}" if resume_command else ""
        super().__init__(f"run {run_id!r} was stopped ({how}){then}", run_id=run_id)
        self.code = self.exit_code = exit_code  # `code` is what Python ends a process with
        self.resume_command = resume_command


EXIT_COMPLETE = 0
EXIT_SKIPPED = 3
EXIT_FAILED = 69  # EX_UNAVAILABLE of sysexits.h: trying again changes nothing
EXIT_DRAINED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class StreamsStillOpenError(TrioCkptError, RuntimeError):
    """`open_run` was left while streams of it were open in other tasks."""


class StreamBusyError(TrioCkptError, RuntimeError):
    """A stream was used by another task than its owner's, opened twice, or by an old loop."""


class StreamFailedError(TrioCkptError):
    """The stream failed, now or in an earlier session.

    Attributes:
        reason: Why, in words.
        retryable: Whether a plain resume takes it up again.
    """

    def __init__(
        self,
        reason: str,
        *,
        run_id: str | None = None,
        stream: tuple[str, ...] = (),
        batch_index: int | None = None,
        retryable: bool = True,
    ) -> None:
        super().__init__(
            f"{describe_batch(run_id, stream, batch_index)} failed: {reason}",
            run_id=run_id,
            stream=stream,
            batch_index=batch_index,
        )
        self.reason = reason
        self.retryable = retryable


class UnknownRunError(TrioCkptError, LookupError):
    """There is no such run in the store."""


class UnknownStreamError(TrioCkptError, LookupError):
    """There is no such stream in the run."""


class StreamEndedError(TrioCkptError):
    """A stream ended without the batches that somebody waits for."""


class SourceChangedError(TrioCkptError, ValueError):
    """The batch source changed under what is confirmed, or ends before what is left.

    Attributes:
        was: What the record of the batch says of its item.
        now: What the source gives at that index today.
    """

    def __init__(
        self,
        was: str,
        now: str,
        *,
        run_id: str,
        stream: tuple[str, ...],
        batch_index: int,
        is_done: bool = True,
    ) -> None:
        where = describe_batch(run_id, stream, batch_index)
        what = f"was worked with item {was}" if is_done else f"is left of {was}"
        super().__init__(
            f"the source changed{' under what is confirmed' if is_done else ''}: {where} {what}, "
            f"the source now gives {now}; give the whole list that it was, from its first item on "
            "(start= and end= narrow it to a part, several lists are chained into one), use a "
            "Frontier for work without an order, or start over with fresh=True",
            run_id=run_id,
            stream=stream,
            batch_index=batch_index,
        )
        self.was = was
        self.now = now


class ConfigChangedError(TrioCkptError, ValueError):
    """The configuration differs from the one the run was begun with.

    Attributes:
        changes: One ``(field, was, now)`` per difference, sorted by field.
    """

    def __init__(self, run_id: str, changes: tuple[tuple[str, str, str], ...]) -> None:
        lines = "".join(f"\n  {name}: {was} -> {now}" for name, was, now in changes)
        super().__init__(
            f"the configuration of run {run_id!r} changed:{lines}\n"
            "restore it, or choose on_config_change='accept' to go on with the new one "
            "or 'restart' to archive the run and begin again",
            run_id=run_id,
        )
        self.changes = changes


# ---------------------------------------------------------------------------------------
# Results, outputs, state
# ---------------------------------------------------------------------------------------


class NotEncodableError(TrioCkptError, ValueError):
    """A value cannot be stored.

    Attributes:
        path: Where in the value the offending leaf is, ``metadata.loss[3]``; whole, where the
            message has its two ends.
        problem: What is wrong with that leaf, in words.
    """

    def __init__(self, path: str, problem: str) -> None:
        ends = path
        if len(path) > MAX_PATH_CHARS:
            ends = f"{path[: MAX_PATH_CHARS // 2]}…{path[-MAX_PATH_CHARS // 2 :]}"
        super().__init__(f"{ends} cannot be stored: {problem}")
        self.path = path
        self.problem = problem


class OutputError(TrioCkptError):
    """Something is wrong with an output file.

    Attributes:
        path: The output, relative to the run's output folder; empty where none is meant.
    """

    def __init__(
        self,
        path: str | Path | None,
        problem: str,
        *,
        run_id: str | None = None,
        stream: tuple[str, ...] = (),
        batch_index: int | None = None,
    ) -> None:
        super().__init__(
            problem if path is None else f"output {str(path)!r}: {problem}",
            run_id=run_id,
            stream=stream,
            batch_index=batch_index,
        )
        self.path = "" if path is None else str(path)


class OutputClaimedError(OutputError, ValueError):
    """Another batch has confirmed a file of this name already."""


class OutputExistsError(OutputError):
    """A file that is older than the run has the name of an output: it is not written over."""


class OutputInvalidError(OutputError, ValueError):
    """An output is not what the stream's ``validate=`` asks for.

    Attributes:
        field: Where in it, ``lines[3].text``; empty: the whole.
        reason: What is wrong there.
    """

    def __init__(
        self,
        path: str,
        field: str,
        reason: str,
        *,
        run_id: str | None = None,
        stream: tuple[str, ...] = (),
        batch_index: int | None = None,
    ) -> None:
        super().__init__(path, reason, run_id=run_id, stream=stream, batch_index=batch_index)
        self.args = (": ".join(part for part in (path, field, reason) if part),)
        self.field = field
        self.reason = reason


class OutputsMissingError(OutputError):
    """So many confirmed outputs are gone that the folder itself is in doubt."""


class CannotRedoError(OutputError):
    """A confirmed output is damaged and its batch cannot be redone alone."""


class SinkClosedError(OutputError):
    """An append sink failed to reach the disk; it takes nothing more in this session."""


# ---------------------------------------------------------------------------------------
# Stores
# ---------------------------------------------------------------------------------------


class StoreError(TrioCkptError):
    """A store cannot be opened, read or written; the message says which and why."""


class StoreConflictError(StoreError):
    """Another owner has the run now, or the store was removed or replaced under this one."""


class StoreDamagedError(StoreError):
    """What the store returned is not what was saved: refused, never guessed."""


class StoreVersionError(StoreError):
    """The store was written by another version of the library, or is not one of ours."""


class ForkedProcessError(TrioCkptError, RuntimeError):
    """A forked child used a run, a store or a thread of its parent, of which it has nothing."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked from the one that opened the run or the store, and has "
            "nothing of it: no lock, no thread, no connection; open a store of its own here, or "
            "end the child with os._exit()"
        )


class NoThreadError(TrioCkptError, RuntimeError):
    """The system starts no more threads for this process; what needed one was not begun."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"no thread can be started ({error}), so nothing was begun: raise the limit on threads "
            "(ulimit -u, or that of the container), free memory, or do less at once"
        )


class ArchiveError(TrioCkptError, RuntimeError):
    """A run cannot be written into an archive, or taken out of one; the message says why."""


class SaveOutcomeUnknownError(StoreError):
    """A save has neither ended nor failed: nobody knows whether it landed.

    The run is poisoned: this process saves nothing more.  The next start reads the
    store and learns what landed.
    """
