"""From a snapshot of a run to the answers of the monitor: plain functions, no I/O.

Everything starts from a `RunSnapshot`: the status of the run by its records, and what its owner
says of the moment, if there is an owner and it can be heard.  The ETA of a live run is that of
its own process (`_runs.run.Run.statistics`); nothing here computes another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import attrs

from .._journal.acts import paused_text
from .._journal.collection import CollectionOverview
from .._journal.history import KILLED, RUNNING, CheckpointView, SessionView, how_text
from .._journal.live_view import LiveView
from .._journal.overview import RunOverview, overview_of
from .._journal.progress import Progress
from .._journal.record import ErrorInfo, Status
from .._journal.statistics import stuck_after_s
from .._journal.summary import (
    RunStatus,
    Summary,
    count_statuses,
    left_of,
    percent_of,
    phase_statuses,
)
from .._util.plain import StreamKey
from .._util.text import stream_name, stream_names
from ._answers import (
    BatchCounts,
    CheckpointLine,
    FailureLine,
    GroupLine,
    Outcome,
    RunDetail,
    RunLine,
    Seen,
    SessionLine,
    Statistics,
    StatusWord,
    StoppingLine,
    StreamLine,
    ThroughputPoint,
    TokenLine,
    WaitingLine,
    make_answer,
    moment,
)

MAX_OUTPUTS = 20  # of one checkpoint, in the history
MAX_SHOWN = 50  # of each list in the view of one run


@attrs.frozen
class RunSnapshot:
    """A snapshot of a run at one moment.

    Attributes:
        run: The status of the run, by its records.
        live: What its owner is at; None: that cannot be seen.
        seen: How.
        at: The moment; Unix time, s.
        stuck_after_s: What is taken for stuck; None: `stuck_after` says.
    """

    run: RunStatus
    live: LiveView | None
    seen: Seen
    at: float
    stuck_after_s: float | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the live view comes from a process that is gone."""
        return self.run.owner is None

    @property
    def now(self) -> LiveView | None:
        """What a living owner is at; None: there is none, or that cannot be seen."""
        return None if self.is_stale else self.live

    @property
    def glance(self) -> RunGlance:
        """What a list shows of it."""
        run, keys = overview_of(self.run), self.run.keys
        return RunGlance(run, self.live, self.seen, self.at, self.stuck_after_s, keys)


@attrs.frozen
class RunGlance:
    """What a list shows of a run at one moment: less than a `RunSnapshot`, and read faster.

    Attributes:
        run: What its records add up to.
        live, seen, at, stuck_after_s: As those of a `RunSnapshot`.
        keys: Its streams, where their names are needed.
        collection: What it adds up to with its partitions; None: it is no collection.
    """

    run: RunOverview
    live: LiveView | None
    seen: Seen
    at: float
    stuck_after_s: float | None = None
    keys: Sequence[StreamKey] = ()
    collection: CollectionOverview | None = None

    @property
    def now(self) -> LiveView | None:
        """What a living owner is at; None: there is none, or that cannot be seen."""
        return None if self.run.owner is None else self.live


def word(status: Status) -> StatusWord:
    """A status as one word."""
    return cast("StatusWord", status.name.lower())


def _percent(summary: Summary) -> float | None:
    percent = percent_of(summary)
    return None if percent is None else round(percent, 2)


def stuck_after(snapshot: RunSnapshot | RunGlance) -> float:
    """The age from which a pending token counts as stuck, in seconds.

    By Little's law a batch takes as long as there are batches in flight, over their rate.
    """
    if snapshot.stuck_after_s is not None:
        return snapshot.stuck_after_s
    live = snapshot.live
    if live is None or not live.rate_per_s or not live.pending:
        return stuck_after_s(None)
    return stuck_after_s(live.pending / live.rate_per_s)


# ---------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------


def run_line(glance: RunGlance) -> RunLine:
    """A run, on one line."""
    run, now, summary, whole = glance.run, glance.now, glance.run.summary, glance.collection
    after_s = stuck_after(glance)
    tokens = now.tokens if now is not None else ()
    return make_answer(
        RunLine,
        summary,
        run=run.run_id,
        status=word(run.status),
        seen=glance.seen,
        running=run.owner is not None or _is_worked_on(whole),
        owner=run.owner,
        generation=run.generation,
        session=_session(glance),
        phase=run.phase,
        streams=_per_status(summary.streams),
        partitions=None if whole is None else _per_status(whole.partitions),
        batches=make_answer(BatchCounts, summary, left=left_of(summary)),
        progress_percent=_percent(summary) if whole is None else _percent_of_partitions(whole),
        rate_per_s=now.rate_per_s if now is not None else None,
        eta_s=_eta_s(glance, after_s),
        pending=now.pending if now is not None else None,
        oldest_pending_at=tokens[0].created_at if tokens else None,
        stuck=sum(token.is_older(after_s, glance.at) for token in tokens),
        stuck_after_s=after_s,
        waiting=_waiting(glance),
        stopping=_stopping(glance),
        produced=summary.totals,
        spent_on_confirmed=summary.saved,
        runtime_s=_runtime_s(glance),
        updated_at=run.last_activity,
        exit_code=run.exit_code,
    )


