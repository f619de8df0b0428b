"""What the owner of a run is at now is said by `show`, `watch` and `explain` of other processes."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_ckpt
from tests.beside import opened
from tests.opening import begin
from trio_ckpt._journal.live_view import LiveToken, LiveView
from trio_ckpt.abc import Store
from trio_ckpt.cli._explain import explain, show_checkpoints
from trio_ckpt.cli._pending import pending_blocks, pending_document, pending_text
from trio_ckpt.cli._render import to_lines
from trio_ckpt.cli._show import show_run
from trio_ckpt.cli._watch import watch
from trio_ckpt.monitor._sources import StoreSource
from trio_ckpt.monitor._views import failure_lines
from trio_ckpt.stores import MemoryStore


@asynccontextmanager
async def working(folder: Path) -> AsyncGenerator[Store]:
    """A run with a batch of one stream done, and one of each of two open for a while."""
    async with (
        opened(folder) as own,
        opened(folder) as beside,
        trio_ckpt.open_run("r", store=own, handle_signals=False) as run,
        run.open_stream("org/a", "pulls") as first,
        run.open_stream("org/b", "pulls") as second,
    ):
        batches = first.batches(range(3))
        (await anext(batches)).complete()
        batch = await anext(batches)
        async with second.open_batch() as other:
            await trio.sleep(120)  # the owner publishes seldom where the machine is busy
            yield beside
            other.complete()
        batch.complete()
        async for rest in batches:
            rest.complete()


def text_of(answer: Any) -> str:
    return "\n".join(to_lines(answer.blocks()))


async def test_show_has_the_pending_tokens(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with working(tmp_path) as store:
        answer = await show_run(store, "r", stream=None, show_all=False)
        pending = answer.document()["pending"]
        assert pending["total"] == 2
        told = [(one["stream"], one["batch_index"], one["state"]) for one in pending["tokens"]]
        assert told == [(["org/a", "pulls"], 1, "pending"), (["org/b", "pulls"], 0, "pending")]
        assert all(one["age_s"] >= 0 for one in pending["tokens"])
        lines = [line.split() for line in text_of(answer).splitlines()]
        assert ["pending", "in", "batch", "state", "age"] in lines
        assert [line[:3] for line in lines[-2:]] == [
            ["org/a/pulls", "1", "pending"],
            ["org/b/pulls", "0", "pending"],
        ]
        only = text_of(await show_run(store, "r", stream="org/a", show_all=False))
        assert "org/a/pulls" in only
        assert "org/b/pulls" not in only
    async with opened(tmp_path) as store:
        answer = await show_run(store, "r", stream=None, show_all=False)
        assert answer.document()["pending"] is None
        assert "pending in" not in text_of(answer)


async def test_explain_says_what_is_open(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with working(tmp_path) as store:
        answer = await explain(store, "r", stream=None, show_all=False, now=time.time() + 100)
        text = text_of(answer)
        assert "2 batches are open at this moment, the oldest first: 'org/a/pulls' batch 1" in text
        assert "'org/b/pulls' batch 0 for 1 min" in text
        text = text_of(await explain(store, "r", stream="org/a", show_all=False, now=time.time()))
        assert "1 batch is open at this moment, the oldest first: 'org/a/pulls' batch 1" in text
    async with opened(tmp_path) as store:
        text = text_of(await explain(store, "r", stream=None, show_all=False, now=time.time()))
        assert "at this moment" not in text


def test_a_token_whose_batch_waits_says_until_when() -> None:
    tokens = (
        LiveToken(("s",), 3, "pending", 900.0, 900.0, 1_300.0),
        LiveToken(("s",), 4, "pending", 900.0, 900.0, 999.0),
        LiveToken(("s",), 5, "completed", 995.0, 995.0),
    )
    live = LiveView(
        at=1_000.0,
        owner=1,
        tokens=tokens,
        pending=3,
        session_confirmed=0,
        session_s=100.0,
        rate_per_s=None,
        eta_s=None,
        waiting=(),
    )
    lines = to_lines(pending_blocks(live, {}, None, 1_000.0, None))
    assert "waits until 1970-01-01 00:21:40 UTC" in lines[-3]
    assert "waits for its turn" in lines[-2]
    assert "completed" in lines[-1]
    assert pending_text(live, 1_000.0) == (
        "3 tokens, 2 of them until a next attempt, the oldest (s batch 3) for 1 min 40 s"
    )
    document = pending_document(live, 1_000.0)
    assert document is not None
    assert [one["waits_until"] for one in document["tokens"]] == [
        "1970-01-01T00:21:40+00:00",
        "1970-01-01T00:16:39+00:00",
        None,
    ]


@pytest.mark.parametrize("as_json", [False, True])
async def test_watch_says_what_is_pending(
    autojump_clock: MockClock, tmp_path: Path, as_json: bool
) -> None:
    out = io.StringIO()
    async with trio.open_nursery() as nursery:
        async with working(tmp_path), opened(tmp_path) as mine:
            await mine.read_live("r")
            await trio.sleep(2)  # the owner publishes what is read
            with trio.move_on_after(2.5):
                await watch(mine, "r", every_s=1.0, as_json=as_json, file=out)
        nursery.cancel_scope.cancel()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    if as_json:
        assert json.loads(lines[0])["pending"]["total"] == 2
    else:
        assert "; pending: 2 tokens, the oldest (org/a/pulls batch 1) for" in lines[0]


async def test_a_snapshot_that_is_left_out_is_told_where_a_person_looks(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, the statistics, the history, `show`, `explain` and the page; the body goes on."""
    async with (
        opened(tmp_path) as own,
        opened(tmp_path) as store,
        trio_ckpt.open_run("r", store=own, handle_signals=False) as run,
        run.open_stream("s", state={"n": 0}) as stream,
    ):
        async for batch in stream.batches(range(2)):
            async with stream.snapshots(every_s=1.0) as snapshots:
                for n in range(6):
                    stream.state["n"] = n
                    stream.state["hook"] = (lambda: None) if n < 5 else None
                    await trio.sleep(1.5)
                    taken = await snapshots.point(f"step {n}")
                    assert taken is (n == 5)
                assert snapshots.skipped == 5
                if not batch.index:
                    await trio.sleep(120)
                    why = "state.hook cannot be stored: "
                    assert snapshots.problem.startswith(why)
                    assert f"a snapshot of batch 0 of run 'r', stream 's' is left out: {why}" in (
                        caplog.text
                    )
                    (told,) = run.statistics().left_out
                    assert (told.stream, told.count) == (("s",), 5)
                    statistics = stream.statistics().state
                    assert statistics is not None
                    assert (statistics.left_out, statistics.problem) == (5, snapshots.problem)
                    history = text_of(await show_checkpoints(store, "r", stream="s", limit=20))
                    assert history.count(f"a snapshot is left out: {why}") == 1
                    shown = text_of(await show_run(store, "r", stream=None, show_all=False))
                    assert f"5 snapshots of s left out: {why}" in shown
                    text = text_of(await explain(store, "r", stream=None, show_all=False, now=0.0))
                    assert f": a snapshot is left out: {why}" in text
                    assert "Work went on." in text
                    lines = list(failure_lines(await StoreSource(store).snapshot("r")))
                    assert [(one.outcome, one.attempts) for one in lines] == [
                        ("snapshot left out", 5)
                    ]
                    assert lines[0].error is not None
                    assert lines[0].error.message.startswith(why)
            batch.complete()
    assert run.exit_code == 0


