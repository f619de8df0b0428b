"""Collections in `ls` and `show`: many runs on one line."""

from __future__ import annotations

from .._journal.collection import CollectionOverview, split_collections, sum_up_collection
from .._journal.history import list_all_runs
from .._journal.overview import overview_of
from .._journal.record import Status
from .._journal.store import Store
from .._journal.summary import RunStatus
from .._util.text import duration, number, plural
from ._render import Document, word_of


async def read_collection(run: RunStatus) -> CollectionOverview | None:
    """Add up a collection, by its own run; None: the run is no collection.

    Raises:
        StoreError: its runs cannot be listed.
    """
    if overview_of(run).partitions is None:
        return None
    store: Store = run.store
    collections, _ = split_collections(store, await list_all_runs(store, run.run_id))
    lines = collections.get(run.run_id)
    return None if lines is None else sum_up_collection(store, lines)


def partitions_document(collection: CollectionOverview | None) -> Document | None:
    """The partitions of a collection, for programs."""
    if collection is None:
        return None
    return {
        "total": sum(collection.partitions.values()),
        "statuses": {word_of(status): count for status, count in collection.partitions.items()},
        "unseen": collection.unseen,
        "eta_s": collection.eta_s,
    }


def partitions_text(collection: CollectionOverview) -> str:
    """``412 of 1,000 partitions complete, 8 in progress``."""
    counts, total = collection.partitions, sum(collection.partitions.values())
    done = f"{number(counts[Status.COMPLETE])} of {plural(total, 'partition')} complete"
    more = [status for status in counts if status not in (Status.COMPLETE, Status.PENDING)]
    parts = [f"{number(counts[status])} {status.value}" for status in more if counts[status]]
    return ", ".join([done, *parts])


def owners_text(collection: CollectionOverview) -> str:
    """How many partitions are owned now, and when the others are complete."""
    owned = collection.partitions[Status.IN_PROGRESS]
    if not owned:
        return "no partition is owned"
    text = f"{plural(owned, 'partition')} owned"
    return text if collection.eta_s is None else f"{text}, {duration(collection.eta_s)} to go"


def collection_pairs(collection: CollectionOverview) -> list[tuple[str, str]]:
    """What `show` says of the partitions, before their sums."""
    pairs = [("partitions", f"{partitions_text(collection)}; {owners_text(collection)}")]
    if collection.unseen:
        unseen = f"{plural(collection.unseen, 'partition')} in a first session, or killed in it"
        pairs.append(("not in the sums", unseen))
    return pairs
