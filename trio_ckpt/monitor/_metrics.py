"""Prometheus metrics of runs: gauges read at each request, counters kept as it happens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import attrs
import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .._journal.observer import Attempt, AttemptEnd, Observer
from .._journal.record import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SETTLE_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600)
SAVE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


@attrs.frozen
class PendingGauge:
    """What the gauges say of one run.

    Attributes:
        run: Its id.
        pending: How many tokens are pending.
        oldest_age_s: Of the oldest; 0 where there is none.
    """

    run: str
    pending: int
    oldest_age_s: float


@attrs.define(eq=False)
class _Moment(Collector):
    """The gauges, as they were at the last request.

    Attributes:
        pending: What is pending.
        partitions: How many partitions of each collection have each status.
    """

    pending: Sequence[PendingGauge] = ()
    partitions: Mapping[str, Mapping[Status, int]] = MappingProxyType({})

    def describe(self) -> Iterable[Metric]:
        return _Moment().collect()

    def collect(self) -> Iterable[Metric]:
        pending = GaugeMetricFamily(
            "ckpt_pending_tokens", "Tokens that are neither durable nor failed.", labels=["run"]
        )
        oldest = GaugeMetricFamily(
            "ckpt_oldest_pending_age_seconds",
            "How long the oldest pending token has been pending; 0: there is none.",
            labels=["run"],
        )
        for gauge in self.pending:
            pending.add_metric([gauge.run], gauge.pending)
            oldest.add_metric([gauge.run], gauge.oldest_age_s)
        yield pending
        yield oldest
        partitions = GaugeMetricFamily(
            "ckpt_partitions", "Partitions of a collection, by status.", labels=["run", "status"]
        )
        for run_id, counts in self.partitions.items():
            for status, count in counts.items():
                partitions.add_metric([run_id, status.name.lower()], count)
        yield partitions


@attrs.define(eq=False)
class _Times:
    began: float | None = None
    settled: float | None = None


class Metrics(Observer):
    """The metrics of the runs that it observes, in a registry of its own.

    `serve` has one; make another to serve them yourself:
    ``open_run(..., observe=[metrics])`` and ``metrics.text()``.

    Attributes:
        registry: Of prometheus-client; not the global one.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._moment = _Moment()
        self._times: dict[Attempt, _Times] = {}
        self._settle = Histogram(
            "ckpt_settle_seconds",
            "From handing a batch out until its body is done with it.",
            ["run"],
            buckets=SETTLE_BUCKETS_S,
            registry=self.registry,
        )
        self._save = Histogram(
            "ckpt_save_seconds",
            "From there until its checkpoint is durable.",
            ["run"],
            buckets=SAVE_BUCKETS_S,
            registry=self.registry,
        )
        self._batches = Counter(
            "ckpt_batches",
            "Attempts at batches that are over, by what became of them.",
            ["run", "status"],
            registry=self.registry,
        )
        self._bytes = Counter(
            "ckpt_bytes", "Bytes that the store has taken.", ["run"], registry=self.registry
        )
        self.confirmed: dict[str, int] = {}
        self.registry.register(self._moment)

    def text(
        self,
        gauges: Iterable[PendingGauge] = (),
        partitions: Mapping[str, Mapping[Status, int]] = MappingProxyType({}),
    ) -> bytes:
        """What Prometheus reads.

        Args:
            gauges: What is pending now.
            partitions: How many partitions of each collection have each status.
        """
        self._moment.pending, self._moment.partitions = tuple(gauges), partitions
        return generate_latest(self.registry)

    def attempt_began(self, attempt: Attempt) -> None:
        """See `Observer.attempt_began`."""
        self._times[attempt] = _Times(trio.current_time())

    def attempt_settled(self, attempt: Attempt) -> None:
        """See `Observer.attempt_settled`."""
        times = self._times.setdefault(attempt, _Times())
        times.settled = trio.current_time()
        if times.began is not None:
            self._settle.labels(attempt.run_id).observe(times.settled - times.began)

    def attempt_ended(self, attempt: Attempt, end: AttemptEnd, error: str | None) -> None:
        """See `Observer.attempt_ended`."""
        times = self._times.pop(attempt, None)
        if end is AttemptEnd.CONFIRMED:
            self.confirmed[attempt.run_id] = self.confirmed.get(attempt.run_id, 0) + 1
            if times is not None and times.settled is not None:
                self._save.labels(attempt.run_id).observe(trio.current_time() - times.settled)
        self._batches.labels(attempt.run_id, end.value).inc()

    def bytes_saved(self, run_id: str, size: int) -> None:
        """See `Observer.bytes_saved`."""
        self._bytes.labels(run_id).inc(size)
