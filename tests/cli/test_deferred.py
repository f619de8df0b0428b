"""Deferred work in the commands, on the page and in the metrics: how much, and when it is due."""

# ruff: noqa: PT012  (what a whole block does is the claim)

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from tests.cli.tools import Terminal
from tests.opening import begin
from trio_ckpt import RunStoppedError
from trio_ckpt._journal.summary import read_run_status
from trio_ckpt._util.text import iso_moment, moment
from trio_ckpt.abc import Observer
from trio_ckpt.monitor._metrics import Metrics
from trio_ckpt.monitor._views import RunSnapshot, run_line, stream_line
from trio_ckpt.stores import open_store

DAY_S = 86_400.0


async def work(store: Path, observers: tuple[Observer, ...] = ()) -> float:
    """Defer two of five batches, where they are not deferred yet; returns when they are due."""
    with pytest.raises(RunStoppedError) as stopped:
        async with (
            begin(store, wait_for_deferred_s=0, observe=observers) as run,
            run.open_stream("s") as stream,
        ):
            async for batch in stream.batches(range(5)):
                if batch.index in (1, 3):
                    batch.defer(until=DAY_S)
                else:
                    batch.complete()
    assert stopped.value.next_due is not None
    return stopped.value.next_due.timestamp()


def test_show_and_its_document_say_when_it_is_due(store: Path, run: Terminal) -> None:
    due = trio.run(work, store)
    said = " ".join(run("show", store, "r").out.split())
    assert f"deferred 2 batches, the first due at {moment(due)}" in said
    document = run("show", store, "r", "--json").json
    assert document["exit_code"] == 75
    assert document["session"]["next_due"] == iso_moment(due)
    assert document["session"]["reason"].startswith("deferred work: 2 batches")
    for summary in (document["total"], document["streams"][0]):
        assert (summary["batches"]["deferred"], summary["batches"]["failing"]) == (2, 0)
        assert summary["next_due"] == iso_moment(due)


def test_explain_says_what_a_start_would_not_do(store: Path, run: Terminal) -> None:
    due = trio.run(work, store)
    said = " ".join(run("explain", store, "r").out.split())
    assert "stopped by itself at" in said
    assert f"hands out nothing of that before {moment(due)}." in said
    assert "2 batches are deferred: a start does not hand them out before they are due" in said


def test_history_says_which_were_deferred(store: Path, run: Terminal) -> None:
    due = trio.run(work, store)
    said = " ".join(run("history", store, "r", "--stream", "s").out.split())
    assert f"until {moment(due)}" in said
    document = run("history", store, "r", "--stream", "s", "--json").json
    found = {one["batch_index"]: one["due"] for one in document["checkpoints"] if one["due"]}
    assert found[1] == iso_moment(due)
    assert sorted(found) == [1, 3]
    [session] = run("history", store, "r", "--json").json["sessions"]
    assert session["next_due"] == iso_moment(due)


def test_retry_puts_them_back(store: Path, run: Terminal) -> None:
    trio.run(work, store)
    said = run("retry", store, "r", "--yes")
    assert "2 batches of 1 stream re-queued" in said.out
    assert run("show", store, "r", "--json").json["total"]["batches"]["deferred"] == 0


async def look(path: Path) -> RunSnapshot:
    store = await open_store(path)
    try:
        status = await read_run_status(store, "r")
    finally:
        await store.aclose()
    assert status is not None
    return RunSnapshot(status, None, "stored", time.time())


def test_the_page_shows_them(store: Path) -> None:
    due = trio.run(work, store)
    snapshot = trio.run(look, store)
    line, stream = run_line(snapshot.glance), stream_line(snapshot.run, ("s",), "s")
    assert line.batches.deferred == stream.batches.deferred == 2
    assert line.next_due == stream.next_due
    assert line.next_due is not None
    assert line.next_due.startswith(str(iso_moment(due))[:19])


def test_the_metrics_count_them(store: Path) -> None:
    pytest.importorskip("prometheus_client")
    metrics = Metrics()
    trio.run(work, store, (metrics,))
    assert 'ckpt_batches_total{run="r",status="deferred"} 2.0' in metrics.text().decode()
