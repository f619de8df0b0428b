"""The statistics of an open stream."""

from __future__ import annotations

import trio

from .._commit.open_stream import OpenStream
from .._commit.stream_log import Added
from .._journal.statistics import StreamStatistics, eta_s, rate_per_s
from .._util.exact_sum import shown


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
    stream_log, progress = open_stream.stream_log, open_stream.stream_log.progress
    session_s = stream_log.open_s + open_s
    rate = rate_per_s(stream_log.confirmed, session_s)
    left = open_stream.left()
    ahead = 0 if is_closed else open_stream.ahead(trio.current_time(), session_s)
    session = Added.by_session([stream_log])
    return StreamStatistics(
        confirmed=len(progress.confirmed),
        skipped=len(progress.skipped),
        left=left,
        in_flight=len(open_stream.open),
        waiting=len(open_stream.tokens) - len(open_stream.open),
        pause=None if is_closed else open_stream.waiting(),
        records=progress.records,
        totals=shown(progress.totals),
        spent=shown(progress.spent),
        saved=shown(progress.spent_confirmed),
        adopted=len(progress.adopted),
        session_confirmed=stream_log.confirmed,
        session_skipped=stream_log.skipped,
        session_retries=stream_log.retries,
        session_records=session.records,
        session_totals=shown(session.totals),
        session_spent=shown(session.spent),
        runtime_s=runtime_before_s + session_s,
        session_s=session_s,
        rate_per_s=rate,
        eta_s=eta_s(left, ahead, rate),
        state=None if open_stream.state_manager is None else open_stream.state_manager.statistics(),
    )