def _is_worked_on(whole: CollectionOverview | None) -> bool:
    return whole is not None and whole.partitions[Status.IN_PROGRESS] > 0


def _percent_of_partitions(whole: CollectionOverview) -> float:
    total = sum(whole.partitions.values())
    return round(100 * whole.partitions[Status.COMPLETE] / total, 2)


def _eta_s(glance: RunGlance, after_s: float) -> float | None:
    """As its owner says it, or the partitions of a collection; None: it is not known."""
    if glance.collection is not None:
        return glance.collection.eta_s
    now = glance.now
    return now.eta_s if now is not None and glance.at - now.at <= after_s else None


def _runtime_s(glance: RunGlance) -> float:
    if glance.now is None:
        return glance.run.runtime_s
    session = glance.run.session
    return glance.now.session_s + (0.0 if session is None else session.runtime_s)


def _session(glance: RunGlance) -> SessionLine | None:
    """The newest session, as the run's own stream says it."""
    session, now = glance.run.session, glance.now
    if session is None:
        return None
    counts = session.counts
    how = KILLED if session.ended is None else how_text(session.ended, session.reason)
    confirmed = None if counts is None else counts.batches
    return SessionLine(
        number=session.number,
        host=session.host,
        pid=session.pid,
        began=moment(session.began),
        ended=None if session.at is None else moment(session.at),
        how=RUNNING if glance.run.owner is not None else how,
        seconds=now.session_s if now is not None else _seconds(session.began, session.at),
        confirmed=now.session_confirmed if now is not None else confirmed,
        skipped=None if counts is None else counts.skipped,
        retries=None if counts is None else counts.retries,
    )


def session_line(session: SessionView) -> SessionLine:
    """A session out of the history."""
    counts = session.counts
    return make_answer(
        SessionLine,
        session,
        how=how_text(session.how, session.reason),
        seconds=_seconds(session.began, session.ended),
        confirmed=counts.get("batches"),
        skipped=counts.get("skipped"),
        retries=counts.get("retries"),
    )


def _seconds(began: float, ended: float | None) -> float | None:
    return None if ended is None else max(0.0, ended - began)


def _per_status(counts: Mapping[Status, int]) -> dict[str, int]:
    return {word(status): count for status, count in counts.items()}


def _waiting(glance: RunGlance) -> list[WaitingLine]:
    names = stream_names(glance.keys)
    return [
        make_answer(WaitingLine, entry, name=names.get(entry.stream, "/".join(entry.stream)))
        for entry in (glance.now.waiting[:MAX_SHOWN] if glance.now is not None else ())
    ]


def _stopping(glance: RunGlance) -> StoppingLine | None:
    stopping = None if glance.now is None else glance.now.stopping
    if stopping is None:
        return None
    names = stream_names(glance.keys)
    return make_answer(
        StoppingLine,
        stopping,
        batches=[
            f"{names.get(stream, stream_name(stream))} batch {index}"
            for stream, index in stopping.batches
        ],
        until=None if math.isinf(stopping.until) else stopping.until,
    )


def run_detail(
    snapshot: RunSnapshot, glance: RunGlance, throughput: Sequence[ThroughputPoint]
) -> RunDetail:
    """A run with what the page shows of it."""
    run = snapshot.run
    names, failures = stream_names(run.keys), list(failure_lines(snapshot))
    keys, groups = run.by_urgency(run.keys), group_lines(run)
    return make_answer(
        RunDetail,
        at=snapshot.at,
        run=run_line(glance),
        paused=paused_text(run.session_metadata) or None,
        phases={name: word(status) for name, status in phase_statuses(run.parts).items()},
        groups=groups[:MAX_SHOWN],
        groups_total=len(groups),
        streams=[stream_line(run, key, names[key]) for key in keys[:MAX_SHOWN]],
        streams_total=len(keys),
        pending=token_lines(snapshot, MAX_SHOWN),
        pending_total=snapshot.live.pending if snapshot.live is not None else 0,
        failures=failures[:MAX_SHOWN],
        failures_total=len(failures),
        pace=throughput,
    )


