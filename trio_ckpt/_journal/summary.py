"""Sums over streams: of a group, a phase, a run; and the status of a run, read from outside.

A group is all streams whose keys begin with the same parts, such as the endpoints of a
repository.  Its status and its sums are derived for each call: nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from .._util.errors import EXIT_COMPLETE, EXIT_DRAINED, EXIT_FAILED, EXIT_SKIPPED
from .._util.exact_sum import ExactSum, Number, add_sums, shown
from .._util.plain import JOB_STREAM, PHASE, RUN_STREAM, StreamKey
from .._util.shown import Shown
from .._util.text import amounts, batches_text, deferred_text, number, stream_name
from .deferral import Deferral, first_due
from .history import ENDED, session_metadata_of
from .progress import Progress
from .record import ErrorInfo, Status
from .store import Owner, RunView, Store


class Summary(Shown, msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The sums of some streams; the statistics of a stream and of a run have them, too.

    Attributes:
        key: The first parts of their keys; ``()`` for the whole run.
        status: Their common status, see `group_status`.
        streams: How many streams have each status.
        confirmed: How many batches are durable.
        skipped: How many batches were given up.
        failing: How many batches failed and may run again; deferred ones are counted apart.
        left: How many batches are known to be left to do; 0 for a stream that failed for good;
            None where it is not known for a stream.
        records: How many records were produced.
        totals: What was produced, by name.
        spent: What all attempts cost, by name.
        saved: What the attempts that confirmed a batch cost: what resuming saves.
        assumed: What attempts have reserved and not settled, beside `spent`.  It counts as spent.
            Read from outside of a running session, it has what is reserved now, too.
        noted: What the notes of batches cost that are not confirmed.  It counts as spent.
        adopted: How many confirmed batches have an unknown share of `totals`.
        started_at, updated_at, completed_at, failed_at: Unix time, s; None: not yet.
        error: The error of the stream that failed last.
        deferred: How many batches were deferred and have not ended since.
        next_due: When the first of them is due; Unix time, s; None: none was deferred.
    """

    key: StreamKey = ()
    status: Status
    streams: Mapping[Status, int]
    confirmed: int
    skipped: int
    failing: int
    left: int | None
    records: int
    totals: Mapping[str, Number]
    spent: Mapping[str, Number]
    saved: Mapping[str, Number]
    adopted: int
    started_at: float | None = None
    updated_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    error: ErrorInfo | None = None
    assumed: Mapping[str, Number] = {}
    noted: Mapping[str, Number] = {}
    deferred: int = 0
    next_due: float | None = None

    def _shown(self) -> Iterable[tuple[str, str]]:
        counts = [(count, status.value) for status, count in self.streams.items()]
        streams = [f"{number(count)} {status}" for count, status in counts if count]
        return [
            ("of", stream_name(self.key)),
            ("status", self.status.value),
            ("streams", ", ".join(streams)),
            ("batches", batches_text(self.confirmed, self.skipped, self.failing, self.left)),
            ("deferred", deferred_text(self.deferred, self.next_due)),
            ("records", number(self.records)),
            ("produced", amounts(self.totals)),
            ("spent", amounts(self.spent)),
            ("assumed spent", amounts(self.assumed)),
        ]


def left_of(summary: Summary) -> int | None:
    """How many batches are left; None where that is not known, as for a run without streams."""
    return summary.left if any(summary.streams.values()) else None


def percent_of(summary: Summary) -> float | None:
    """The percentage done of what can be done; None where it is unknown.

    100 is said of what is complete, and of nothing that failed.
    """
    done, left = summary.confirmed + summary.skipped, left_of(summary)
    is_short = left == 0 and summary.status is not Status.COMPLETE
    return None if left is None or not done + left or is_short else 100 * done / (done + left)


def group_status(statuses: Iterable[Status]) -> Status:
    """The status of a group of streams.

    It is the first of IN_PROGRESS, INTERRUPTED and FAILED that a stream has; else PENDING if no
    stream was begun and COMPLETE if all are complete; a mixture of the two is IN_PROGRESS.
    """
    found = set(statuses)
    for status in (Status.IN_PROGRESS, Status.INTERRUPTED, Status.FAILED):
        if status in found:
            return status
    if len(found) > 1:
        return Status.IN_PROGRESS
    return found.pop() if found else Status.PENDING


