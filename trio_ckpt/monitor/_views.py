"""From a snapshot of a run to the answers of the monitor: plain functions, no I/O.

Everything starts from a `RunSnapshot`: a look at the run's records, and what its owner says of
the moment, if there is an owner and it can be heard.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import attrs

from .._journal.history import KILLED, RUNNING, CheckpointView, SessionView, run_runtime_s
from .._journal.progress import Progress
from .._journal.record import ErrorInfo, Status
from .._journal.run_status import RunStatus
from .._journal.statistics import stuck_after_s
from .._journal.summary import Summary, current_phase, failing, groups_of, phase_statuses, status_of
from .._runs.live_view import LiveToken, LiveView
from .._util.exact_sum import shown
from .._util.plain import StreamKey
from .._util.text import stream_name, stream_names
from ._records import (
    BatchCounts,
    CheckpointLine,
    ErrorLine,
    FailureLine,
    GroupLine,
    Outcome,
    OutputLine,
    OwnerLine,
    PacePoint,
    RunDetail,
    RunLine,
    Seen,
    SessionLine,
    Statistics,
    StatusWord,
    StoppingLine,
    StreamLine,
    TokenLine,
    WaitingLine,
)

MAX_OUTPUTS = 20  # of one checkpoint, in the history
MAX_SHOWN = 50  # of each list in the view of one run

_URGENCY = (Status.FAILED, Status.IN_PROGRESS, Status.INTERRUPTED, Status.PENDING, Status.COMPLETE)


@attrs.frozen
class RunSnapshot:
    """A snapshot of a run at one moment.

    Attributes:
        look: Its records.
        live: What its owner is at; None: that cannot be seen.
        seen: How.
        at: The moment; Unix time, s.
        stuck_after_s: What is taken for stuck; None: `stuck_after` says.
    """

    look: RunStatus
    live: LiveView | None
    seen: Seen
    at: float
    stuck_after_s: float | None = None

    @property
    def is_stale(self) -> bool:
        """Whether the live view comes from a process that is gone."""
        return self.look.owner is None


def iso(at: float | None) -> str | None:
    """A moment for programs, to the millisecond: ages are made of it."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def iso_now(at: float) -> str:
    """A known moment as ISO 8601 text in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def word(status: Status) -> StatusWord:
    """A status as one word."""
    return cast("StatusWord", status.name.lower())


def percent(done: int, left: int | None, status: Status) -> float | None:
    """The percentage done of what can be done; None where it is unknown.

    100 is said of what is complete, and of nothing that failed.
    """
    if left is None or not done + left or (left == 0 and status is not Status.COMPLETE):
        return None
    return round(100 * done / (done + left), 2)


def stuck_after(standing: RunSnapshot) -> float:
    """The age from which a pending token counts as stuck, in seconds.

    By Little's law a batch takes as long as there are batches in flight, over their rate.
    """
    if standing.stuck_after_s is not None:
        return standing.stuck_after_s
    live = standing.live
    if live is None or not live.rate_per_s or not live.pending:
        return stuck_after_s(None)
    return stuck_after_s(live.pending / live.rate_per_s)


# ---------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------


def run_line(standing: RunSnapshot) -> RunLine:
    """A run, on one line."""
    look, live = standing.look, standing.live
    summary = look.summary()
    left = summary.left if any(summary.streams.values()) else None
    fresh = None if standing.is_stale else live
    after_s = stuck_after(standing)
    tokens = fresh.tokens if fresh is not None else ()
    return RunLine(
        run=look.run_id,
        status=word(look.status_of(summary)),
        seen=standing.seen,
        running=look.owner is not None,
        owner=_owner(standing),
        generation=look.view.generation,
        session=_session(standing),
        phase=current_phase(look.parts),
        streams=_per_status(summary.streams),
        batches=_counts(summary, left),
        progress_percent=percent(summary.confirmed + summary.skipped, left, summary.status),
        rate_per_s=fresh.rate_per_s if fresh is not None else None,
        eta_s=fresh.eta_s if fresh is not None and standing.at - fresh.at <= after_s else None,
        pending=fresh.pending if fresh is not None else None,
        oldest_pending_at=iso(tokens[0].created_at) if tokens else None,
        stuck=sum(standing.at - token.created_at >= after_s for token in tokens),
        stuck_after_s=after_s,
        waiting=_waiting(standing),
        stopping=_stopping(standing),
        records=summary.records,
        produced=dict(summary.totals),
        spent=dict(summary.spent),
        spent_on_confirmed=dict(summary.saved),
        runtime_s=_runtime_s(standing),
        started_at=iso(summary.started_at),
        updated_at=iso(look.last_activity()),
        completed_at=iso(summary.completed_at),
        error=error_line(summary.error),
        exit_code=look.exit_code(),
    )


def _runtime_s(standing: RunSnapshot) -> float:
    facts, live = standing.look.facts, standing.live
    if live is not None and not standing.is_stale:
        return float(facts.get("runtime_s", 0.0)) + live.session_s
    return run_runtime_s(standing.look.view)


def _owner(standing: RunSnapshot) -> OwnerLine | None:
    owner = standing.look.owner
    if owner is None:
        return None
    return OwnerLine(host=owner.host, pid=owner.pid, since=iso_now(owner.since.timestamp()))


def _session(standing: RunSnapshot) -> SessionLine | None:
    """The newest session, as the run's own stream says it."""
    facts = standing.look.facts
    if not facts:
        return None
    live = None if standing.is_stale else standing.live
    counts: Mapping[str, Any] = facts.get("counts", {})
    ended = facts.get("at")
    if live is not None:
        seconds: float | None = live.session_s
    else:
        seconds = None if ended is None else max(0.0, ended - facts["began"])
    return SessionLine(
        number=facts["session"],
        host=facts["host"],
        pid=facts["pid"],
        began=iso_now(facts["began"]),
        ended=iso(ended),
        how=RUNNING if standing.look.owner is not None else facts.get("ended", KILLED),
        seconds=seconds,
        confirmed=live.session_confirmed if live is not None else counts.get("batches"),
        skipped=counts.get("skipped"),
        retries=counts.get("retries"),
    )


