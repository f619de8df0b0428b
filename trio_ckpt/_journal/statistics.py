"""Counts, rate and ETA: of this session and of all, always told apart."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .._util.exact_sum import Number, shown
from .._util.plain import StreamKey
from .._util.text import plural
from .progress import Progress
from .record import Status

WARM_AFTER_BATCHES = 20  # before that a rate says more about start-up than about the work
WARM_AFTER_S = 2.0


@attrs.frozen
class Waiting:
    """A stream that waits before it begins another batch.

    Attributes:
        stream: Its key.
        reason: What it waits for, in words.
        for_s: How long still, in seconds of trio's clock.
    """

    stream: StreamKey
    reason: str
    for_s: float


@attrs.frozen
class LeftOut:
    """A stream of which snapshots could not be saved.

    Attributes:
        stream: Its key.
        count: How many, in this session.
        problem: Why the newest of them could not.
    """

    stream: StreamKey
    count: int
    problem: str


@attrs.frozen
class Stopping:
    """A stop of the run that is under way.

    Attributes:
        open: How many batches it waits for.
        batches: The first of them, each its stream's key and its index.
        for_s: How long it waits still, at most, in seconds of trio's clock; then they are
            cancelled.
    """

    open: int
    batches: tuple[tuple[StreamKey, int], ...]
    for_s: float


@attrs.frozen
class ArrayStatistics:
    """How the buffer of an array was captured the last time.

    Attributes:
        rung: What found the changes: ``identity``, ``pages`` (the kernel's page tables),
            ``hash``, ``dense`` (all was copied first) or ``full`` (all is new).
        reason: Why the kernel did not; empty if it did, or was not asked.
        nbytes: Its size.
        copied_bytes: What was copied while the program was held.
        changed_bytes: What was saved.
    """

    rung: str
    reason: str
    nbytes: int
    copied_bytes: int
    changed_bytes: int


@attrs.frozen
class StateStatistics:
    """What the state of a stream costs.

    Attributes:
        left_out: Snapshots that could not be saved in this session.
        problem: Why the newest of those could not; empty: there was none.
        saves: How often it was saved in this session.
        saved_bytes: What those saves have written, packed.
        held_s: Seconds for which the program was held for them.
        held_share: Those of the time between the opening of the stream and the newest save:
            what saving slows the loop down by, from 0 to 1.
        tree_bytes: Of the newest, without its arrays.
        chain: How many frames it would be restored from.
        arrays: By the path of the first array in each buffer.
    """

    left_out: int
    problem: str
    saves: int
    saved_bytes: int
    held_s: float
    held_share: float
    tree_bytes: int
    chain: int
    arrays: Mapping[str, ArrayStatistics]


@attrs.frozen
class StreamStatistics:
    """Where a stream stands, at one moment.

    Attributes:
        confirmed: Batches that are durable, of all sessions.
        skipped: Batches given up, of all sessions.
        left: Batches known to be left to do, none of a stream that failed for good; of an open
            end those of the part that is worked on, or as estimated; None where it is not known.
        in_flight: Batches handed out now.
        waiting: Of those left: failed ones that wait for their next attempt.
        pause: What the whole stream waits for, if it does.
        records: Produced, of all sessions.
        totals: Produced, of all sessions, by name.
        spent: On all attempts of all sessions, by name.
        saved: Of that, on the attempts that confirmed a batch: what resuming saves.
        adopted: Confirmed batches whose share of `totals` is not known.
        session_confirmed: Batches confirmed by this session.
        session_skipped: Batches given up by this session.
        session_retries: Attempts beyond the first in this session.
        session_records, session_totals, session_spent: What this session has added.
        runtime_s: Seconds worked, in all sessions, downtime left out.
        session_s: Of them in this session.
        rate_per_s: Batches confirmed per second of this session; None before it is warm.
        eta_s: Seconds until nothing of the part that is worked on is left at that rate; None where
            that is not known, or nothing moves.
        state: What its state costs; None: it has none, or a `Frontier`.
    """

    confirmed: int
    skipped: int
    left: int | None
    in_flight: int
    waiting: int
    pause: Waiting | None
    records: int
    totals: Mapping[str, Number]
    spent: Mapping[str, Number]
    saved: Mapping[str, Number]
    adopted: int
    session_confirmed: int
    session_skipped: int
    session_retries: int
    session_records: int
    session_totals: Mapping[str, Number]
    session_spent: Mapping[str, Number]
    runtime_s: float
    session_s: float
    rate_per_s: float | None
    eta_s: float | None
    state: StateStatistics | None


@attrs.frozen
class RunStatistics:
    """Where a run stands, at one moment.

    Attributes:
        status: Derived from its streams and phases.
        current_phase: The newest phase that is not complete.
        streams: How many there are of each status.
        groups: The same for groups, which are the streams under one first part.
        confirmed, skipped, left, in_flight: As for a stream, summed up; `left` is None
            where one stream does not know.
        failing: Batches that failed and may run again.
        records, totals, spent, saved, adopted: As for a stream, summed up.
        session_confirmed, session_skipped, session_retries: What this session has done.
        session_records, session_totals, session_spent: What it has added.
        runtime_s: Seconds that the run was open, in all sessions.
        session_s: In this one.
        rate_per_s: Batches confirmed per second of this session; None before it is warm.
        eta_s: Seconds until nothing is left at that rate of what this session can do: streams that
            failed, were left or stand still are not counted; None where that is not known.
        waiting: Streams that wait, and why.
        left_out: Streams of which snapshots could not be saved in this session, and why.
        stopping: The stop that is under way, if there is one.
    """

    status: Status
    current_phase: str | None
    streams: Mapping[Status, int]
    groups: Mapping[Status, int]
    confirmed: int
    skipped: int
    failing: int
    left: int | None
    in_flight: int
    records: int
    totals: Mapping[str, Number]
    spent: Mapping[str, Number]
    saved: Mapping[str, Number]
    adopted: int
    session_confirmed: int
    session_skipped: int
    session_retries: int
    session_records: int
    session_totals: Mapping[str, Number]
    session_spent: Mapping[str, Number]
    runtime_s: float
    session_s: float
    rate_per_s: float | None
    eta_s: float | None
    waiting: tuple[Waiting, ...]
    left_out: tuple[LeftOut, ...] = ()
    stopping: Stopping | None = None


def rate_per_s(confirmed: int, elapsed_s: float) -> float | None:
    """Batches per second, or None while there is too little to tell."""
    if confirmed < WARM_AFTER_BATCHES or elapsed_s < WARM_AFTER_S:
        return None
    return confirmed / elapsed_s


def resume_line(
    progress: Progress, first_index: int, start: int | None, stop: int | None
) -> str | None:
    """What going on passes over, what that saves, and what is left; None: nothing is done yet.

    Args:
        progress: Of the stream.
        first_index: Of its first batch.
        start: Of the part that is worked on; None: from the first on.
        stop: One more than its last batch; None: nobody knows.
    """
    first = max(first_index, start or 0)
    confirmed = progress.confirmed.count(first, stop)
    skipped = progress.skipped.count(first, stop)
    if not confirmed + skipped:
        return None
    done = plural(confirmed, "batch")
    if stop is not None:
        done = f"{confirmed:,} of {plural(stop - first, 'batch')}"
    parts = [f"resuming: {done} done"]
    if skipped:
        parts.append(f"{skipped:,} skipped")
    count = len(progress.confirmed)
    about = "" if confirmed in (0, count) else "about "
    parts += [
        f"{about}{format_amount(_share(total, confirmed, count))} {name} saved"
        for name, total in shown(progress.spent_confirmed).items()
        if confirmed and total
    ]
    if stop is not None:
        parts.append(f"{max(0, stop - first - confirmed - skipped):,} left")
    return ", ".join(parts)


def _share(total: Number, part: int, count: int) -> Number:
    """The part of a total; an int may be too large for a float."""
    return total * part // count if isinstance(total, int) else total * (part / count)


def format_amount(amount: Number) -> str:
    """A total as people read it: rounded here and nowhere else."""
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:,.4f}".rstrip("0").rstrip(".")


def eta_s(left: int | None, ahead: int | None, rate: float | None) -> float | None:
    """Seconds until nothing is ahead; None where that is not known, or is not the end.

    Args:
        left: Batches known to be left in all.
        ahead: Of them, those that are about to be done: none of a stream that failed or is stuck.
        rate: Batches per second.
    """
    if left == 0:
        return 0.0
    return ahead / rate if ahead and rate else None


STUCK_AFTER_S = 60.0  # where nothing is known of how long a batch takes
MIN_STUCK_AFTER_S = 10.0  # a batch of a millisecond that takes a second is no news
STUCK_FACTOR = 10.0  # times the usual


def stuck_after_s(usual_s: float | None) -> float:
    """After how many seconds without a batch something is taken for stuck.

    Args:
        usual_s: Seconds that it takes usually; None: nothing is known of it.
    """
    return STUCK_AFTER_S if usual_s is None else max(MIN_STUCK_AFTER_S, STUCK_FACTOR * usual_s)
