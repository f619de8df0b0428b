"""A collection: items that many processes share, in partitions; and their sums.

A partition is a run of its own, named after its collection: ``crawl.00012``.  So it has its own
owner, streams and outputs, and nothing is shared or locked between partitions.  The collection
is the run ``crawl``: its configuration says how many partitions there are, which never changes,
and its phase `FINISH` is done once, after all of them.

What is shown of a collection is added up from the summaries of its runs.  No records are read: a
partition that is owned, or whose owner was killed, counts with what it had when it was last left.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .._util.errors import EXIT_COMPLETE, EXIT_DRAINED, EXIT_FAILED, EXIT_SKIPPED
from .._util.exact_sum import ExactSum, Number, add_amounts, shown
from .._util.plain import Plain, as_plain, canonical_json
from .overview import COLLECTION, PARTITION, RunOverview, last_overview, stored_overview
from .record import Status
from .store import RunSummary, Store
from .summary import Summary, count_statuses, group_status

FINISH = "finish"  # the phase of a collection that is done once, after its partitions

MAX_PARTITIONS = 10**6  # each process that claims them has a list of those that are left
MIN_DIGITS = 5  # of an index: a name that looks like a partition's is seldom given by chance

_PARTITION_ID = re.compile(r"(.+)\.([0-9]{5,})", re.DOTALL)


# ---------------------------------------------------------------------------------------
# Names and items
# ---------------------------------------------------------------------------------------


def partition_id(name: str, index: int, partitions: int) -> str:
    """The run of a partition: the name of its collection and its index, in order by name."""
    return f"{name}.{index:0{_digits(partitions)}d}"


def _digits(partitions: int) -> int:
    return max(MIN_DIGITS, len(str(partitions - 1)))


def split_partition_id(run_id: str) -> tuple[str, int, int] | None:
    """The collection, the index and the number of digits that the name of a run says.

    Returns:
        None: it is not the name of a partition.
    """
    match = _PARTITION_ID.fullmatch(run_id)
    return None if match is None else (match[1], int(match[2]), len(match[2]))


def partition_index(name: str, partitions: int, run_id: str) -> int | None:
    """The index of a partition of a collection; None: the run is not one of it."""
    found = split_partition_id(run_id)
    if found is None or (found[0], found[2]) != (name, _digits(partitions)):
        return None
    return found[1] if found[1] < partitions else None


def items_of(items: int, partitions: int, index: int) -> range:
    """The items of a partition: contiguous, and partitions differ by at most one item."""
    return range(items * index // partitions, items * (index + 1) // partitions)


def hashed_partition(key: Plain, partitions: int) -> int:
    """The partition of a key: its BLAKE2b digest of 8 bytes, modulo the number of partitions.

    Raises:
        NotEncodableError: the key is not JSON-like.
    """
    text = canonical_json(as_plain(key, "key"))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


def collection_config(partitions: int, items: int | None) -> dict[str, Plain]:
    """What the configuration of a collection says of its partitions."""
    return {COLLECTION: {"partitions": partitions, "items": items}}


def partition_config(name: str, index: int, partitions: int, items: int | None) -> dict[str, Plain]:
    """What the configuration of a partition says of its place."""
    place = {"of": name, "index": index, "partitions": partitions, "items": items}
    return {PARTITION: place}


# ---------------------------------------------------------------------------------------
# What is left of a partition
# ---------------------------------------------------------------------------------------


class PartitionState(msgspec.Struct, frozen=True):
    """What a line of a list says of a partition.

    Attributes:
        is_owned: Whether a process owns it now.
        exit_code: The exit code of its last session; 75: a start would go on with it.
    """

    is_owned: bool = False
    exit_code: int = EXIT_DRAINED


def partition_state(store: Store, line: RunSummary, name: str, partitions: int) -> PartitionState:
    """The state of a partition, from its summary, whose seal is checked.

    A partition whose summary is out of date has no exit code yet: its owner was killed, and a
    start goes on with it.  So has a run that is not of this collection: a start refuses it.
    """
    if line.is_owned:
        return PartitionState(is_owned=True)
    found = stored_overview(store, line)
    if found is None or (found.collection, found.partitions) != (name, partitions):
        return PartitionState()
    is_over = found.is_complete or found.exit_code == EXIT_FAILED
    return PartitionState(exit_code=found.exit_code if is_over else EXIT_DRAINED)


# ---------------------------------------------------------------------------------------
# Sums
# ---------------------------------------------------------------------------------------


class CollectionLines(msgspec.Struct, frozen=True):
    """A collection in a list of runs.

    Attributes:
        own: Its own run.
        run: What the summary of that said when it was last left.
        partitions: Its partitions that were begun.
    """

    own: RunSummary
    run: RunOverview
    partitions: list[RunSummary]

    def has(self, run_id: str) -> bool:
        """Whether a run has the name of one of its partitions."""
        return partition_index(self.run.run_id, self.run.partitions or 0, run_id) is not None


def split_collections(
    store: Store, lines: Iterable[RunSummary]
) -> tuple[dict[str, CollectionLines], list[RunSummary]]:
    """The collections in a list of runs, by name; and the runs that are of none.

    A collection without any partition that was begun, and one whose own run has no summary that
    can be read, is not known to be one: its runs are listed as others are.
    """
    every = {line.run_id: line for line in lines}
    places = {run_id: place for run_id in every if (place := split_partition_id(run_id))}
    found = dict[str, CollectionLines]()
    for name in {place[0] for place in places.values()} & every.keys():
        last = last_overview(store, every[name])
        if last is not None and last.partitions is not None and last.collection is None:
            found[name] = CollectionLines(every[name], last, [])
    others: list[RunSummary] = []
    for run_id, line in every.items():
        place = places.get(run_id)
        mine = None if place is None else found.get(place[0])
        if mine is not None and mine.has(run_id):
            mine.partitions.append(line)
        elif run_id not in found:
            others.append(line)
    return found, others


class CollectionOverview(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows of a collection.

    Attributes:
        run: What it shows of a run, added up of the collection's own and all partitions.
        partitions: How many partitions have each status.
        unseen: How many of those that were begun are not in the sums yet: they are in their first
            session, or it was killed.
        eta_s: When the partitions are complete at the present number of owners, in seconds from
            now; None: no process works on them, or none is complete.
    """

    run: RunOverview
    partitions: Mapping[Status, int]
    unseen: int
    eta_s: float | None


