"""What a list of runs shows of each: read from its records, or from its stored summary.

Theory of operation.  The summary that a store keeps of a run is derived: it is what a reader of
all its records would show, at the moment at which it was saved.  Its head tells how many records
it counts, and the store how many there are: only where the two are equal, and no process owns the
run, is it shown.  Else the run is read, as a run without a summary is.  This ensures that a list
never shows what is out of date, also of a run whose owner was killed.

The partitions of a collection are the exception: thousands of them are one line, whose sums may be
some sessions behind, but never cost the reading of thousands of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .._util.errors import EXIT_COMPLETE, EXIT_SKIPPED, StoreDamagedError
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .history import ENDED, run_runtime_s
from .record import Status, check_times
from .session_record import SessionCounts
from .store import Owner, RunSummary, RunView, Store
from .stored import join_summary, sealed_part
from .summary import RunStatus, Summary, current_phase, read_run_status, run_status_from

log = get_logger(__name__)

COLLECTION = "@collection"  # the field of a configuration that says how many partitions it has
PARTITION = "@partition"  # the field of that of a partition, which says of what collection it is
SUMMARY: StreamKey = ("@summary",)  # the place that summaries are sealed for; no stream has it


class SessionOverview(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a list shows of the newest session of a run.

    Attributes:
        number: Its number, from 1.
        host, pid: The host name and the id of its process.
        began: When it began; Unix time, s.
        runtime_s: How long the sessions before it took together, in seconds.
        ended: How it ended, as text; None: it left no record of its end.
        at: When it ended; Unix time, s.
        counts: What it did.
        reason: Why it stopped by itself, such as a limit; None: it did not.
        next_due: When a start has something to do, if all that was left was deferred; Unix time, s.
    """

    number: int
    host: str
    pid: int
    began: float
    runtime_s: float
    ended: str | None = None
    at: float | None = None
    counts: SessionCounts | None = None
    reason: str | None = None
    next_due: float | None = None


