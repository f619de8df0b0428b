"""The answers of the monitor, as records.

One definition is the encoder and the schema in the OpenAPI document.  Moments are ISO 8601
in UTC; spans are seconds; the parts of a stream's key are an array, its name is a text.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .._util.exact_sum import Number

Amounts = dict[str, Number]
StatusWord = Literal["pending", "in_progress", "complete", "failed", "interrupted"]
Seen = Literal["inside", "published", "stored"]


class ApiRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all answers: every field is always present."""


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
    since: str


class BatchCounts(ApiRecord, frozen=True):
    """Batches of all sessions; ``left`` is null where it is unknown."""

    confirmed: int
    skipped: int
    failing: int
    left: int | None
    adopted: int


class SessionLine(ApiRecord, frozen=True):
    """One session of a run; ``seconds`` and the counts are null where it did not record them."""

    number: int
    host: str
    pid: int
    began: str
    ended: str | None
    how: str
    seconds: float | None
    confirmed: int | None
    skipped: int | None
    retries: int | None


class RunLine(ApiRecord, frozen=True):
    """A run at one moment.

    Attributes:
        run: Its id.
        status: Derived from its streams; in_progress while a process has it.
        seen: From inside the run's process, by what its owner has published, or by its records.
        running: Whether a process has it.
        owner: Which.
        generation: How often it was begun afresh.
        session: Its newest session.
        phase: The newest phase that is not complete.
        streams: How many there are of each status.
        batches: Of all sessions.
        progress_percent: Of all batches, where it is known how many there are.
        rate_per_s: Batches per second of this session; null before it is warm.
        eta_s: Seconds until nothing is left at that rate.
        pending: Tokens that are pending now; null where that cannot be seen.
        oldest_pending_at: When the oldest of them was made.
        stuck: How many of them are older than ``stuck_after_s``.
        stuck_after_s: What is taken for stuck, see `stuck_after`.
        waiting: Streams that wait, and for what.
        stopping: The stop that is under way; null: there is none, or it cannot be seen.
        records: Produced.
        produced: By name.
        spent: On all attempts, by name.
        spent_on_confirmed: What resuming saves.
        runtime_s: In all sessions, downtime left out.
        started_at, updated_at, completed_at: Moments; null: not yet.
        error: Of the stream that failed last.
        exit_code: What the program should exit with as it stands.
    """

    run: str
    status: StatusWord
    seen: Seen
    running: bool
    owner: OwnerLine | None
    generation: int
    session: SessionLine | None
    phase: str | None
    streams: dict[str, int]
    batches: BatchCounts
    progress_percent: float | None
    rate_per_s: float | None
    eta_s: float | None
    pending: int | None
    oldest_pending_at: str | None
    stuck: int
    stuck_after_s: float
    waiting: list[WaitingLine]
    stopping: StoppingLine | None
    records: int
    produced: Amounts
    spent: Amounts
    spent_on_confirmed: Amounts
    runtime_s: float
    started_at: str | None
    updated_at: str | None
    completed_at: str | None
    error: ErrorLine | None
    exit_code: int


class WaitingLine(ApiRecord, frozen=True):
    """A stream that waits before it begins another batch."""

    stream: list[str]
    name: str
    reason: str
    until: str


class StoppingLine(ApiRecord, frozen=True):
    """A stop that is under way.

    Attributes:
        open: How many batches it waits for.
        batches: The first of them, as ``STREAM batch INDEX``.
        until: When those that are open are cancelled; null: never.
    """

    open: int
    batches: list[str]
    until: str | None


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

    at: str
    store: str
    runs: list[RunLine]
    unreadable: list[UnreadableRun]
    total: int
    next: str | None
    actions: bool


class StreamLine(ApiRecord, frozen=True):
    """A stream at one moment."""

    stream: list[str]
    name: str
    status: StatusWord
    batches: BatchCounts
    progress_percent: float | None
    records: int
    produced: Amounts
    spent: Amounts
    checkpoints: int
    runtime_s: float
    started_at: str | None
    updated_at: str | None
    completed_at: str | None
    error: ErrorLine | None


class StreamPage(ApiRecord, frozen=True):
    """Streams, those first that need attention."""

    run: str
    streams: list[StreamLine]
    total: int
    next: int | None


class TokenLine(ApiRecord, frozen=True):
    """A pending token.

    Attributes:
        stream: The key of its stream.
        name: The same as a text.
        batch_index: Its batch.
        state: ``completed`` is on its way to the store.
        created_at: When its batch was handed out first.
        age_s: Since then.
        stuck: It is older than what is usual.
        stale: The process that had it is gone: it was pending then.
    """

    stream: list[str]
    name: str
    batch_index: int
    state: str
    created_at: str
    age_s: float
    stuck: bool
    stale: bool


class TokenList(ApiRecord, frozen=True):
    """The pending tokens of a run, oldest first."""

    run: str
    seen: Seen
    tokens: list[TokenLine]
    total: int


Outcome = Literal["may run again", "skipped", "failed", "snapshot left out"]


class FailureLine(ApiRecord, frozen=True):
    """A batch that failed or was given up, a stream that failed, or one whose snapshots do.

    Attributes:
        stream: The key of the stream.
        name: The same as a text.
        batch_index: The batch; null: the stream as a whole.
        outcome: ``may run again``, ``skipped``, or ``failed``: for good, alone or with its stream;
            ``snapshot left out``: the newest state inside a batch could not be saved, and the
            body goes on.
        attempts: How often it was tried; of snapshots how many were left out; null for a stream.
        error: The reason.
    """

    stream: list[str]
    name: str
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
    at: str
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


class PacePoint(ApiRecord, frozen=True):
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
    """

    at: str
    run: RunLine
    phases: dict[str, StatusWord]
    groups: list[GroupLine]
    groups_total: int
    streams: list[StreamLine]
    streams_total: int
    pending: list[TokenLine]
    pending_total: int
    failures: list[FailureLine]
    failures_total: int
    pace: list[PacePoint]


class Statistics(ApiRecord, frozen=True):
    """The numbers of a run at this moment; what only its own process knows is null elsewhere."""

    at: str
    run: str
    seen: Seen
    batches: BatchCounts
    records: int
    produced: Amounts
    spent: Amounts
    spent_on_confirmed: Amounts
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
