"""The answers of the monitor, as records, and the one function that makes them.

One definition is the encoder and the schema in the OpenAPI document.  Moments are ISO 8601
in UTC; spans are seconds; the parts of a stream's key are an array, its name is a text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, TypeVar

import msgspec

from .._util.exact_sum import Number

Amounts = dict[str, Number]
StatusWord = Literal["pending", "in_progress", "complete", "failed", "interrupted"]
Seen = Literal["inside", "published", "stored"]


class Moment(str):
    """A moment as ISO 8601 text in UTC, to the millisecond: viewers compute ages from it."""

    __slots__ = ()


class ApiRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all answers: every field is always present."""


A = TypeVar("A", bound=ApiRecord)


def make_answer(kind: type[A], source: object = None, /, **fields: object) -> A:
    """Make an answer: a field that is not given has the value of that attribute of `source`.

    msgspec checks each value against the type of its field, at any depth, and turns Unix times,
    errors and outputs into what the answer has of them.

    Raises:
        AttributeError: a field is neither given nor an attribute of `source`.
        msgspec.ValidationError: a value is not of the type of its field.
    """
    values = {
        name: fields[name] if name in fields else getattr(source, name)
        for name in kind.__struct_fields__
    }
    return msgspec.convert(
        values, kind, from_attributes=True, dec_hook=lambda _kind, value: moment(value)
    )


def moment(at: float | datetime) -> Moment:
    """Return a moment in its JSON form.

    Args:
        at: Unix time, s; or a moment with a time zone.
    """
    when = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return Moment(when.astimezone(UTC).isoformat(timespec="milliseconds"))


def encode_answer(answer: ApiRecord) -> bytes:
    """Return an answer as JSON, on one line."""
    return msgspec.json.encode(answer, enc_hook=str)  # of a `Moment`, its text


class Problem(ApiRecord, frozen=True):
    """What went wrong with a request.

    Attributes:
        code: For programs: one of a few words.
        message: For people.
    """

    code: str
    message: str


class Refusal(ApiRecord, frozen=True):
    """The body of every answer that is not a success."""

    error: Problem


class ErrorLine(ApiRecord, frozen=True):
    """An error that a program left in its records."""

    type: str
    message: str
    retryable: bool
    batch_index: int | None


class OwnerLine(ApiRecord, frozen=True):
    """The process that has a run."""

    host: str
    pid: int
    since: Moment


class BatchCounts(ApiRecord, frozen=True):
    """Batches of all sessions; ``left`` is null where it is unknown."""

    confirmed: int
    skipped: int
    failing: int
    deferred: int
    left: int | None
    adopted: int


class SessionLine(ApiRecord, frozen=True):
    """One session of a run; ``seconds`` and the counts are null where it did not record them."""

    number: int
    host: str
    pid: int
    began: Moment
    ended: Moment | None
    how: str
    seconds: float | None
    confirmed: int | None
    skipped: int | None
    retries: int | None


class WorkLine(ApiRecord, frozen=True):
    """What a run and a stream have in common.

    Attributes:
        status: The status of the streams; in_progress while a process has them.
        batches: Of all sessions.
        progress_percent: Of all batches, where it is known how many there are.
        records: Produced.
        produced: By name.
        spent: On all attempts, by name.
        runtime_s: In all sessions, downtime left out.
        started_at, updated_at, completed_at: Moments; null: not yet.
        error: Of the stream that failed last.
        next_due: When the first deferred batch is due; null: none is deferred.
    """

    status: StatusWord
    batches: BatchCounts
    progress_percent: float | None
    records: int
    produced: Amounts
    spent: Amounts
    runtime_s: float
    started_at: Moment | None
    updated_at: Moment | None
    completed_at: Moment | None
    error: ErrorLine | None
    next_due: Moment | None


class RunLine(WorkLine, frozen=True):
    """A run at one moment.

    Attributes:
        run: Its id.
        seen: From inside the run's process, by what its owner has published, or by its records.
        running: Whether a process has it.
        owner: Which.
        generation: How often it was begun afresh.
        session: Its newest session.
        phase: The newest phase that is not complete.
        streams: How many there are of each status.
        partitions: How many partitions of a collection have each status; null: it is none.  Its
            batches and sums are those of its partitions, as they were last left.
        rate_per_s: Batches per second of this session; null before it is warm.
        eta_s: Seconds until nothing is left at that rate; of a collection, until its partitions
            are complete at the present number of owners.
        pending: Tokens that are pending now; null where that cannot be seen.
        oldest_pending_at: When the oldest of them was made.
        stuck: How many of them have an attempt that is older than ``stuck_after_s``.
        stuck_after_s: What is taken for stuck, see `stuck_after`.
        waiting: Streams that wait, and for what.
        stopping: The stop that is under way; null: there is none, or it cannot be seen.
        spent_on_confirmed: What resuming saves.
        assumed: What attempts have reserved and not settled; it counts as spent.
        noted: What the notes of batches cost that are not confirmed; it counts as spent.
        exit_code: What the program should exit with as it stands.
    """

    run: str
    seen: Seen
    running: bool
    owner: OwnerLine | None
    generation: int
    session: SessionLine | None
    phase: str | None
    streams: dict[str, int]
    partitions: dict[str, int] | None
    rate_per_s: float | None
    eta_s: float | None
    pending: int | None
    oldest_pending_at: Moment | None
    stuck: int
    stuck_after_s: float
    waiting: list[WaitingLine]
    stopping: StoppingLine | None
    spent_on_confirmed: Amounts
    assumed: Amounts
    noted: Amounts
    exit_code: int


class StreamName(ApiRecord, frozen=True):
    """The stream that a line is about.

    Attributes:
        stream: The parts of its key.
        name: The same as a text.
    """

    stream: list[str]
    name: str


