"""Reading a run: its newest base, and the entries of its log behind that.

Theory of operation.  The owner may merge entries while they are read: it writes a base, and then
removes first the base before, and then the entries.  A reader that misses an object begins again,
with the base that is newest then; so does one whose base is gone once it has listed the log, which
may have been shorter than what was saved before.  Only an object that is missing every time is
damage.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

import attrs

from ..._buckets.requests import Requests
from ..._util.errors import StoreDamagedError
from .entries import LogEntry, LogState
from .layout import LogPage, RunKeys, position_of, unseal

TRIES = 5  # that an owner which merges all the time can disturb

T = TypeVar("T")


@attrs.define
class LoadedRun:
    """A run as it was read.

    Attributes:
        keys: Its keys.
        state: What its entries amount to.
        tail: The entries behind the base, by position.
        sizes: The sizes of these objects, in bytes.
        base: The position of the base; 0: there is none.
        base_bytes: The size of the base.
        newest_at: When the newest entry was written, as the store says; None: there is none.
    """

    keys: RunKeys
    state: LogState
    tail: dict[int, LogEntry] = attrs.field(factory=dict[int, LogEntry])
    sizes: dict[int, int] = attrs.field(factory=dict[int, int])
    base: int = 0
    base_bytes: int = 0
    newest_at: datetime | None = None


class MissingObjectError(StoreDamagedError, is_internal=True):
    """An object that should be there is not: it was merged since, or it is lost."""


def load(requests: Requests, keys: RunKeys) -> LoadedRun:
    """Read a run; one that was never locked has the position 0.

    Raises:
        StoreDamagedError: an object is missing, or was altered.
        StoreError: the store does not answer.
    """
    return again_if_missing(lambda: _load_once(requests, keys))


def again_if_missing(read: Callable[[], T]) -> T:
    """Read again while an object is missing that may have been merged.

    Raises:
        MissingObjectError: it is missing every time.
    """
    for _ in range(TRIES - 1):
        try:
            return read()
        except MissingObjectError:
            continue
    return read()


def _load_once(requests: Requests, keys: RunKeys) -> LoadedRun:
    loaded = _load_base(requests, keys)
    state = loaded.state
    for entry in requests.list_all(keys.logs, keys.log(loaded.base)):
        if position_of(entry.key) != state.position + 1:
            raise _missing(keys, keys.log(state.position + 1))
        group = _read_object(requests, keys, entry.key, LogEntry)
        state.apply(group)
        loaded.tail[state.position] = group
        loaded.sizes[state.position] = entry.size
        loaded.newest_at = entry.modified
    if not _is_newest(requests, loaded):
        raise _missing(keys, keys.base(loaded.base))
    return loaded


def _is_newest(requests: Requests, loaded: LoadedRun) -> bool:
    """Whether nothing was merged before the log was listed: what is read next is not older."""
    bases = requests.list_all(loaded.keys.bases)
    newest = position_of(bases[0].key, is_base=True) if bases else 0
    return newest == loaded.base


def _load_base(requests: Requests, keys: RunKeys) -> LoadedRun:
    bases = requests.list_all(keys.bases)
    if not bases:
        return LoadedRun(keys, LogState())
    newest = bases[0]
    state = _read_object(requests, keys, newest.key, LogState)
    if state.position != position_of(newest.key, is_base=True):
        raise StoreDamagedError(f"{newest.key} is not what was saved")
    return LoadedRun(
        keys, state, base=state.position, base_bytes=newest.size, newest_at=newest.modified
    )


def _read_object(requests: Requests, keys: RunKeys, key: str, kind: type[T]) -> T:
    data = requests.get(key)
    if data is None:
        raise _missing(keys, key)
    return unseal(data, kind, key)


def _missing(keys: RunKeys, key: str) -> MissingObjectError:
    return MissingObjectError(f"{key} of run {keys.run_id!r} is missing")


@attrs.define
class EntryReader:
    """The entries of a run that was read, those in its pages, too; read when they are needed."""

    requests: Requests
    loaded: LoadedRun
    _pages: dict[LogPage, dict[int, LogEntry]] = attrs.field(
        factory=dict[LogPage, dict[int, LogEntry]]
    )
    _indexes: dict[LogPage, list[LogPage]] = attrs.field(factory=dict[LogPage, list[LogPage]])

    def find(self, position: int) -> LogEntry:
        """The entry at a position.

        Raises:
            StoreDamagedError: there is none.
        """
        group = self.loaded.tail.get(position)
        if group is None:
            group = self._in_page(position).get(position)
        if group is None:
            raise _missing(self.loaded.keys, f"entry {position}")
        return group

    def _in_page(self, position: int) -> dict[int, LogEntry]:
        for level, pages in enumerate(self.loaded.state.pages):
            page = _covering(pages, position)
            if page is not None:
                return self._descend(page, level, position)
        raise _missing(self.loaded.keys, f"entry {position}")

    def _descend(self, page: LogPage, level: int, position: int) -> dict[int, LogEntry]:
        keys = self.loaded.keys
        while level:
            if page not in self._indexes:
                key = keys.page(page, level)
                self._indexes[page] = _read_object(self.requests, keys, key, list[LogPage])
            lower = _covering(self._indexes[page], position)
            if lower is None:
                return {}
            page, level = lower, level - 1
        if page not in self._pages:
            key = keys.page(page)
            self._pages[page] = _read_object(self.requests, keys, key, dict[int, LogEntry])
        return self._pages[page]

    def forget(self) -> None:
        """Free the pages that were read."""
        self._pages.clear()


def _covering(pages: list[LogPage], position: int) -> LogPage | None:
    """The page that has a position, of pages in their order."""
    place = bisect.bisect_right(pages, position, key=lambda page: page.first) - 1
    if place >= 0 and pages[place].first <= position <= pages[place].last:
        return pages[place]
    return None
