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


class CollectionOverview(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows of a collection.

    Attributes:
        run: Its own run.
        partitions: How many partitions it has.
        statuses: How many partitions have each status.
        unseen: How many of them are not in the sums yet: they are in their first session, or it
            was killed.
        status: The status of the whole.
        summary: The sums of all partitions and of its own run.
        last_activity: When something was last saved; Unix time, s; None: nothing was.
        runtime_s: For how long its runs were open, all together, in seconds.
        eta_s: When the partitions are complete at the present number of owners, in seconds from
            now; None: no process works on them, or none is complete.
        exit_code: The exit code for its status.
    """

    run: RunOverview
    partitions: int
    statuses: Mapping[Status, int]
    unseen: int
    status: Status
    summary: Summary
    last_activity: float | None
    runtime_s: float
    eta_s: float | None
    exit_code: int


def sum_up_collection(
    store: Store, run: RunOverview, lines: Iterable[RunSummary]
) -> CollectionOverview:
    """Add up a collection from the list of its runs.

    Args:
        store: Its store.
        run: The collection's own run.
        lines: Its partitions, as `Store.list_runs` has returned them.
    """
    partitions = run.partitions or 0
    found: list[RunOverview] = []
    statuses: list[Status] = []
    for line in lines:
        last = last_overview(store, line)
        if last is not None:
            found.append(last)
        statuses.append(_status_of(line, last))
    counts = count_statuses(statuses)
    counts[Status.PENDING] += partitions - len(statuses)
    complete = [one for one in found if one.is_complete]
    owned = counts[Status.IN_PROGRESS]
    eta_s = None
    if complete and owned:
        mean_s = math.fsum(one.runtime_s for one in complete) / len(complete)
        left = partitions - counts[Status.COMPLETE] - counts[Status.FAILED]
        eta_s = mean_s * left / owned
    every = [run, *found]
    status = _whole_status(run, counts)
    unseen = partitions - len(found)
    summary = _sum_of([one.summary for one in every], status, is_whole=not unseen)
    return CollectionOverview(
        run=run,
        partitions=partitions,
        statuses=counts,
        unseen=len(statuses) - len(found),
        status=status,
        summary=summary,
        last_activity=max(_known(one.last_activity for one in every), default=None),
        runtime_s=math.fsum(one.runtime_s for one in every),
        eta_s=eta_s,
        exit_code=_exit_code(run, counts, summary),
    )


def _status_of(line: RunSummary, last: RunOverview | None) -> Status:
    if line.is_owned:
        return Status.IN_PROGRESS
    if last is None or not line.is_current:  # it was never begun, or its owner was killed
        return Status.INTERRUPTED if line.records else Status.PENDING
    if last.is_complete:
        return Status.COMPLETE
    return Status.FAILED if last.exit_code == EXIT_FAILED else Status.INTERRUPTED


def _whole_status(run: RunOverview, counts: Mapping[Status, int]) -> Status:
    """The status of a collection: it is complete when its last phase is."""
    if run.owner is not None or counts[Status.IN_PROGRESS]:
        return Status.IN_PROGRESS
    if run.is_complete and not counts[Status.FAILED]:
        return Status.COMPLETE
    status = group_status(status for status, count in counts.items() if count)
    return Status.INTERRUPTED if status in (Status.COMPLETE, Status.IN_PROGRESS) else status


def _exit_code(run: RunOverview, counts: Mapping[Status, int], summary: Summary) -> int:
    over = counts[Status.COMPLETE] + counts[Status.FAILED]
    if over < sum(counts.values()):
        return EXIT_DRAINED
    if counts[Status.FAILED]:
        return EXIT_FAILED
    if not run.is_complete:
        return run.exit_code if run.exit_code == EXIT_FAILED else EXIT_DRAINED
    return EXIT_SKIPPED if summary.skipped else EXIT_COMPLETE


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
    )


def _sums(every: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    sums = dict[str, ExactSum]()
    for amounts in every:
        add_amounts(sums, amounts)
    return shown(sums)


def _known(times: Iterable[float | None]) -> list[float]:
    return [time for time in times if time is not None]
