"""The monitor's queries and actions: from a request to a record, without HTTP."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Mapping, Sequence

import attrs
import trio

from .._journal.history import read_history_page, read_sessions
from .._journal.live_view import LiveView
from .._journal.record import Status
from .._maintenance.offline import open_maintenance
from .._util.errors import StoreError, UnknownRunError, UnknownStreamError
from .._util.plain import StreamKey
from .._util.text import one_line, stream_names
from ._acts import RunActs
from ._answers import (
    Done,
    FailureList,
    HistoryAnswer,
    RunDetail,
    RunLine,
    RunList,
    SessionList,
    Statistics,
    StreamPage,
    ThroughputPoint,
    TokenList,
    UnreadableRun,
    encode_answer,
    moment,
)
from ._events import Broadcast, event
from ._jobs import Jobs, NotPossibleError
from ._metrics import Metrics, PendingGauge
from ._sources import CoordinatorSource, RunSource, WatchedSource
from ._views import (
    RunGlance,
    RunSnapshot,
    checkpoint_lines,
    failure_lines,
    run_detail,
    run_line,
    session_line,
    statistics,
    stream_line,
    token_lines,
)

MAX_LISTED_RUNS = 100  # that the page shows; the others are a page away
MAX_GAUGED_RUNS = 1_000  # of a store, in the metrics
SAMPLE_EVERY_S = 5.0
MAX_SAMPLES = 361  # of the throughput: half an hour


@attrs.define(eq=False)
class Throughput:
    """How many batches one run has confirmed at recent moments."""

    _samples: deque[tuple[float, int]] = attrs.field(
        factory=lambda: deque[tuple[float, int]](maxlen=MAX_SAMPLES), init=False
    )

    def sample(self, at: float, confirmed: int) -> None:
        """Take a sample, if it is time.

        Args:
            at: Unix time, s.
            confirmed: Batches confirmed by then.
        """
        if not self._samples or at - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((at, confirmed))

    def points(self) -> list[ThroughputPoint]:
        """Batches per second before each sample; re-queued batches count as none."""
        return [
            ThroughputPoint(at=at, per_s=round(max(0, now - was) / (at - before), 4))
            for (before, was), (at, now) in itertools.pairwise(self._samples)
        ]


@attrs.define(eq=False)
class MonitorApi:
    """The queries of one source, and the actions on it.

    Attributes:
        source: Where it looks.
        metrics: Of the runs that it sees from inside.
        jobs: The jobs of its store.
        has_actions: Whether the server takes actions.
        acts: The acts on its runs.
        broadcast: The pictures that are sent to all who watch.
    """

    source: WatchedSource
    jobs: Jobs
    has_actions: bool
    acts: RunActs = attrs.field(
        default=attrs.Factory(lambda api: RunActs(api.source), takes_self=True), init=False
    )
    metrics: Metrics = attrs.field(factory=Metrics, init=False)
    broadcast: Broadcast = attrs.field(
        default=attrs.Factory(
            lambda api: Broadcast(api.picture, api.source.wait_changed), takes_self=True
        ),
        init=False,
    )
    _throughputs: dict[str, Throughput] = attrs.field(factory=dict[str, Throughput], init=False)

    # -- pictures -----------------------------------------------------------------------------

    async def picture(self, run_id: str | None) -> bytes:
        """The picture that all viewers of the list, or of one run, receive.

        It does not wait for owners that begin to publish: the next one shows what they do.
        """
        runs = await self._page(await self._ids(), "", MAX_LISTED_RUNS)
        picture = event("runs", encode_answer(runs))
        if run_id is not None:
            picture += event("run", encode_answer(await self._detail(run_id)))
        return picture

    async def sample_throughput(self) -> None:
        """Take samples of the throughput of a run that is seen from inside, until cancelled."""
        if not isinstance(self.source, RunSource):
            return  # of a run in a store a sample is taken at each request
        run_id = self.source.run.run_id
        while True:
            self._throughput(run_id).sample(time.time(), self.metrics.confirmed.get(run_id, 0))
            await trio.sleep(SAMPLE_EVERY_S)

    def _throughput(self, run_id: str) -> Throughput:
        return self._throughputs.setdefault(run_id, Throughput())

    # -- runs ---------------------------------------------------------------------------------

    async def runs(
        self, *, after: str = "", limit: int = MAX_LISTED_RUNS, search: str = ""
    ) -> RunList:
        """A page of the runs."""
        ids = await self._ids(search)
        await self.source.look_at([run_id for run_id in ids if run_id > after][:limit])
        return await self._page(ids, after, limit)

    async def _ids(self, search: str = "") -> list[str]:
        """The runs whose names contain a text; without a text partitions are not among them."""
        ids = await self.source.list_ids()
        if search:
            return [run_id for run_id in ids if _has(run_id, search)]
        hidden: set[str] = set()
        for lines in (await self.source.list_collections()).values():
            hidden.update(line.run_id for line in lines.partitions)
        return [run_id for run_id in ids if run_id not in hidden]

    async def _page(self, ids: Sequence[str], after: str, limit: int) -> RunList:
        later = [run_id for run_id in ids if run_id > after]
        lines, unreadable = list[RunLine](), list[UnreadableRun]()
        for run_id in later[:limit]:
            try:
                lines.append(run_line(await self.source.glance(run_id)))
            except UnknownRunError:
                continue  # it was pruned since
            except StoreError as error:  # the others can be read
                unreadable.append(UnreadableRun(run=run_id, message=one_line(str(error))))
        return RunList(
            at=moment(time.time()),
            store=self.source.store.url,
            runs=lines,
            unreadable=unreadable,
            total=len(ids),
            next=later[limit - 1] if len(later) > limit else None,
            actions=self.has_actions,
        )

    async def run(self, run_id: str) -> RunDetail:
        """One run."""
        await self.source.look_at([run_id])
        return await self._detail(run_id)

    async def _detail(self, run_id: str) -> RunDetail:
        snapshot, glance = await self._look(run_id)
        throughput = self._throughput(run_id)
        if snapshot.seen != "inside":
            throughput.sample(snapshot.at, glance.run.summary.confirmed)
        return run_detail(snapshot, glance, throughput.points())

    async def _look(self, run_id: str) -> tuple[RunSnapshot, RunGlance]:
        """A run, and what a list shows of it: of a collection the sums with its partitions."""
        snapshot = await self.source.snapshot(run_id)
        whole = await self.source.collection(run_id)
        glance = snapshot.glance
        if whole is None:
            return snapshot, glance
        return snapshot, attrs.evolve(glance, run=whole.run, collection=whole)

    async def statistics(self, run_id: str) -> Statistics:
        """The numbers of a run."""
        await self.source.look_at([run_id])
        return statistics(*await self._look(run_id))

    async def streams(self, run_id: str, *, after: int, limit: int, search: str = "") -> StreamPage:
        """A page of the streams."""
        run = (await self.source.snapshot(run_id)).run
        names = stream_names(run.keys)
        keys = [key for key in run.by_urgency(run.keys) if _has(names[key], search)]
        page = keys[after : after + limit]
        return StreamPage(
            run=run_id,
            streams=[stream_line(run, key, names[key]) for key in page],
            total=len(keys),
            next=after + limit if len(keys) > after + limit else None,
        )

    async def pending(self, run_id: str, *, limit: int) -> TokenList:
        """The pending tokens."""
        await self.source.look_at([run_id])
        snapshot = await self.source.snapshot(run_id)
        return TokenList(
            run=run_id,
            seen=snapshot.seen,
            tokens=token_lines(snapshot, limit),
            total=snapshot.live.pending if snapshot.live is not None else 0,
        )

    async def failures(self, run_id: str, *, limit: int) -> FailureList:
        """What went wrong."""
        await self.source.look_at([run_id])
        lines = list(failure_lines(await self.source.snapshot(run_id)))
        return FailureList(run=run_id, failures=lines[:limit], total=len(lines))

    async def history(
        self, run_id: str, *, stream: StreamKey, cursor: str | None, limit: int
    ) -> HistoryAnswer:
        """A page of the checkpoints of a stream.

        Raises:
            UnknownStreamError: there is no such stream.
        """
        run = (await self.source.snapshot(run_id)).run
        if stream not in run.parts:
            raise UnknownStreamError(
                f"run {run_id!r} has no stream {stream!r}", run_id=run_id, stream=stream
            )
        checkpoints, after = await read_history_page(
            self.source.store, run_id, stream, cursor=cursor, limit=limit
        )
        return HistoryAnswer(
            run=run_id,
            stream=list(stream),
            checkpoints=checkpoint_lines(checkpoints),
            next=after,
        )

    async def sessions(self, run_id: str, *, limit: int) -> SessionList:
        """The sessions, newest first."""
        run = (await self.source.snapshot(run_id)).run
        sessions = await read_sessions(self.source.store, run_id, is_running=run.owner is not None)
        newest = sessions[::-1][:limit]
        return SessionList(
            run=run_id, sessions=[session_line(one) for one in newest], total=len(sessions)
        )

    # -- metrics ------------------------------------------------------------------------------

    async def metrics_text(self) -> bytes:
        """The metrics, in the text format of Prometheus."""
        partitions = dict[str, Mapping[Status, int]]()
        for run_id in await self.source.list_collections():
            collection = await self.source.collection(run_id)
            if collection is not None:
                partitions[run_id] = collection.partitions
        return self.metrics.text(await self._gauges(), partitions)

    async def _gauges(self) -> Sequence[PendingGauge]:
        if isinstance(self.source, RunSource):
            tokens = self.source.run.coordinator.get_pending_checkpoints(self.source.run.run_id)
            oldest_s = tokens[0].age_s if tokens else 0.0
            return [PendingGauge(self.source.run.run_id, len(tokens), oldest_s)]
        gauges: list[PendingGauge] = []
        owned = (await self.source.list_owned())[:MAX_GAUGED_RUNS]
        await self.source.look_at(owned)
        for run_id in owned:
            try:
                snapshot = await self.source.snapshot(run_id)
            except (UnknownRunError, StoreError):
                continue
            if snapshot.live is not None and not snapshot.is_stale:
                gauges.append(_gauge(run_id, snapshot, snapshot.live))
        return gauges

    # -- actions ------------------------------------------------------------------------------

    async def retry(self, run_id: str) -> Done:
        """Re-queue what was skipped or has failed.

        Raises:
            RunLockedError: a process has the run.
        """
        await self._check_free(run_id)
        async with open_maintenance(self.source.store, run_id) as maintenance:
            count = await maintenance.retry()
        return Done(done="streams re-queued", count=count)

    async def prune(self, run_id: str, *, keep: int) -> Done:
        """Remove archived generations of a run.

        Raises:
            RunLockedError: a process has the run.
        """
        await self._check_free(run_id)
        async with open_maintenance(self.source.store, run_id) as maintenance:
            pruned = await maintenance.prune(keep=keep)
        return Done(done="archived generations removed", count=pruned.generations)

    async def _check_free(self, run_id: str) -> None:
        if isinstance(self.source, RunSource):
            raise NotPossibleError("the run is open in this very process: that is for later")
        if isinstance(self.source, CoordinatorSource):
            raise NotPossibleError("these are tokens of a coordinator: they have no records")
        await self.source.snapshot(run_id)


def _has(name: str, search: str) -> bool:
    """Whether a name contains a text, in lower or upper case."""
    return search.casefold() in name.casefold()


def _gauge(run_id: str, snapshot: RunSnapshot, live: LiveView) -> PendingGauge:
    oldest_s = max(0.0, snapshot.at - live.tokens[0].created_at) if live.tokens else 0.0
    return PendingGauge(run_id, live.pending, oldest_s)
