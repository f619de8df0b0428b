"""The statistics of an open run and of its streams: what a session does is counted here alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import trio
from msgspec.structs import asdict

from .._commit.intents import saved_sums
from .._commit.open_stream import OpenStream
from .._commit.stream_log import Added, StreamLog
from .._journal.session_record import SessionCounts
from .._journal.statistics import (
    LeftOut,
    RunStatistics,
    Stopping,
    StreamStatistics,
    eta_s,
    rate_per_s,
    stuck_after_s,
)
from .._journal.summary import (
    count_statuses,
    current_phase,
    group_status,
    phase_statuses,
    summarize,
    summarize_groups,
)
from .._util.exact_sum import ExactSum, add_sums, shown, without_zeros
from .stream_table import StreamTable


def count_session(stream_logs: Collection[StreamLog]) -> SessionCounts:
    """What this session has done in some streams."""
    added = Added.by_session(stream_logs)
    return SessionCounts(
        batches=sum(stream_log.confirmed for stream_log in stream_logs),
        skipped=sum(stream_log.skipped for stream_log in stream_logs),
        retries=sum(stream_log.retries for stream_log in stream_logs),
        records=added.records,
        totals=shown(added.totals),
        spent=shown(added.spent),
    )


def _of_session(
    stream_logs: Collection[StreamLog],
    open_streams: Collection[OpenStream],
    *,
    session_s: float,
    before_s: float,
    left: int | None,
    ahead: int | None,
) -> dict[str, Any]:
    """The fields of `SessionStatistics` beside those of a `Summary`, and what is assumed.

    Args:
        stream_logs: The streams.
        open_streams: Those of them that are open.
        session_s: For how long they were open in this session, in seconds.
        before_s: For how long they were open in earlier sessions, in seconds.
        left: How many batches are left.
        ahead: How many of them this session has still to do.
    """
    assumed, reserved = dict[str, ExactSum](), dict[str, ExactSum]()
    for stream_log in stream_logs:
        add_sums(assumed, stream_log.progress.assumed)
    for open_stream in open_streams:
        add_sums(reserved, saved_sums(open_stream.open))
    add_sums(assumed, reserved, sign=-1)
    counts = count_session(stream_logs)
    rate = rate_per_s(counts.batches, session_s)
    return {
        "in_flight": sum(len(open_stream.open) for open_stream in open_streams),
        "session_confirmed": counts.batches,
        "session_skipped": counts.skipped,
        "session_retries": counts.retries,
        "session_records": counts.records,
        "session_totals": counts.totals,
        "session_spent": counts.spent,
        "reserved": shown(without_zeros(reserved)),
        "assumed": shown(without_zeros(assumed)),
        "runtime_s": before_s + session_s,
        "session_s": session_s,
        "rate_per_s": rate,
        "eta_s": eta_s(left, ahead, rate),
    }


def stream_statistics(
    open_stream: OpenStream, *, open_s: float, runtime_before_s: float, is_closed: bool
) -> StreamStatistics:
    """Counts, sums, rate and ETA of a stream, at this moment.

    Args:
        open_stream: The stream.
        open_s: For how long it has been open since it was last opened, in seconds.
        runtime_before_s: For how long it was open in earlier sessions, in seconds.
        is_closed: Whether it is closed: nothing waits, and trio's clock is not read.
    """
    stream_log, key = open_stream.stream_log, open_stream.stream_log.key
    session_s, left = stream_log.open_s + open_s, open_stream.extent.left
    is_open = not (is_closed or open_stream.has_failed)
    parts, opened = {key: stream_log.progress}, (key,) if is_open else ()
    whole = asdict(summarize(key, parts, open_streams=opened, lefts={key: left}))
    session = _of_session(
        [stream_log],
        [open_stream],
        session_s=session_s,
        before_s=runtime_before_s,
        left=left,
        ahead=0 if is_closed else _ahead_of(open_stream, trio.current_time(), session_s),
    )
    return StreamStatistics(
        **(whole | session),
        waiting=len(open_stream.tokens) - len(open_stream.open),
        pause=None if is_closed else open_stream.waiting(),
        state=None if open_stream.state_manager is None else open_stream.state_manager.statistics(),
    )


def run_statistics(table: StreamTable, stopping: Stopping | None) -> RunStatistics:
    """Counts, sums, rate and ETA of a run, at this moment.

    Args:
        table: The streams of the run.
        stopping: The stop that is under way; None: there is none.
    """
    mine, opened = table.of_users(), table.opened
    lefts = {key: open_stream.extent.left for key, open_stream in opened.items()}
    whole = summarize((), mine, open_streams=table.open_streams, lefts=lefts)
    statuses = [*phase_statuses(table.progress, open_phases=table.phases).values()]
    statuses += [whole.status] if mine else []
    groups = summarize_groups(table.progress, open_streams=table.open_streams)
    session = _of_session(
        [stream_log for key, stream_log in table.stream_logs.items() if key in mine],
        opened.values(),
        session_s=table.now - table.began,
        before_s=table.runtime_before_s,
        left=whole.left,
        ahead=_count_ahead(table),
    )
    fields: dict[str, Any] = asdict(whole) | session
    fields["status"] = group_status(statuses)
    if stopping is not None:
        fields["eta_s"] = None
    pauses = (open_stream.waiting() for open_stream in opened.values())
    managers = ((key, open_stream.state_manager) for key, open_stream in opened.items())
    return RunStatistics(
        **fields,
        current_phase=current_phase(table.progress),
        groups=count_statuses(summary.status for summary in groups.values()),
        waiting=tuple(pause for pause in pauses if pause is not None),
        left_out=tuple(
            LeftOut(key, manager.left_out, manager.problem)
            for key, manager in managers
            if manager is not None and manager.left_out
        ),
        stopping=stopping,
    )


def _count_ahead(table: StreamTable) -> int | None:
    """How many batches this session has still to do, in streams open or not opened yet."""
    found: list[int | None] = []
    for key, progress in table.of_users().items():
        open_stream, stream_log = table.opened.get(key), table.stream_logs.get(key)
        if open_stream is not None:
            found.append(_ahead_of(open_stream, table.now, table.now - table.began))
        elif stream_log is None or not stream_log.has_closed:
            found.append(progress.left)
    return None if None in found else sum(ahead or 0 for ahead in found)


def _ahead_of(open_stream: OpenStream, now: float, session_s: float) -> int | None:
    """How many batches a session has still to do in a stream; None where that is not known.

    It is 0 for a stream that has failed or is stuck.

    Args:
        open_stream: The stream.
        now: The time on trio's clock.
        session_s: For how long the stream was open in this session, in seconds.
    """
    stream_log = open_stream.stream_log
    usual_s = session_s / stream_log.confirmed if stream_log.confirmed else None
    is_stuck = bool(open_stream.open) and now - open_stream.moved_at > stuck_after_s(usual_s)
    if open_stream.has_failed or open_stream.failure is not None or is_stuck:
        return 0
    return open_stream.extent.ahead
