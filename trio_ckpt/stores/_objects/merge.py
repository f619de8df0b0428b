"""Merging: entries of a log become one page, and a base says what all of them amount to.

Theory of operation.  The order is page, base, removal.  Whatever ends the process in between, the
log is whole: a page that no base knows is no part of it, and an entry that a base has in it is not
read.  An owner that was paused anywhere in it does no harm when it goes on.  Its page has its owner
number in its key.  Its base is true, and older than that of its heir.  It removes only entries that
its base has in it, and never one that begins an owner.

So that a base stays small it has at most `FAN_OUT` pages twice: the older half goes into an index,
indexes into an index of indexes.  It is written when the entries behind the last one are as large
as it is, so all bases together are not larger than the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..._buckets.requests import Requests
from ..._util.errors import SaveOutcomeUnknownError, StoreError
from ..._util.log import get_logger
from .layout import LogPage, RunKeys, seal, unseal
from .owning import OwnedLog, remove

logger = get_logger(__name__)

EVERY = 64  # entries at least between two bases: so many requests share three
AT_MOST = 512  # entries: so many are read by the next owner, one by one
AT_MOST_BYTES = 32 * 2**20  # of entries: a page is read in one request
AT_RELEASE = 16  # entries: fewer are left as they are when a run is given back
FAN_OUT = 64
# Of the lease, in which the requests of a merging are begun: a renewal waits for them, and the last
# one of them, as the renewal itself, may take a third of the lease.
SHARE = 1 / 8


def merge_if_due(requests: Requests, owned: OwnedLog) -> None:
    """Merge the entries of a run behind its base, if there are many; errors are logged.

    What was saved is durable already, and its saver was told.  A server that does not answer must
    not hold up the next save: each request is sent once.
    """
    loaded = owned.loaded
    size = sum(loaded.sizes.values())
    has_failed = owned.merged_at > loaded.base
    if loaded.state.position - max(loaded.base, owned.merged_at) < EVERY and (
        size < AT_MOST_BYTES or has_failed
    ):
        return
    if len(loaded.tail) < AT_MOST and size < min(loaded.base_bytes, AT_MOST_BYTES):
        return
    try_to_merge(requests, owned)


def try_to_merge(requests: Requests, owned: OwnedLog) -> None:
    """Merge the entries of a run behind its base; errors are logged.

    It ends early where the bucket is slow, so that the lease of the run is renewed in time.
    """
    holder = owned.loaded.state.holder
    all_s = math.inf if holder is None else holder.lease_s * SHARE  # None: it was given back
    owned.merged_at = owned.loaded.state.position
    try:
        merge(requests.within(0, all_s), owned)
    except StoreError as error:
        logger.warning("run %r: its log is merged later: %s", owned.keys.run_id, error)


def merge(requests: Requests, owned: OwnedLog) -> None:
    """Merge the entries of a run behind its base.

    Raises:
        StoreError: the store does not answer, or refuses; the run is as it was.
    """
    loaded, keys = owned.loaded, owned.keys
    state, before = loaded.state, loaded.base
    if state.position == before:
        return
    old, written = state.pages, list[str]()
    pages, doomed = _without_pruned(requests, keys, old, state.start)
    try:
        state.pages = _with_tail(requests, owned, pages, written)
        data = seal(state)
        is_ours = requests.create(keys.base(state.position), data)
    except StoreError as error:
        state.pages = old
        if not isinstance(error, SaveOutcomeUnknownError):  # else the base may be there
            owned.strays += written
        raise
    if not is_ours:
        state.pages = old
        raise StoreError(f"base {state.position} of run {keys.run_id!r} is another one")
    loaded.base, loaded.base_bytes = state.position, len(data)
    entries = [keys.log(at) for at, group in loaded.tail.items() if group.holder is None]
    loaded.tail.clear()
    loaded.sizes.clear()
    strays = [key for key in owned.strays if key not in written]
    owned.strays.clear()
    # First the base before, so that a reader which still finds it has missed no entry.
    bases = [keys.base(before)] if before else []
    remove(requests, owned, bases, [*doomed, *entries, *strays])


def _with_tail(
    requests: Requests, owned: OwnedLog, pages: list[list[LogPage]], written: list[str]
) -> list[list[LogPage]]:
    """Write the entries behind the base as a page; the pages and indexes with that one more.

    Args:
        requests: The bucket.
        owned: The run.
        pages: Its pages and indexes.
        written: Takes the keys of the objects that are written.
    """

    def put(key: str, content: object) -> None:
        written.append(key)
        requests.put(key, seal(content))

    state, keys = owned.loaded.state, owned.keys
    tail = owned.loaded.tail.items()
    kept = {at: one for at, one in tail if at >= state.start and one.records}
    if not kept:
        return pages
    page = LogPage(min(kept), max(kept), state.owner)
    put(keys.page(page), kept)
    levels = [list(level) for level in pages] or [[]]
    levels[0].append(page)
    level = 0
    while len(levels[level]) >= 2 * FAN_OUT:
        older, levels[level] = levels[level][:FAN_OUT], levels[level][FAN_OUT:]
        index = LogPage(older[0].first, older[-1].last, page.owner)
        level += 1
        put(keys.page(index, level), older)
        if level == len(levels):
            levels.append([])
        levels[level].append(index)
    return levels


def _without_pruned(
    requests: Requests, keys: RunKeys, pages: list[list[LogPage]], start: int
) -> tuple[list[list[LogPage]], list[str]]:
    """The pages and indexes without those before a position, and the keys of these.

    An index that has pages on both sides stays, and so do its pages until it goes.
    """
    kept = [[page for page in level if page.last >= start] for level in pages]
    doomed = [
        key
        for number, level in enumerate(pages)
        for page in level
        if page.last < start
        for key in keys_below(requests, keys, page, number)
    ]
    return kept, doomed


def keys_below(requests: Requests, keys: RunKeys, page: LogPage, level: int) -> Iterator[str]:
    """The keys of a page, or of an index and all that is below it."""
    key = keys.page(page, level)
    yield key
    if level:
        data = requests.get(key)
        for lower in [] if data is None else unseal(data, list[LogPage], key):
            yield from keys_below(requests, keys, lower, level - 1)
