"""The sources of the monitor: an open run from inside, or a store from outside."""

from __future__ import annotations

import math
import os
import socket
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime

import attrs
import msgspec
import trio

from .._journal.collection import (
    CollectionLines,
    CollectionOverview,
    split_collections,
    sum_up_collection,
)
from .._journal.history import list_all_runs, session_metadata_of
from .._journal.live_view import LiveView, first_look_s, read_live
from .._journal.overview import RunOverview, stored_overview
from .._journal.store import WATCHED_FOR_S, Owner, RunSummary, RunView, Store
from .._journal.summary import run_status_from
from .._runs.live_publisher import live_tokens, live_view
from .._runs.run import Run, open_run_of
from .._tokens.coordinator import CheckpointCoordinator
from .._util.errors import UnknownRunError
from ..remote import UnknownJobError
from ..remote._wire.names import JOB_PREFIX, split_task_id
from ..stores import MemoryStore
from ._answers import Seen
from ._views import RunGlance, RunSnapshot

FRESH_S = 0.5  # the list of runs is read again after that
POLL_EVERY_S = 2.0  # a store does not report its changes
FORGOTTEN_AFTER_S = WATCHED_FOR_S - POLL_EVERY_S  # an owner may not publish any more
MAX_COORDINATED_RUNS = 1_000
MAX_CACHED_RUNS = 256  # views of runs that have not changed: more than a picture has