async def test_explain_says_what_a_complete_run_left_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with (
            trio_ckpt.open_run("r", store=store, handle_signals=False) as run,
            run.open_stream("s", state={"n": 0}) as stream,
        ):
            async for batch in stream.batches(range(1)):
                async with stream.snapshots(every_s=0.0) as snapshots:
                    stream.state["hook"] = lambda: None
                    await snapshots.point("a")
                    del stream.state["hook"]
                batch.complete()
        text = text_of(await explain(store, "r", stream=None, show_all=False, now=0.0))
    assert "is complete" in text
    assert ": a snapshot is left out: state.hook cannot be stored: " in text


async def test_explain_says_that_a_start_goes_on_inside_of_a_batch() -> None:
    store = MemoryStore()

    async def work(*, fails: bool) -> None:
        async with (
            begin(store) as run,
            run.open_stream("s", state={"n": 0}, on_fail="record") as stream,
        ):
            async for batch in stream.batches(range(3)):
                async with stream.snapshots(every_s=0) as snapshots:
                    if batch.index == 1:
                        stream.state["n"] += 1
                        await snapshots.point("half of it")
                        await snapshots.wait()
                        if not fails:
                            scope.cancel()  # leaves no record of the attempt, as a kill does
                            await trio.lowlevel.checkpoint()
                        await stream.fail("no more")
                batch.complete()

    async def said() -> str:
        return text_of(await explain(store, "r", stream=None, show_all=False))

    with trio.CancelScope() as scope:
        await work(fails=False)
    inside = r"goes on at batch 1, .* saved state, of .* UTC, inside of that batch"
    assert re.search(inside, await said())
    async with begin(store) as run, run.open_stream("s", state={"n": 0}) as stream:
        await stream.pin("before the half")  # it changes nothing of where a start goes on
        await stream.unpin("before the half")
    assert re.search(inside, await said())
    await work(fails=True)
    assert "inside of that batch" not in await said()