def sum_up_collection(store: Store, lines: CollectionLines) -> CollectionOverview:
    """Add up a collection from the summaries of its runs, as they were last left.

    Args:
        store: Its store.
        lines: Its runs, as `Store.list_runs` has returned them.
    """
    own, total = lines.run, lines.run.partitions or 0
    found: list[RunOverview] = []
    statuses: list[Status] = []
    runtimes: list[float] = []
    for line in lines.partitions:
        last = last_overview(store, line)
        status = _status_of(line, last, own.run_id)
        statuses.append(status)
        if last is not None and last.collection == own.run_id:
            found.append(last)
            if status is Status.COMPLETE:
                runtimes.append(last.runtime_s)
    counts = count_statuses(statuses)
    counts[Status.PENDING] += total - len(statuses)
    is_done = own.is_complete and lines.own.is_current and not lines.own.is_owned
    is_running = lines.own.is_owned or counts[Status.IN_PROGRESS] > 0
    status = _status_of_all(counts, is_running=is_running, is_done=is_done)
    every = [own, *found]
    summary = _sum_of([one.summary for one in every], status, is_whole=len(found) == total)
    run = msgspec.structs.replace(
        own,
        status=status,
        summary=summary,
        last_activity=max(_known(one.last_activity for one in every), default=None),
        runtime_s=math.fsum(one.runtime_s for one in every),
        exit_code=_exit_code(own, counts, is_done=is_done, has_skipped=summary.skipped > 0),
        is_complete=status is Status.COMPLETE,
    )
    return CollectionOverview(
        run=run,
        partitions=counts,
        unseen=len(statuses) - len(found),
        eta_s=_eta_s(counts, runtimes),
    )