def session_line(session: SessionView) -> SessionLine:
    """A session out of the history."""
    counts = session.counts
    return SessionLine(
        number=session.number,
        host=session.host,
        pid=session.pid,
        began=iso_now(session.began),
        ended=iso(session.ended),
        how=session.how,
        seconds=None if session.ended is None else max(0.0, session.ended - session.began),
        confirmed=counts.get("batches"),
        skipped=counts.get("skipped"),
        retries=counts.get("retries"),
    )


def _per_status(counts: Mapping[Status, int]) -> dict[str, int]:
    return {word(status): count for status, count in counts.items()}


def _counts(summary: Summary, left: int | None) -> BatchCounts:
    return BatchCounts(
        confirmed=summary.confirmed,
        skipped=summary.skipped,
        failing=summary.failing,
        left=left,
        adopted=summary.adopted,
    )


def _waiting(standing: RunSnapshot) -> list[WaitingLine]:
    if standing.live is None or standing.is_stale:
        return []
    names = stream_names(standing.look.keys)
    return [
        WaitingLine(
            stream=list(entry.stream),
            name=names.get(entry.stream, "/".join(entry.stream)),
            reason=entry.reason,
            until=iso_now(entry.until),
        )
        for entry in standing.live.waiting[:MAX_SHOWN]
    ]


def _stopping(standing: RunSnapshot) -> StoppingLine | None:
    if standing.live is None or standing.is_stale or standing.live.stopping is None:
        return None
    stopping = standing.live.stopping
    names = stream_names(standing.look.keys)
    return StoppingLine(
        open=stopping.open,
        batches=[
            f"{names.get(stream, stream_name(stream))} batch {index}"
            for stream, index in stopping.batches
        ],
        until=None if math.isinf(stopping.until) else iso_now(stopping.until),
    )


def error_line(error: ErrorInfo | None) -> ErrorLine | None:
    """A remembered error."""
    if error is None:
        return None
    return ErrorLine(
        type=error.type,
        message=error.message,
        retryable=error.retryable,
        batch_index=error.batch_index,
    )


def run_detail(standing: RunSnapshot, pace: Sequence[PacePoint]) -> RunDetail:
    """A run with what the page shows of it."""
    look = standing.look
    names, failures = stream_names(look.keys), list(failure_lines(standing))
    keys = by_urgency(look)
    groups = group_lines(look)
    tokens = token_lines(standing, MAX_SHOWN)
    return RunDetail(
        at=iso_now(standing.at),
        run=run_line(standing),
        phases={name: word(s) for name, s in phase_statuses(look.parts).items()},
        groups=groups[:MAX_SHOWN],
        groups_total=len(groups),
        streams=[stream_line(look, key, names[key]) for key in keys[:MAX_SHOWN]],
        streams_total=len(keys),
        pending=tokens,
        pending_total=standing.live.pending if standing.live is not None else 0,
        failures=failures[:MAX_SHOWN],
        failures_total=len(failures),
        pace=list(pace),
    )


def statistics(standing: RunSnapshot) -> Statistics:
    """The numbers of a run."""
    line, look = run_line(standing), standing.look
    groups = dict.fromkeys(Status, 0)
    for key, parts in groups_of(look.parts).items():
        groups[look.summary(list(parts), key).status] += 1
    session = line.session
    return Statistics(
        at=iso_now(standing.at),
        run=line.run,
        seen=line.seen,
        batches=line.batches,
        records=line.records,
        produced=line.produced,
        spent=line.spent,
        spent_on_confirmed=line.spent_on_confirmed,
        session_confirmed=session.confirmed if session is not None else None,
        session_seconds=session.seconds if session is not None else None,
        rate_per_s=line.rate_per_s,
        eta_s=line.eta_s,
        pending=line.pending,
        runtime_s=line.runtime_s,
        streams=line.streams,
        groups=_per_status(groups),
    )


# ---------------------------------------------------------------------------------------
# What is in a run
# ---------------------------------------------------------------------------------------


def by_urgency(look: RunStatus) -> list[StreamKey]:
    """The streams, those first that need attention; else in their order."""
    return sorted(look.keys, key=lambda key: _URGENCY.index(_status(look, key)))