def statistics(snapshot: RunSnapshot, glance: RunGlance) -> Statistics:
    """The numbers of a run."""
    line, run = run_line(glance), snapshot.run
    groups = count_statuses(summary.status for summary in run.groups().values())
    session = line.session
    return make_answer(
        Statistics,
        line,
        at=snapshot.at,
        session_confirmed=session.confirmed if session is not None else None,
        session_seconds=session.seconds if session is not None else None,
        groups=_per_status(groups),
    )


# ---------------------------------------------------------------------------------------
# What is in a run
# ---------------------------------------------------------------------------------------


def stream_line(run: RunStatus, key: StreamKey, name: str) -> StreamLine:
    """A stream, on one line."""
    progress, summary = run.parts[key], run.summary([key], key)
    return make_answer(
        StreamLine,
        progress,
        stream=key,
        name=name,
        status=word(summary.status),
        batches=make_answer(BatchCounts, summary),
        progress_percent=_percent(summary),
        produced=summary.totals,
        spent=summary.spent,
        next_due=summary.next_due,
        checkpoints=progress.sequence,
    )


def group_lines(run: RunStatus) -> list[GroupLine]:
    """The groups of a run; none where every stream would be a group of its own."""
    if not any(len(key) > 1 for key in run.keys):
        return []
    summaries = run.groups()
    names = stream_names(summaries)
    return [
        GroupLine(
            group=list(key),
            name=names[key],
            status=word(summary.status),
            streams=sum(summary.streams.values()),
            batches=make_answer(BatchCounts, summary),
            progress_percent=_percent(summary),
        )
        for key, summary in summaries.items()
    ]


def token_lines(snapshot: RunSnapshot, limit: int) -> list[TokenLine]:
    """The pending tokens, oldest first."""
    tokens = () if snapshot.live is None else snapshot.live.tokens
    after_s, is_stale = stuck_after(snapshot), snapshot.is_stale
    names = stream_names({token.stream for token in tokens} | set(snapshot.run.keys))
    ages = [max(0.0, snapshot.at - token.created_at) for token in tokens]
    return [
        make_answer(
            TokenLine,
            token,
            name=names[token.stream],
            age_s=round(age_s, 3),
            begun_at=token.attempt_at,
            stuck=token.is_older(after_s, snapshot.at) and not is_stale,
            stale=is_stale,
        )
        for token, age_s in zip(tokens[:limit], ages, strict=False)
    ]


def failure_lines(snapshot: RunSnapshot) -> Iterator[FailureLine]:
    """What went wrong: streams that failed, batches that may run again or were given up, and
    snapshots that could not be saved."""
    run = snapshot.run
    names = stream_names(run.keys)

    def line(
        key: StreamKey, outcome: Outcome, error: object, index: int | None, attempts: int | None
    ) -> FailureLine:
        return make_answer(
            FailureLine,
            stream=key,
            name=names.get(key, stream_name(key)),
            batch_index=index,
            outcome=outcome,
            attempts=attempts,
            error=error,
        )

    for key in run.keys:
        if run.parts[key].status is Status.FAILED:
            yield line(key, "failed", run.parts[key].error, None, None)
    for key in run.keys:
        again: Outcome = "failed" if _is_over(run.parts[key]) else "may run again"
        for index, failure in sorted(run.parts[key].failures.items()):
            yield line(key, again, failure.error, index, failure.attempts)
    for key in run.keys:
        for index, failure in sorted(run.parts[key].skips.items()):
            yield line(key, "skipped", failure.error, index, failure.attempts)
    for one in () if snapshot.now is None else snapshot.now.left_out:
        error = ErrorInfo("NotSaved", one.problem)
        yield line(one.stream, "snapshot left out", error, None, one.count)


def _is_over(progress: Progress) -> bool:
    """Whether the stream failed for good: no start runs its batches again by itself."""
    error = progress.error
    return progress.status is Status.FAILED and error is not None and not error.retryable


def checkpoint_lines(checkpoints: Iterable[CheckpointView]) -> list[CheckpointLine]:
    """Checkpoints out of the history."""
    return [
        make_answer(
            CheckpointLine,
            one,
            outputs=one.outputs[:MAX_OUTPUTS],
            outputs_total=len(one.outputs),
            produced=one.totals,
        )
        for one in checkpoints
    ]