def count_statuses(statuses: Iterable[Status]) -> dict[Status, int]:
    """How often each status is there; 0 for those that are not."""
    counts = dict.fromkeys(Status, 0)
    for status in statuses:
        counts[status] += 1
    return counts


def failing(progress: Progress) -> int:
    """How many batches of a stream failed and run again on a plain resume."""
    if progress.error is not None and not progress.error.retryable:
        return 0
    last, deferred = progress.last_index, progress.deferred
    return sum(
        (last is None or index <= last) and index not in deferred for index in progress.failures
    )


def deferred(progress: Progress) -> list[Deferral]:
    """The deferrals of a stream that a start has to heed."""
    if progress.has_failed_for_good:
        return []
    last = progress.last_index
    return [one for i, one in progress.deferred.items() if last is None or i <= last]


def is_over(progress: Progress) -> bool:
    """Whether a start would do nothing more for a stream: it is complete, or failed for good."""
    return progress.status is Status.COMPLETE or progress.has_failed_for_good


def exit_code(parts: Mapping[StreamKey, Progress], *, has_ended: bool) -> int:
    """The exit code for the status of a run; docs/reference/exit-codes.md has the table.

    Args:
        parts: The progress of all its streams and phases; the run's own stream does not count.
        has_ended: Whether its program has ended by itself: a run without streams is then
            complete.
    """
    begun = [part for key, part in parts.items() if key != RUN_STREAM and part.sequence > 0]
    if not all(map(is_over, begun)) or not (begun or has_ended):
        return EXIT_DRAINED
    if any(progress.status is Status.FAILED for progress in begun):
        return EXIT_FAILED
    return EXIT_SKIPPED if any(progress.skipped for progress in begun) else EXIT_COMPLETE


def status_of(progress: Progress, *, is_open: bool) -> Status:
    """The status of a stream: that of its records, or IN_PROGRESS while it is open.

    Args:
        progress: The progress of the stream.
        is_open: Whether it is open, and has not failed since it was opened.
    """
    is_worked_on = is_open and progress.status is not Status.COMPLETE
    return Status.IN_PROGRESS if is_worked_on else progress.status


def summarize(
    key: StreamKey,
    parts: Mapping[StreamKey, Progress],
    *,
    open_streams: Collection[StreamKey] = (),
    lefts: Mapping[StreamKey, int | None] = MappingProxyType({}),
) -> Summary:
    """Sum up streams.

    Args:
        key: The first parts that their keys have in common.
        parts: The progress of the streams.
        open_streams: The streams that are open, and have not failed since they were opened.
        lefts: How many batches are left of streams, where their owner knows more than the records.
    """
    streams = count_statuses(
        status_of(progress, is_open=name in open_streams) for name, progress in parts.items()
    )
    status = group_status(status for status, count in streams.items() if count)
    totals, spent, saved = dict[str, ExactSum](), dict[str, ExactSum](), dict[str, ExactSum]()
    assumed, noted = dict[str, ExactSum](), dict[str, ExactSum]()
    for progress in parts.values():
        add_sums(noted, {} if progress.notes is None else progress.notes.total)
        add_sums(assumed, progress.assumed)
        add_sums(totals, progress.totals)
        add_sums(spent, progress.spent)
        add_sums(saved, progress.spent_confirmed)
    every = list(parts.values())
    left = [lefts.get(name, part.left) for name, part in parts.items()]
    completed = [progress.completed_at for progress in every]
    deferrals = [one for progress in every for one in deferred(progress)]
    failed = max(every, key=lambda progress: progress.failed_at or 0.0, default=Progress())
    return Summary(
        key=key,
        status=status,
        streams=streams,
        confirmed=sum(len(progress.confirmed) for progress in every),
        skipped=sum(len(progress.skipped) for progress in every),
        failing=sum(map(failing, every)),
        left=None if None in left else sum(count or 0 for count in left),
        records=sum(progress.records for progress in every),
        totals=shown(totals),
        spent=shown(spent),
        saved=shown(saved),
        adopted=sum(len(progress.adopted) for progress in every),
        started_at=min(_known(progress.started_at for progress in every), default=None),
        updated_at=max(_known(progress.updated_at for progress in every), default=None),
        completed_at=None if None in completed else max(_known(completed), default=None),
        failed_at=failed.failed_at,
        error=failed.error,
        assumed=shown(assumed),
        noted=shown(noted),
        deferred=len(deferrals),
        next_due=first_due(deferrals),
    )


