"""`Store.prune` and `Store.drop_blobs` of a store in a bucket: an entry, and then removals.

What the entry says is so from then on, whatever is left of it.  Objects that could not be removed
are not read any more.  Their owner removes them later; of one that was killed the blobs go when the
run is locked, and `check` names the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..._buckets.clock import StoreClock
from ..._buckets.requests import Requests
from ..._journal.store import Pruned, RunKey
from .._local.fence import compare_generation
from .blobs import remove_freed
from .entries import Drop, LogEntry
from .merge import try_to_merge
from .owning import OwnedLog, append


def prune(requests: Requests, clock: StoreClock, owned: OwnedLog, key: RunKey, keep: int) -> Pruned:
    """See `Store.prune`; the caller has compared the owner with that of this handle."""
    state = owned.loaded.state
    compare_generation(state.generation, key, "removed")
    first = max(state.first, state.generation + 1 - keep)
    doomed = [one for number, one in state.generations.items() if number < first]
    records = sum(one.records for one in doomed)
    size = sum(one.size for one in doomed)
    size += sum(len(head.fold or b"") for one in doomed for head in one.heads.values())
    entry = LogEntry(key.owner, key.generation, clock.now(), first=first)
    freed = append(requests, owned, entry)
    size += remove_freed(requests, owned, freed)
    if doomed:
        try_to_merge(requests, owned)
    return Pruned(len(doomed), records, size)


def drop_blobs(
    requests: Requests,
    clock: StoreClock,
    owned: OwnedLog,
    key: RunKey,
    stream: str,
    sequences: Sequence[int],
) -> int:
    """See `Store.drop_blobs`; the caller has compared the owner with that of this handle."""
    state = owned.loaded.state
    compare_generation(state.generation, key, "dropped")
    attached = {} if state.newest is None else state.newest.attached.get(stream, {})
    dropped = tuple(sorted(attached.keys() & set(sequences)))
    drops = (Drop(stream, dropped),) if dropped else ()
    entry = LogEntry(key.owner, key.generation, clock.now(), drops=drops)
    return remove_freed(requests, owned, append(requests, owned, entry))