class WaitingLine(StreamName, frozen=True):
    """A stream that waits before it begins another batch."""

    reason: str
    until: Moment


class StoppingLine(ApiRecord, frozen=True):
    """A stop that is under way.

    Attributes:
        open: How many batches it waits for.
        batches: The first of them, as ``STREAM batch INDEX``.
        until: When those that are open are cancelled; null: never.
    """

    open: int
    batches: list[str]
    until: Moment | None


class UnreadableRun(ApiRecord, frozen=True):
    """A run whose records are damaged."""

    run: str
    message: str


class RunList(ApiRecord, frozen=True):
    """The runs of the store, by id.

    Attributes:
        at: When this was made.
        store: Where they are.
        runs: One page of them.
        unreadable: Those of the page that cannot be read.
        total: How many there are.
        next: Give it as ``after`` for the next page; null: that was the last.
        actions: Whether the server takes actions.
    """

    at: Moment
    store: str
    runs: list[RunLine]
    unreadable: list[UnreadableRun]
    total: int
    next: str | None
    actions: bool


class StreamLine(WorkLine, frozen=True):
    """A stream at one moment."""

    stream: list[str]
    name: str
    checkpoints: int


class StreamPage(ApiRecord, frozen=True):
    """Streams, those first that need attention."""

    run: str
    streams: list[StreamLine]
    total: int
    next: int | None


class TokenLine(StreamName, frozen=True):
    """A pending token.

    Attributes:
        batch_index: Its batch.
        state: ``completed`` is on its way to the store.
        created_at: When its batch was handed out first.
        age_s: Since then.
        begun_at: When the newest attempt began.
        waits_until: When the next attempt may begin, where the newest has failed; null: it is
            under way.
        stuck: The attempt has been under way for longer than is usual.
        stale: The process that had it is gone: it was pending then.
    """

    batch_index: int
    state: str
    created_at: Moment
    age_s: float
    begun_at: Moment
    waits_until: Moment | None
    stuck: bool
    stale: bool


class TokenList(ApiRecord, frozen=True):
    """The pending tokens of a run, oldest first."""

    run: str
    seen: Seen
    tokens: list[TokenLine]
    total: int


Outcome = Literal["may run again", "skipped", "failed", "snapshot left out"]


class FailureLine(StreamName, frozen=True):
    """A batch that failed or was given up, a stream that failed, or one whose snapshots do.

    Attributes:
        batch_index: The batch; null: the stream as a whole.
        outcome: ``may run again``, ``skipped``, or ``failed``: for good, alone or with its stream;
            ``snapshot left out``: the newest state inside a batch could not be saved, and the
            body goes on.
        attempts: How often it was tried; of snapshots how many were left out; null for a stream.
        error: The reason.
    """

    batch_index: int | None
    outcome: Outcome
    attempts: int | None
    error: ErrorLine | None


class FailureList(ApiRecord, frozen=True):
    """What went wrong, the worst first."""

    run: str
    failures: list[FailureLine]
    total: int


class OutputLine(ApiRecord, frozen=True):
    """A file that a batch left behind."""

    path: str
    size: int
    sha256: str


class CheckpointLine(ApiRecord, frozen=True):
    """One checkpoint of a stream."""

    sequence: int
    kind: str
    at: Moment
    batch_index: int | None
    attempts: int
    records: int
    outputs: list[OutputLine]
    outputs_total: int
    produced: Amounts
    spent: Amounts
    state_bytes: int
    error: ErrorLine | None


class HistoryAnswer(ApiRecord, frozen=True):
    """The checkpoints of a stream, newest first.

    Attributes:
        run: The run.
        stream: The key of the stream.
        checkpoints: A page of them.
        next: Give it as ``cursor`` for the next page; null: that was the last.
    """

    run: str
    stream: list[str]
    checkpoints: list[CheckpointLine]
    next: str | None


class SessionList(ApiRecord, frozen=True):
    """The sessions of a run, the newest first."""

    run: str
    sessions: list[SessionLine]
    total: int


class ThroughputPoint(ApiRecord, frozen=True):
    """Batches confirmed per second over the time before a moment (Unix time, s)."""

    at: float
    per_s: float


class GroupLine(ApiRecord, frozen=True):
    """What the streams under one first part add up to."""

    group: list[str]
    name: str
    status: StatusWord
    streams: int
    batches: BatchCounts
    progress_percent: float | None


class RunDetail(ApiRecord, frozen=True):
    """A run with what the page shows of it.

    Lists are cut to what a page holds; the totals say how long they are, and each has a path of
    its own.

    Attributes:
        paused: Since when it is paused, by whom and why; null: it is not.
    """

    at: Moment
    run: RunLine
    paused: str | None
    phases: dict[str, StatusWord]
    groups: list[GroupLine]
    groups_total: int
    streams: list[StreamLine]
    streams_total: int
    pending: list[TokenLine]
    pending_total: int
    failures: list[FailureLine]
    failures_total: int
    pace: list[ThroughputPoint]


class Statistics(ApiRecord, frozen=True):
    """The numbers of a run at this moment; what only its own process knows is null elsewhere."""

    at: Moment
    run: str
    seen: Seen
    batches: BatchCounts
    records: int
    produced: Amounts
    spent: Amounts
    spent_on_confirmed: Amounts
    assumed: Amounts
    noted: Amounts
    session_confirmed: int | None
    session_seconds: float | None
    rate_per_s: float | None
    eta_s: float | None
    pending: int | None
    runtime_s: float
    streams: dict[str, int]
    groups: dict[str, int]


class Done(ApiRecord, frozen=True):
    """The result of an action."""

    done: str
    count: int
