"""Acts on a run over REST: those of the command, on record as these are, for actors alone."""

# ruff: noqa: PT012, SIM117  (what a whole block does is the claim)

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.journal.test_inbox import OneInbox
from tests.monitor.client import ACTION_SECRET, Client, serving
from tests.opening import begin
from trio_ckpt import Limits, RunStoppedError
from trio_ckpt._journal.acts import read_acts
from trio_ckpt.stores import MemoryStore, open_store

ACTS = (
    "stop",
    "pause",
    "resume",
    "snapshot",
    'requeue?stream=["s"]&first=0',
    'skip?stream=["s"]&first=0',
    "concurrency?count=2",
    "limit?name=cost_usd&most=80",
)


def path_of(act: str) -> str:
    return f"/api/runs/r/{quote(act, safe='/?=&')}"


async def paused_in(client: Client, *, is_paused: bool) -> Any:
    """What the monitor says of a pause, once it has read the store again."""
    while True:
        paused = (await client.get("/api/runs/r")).json["paused"]
        if (paused is not None) is is_paused:
            return paused
        await trio.sleep(0.05)


async def test_a_running_run_is_steered_by_a_monitor_of_its_store(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    with pytest.raises(RunStoppedError):
        async with begin(tmp_path / "s") as run, run.open_stream("s") as stream:
            async with serving(store, allow_actions=True) as (client, _):
                actor = Client(client.port, ACTION_SECRET)
                async for batch in stream.batches(range(9)):
                    if batch.index == 1:
                        reply = await actor.post(path_of("pause?why=lunch"))
                        assert reply.status == 200
                        assert reply.json["done"].startswith("paused")
                        paused = await paused_in(client, is_paused=True)
                        assert "by the monitor, process" in paused
                        assert paused.endswith(": lunch")
                        reply = await actor.post(path_of("pause"))
                        assert (reply.status, reply.code) == (409, "not_possible")
                        assert (await actor.post(path_of("resume"))).status == 200
                        assert await paused_in(client, is_paused=False) is None
                        again = await actor.post(path_of('requeue?stream=["s"]&first=0'))
                        assert again.json == {"done": "batch 0 is re-queued", "count": 1}
                        some = await actor.post(path_of('skip?stream=["s"]&first=3&last=4'))
                        assert some.json["count"] == 2
                        assert (await actor.post(path_of("stop"))).status == 202
                    batch.complete()
    acts = await read_acts(store, "r")
    assert [act.do for act in acts] == ["pause", "resume", "requeue", "skip", "stop"]
    assert {act.user for act in acts} == {"the monitor"}
    await store.aclose()


async def test_a_run_without_a_process_is_steered_for_the_next_start(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()
    async with serving(store, allow_actions=True) as (client, _):
        actor = Client(client.port, ACTION_SECRET)
        done = {act: (await actor.post(path_of(act))).status for act in ACTS}
        assert done == {
            **dict.fromkeys(ACTS, 409),
            "pause": 200,
            "resume": 200,
            'requeue?stream=["s"]&first=0': 200,
            'skip?stream=["s"]&first=0': 200,
        }
    assert [act.do for act in await read_acts(store, "r")] == [
        "pause",
        "resume",
        "requeue",
        "skip",
    ]
    await store.aclose()


async def test_an_act_waits_until_the_owner_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes longer than what else is asked of a monitor, as in a bucket."""
    monkeypatch.setattr("trio_ckpt.monitor._guard.REQUEST_TIMEOUT_S", 0.0)

    class Inbox(OneInbox):
        inbox_every_s = 0.2

    store = Inbox()
    async with begin(store, limits=Limits(batches=9)):
        async with serving(store, allow_actions=True) as (client, _):
            actor = Client(client.port, ACTION_SECRET)
            reply = await actor.post(path_of("limit?name=batches&most=5"))
            assert reply.json["done"] == "the limit is batches=5 until the session ends"
            assert (await actor.get("/api/runs")).code == "too_slow"
    assert [act.do for act in await read_acts(store, "r")] == ["limit"]


@pytest.mark.parametrize("act", ACTS)
async def test_a_viewer_cannot_act(act: str) -> None:
    store = MemoryStore()
    async with begin(store):
        pass
    async with serving(store, allow_actions=True) as (client, _):
        assert (await client.post(path_of(act))).code == "action_secret_needed"
        foreign = [("origin", "https://elsewhere.example")]
        actor = Client(client.port, ACTION_SECRET)
        assert (await actor.post(path_of(act), headers=foreign)).code == "foreign_origin"
    async with serving(store) as (client, _):
        assert (await client.post(path_of(act))).code == "read_only"
    assert await read_acts(store, "r") == []


@pytest.mark.parametrize(
    "act",
    [
        'requeue?stream=["s"]',
        'requeue?stream=["s"]&first=-1',
        'requeue?stream=["s"]&first=9007199254740993',
        'skip?stream="s"&first=0',
        "concurrency?count=0",
        "limit?name=cost_usd&most=-1",
        "limit?name=cost_usd&most=nan",
        "limit?name=&most=1",
        f"pause?why={'a' * 501}",
    ],
)
async def test_a_parameter_that_is_wrong_is_refused(act: str) -> None:
    async with serving(MemoryStore(), allow_actions=True) as (client, _):
        actor = Client(client.port, ACTION_SECRET)
        assert (await actor.post(path_of(act))).status == 400


async def test_spans_that_are_none_or_too_long_are_refused(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(3)):
            batch.complete()
    async with serving(store, allow_actions=True) as (client, _):
        actor = Client(client.port, ACTION_SECRET)
        for span in ("first=2&last=1", "first=0&last=9007199254740000"):
            reply = await actor.post(path_of(f'requeue?stream=["s"]&{span}'))
            assert (reply.status, reply.code) == (409, "not_possible")
    await store.aclose()