def _status(look: RunStatus, key: StreamKey) -> Status:
    return status_of(look.parts[key], is_open=key in look.open_streams)


def stream_line(look: RunStatus, key: StreamKey, name: str) -> StreamLine:
    """A stream, on one line."""
    progress = look.parts[key]
    done = len(progress.confirmed) + len(progress.skipped)
    return StreamLine(
        stream=list(key),
        name=name,
        status=word(_status(look, key)),
        batches=BatchCounts(
            confirmed=len(progress.confirmed),
            skipped=len(progress.skipped),
            failing=failing(progress),
            left=progress.left,
            adopted=len(progress.adopted),
        ),
        progress_percent=percent(done, progress.left, progress.status),
        records=progress.records,
        produced=dict(shown(progress.totals)),
        spent=dict(shown(progress.spent)),
        checkpoints=progress.sequence,
        runtime_s=progress.runtime_s,
        started_at=iso(progress.started_at),
        updated_at=iso(progress.updated_at),
        completed_at=iso(progress.completed_at),
        error=error_line(progress.error),
    )


def group_lines(look: RunStatus) -> list[GroupLine]:
    """The groups of a run; none where every stream would be a group of its own."""
    if not any(len(key) > 1 for key in look.keys):
        return []
    groups = {key: list(parts) for key, parts in groups_of(look.parts).items()}
    names = stream_names(groups)
    lines: list[GroupLine] = []
    for key, members in groups.items():
        summary = look.summary(members, key)
        lines.append(
            GroupLine(
                group=list(key),
                name=names[key],
                status=word(summary.status),
                streams=len(members),
                batches=_counts(summary, summary.left),
                progress_percent=percent(
                    summary.confirmed + summary.skipped, summary.left, summary.status
                ),
            )
        )
    return lines


def token_lines(standing: RunSnapshot, limit: int) -> list[TokenLine]:
    """The pending tokens, oldest first."""
    live = standing.live
    if live is None:
        return []
    after_s, stale = stuck_after(standing), standing.is_stale
    names = stream_names({token.stream for token in live.tokens} | set(standing.look.keys))

    def line(token: LiveToken) -> TokenLine:
        age_s = max(0.0, standing.at - token.created_at)
        return TokenLine(
            stream=list(token.stream),
            name=names[token.stream],
            batch_index=token.batch_index,
            state=token.state,
            created_at=iso_now(token.created_at),
            age_s=round(age_s, 3),
            stuck=age_s >= after_s and not stale,
            stale=stale,
        )

    return [line(token) for token in live.tokens[:limit]]


def failure_lines(standing: RunSnapshot) -> Iterator[FailureLine]:
    """What went wrong: streams that failed, batches that may run again or were given up, and
    snapshots that could not be saved."""
    look = standing.look
    names = stream_names(look.keys)
    failed = [key for key in look.keys if look.parts[key].status is Status.FAILED]
    for key in failed:
        yield FailureLine(
            stream=list(key),
            name=names[key],
            batch_index=None,
            outcome="failed",
            attempts=None,
            error=error_line(look.parts[key].error),
        )
    for is_skipped in (False, True):
        for key in look.keys:
            yield from _batch_failures(look.parts[key], key, names[key], is_skipped=is_skipped)
    for one in () if standing.live is None or standing.is_stale else standing.live.left_out:
        yield FailureLine(
            stream=list(one.stream),
            name=names.get(one.stream, stream_name(one.stream)),
            batch_index=None,
            outcome="snapshot left out",
            attempts=one.count,
            error=ErrorLine(type="NotSaved", message=one.problem, retryable=True, batch_index=None),
        )


def _is_over(progress: Progress) -> bool:
    """Whether the stream failed for good: no start runs its batches again by itself."""
    error = progress.error
    return progress.status is Status.FAILED and error is not None and not error.retryable


def _batch_failures(
    progress: Progress, key: StreamKey, name: str, *, is_skipped: bool
) -> Iterator[FailureLine]:
    again: Outcome = "failed" if _is_over(progress) else "may run again"
    failures = progress.skips if is_skipped else progress.failures
    for index, failure in sorted(failures.items()):
        yield FailureLine(
            stream=list(key),
            name=name,
            batch_index=index,
            outcome="skipped" if is_skipped else again,
            attempts=failure.attempts,
            error=error_line(failure.error),
        )


def checkpoint_lines(checkpoints: Iterable[CheckpointView]) -> list[CheckpointLine]:
    """Checkpoints out of the history."""
    return [
        CheckpointLine(
            sequence=one.sequence,
            kind=one.kind,
            at=iso_now(one.at),
            batch_index=one.batch_index,
            attempts=one.attempts,
            records=one.records,
            outputs=[
                OutputLine(path=output.path, size=output.size, sha256=output.sha256)
                for output in one.outputs[:MAX_OUTPUTS]
            ],
            outputs_total=len(one.outputs),
            produced=dict(one.totals),
            spent=dict(one.spent),
            state_bytes=one.state_bytes,
            error=error_line(one.error),
        )
        for one in checkpoints
    ]