class WatchedSource(ABC):
    """A source of runs that the monitor watches.

    Attributes:
        store: Where the runs are.
    """

    store: Store

    @abstractmethod
    async def list_ids(self) -> list[str]:
        """The runs, sorted; work items are not among them, their jobs are.

        Raises:
            StoreError: the store cannot be read.
        """

    @abstractmethod
    async def snapshot(self, run_id: str) -> RunSnapshot:
        """A snapshot of a run.

        Raises:
            UnknownRunError: there is no such run.
            StoreDamagedError: its records cannot be read.
            StoreError: the store cannot be read.
        """

    async def glance(self, run_id: str) -> RunGlance:
        """What a list shows of a run.

        Raises:
            UnknownRunError, StoreDamagedError, StoreError: as for `snapshot`.
        """
        return (await self.snapshot(run_id)).glance

    async def list_owned(self) -> list[str]:
        """The runs of `list_ids` that a process owns, as far as is known.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self.list_ids()

    async def list_collections(self) -> dict[str, CollectionLines]:
        """The collections among the runs of `list_ids`, by name; their partitions are there, too.

        Raises:
            StoreError: the store cannot be read.
        """
        await trio.lowlevel.checkpoint()
        return {}

    async def collection(self, run_id: str) -> CollectionOverview | None:
        """A collection, added up of the summaries of its runs; None: the run is none.

        Raises:
            StoreError: the store cannot be read.
        """
        await trio.lowlevel.checkpoint()
        return None

    async def look_at(self, run_ids: Iterable[str]) -> None:
        """Have the owners of runs publish what they are at, before snapshots of them are taken.

        Raises:
            StoreError: the store cannot be read.

        Cancellation: a cancellation point.
        """
        await trio.lowlevel.checkpoint()

    @abstractmethod
    async def wait_changed(self) -> None:
        """Wait until there may be something new since the last call.

        Cancellation: always a cancellation and a schedule point.
        """


@attrs.define(eq=False)
class RunSource(WatchedSource):
    """An open run, seen from inside; the other runs of its store are not shown."""

    run: Run
    stuck_after_s: float | None = None
    store: Store = attrs.field(
        default=attrs.Factory(lambda source: open_run_of(source.run).store, takes_self=True),
        init=False,
    )
    _version: int = attrs.field(default=-1, init=False)

    async def list_ids(self) -> list[str]:
        """See `WatchedSource.list_ids`."""
        await trio.lowlevel.checkpoint()
        return [self.run.run_id]

    async def snapshot(self, run_id: str) -> RunSnapshot:
        """See `WatchedSource.snapshot`."""
        await trio.lowlevel.checkpoint()
        run = self.run
        if run_id != run.run_id:
            raise UnknownRunError(f"run {run_id!r} is not the one that is watched", run_id=run_id)
        view = open_run_of(run).view()
        metadata = session_metadata_of(view)
        owner = Owner(
            metadata["host"], metadata["pid"], datetime.fromtimestamp(metadata["began"], UTC)
        )
        status = msgspec.structs.replace(
            run_status_from(self.store, view, owner), open_streams=run.open_streams
        )
        return RunSnapshot(status, live_view(run), "inside", time.time(), self.stuck_after_s)

    async def wait_changed(self) -> None:
        """See `WatchedSource.wait_changed`."""
        self._version = await self.run.coordinator.registry.wait_changed(self._version)


@attrs.define(eq=False)
class CoordinatorSource(WatchedSource):
    """The tokens of a coordinator, by run: there are no records, so nothing else is known.

    A run is shown from its first pending token on, the newest `MAX_COORDINATED_RUNS` of them.
    """

    coordinator: CheckpointCoordinator
    stuck_after_s: float | None = None
    store: Store = attrs.field(factory=MemoryStore, init=False)  # in which nothing is
    _began: float = attrs.field(factory=time.time, init=False)
    _version: int = attrs.field(default=-1, init=False)
    _seen: OrderedDict[str, None] = attrs.field(factory=OrderedDict[str, None], init=False)

    async def list_ids(self) -> list[str]:
        """See `WatchedSource.list_ids`."""
        await trio.lowlevel.checkpoint()
        for token in self.coordinator.get_pending_checkpoints():
            self._seen[token.run_id] = None
            self._seen.move_to_end(token.run_id)
        while len(self._seen) > MAX_COORDINATED_RUNS:
            self._seen.popitem(last=False)
        return sorted(self._seen)

    async def snapshot(self, run_id: str) -> RunSnapshot:
        """See `WatchedSource.snapshot`."""
        if run_id not in await self.list_ids():
            raise UnknownRunError(f"no token of run {run_id!r} is pending", run_id=run_id)
        now = time.time()
        owner = Owner(socket.gethostname(), os.getpid(), datetime.fromtimestamp(self._began, UTC))
        status = run_status_from(self.store, RunView(run_id, 0, 0, {}), owner)
        tokens = self.coordinator.get_pending_checkpoints(run_id)
        live = LiveView(
            at=now,
            owner=0,
            tokens=live_tokens(tokens),
            pending=len(tokens),
            session_confirmed=0,
            session_s=now - self._began,
            rate_per_s=None,
            eta_s=None,
            waiting=(),
        )
        return RunSnapshot(status, live, "inside", now, self.stuck_after_s)

    async def wait_changed(self) -> None:
        """See `WatchedSource.wait_changed`."""
        self._version = await self.coordinator.registry.wait_changed(self._version)


_Version = tuple[int, int, int, float | None]
"""What differs between two states of a run's records."""