class RunOverview(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a list shows of a run.

    Attributes:
        run_id: The run.
        generation: Its newest generation.
        owner: The live process that owns it; None: no process does.
        status: Its status, which depends on the owner.
        summary: The sums of the user's streams.
        session: Its newest session; None: it has had none.
        phase: The newest phase that is not complete.
        last_activity: When something was last saved; Unix time, s; None: nothing was.
        runtime_s: For how long it was open, in all sessions, in seconds.
        exit_code: The exit code for its status.
        is_complete: Whether it ended by itself, and nothing is left to do.
        partitions: How many partitions it has, or the collection that it is of; None: neither.
        collection: The collection of which it is a partition; None: of none.
    """

    run_id: str
    generation: int
    owner: Owner | None
    status: Status
    summary: Summary
    session: SessionOverview | None
    phase: str | None
    last_activity: float | None
    runtime_s: float
    exit_code: int
    is_complete: bool
    partitions: int | None = None
    collection: str | None = None


def overview_of(run: RunStatus) -> RunOverview:
    """What a list shows of a run whose records were read."""
    summary, exit_code, metadata = run.summary(), run.exit_code(), run.session_metadata
    has_ended = run.is_job or metadata.get("ended") == ENDED
    partitions, collection = _place_of(metadata)
    return RunOverview(
        run_id=run.run_id,
        generation=run.view.generation,
        owner=run.owner,
        status=run.status_of(summary),
        summary=summary,
        session=_session_of(metadata) if metadata else None,
        phase=current_phase(run.parts),
        last_activity=run.last_activity(),
        runtime_s=run_runtime_s(run.view),
        exit_code=exit_code,
        is_complete=has_ended and exit_code in (EXIT_COMPLETE, EXIT_SKIPPED),
        partitions=partitions,
        collection=collection,
    )


class _Place(msgspec.Struct, frozen=True):
    """What the configuration of a collection says of its partitions, or that of a partition."""

    partitions: int
    of: str | None = None


def _place_of(metadata: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """How many partitions there are, and of which collection a run is one."""
    config = metadata.get("config", {})
    place = config.get(PARTITION, config.get(COLLECTION))
    try:
        found = msgspec.convert(place, _Place)
    except msgspec.ValidationError:  # most runs have none
        return None, None
    return found.partitions, found.of


def _session_of(metadata: Mapping[str, Any]) -> SessionOverview:
    counts = metadata.get("counts")
    return SessionOverview(
        number=metadata["session"],
        host=metadata["host"],
        pid=metadata["pid"],
        began=metadata["began"],
        runtime_s=metadata["runtime_s"],
        ended=metadata.get("ended"),
        at=metadata.get("at"),
        counts=None if counts is None else msgspec.convert(counts, SessionCounts),
        reason=metadata.get("reason"),
        next_due=metadata.get("next_due"),
    )


async def read_overview(store: Store, line: RunSummary) -> RunOverview | None:
    """What a list shows of one of its runs: its summary if that is up to date, else its records.

    Args:
        store: The store of the run.
        line: The run, as `Store.list_runs` has just returned it.

    Returns:
        None: the run is not there any more.

    Raises:
        StoreError: it cannot be read.
    """
    found = stored_overview(store, line)
    if found is not None:
        return found
    run = await read_run_status(store, line.run_id)
    return None if run is None else overview_of(run)


def stored_overview(store: Store, line: RunSummary) -> RunOverview | None:
    """What the summary of a run says; None: it is owned, or its summary is not up to date."""
    return None if line.is_owned or not line.is_current else last_overview(store, line)


def last_overview(store: Store, line: RunSummary) -> RunOverview | None:
    """What the summary of a run said when it was last left, without an owner.

    It may be out of date: see `RunSummary.is_owned` and `RunSummary.is_current`.

    Returns:
        None: it has none, or none that can be read.
    """
    records = line.summarized
    if records is None:
        return None
    seal = store.seal(line.run_id, line.generation, SUMMARY)
    try:
        return _decode(seal.open(records, sealed_part(line.summary)), line)
    except (msgspec.MsgspecError, StoreDamagedError, UnicodeError, RecursionError) as error:
        # A newer version saved it, it was sealed with another key, or it was altered.
        log.debug("the summary of a run is not read: %s", error, extra=at(line.run_id))
        return None


def _decode(payload: bytes, line: RunSummary) -> RunOverview:
    """Decode a summary; what it shows can be shown."""
    found = _decoder.decode(payload)
    sums, session = found.summary, found.session
    times = (found.last_activity, sums.started_at, sums.updated_at, sums.completed_at)
    more = () if session is None else (session.began, session.at, session.next_due)
    check_times(*times, sums.failed_at, sums.next_due, *more)
    if (found.run_id, found.generation, found.owner) != (line.run_id, line.generation, None):
        raise StoreDamagedError("it is not of this run")
    return found


def encode_overview(store: Store, view: RunView) -> bytes | None:
    """The summary of a run as `Store.save` takes it; None: it cannot be encoded.

    Args:
        store: The store of the run, for its seal.
        view: The progress of every stream.
    """
    begun = {key: part for key, part in view.streams.items() if part.progress.sequence > 0}
    seen = RunView(view.run_id, view.generation, view.owner, begun)
    records = sum(part.progress.sequence for part in begun.values())
    try:
        overview = overview_of(run_status_from(store, seen, None))
        payload = _encoder.encode(overview)
    except (StoreDamagedError, TypeError, ValueError, OverflowError) as error:  # as a huge sum
        log.debug("a run has no summary: %s", error, extra=at(view.run_id))
        return None
    sealed = store.seal(view.run_id, view.generation, SUMMARY).close(records, payload)
    return join_summary(sealed, records=records, is_complete=overview.is_complete)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RunOverview)
