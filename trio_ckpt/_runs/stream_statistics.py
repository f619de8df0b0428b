"""Where an open stream stands, in numbers."""

from __future__ import annotations

import trio

from .._commit.gate import Gate
from .._commit.stream_log import Added
from .._journal.statistics import StreamStatistics, eta_s, rate_per_s
from .._util.exact_sum import shown


def stream_statistics(
    desk: Gate, *, open_s: float, runtime_before_s: float, is_closed: bool
) -> StreamStatistics:
    """Counts, sums, rate and ETA of a stream, at this moment.

    Args:
        desk: The stream.
        open_s: For how long it has been open, this time.
        runtime_before_s: Seconds that earlier sessions worked on it.
        is_closed: It is not open any more: nothing waits, and no clock is needed.
    """
    lane, progress = desk.lane, desk.lane.progress
    session_s = lane.open_s + open_s
    rate = rate_per_s(lane.confirmed, session_s)
    left = desk.left()
    ahead = 0 if is_closed else desk.ahead(trio.current_time(), session_s)
    session = Added.by_session([lane])
    return StreamStatistics(
        confirmed=len(progress.confirmed),
        skipped=len(progress.skipped),
        left=left,
        in_flight=len(desk.open),
        waiting=len(desk.tokens) - len(desk.open),
        pause=None if is_closed else desk.waiting(),
        records=progress.records,
        totals=shown(progress.totals),
        spent=shown(progress.spent),
        saved=shown(progress.spent_confirmed),
        adopted=len(progress.adopted),
        session_confirmed=lane.confirmed,
        session_skipped=lane.skipped,
        session_retries=lane.retries,
        session_records=session.records,
        session_totals=shown(session.totals),
        session_spent=shown(session.spent),
        runtime_s=runtime_before_s + session_s,
        session_s=session_s,
        rate_per_s=rate,
        eta_s=eta_s(left, ahead, rate),
        state=None if desk.keeper is None else desk.keeper.statistics(),
    )