@attrs.define(eq=False)
class StoreSource(WatchedSource):
    """All runs of a store, seen from outside."""

    store: Store
    stuck_after_s: float | None = None
    _known: dict[str, RunSummary] = attrs.field(factory=dict[str, RunSummary], init=False)
    _collections: dict[str, CollectionLines] = attrs.field(
        factory=dict[str, CollectionLines], init=False
    )
    _sums: dict[str, tuple[CollectionLines, CollectionOverview]] = attrs.field(
        factory=dict[str, tuple[CollectionLines, CollectionOverview]], init=False
    )
    _listed_at: float = attrs.field(default=-math.inf, init=False)
    _views: OrderedDict[str, tuple[_Version, RunView]] = attrs.field(
        factory=OrderedDict[str, tuple[_Version, RunView]], init=False
    )
    _looked_at: dict[tuple[str, int], float] = attrs.field(  # by run and owner
        factory=dict[tuple[str, int], float], init=False
    )

    async def list_ids(self) -> list[str]:
        """See `WatchedSource.list_ids`."""
        await self._list()
        return list(self._known)

    async def _list(self) -> None:
        """List the runs, if that was not done a moment ago."""
        if trio.current_time() - self._listed_at >= FRESH_S:
            lines = await list_all_runs(self.store)
            self._known = {line.run_id: line for line in lines if not is_task_id(line.run_id)}
            self._collections, _ = split_collections(self.store, lines)
            self._sums = {
                name: one for name, one in self._sums.items() if name in self._collections
            }
            self._listed_at = trio.current_time()
        else:
            await trio.lowlevel.checkpoint()

    async def snapshot(self, run_id: str) -> RunSnapshot:
        """See `WatchedSource.snapshot`."""
        line = await self._line(run_id)
        owner = await self.store.read_owner(run_id)
        view = await self._view(line)
        live = await self._read_live(run_id, view.owner)
        seen: Seen = "published" if live is not None and owner is not None else "stored"
        status = run_status_from(self.store, view, owner)
        return RunSnapshot(status, live, seen, time.time(), self.stuck_after_s)

    async def _line(self, run_id: str) -> RunSummary:
        await self._list()
        if run_id not in self._known:
            raise UnknownRunError(f"{self.store.url} has no run {run_id!r}", run_id=run_id)
        return self._known[run_id]

    async def glance(self, run_id: str) -> RunGlance:
        """See `WatchedSource.glance`: of a run that no process owns its summary is enough."""
        line = await self._line(run_id)
        collection = await self.collection(run_id)
        if collection is not None:
            overview: RunOverview | None = collection.run
        else:
            overview = stored_overview(self.store, line)
        if overview is None:
            return (await self.snapshot(run_id)).glance
        now = time.time()
        return RunGlance(overview, None, "stored", now, self.stuck_after_s, collection=collection)

    async def list_collections(self) -> dict[str, CollectionLines]:
        """See `WatchedSource.list_collections`."""
        await self._list()
        return self._collections

    async def collection(self, run_id: str) -> CollectionOverview | None:
        """See `WatchedSource.collection`; added up again only if a run of it has changed."""
        lines = (await self.list_collections()).get(run_id)
        if lines is None:
            return None
        found = self._sums.get(run_id)
        if found is None or found[0] != lines:
            found = self._sums[run_id] = lines, sum_up_collection(self.store, lines)
        return found[1]

    async def list_owned(self) -> list[str]:
        """See `WatchedSource.list_owned`."""
        await self._list()
        return [run_id for run_id, line in self._known.items() if line.is_owned]

    async def look_at(self, run_ids: Iterable[str]) -> None:
        """See `WatchedSource.look_at`: it waits once, for those that were not read for a while."""
        await self._list()
        known, now = self._known, trio.current_time()
        self._looked_at = {
            key: at for key, at in self._looked_at.items() if now - at < FORGOTTEN_AFTER_S
        }
        lines = [known[run_id] for run_id in run_ids if run_id in known]
        owned = [(line.run_id, line.owner) for line in lines if line.is_owned]
        views = [await self._read_live(*key) for key in owned if key not in self._looked_at]
        if self.store.has_live and None in views:
            await trio.sleep(first_look_s(self.store))

    async def _read_live(self, run_id: str, owner: int) -> LiveView | None:
        self._looked_at[run_id, owner] = trio.current_time()
        return await read_live(self.store, run_id, owner)

    async def _view(self, line: RunSummary) -> RunView:
        """The run's progress; read again only if a record or an owner has come."""
        run_id, version = line.run_id, (line.generation, line.owner, line.records, line.updated_at)
        found = self._views.get(run_id)
        if found is not None and found[0] == version:
            self._views.move_to_end(run_id)
            return found[1]
        view = await self.store.load_run(run_id)
        if view is None:
            raise UnknownRunError(f"{self.store.url} has no run {run_id!r} any more", run_id=run_id)
        self._views[run_id] = version, view
        self._views.move_to_end(run_id)
        if len(self._views) > MAX_CACHED_RUNS:
            self._views.popitem(last=False)
        return view

    async def wait_changed(self) -> None:
        """See `WatchedSource.wait_changed`: it polls."""
        await trio.sleep(POLL_EVERY_S)


def is_task_id(run_id: str) -> bool:
    """Whether a run is a work item by its name."""
    if not run_id.startswith(JOB_PREFIX):
        return False  # nearly all, and there may be thousands
    try:
        split_task_id(run_id)
    except UnknownJobError:
        return False
    return True