def _known(times: Iterable[float | None]) -> list[float]:
    return [time for time in times if time is not None]


def is_users(key: StreamKey) -> bool:
    """Whether a stream is the user's, not one that the library keeps beside them."""
    return bool(key) and not key[0].startswith("@")


def in_order(parts: Mapping[StreamKey, Progress]) -> list[StreamKey]:
    """The users' streams: those on the run's list by their position, then the others."""
    keys = [key for key in parts if is_users(key)]
    listed = [key for key in keys if parts[key].position is not None]
    listed.sort(key=lambda key: parts[key].position or 0)
    return [*listed, *(key for key in keys if parts[key].position is None)]


def groups_of(
    parts: Mapping[StreamKey, Progress], depth: int = 1
) -> dict[StreamKey, dict[StreamKey, Progress]]:
    """The users' streams by their first `depth` parts, in order."""
    groups: dict[StreamKey, dict[StreamKey, Progress]] = {}
    for key in in_order(parts):
        groups.setdefault(key[:depth], {})[key] = parts[key]
    return groups


def summarize_groups(
    parts: Mapping[StreamKey, Progress], *, open_streams: Collection[StreamKey] = ()
) -> dict[StreamKey, Summary]:
    """The sums of every group: of all users' streams with the same first part, in order."""
    groups = groups_of(parts).items()
    return {key: summarize(key, mine, open_streams=open_streams) for key, mine in groups}


def phases_of(parts: Mapping[StreamKey, Progress]) -> dict[str, Progress]:
    """The phases of a run, in the order in which they began."""
    phases = {key[1]: progress for key, progress in parts.items() if key[:1] == (PHASE,)}
    return dict(sorted(phases.items(), key=lambda entry: entry[1].started_at or 0.0))


def left_in_phase(
    parts: Mapping[StreamKey, Progress], name: str, *, retry_failed: bool = False
) -> list[StreamKey]:
    """The streams that were opened in the block of a phase and have work left."""
    mine = [key for key in in_order(parts) if parts[key].phase == name]
    return [key for key in mine if is_to_process(parts[key], retry_failed=retry_failed)]


def is_to_process(progress: Progress, *, retry_failed: bool = False) -> bool:
    """Whether a start would do something for a stream."""
    if progress.status is Status.COMPLETE:
        return retry_failed and bool(progress.skipped) and progress.built_over is None
    return retry_failed or not is_over(progress)


def phase_statuses(
    parts: Mapping[StreamKey, Progress], *, open_phases: Collection[StreamKey] = ()
) -> dict[str, Status]:
    """The status of each phase; a phase is complete only if the streams of its block are."""
    statuses = {
        name: status_of(progress, is_open=(PHASE, name) in open_phases)
        for name, progress in phases_of(parts).items()
    }
    left = {progress.phase for progress in parts.values() if is_to_process(progress)}
    for name, status in statuses.items():
        if status is Status.COMPLETE and name in left:
            statuses[name] = Status.INTERRUPTED
    return statuses


def current_phase(parts: Mapping[StreamKey, Progress]) -> str | None:
    """The newest phase that is not complete."""
    names = [name for name, s in phase_statuses(parts).items() if s is not Status.COMPLETE]
    return names[-1] if names else None


_BY_URGENCY = (
    Status.FAILED,
    Status.IN_PROGRESS,
    Status.INTERRUPTED,
    Status.PENDING,
    Status.COMPLETE,
)


