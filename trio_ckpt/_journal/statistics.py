"""What statistics consist of, for this session and for all, and the formulas of rate and ETA.

`trio_ckpt._runs.statistics` counts them for an open run.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .._util.exact_sum import Number, shown
from .._util.plain import StreamKey
from .._util.text import number, plural
from .progress import Progress
from .record import Status
from .summary import Summary

WARM_AFTER_BATCHES = 20  # before that a rate measures the start-up, not the work
WARM_AFTER_S = 2.0


class Waiting(msgspec.Struct, frozen=True):
    """A stream that waits before it begins another batch.

    Attributes:
        stream: Its key.
        reason: What it waits for, as text.
        for_s: How long it still waits, in seconds on trio's clock.
    """

    stream: StreamKey
    reason: str
    for_s: float


class LeftOut(msgspec.Struct, frozen=True, array_like=True):  # also in the live view
    """A stream of which snapshots could not be saved.

    Attributes:
        stream: Its key.
        count: How many snapshots, in this session.
        problem: Why the newest of them could not be saved.
    """

    stream: StreamKey
    count: int
    problem: str


class Stopping(msgspec.Struct, frozen=True):
    """A stop of the run that is under way.

    Attributes:
        open: How many batches it waits for.
        batches: The first of them, each as its stream's key and its index.
        for_s: How long it still waits at most, in seconds on trio's clock; then they are
            cancelled.
    """

    open: int
    batches: tuple[tuple[StreamKey, int], ...]
    for_s: float


class ArrayStatistics(msgspec.Struct, frozen=True):
    """How the buffer of an array was captured the last time.

    Attributes:
        method: How the changes were found: ``identity``, ``pages`` (the kernel's page
            tables), ``hash``, ``dense`` (all was copied first) or ``full`` (all is new).
        reason: Why the kernel's method was not used; empty if it was used, or not tried.
        nbytes: The size of the buffer in bytes.
        copied_bytes: How many bytes were copied while the program waited.
        changed_bytes: How many bytes were saved.
    """

    method: str
    reason: str
    nbytes: int
    copied_bytes: int
    changed_bytes: int


class StateStatistics(msgspec.Struct, frozen=True):
    """What the state of a stream costs.

    Attributes:
        left_out: How many snapshots could not be saved in this session.
        problem: Why the newest of those could not be saved; empty: there was none.
        saves: How often the state was saved in this session.
        saved_bytes: How many bytes those saves have written, compressed.
        held_s: For how many seconds the program waited for captures.
        held_share: `held_s` as a share of the time from the opening of the stream to the newest
            save, from 0 to 1: how much saving slows the loop down.
        tree_bytes: The size of the newest state without its arrays, in bytes.
        chain: How many frames a restore would read.
        arrays: Statistics of each buffer, by the path of its first array.
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


class SessionStatistics(Summary, frozen=True, kw_only=True):
    """The sums of some streams, and what this session has added to them.

    Attributes:
        in_flight: How many batches are handed out now.
        session_confirmed: How many batches this session confirmed.
        session_skipped: How many batches this session gave up.
        session_retries: How many attempts beyond the first this session made.
        session_records, session_totals, session_spent: What this session has added.
        reserved: What open batches have reserved and not settled; it is not in `assumed`.
        runtime_s: Seconds of work in all sessions, without downtime.
        session_s: Seconds of work in this session.
        rate_per_s: Batches confirmed per second of this session; None until enough are done.
        eta_s: Seconds until this session has nothing left to do, at that rate; streams that
            failed, were left or are stuck are not counted; None where that is not known.
    """

    in_flight: int
    session_confirmed: int
    session_skipped: int
    session_retries: int
    session_records: int
    session_totals: Mapping[str, Number]
    session_spent: Mapping[str, Number]
    reserved: Mapping[str, Number]
    runtime_s: float
    session_s: float
    rate_per_s: float | None
    eta_s: float | None


class StreamStatistics(SessionStatistics, frozen=True, kw_only=True):
    """The statistics of a stream at one moment: its `Summary`, its session, and its waits.

    For an open end, `left` counts the part that is worked on, or comes from the estimate.

    Attributes:
        waiting: How many failed or deferred batches wait for their next attempt.
        pause: What the whole stream waits for; None: it does not wait.
        state: The costs of its state; None: it has no state, or a `Frontier`.
    """

    waiting: int
    pause: Waiting | None
    state: StateStatistics | None


class RunStatistics(SessionStatistics, frozen=True, kw_only=True):
    """The statistics of a run at one moment: the `Summary` of all its streams, and its session.

    Its status also depends on its phases.  Its seconds are those for which it was open.

    Attributes:
        current_phase: The newest phase that is not complete.
        groups: How many groups have each status; a group is all streams with one first part.
        waiting: Streams that wait, and why.
        left_out: Streams of which snapshots could not be saved in this session, and why.
        stopping: The stop that is under way; None: there is none.
    """

    current_phase: str | None
    groups: Mapping[Status, int]
    waiting: tuple[Waiting, ...]
    left_out: tuple[LeftOut, ...] = ()
    stopping: Stopping | None = None


def rate_per_s(confirmed: int, elapsed_s: float) -> float | None:
    """Batches per second; None until enough batches and seconds have passed."""
    if confirmed < WARM_AFTER_BATCHES or elapsed_s < WARM_AFTER_S:
        return None
    return confirmed / elapsed_s


def resume_line(
    progress: Progress, first_index: int, start: int | None, stop: int | None
) -> str | None:
    """The line that says what a resume passes over, saves and has left; None: nothing is done.

    Args:
        progress: The progress of the stream.
        first_index: The index of its first batch.
        start: The first batch of the part that is worked on; None: the first of the stream.
        stop: One more than the last batch of the part; None: it is not known.
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
        f"{about}{number(_share(total, confirmed, count))} {name} saved"
        for name, total in shown(progress.spent_confirmed).items()
        if confirmed and total
    ]
    if stop is not None:
        parts.append(f"{max(0, stop - first - confirmed - skipped):,} left")
    return ", ".join(parts)


def _share(total: Number, part: int, count: int) -> Number:
    """The part of a total; an int may be too large for a float."""
    return total * part // count if isinstance(total, int) else total * (part / count)


def eta_s(left: int | None, ahead: int | None, rate: float | None) -> float | None:
    """Seconds until no batch is ahead; None where that is not known.

    Args:
        left: How many batches are known to be left in all.
        ahead: How many of them are about to be done; 0 for a stream that failed or is stuck.
        rate: Batches per second.
    """
    if left == 0:
        return 0.0
    return ahead / rate if ahead and rate else None


STUCK_AFTER_S = 60.0  # where it is not known how long a batch takes
MIN_STUCK_AFTER_S = 10.0  # a batch of a millisecond that takes a second is not stuck
STUCK_FACTOR = 10.0  # times the usual duration


def stuck_after_s(usual_s: float | None) -> float:
    """After how many seconds without a batch a stream counts as stuck.

    Args:
        usual_s: How many seconds a batch usually takes; None: it is not known.
    """
    return STUCK_AFTER_S if usual_s is None else max(MIN_STUCK_AFTER_S, STUCK_FACTOR * usual_s)