def _status_of(line: RunSummary, last: RunOverview | None, name: str) -> Status:
    """The status of a partition that was begun."""
    if line.is_owned:
        return Status.IN_PROGRESS
    if not line.records:
        return Status.PENDING
    if last is None or not line.is_current or last.collection != name:
        return Status.INTERRUPTED  # its owner was killed; or the run is not of this collection
    if last.is_complete:
        return Status.COMPLETE
    return Status.FAILED if last.exit_code == EXIT_FAILED else Status.INTERRUPTED


def _status_of_all(counts: Mapping[Status, int], *, is_running: bool, is_done: bool) -> Status:
    """The status of a collection: it is complete when its last phase is."""
    if is_running:
        return Status.IN_PROGRESS
    if is_done and counts[Status.COMPLETE] == sum(counts.values()):
        return Status.COMPLETE
    status = group_status(status for status, count in counts.items() if count)
    return Status.INTERRUPTED if status in (Status.COMPLETE, Status.IN_PROGRESS) else status


def _exit_code(
    own: RunOverview, counts: Mapping[Status, int], *, is_done: bool, has_skipped: bool
) -> int:
    if counts[Status.COMPLETE] + counts[Status.FAILED] < sum(counts.values()):
        return EXIT_DRAINED
    if counts[Status.FAILED]:
        return EXIT_FAILED
    if not is_done:
        return EXIT_FAILED if own.exit_code == EXIT_FAILED else EXIT_DRAINED
    return EXIT_SKIPPED if has_skipped else EXIT_COMPLETE


def _eta_s(counts: Mapping[Status, int], runtimes: Sequence[float]) -> float | None:
    """The time that a complete partition took, for each that is left to each owner."""
    owned, left = counts[Status.IN_PROGRESS], sum(counts.values())
    left -= counts[Status.COMPLETE] + counts[Status.FAILED]
    if not (owned and runtimes):
        return None
    return math.fsum(runtimes) / len(runtimes) * left / owned


def _sum_of(parts: Sequence[Summary], status: Status, *, is_whole: bool) -> Summary:
    """The sum of summaries; how many batches are left is known only if every part knows it."""
    streams = dict.fromkeys(Status, 0)
    for part in parts:
        for one, count in part.streams.items():
            streams[one] += count
    left = [part.left for part in parts]
    failed = max(parts, key=lambda part: part.failed_at or 0.0)
    completed = [part.completed_at for part in parts]
    is_complete = status is Status.COMPLETE
    return Summary(
        status=status,
        streams=streams,
        confirmed=sum(part.confirmed for part in parts),
        skipped=sum(part.skipped for part in parts),
        failing=sum(part.failing for part in parts),
        left=sum(count or 0 for count in left) if is_whole and None not in left else None,
        records=sum(part.records for part in parts),
        totals=_sums(part.totals for part in parts),
        spent=_sums(part.spent for part in parts),
        saved=_sums(part.saved for part in parts),
        adopted=sum(part.adopted for part in parts),
        started_at=min(_known(part.started_at for part in parts), default=None),
        updated_at=max(_known(part.updated_at for part in parts), default=None),
        completed_at=max(_known(completed), default=None) if is_complete else None,
        failed_at=failed.failed_at,
        error=failed.error,
        assumed=_sums(part.assumed for part in parts),
        noted=_sums(part.noted for part in parts),
        deferred=sum(part.deferred for part in parts),
        next_due=min(_known(part.next_due for part in parts), default=None),
    )


def _sums(every: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    sums = dict[str, ExactSum]()
    for amounts in every:
        add_amounts(sums, amounts)
    return shown(sums)


def _known(times: Iterable[float | None]) -> list[float]:
    return [time for time in times if time is not None]