class RunStatus(msgspec.Struct, frozen=True):
    """The status of a run, read from outside.

    Attributes:
        store: The store of the run.
        view: Its newest generation.
        owner: The live process that owns it; None: no process does.
        session_metadata: The newest in its own stream.
        parts: The progress of every stream of work: all but the run's own, and but the one with
            which a job is submitted.
        open_streams: The streams that the owner has opened and that have not ended.
    """

    store: Store
    view: RunView
    owner: Owner | None
    session_metadata: Mapping[str, Any]
    parts: Mapping[StreamKey, Progress]
    open_streams: frozenset[StreamKey]

    @property
    def run_id(self) -> str:
        """The name of the run."""
        return self.view.run_id

    @property
    def is_job(self) -> bool:
        """Whether it is a job, which a foreman begins and ends, not a program."""
        return JOB_STREAM in self.view.streams

    @property
    def is_over(self) -> bool:
        """Whether all its streams are complete or failed for good: no start would do more."""
        return bool(self.parts) and all(map(is_over, self.parts.values()))

    @property
    def keys(self) -> list[StreamKey]:
        """The users' streams, in order."""
        return in_order(self.parts)

    def summary(self, keys: Collection[StreamKey] | None = None, of: StreamKey = ()) -> Summary:
        """The sums of streams.

        Args:
            keys: The streams; default: all streams of users.
            of: The key of the summary.
        """
        chosen = self.keys if keys is None else keys
        parts = {key: self.parts[key] for key in chosen}
        return summarize(of, parts, open_streams=self.open_streams)

    def groups(self, keys: Collection[StreamKey] | None = None) -> dict[StreamKey, Summary]:
        """The sums of every group of streams, by default of all streams of users."""
        parts = {key: self.parts[key] for key in (self.keys if keys is None else keys)}
        return summarize_groups(parts, open_streams=self.open_streams)

    def by_urgency(self, keys: Collection[StreamKey]) -> list[StreamKey]:
        """Streams, those first that need attention; else in their order."""

        def urgency(key: StreamKey) -> int:
            status = status_of(self.parts[key], is_open=key in self.open_streams)
            return _BY_URGENCY.index(status)

        return sorted(keys, key=urgency)

    def status_of(self, summary: Summary) -> Status:
        """The status of the run, from its summary: IN_PROGRESS while a process owns it.

        A complete run is COMPLETE also while it is owned.  A job that failed for good is FAILED
        also while its foreman still owns it.
        """
        is_over = summary.status is Status.COMPLETE or (self.is_job and self.is_over)
        return Status.IN_PROGRESS if self.owner is not None and not is_over else summary.status

    def last_activity(self) -> float | None:
        """When something was last saved; Unix time, s; None: nothing was."""
        saved = [entry.progress.updated_at for entry in self.view.streams.values()]
        return max((at for at in saved if at is not None), default=None)

    def exit_code(self) -> int:
        """The exit code for the status of the run; see docs/reference/exit-codes.md."""
        has_ended = self.session_metadata.get("ended") == ENDED and not self.is_job
        return exit_code(self.parts, has_ended=has_ended)


async def read_run_status(store: Store, run_id: str) -> RunStatus | None:
    """Read the status of a run; None: the store has no such run.

    Raises:
        StoreError: it cannot be read.
    """
    owner = await store.read_owner(run_id)
    view = await store.load_run(run_id)
    return None if view is None else run_status_from(store, view, owner)


def run_status_from(store: Store, view: RunView, owner: Owner | None) -> RunStatus:
    """The status of a run whose progress is known already."""
    metadata = session_metadata_of(view)
    own = (RUN_STREAM, JOB_STREAM)
    parts = {key: e.progress for key, e in view.streams.items() if key not in own}
    began = metadata.get("began", 0.0)
    opened = frozenset(
        key
        for key, progress in parts.items()
        if owner is not None
        and progress.opened_at is not None
        and progress.opened_at >= began
        and progress.status not in (Status.COMPLETE, Status.FAILED)
    )
    return RunStatus(store, view, owner, metadata, parts, opened)
