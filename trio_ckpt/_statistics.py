"""Counts, rate and ETA of a stream: of this session and no other."""

from __future__ import annotations

import attrs

WARM_AFTER_BATCHES = 20  # before that a rate says more about start-up than about the work
WARM_AFTER_S = 2.0


@attrs.frozen
class StreamStatistics:
    """Where a stream stands, at one moment.

    Attributes:
        confirmed: Batches that are durable, of all sessions.
        skipped: Batches given up, of all sessions.
        left: Batches known to be left; None where nobody knows.
        in_flight: Batches handed out now.
        waiting: Of those left: failed ones that wait for their next attempt.
        session_confirmed: Batches confirmed by this session.
        session_retries: Attempts beyond the first in this session.
        rate_per_s: Batches confirmed per second of this session; None before it is warm.
        eta_s: Seconds until nothing is left at that rate; None where that is not known.
    """

    confirmed: int
    skipped: int
    left: int | None
    in_flight: int
    waiting: int
    session_confirmed: int
    session_retries: int
    rate_per_s: float | None
    eta_s: float | None


def rate_per_s(confirmed: int, elapsed_s: float) -> float | None:
    """Batches per second, or None while there is too little to tell."""
    if confirmed < WARM_AFTER_BATCHES or elapsed_s < WARM_AFTER_S:
        return None
    return confirmed / elapsed_s


def eta_s(left: int | None, rate: float | None) -> float | None:
    """Seconds until nothing is left."""
    if left == 0:
        return 0.0
    return None if left is None or not rate else left / rate
