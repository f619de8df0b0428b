"""Metrics: what Prometheus reads is what has happened."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import re
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from tests.hangs import HANG_S
from tests.monitor.client import serving
from tests.opening import begin
from trio_ckpt import RetryRule, RetryTable
from trio_ckpt.abc import Attempt
from trio_ckpt.monitor import Metrics
from trio_ckpt.monitor._api import MAX_SAMPLES, SAMPLE_EVERY_S, Throughput
from trio_ckpt.monitor._metrics import PendingGauge

NAMES = {
    "ckpt_pending_tokens",
    "ckpt_oldest_pending_age_seconds",
    "ckpt_partitions",
    "ckpt_settle_seconds",
    "ckpt_save_seconds",
    "ckpt_batches",
    "ckpt_bytes",
}


def read(text: bytes) -> dict[str, float]:
    """Every sample by its name and labels, buckets left out."""
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_what_was_done_is_counted(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    table = RetryTable([RetryRule((KeyError,), attempts=2)])
    async with begin(observe=[metrics]) as run:
        async with run.open_stream("s", retry=table) as stream:
            async for batch in stream.batches(range(4)):
                await trio.sleep(2)
                if batch.index == 1 and batch.attempt == 1:
                    batch.fail(KeyError("once"))
                elif batch.index == 2:
                    batch.skip("no")
                else:
                    batch.complete()
    found = read(metrics.text())
    assert found["ckpt_batches_total['confirmed', 'r']"] == 3
    assert found["ckpt_batches_total['r', 'retried']"] == 1
    assert found["ckpt_batches_total['r', 'skipped']"] == 1
    assert found["ckpt_settle_seconds_count['r']"] == 5
    assert found["ckpt_settle_seconds_sum['r']"] == 10.0
    assert found["ckpt_save_seconds_count['r']"] == 3
    assert found["ckpt_bytes_total['r']"] > 100


async def test_what_is_pending_is_looked_up_when_a_scrape_asks() -> None:
    async with begin(observe=[Metrics()]) as run:
        async with serving(run) as (client, _):
            reply = await client.get("/metrics")
            assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert read(reply.body)["ckpt_pending_tokens['r']"] == 0
            async with run.open_stream("s") as stream, stream.open_batch() as batch:
                with trio.fail_after(HANG_S):
                    while True:
                        found = read((await client.get("/metrics")).body)
                        assert found["ckpt_pending_tokens['r']"] == 1
                        if found["ckpt_oldest_pending_age_seconds['r']"] > 0:
                            break
                batch.complete()
            found = read((await client.get("/metrics")).body)
            assert found["ckpt_pending_tokens['r']"] == 0
            assert found["ckpt_oldest_pending_age_seconds['r']"] == 0
            assert found["ckpt_batches_total['confirmed', 'r']"] == 1


async def test_a_run_id_cannot_break_the_text(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    name = 'a"b} 1 # {x="\u20ac'
    async with begin(run_id=name, observe=[metrics]) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(1)):
            batch.complete()
    text = metrics.text([PendingGauge(name, 7, 1.5)])
    found = [
        sample
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    ]
    assert {sample.labels["run"] for sample in found} == {name}


def test_attempts_that_began_before_observing_are_no_trouble() -> None:
    async def main() -> None:
        metrics, attempt = Metrics(), Attempt("r", ("s",), 0, 1)
        metrics.attempt_settled(attempt)
        from trio_ckpt.abc import AttemptEnd

        metrics.attempt_ended(attempt, AttemptEnd.CONFIRMED, None)
        metrics.attempt_ended(attempt, AttemptEnd.CONFIRMED, None)
        assert read(metrics.text())["ckpt_batches_total['confirmed', 'r']"] == 2

    trio.run(main)


def test_the_page_of_the_reference_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `(ckpt_\w+?)(?:_total)?` \|", page, re.MULTILINE))
    families = {family.name for family in text_string_to_metric_families(Metrics().text().decode())}
    assert listed == families == NAMES


def test_throughput_is_the_rate_between_samples() -> None:
    throughput = Throughput()
    for at, confirmed in ((0.0, 0), (1.0, 5), (5.0, 10), (10.0, 40), (20.0, 20)):
        throughput.sample(at, confirmed)
    assert [(point.at, point.per_s) for point in throughput.points()] == [
        (5.0, 2.0),
        (10.0, 6.0),
        (20.0, 0.0),  # batches were re-queued: that is not a negative rate
    ]
    for step in range(2 * MAX_SAMPLES):
        throughput.sample(100 + step * SAMPLE_EVERY_S, step)
    assert len(throughput.points()) == MAX_SAMPLES - 1
