"""What a list of a store costs, what it shows, and how owners learn that they are watched."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.journal.test_overview import PROGRAMS, CountingStore, collect
from tests.opening import begin
from tests.runs.test_live_view import ReadStore
from trio_ckpt import UnknownRunError
from trio_ckpt._journal.live_view import first_look_s
from trio_ckpt._journal.store import WATCHED_FOR_S
from trio_ckpt._maintenance.offline import open_maintenance
from trio_ckpt.monitor._api import MonitorApi
from trio_ckpt.monitor._jobs import Jobs
from trio_ckpt.monitor._sources import FRESH_S, StoreSource
from trio_ckpt.monitor._views import run_line
from trio_ckpt.stores import MemoryStore


def api_of(store: Any) -> MonitorApi:
    return MonitorApi(StoreSource(store), Jobs(store), has_actions=False)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_a_glance_shows_what_the_whole_run_shows(program: Any) -> None:
    store = MemoryStore()
    await program(store)
    source = StoreSource(store)
    assert run_line(await source.glance("r")) == run_line((await source.snapshot("r")).glance)


async def test_the_list_reads_no_run_that_has_ended(autojump_clock: MockClock) -> None:
    store = CountingStore()
    for number in range(20):
        await collect(store, "a", run_id=f"run-{number:02}")
    api = api_of(store)
    store.reads = 0
    found = await api.runs()
    assert [line.run for line in found.runs] == [f"run-{number:02}" for number in range(20)]
    assert await api.metrics_text()
    assert store.reads == 0
    async with begin(store, "run-03"):
        await trio.sleep(FRESH_S)
        store.reads = 0
        found = await api.runs()
        assert [line.run for line in found.runs if line.running] == ["run-03"]
        assert store.reads == 1
        await trio.sleep(FRESH_S)
        await api.runs()
        assert store.reads == 1  # nothing has changed


async def test_a_summary_that_comes_does_not_read_a_run_again(autojump_clock: MockClock) -> None:
    store = CountingStore()
    await collect(store, "a")
    source = StoreSource(store)
    await source.snapshot("r")
    store._memory.runs["r"].summary = b"another"
    await trio.sleep(FRESH_S)
    store.reads = 0
    await source.snapshot("r")
    assert store.reads == 0


async def test_a_run_that_is_removed_is_unknown(autojump_clock: MockClock) -> None:
    store = CountingStore()
    await collect(store, "a")
    source = StoreSource(store)
    line = await source.glance("r")
    assert line.run.run_id == "r"
    async with open_maintenance(store, "r") as maintenance:
        await maintenance.prune(keep=0)
    await trio.sleep(FRESH_S)
    for read in (source.glance, source.snapshot):
        with pytest.raises(UnknownRunError):
            await read("r")


async def open_for(store: MemoryStore, run_id: str, seconds: float) -> None:
    async with (
        begin(store, run_id) as run,
        run.open_stream("s") as stream,
        stream.open_batch() as batch,
    ):
        await trio.sleep(seconds)
        batch.complete()


class EachStore(ReadStore):
    """Keeps the view of each run."""

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, bytes] = {}
        self.times: dict[str, float] = {}

    async def publish(self, run_id: str, payload: bytes) -> None:
        await super().publish(run_id, payload)
        self.views[run_id] = payload

    async def read_live(self, run_id: str) -> bytes:
        await trio.lowlevel.checkpoint()
        self.times[run_id] = trio.current_time()
        return self.views.get(run_id, b"")

    async def is_watched(self, run_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return trio.current_time() - self.times.get(run_id, -math.inf) <= WATCHED_FOR_S


async def test_the_first_answer_waits_once_for_all_owners(autojump_clock: MockClock) -> None:
    """Also of the metrics, that are read seldom: without that they would never see a token."""
    store = EachStore()
    api = api_of(store)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(open_for, store, f"run-{number}", 1_000)
        await trio.sleep(20)
        for _ in range(3):
            began = trio.current_time()
            text = (await api.metrics_text()).decode()
            assert text.count("ckpt_pending_tokens{") == 5
            assert trio.current_time() - began == first_look_s(store)
            began = trio.current_time()
            found = await api.runs()
            assert [line.seen for line in found.runs] == ["published"] * 5
            assert [line.pending for line in found.runs] == [1] * 5
            assert trio.current_time() == began
            await trio.sleep(2 * WATCHED_FOR_S)
            assert set(store.views.values()) == {b""}
        nursery.cancel_scope.cancel()


async def test_a_picture_does_not_wait(autojump_clock: MockClock) -> None:
    store = EachStore()
    api = api_of(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_for, store, "r", 100)
        await trio.sleep(20)
        pictures = []
        for _ in range(2):
            began = trio.current_time()
            pictures.append(await api.picture("r"))
            assert trio.current_time() == began
            await trio.sleep(store.publish_every_s)
        assert b'"seen":"stored"' in pictures[0]
        assert b'"seen":"published"' in pictures[1]
        nursery.cancel_scope.cancel()


async def test_each_owner_of_a_run_is_waited_for(autojump_clock: MockClock) -> None:
    """The next owner of a run does not know that the former one was read."""
    store = EachStore()
    source = StoreSource(store)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_for, store, "r", 10)
            await trio.sleep(2)
            began = trio.current_time()
            store.times.clear()
            await source.look_at(["r"])
            assert trio.current_time() - began == first_look_s(store)
            began = trio.current_time()
            await source.look_at(["r"])
            assert trio.current_time() == began


async def test_nothing_waits_for_runs_that_no_process_owns(autojump_clock: MockClock) -> None:
    store = EachStore()
    for name in ("a", "b"):
        await open_for(store, name, 1)
    api = api_of(store)
    began = trio.current_time()
    await api.runs()
    await api.run("a")
    await api.pending("b", limit=5)
    await api.failures("b", limit=5)
    await api.statistics("b")
    await api.metrics_text()
    assert trio.current_time() == began


async def test_a_line_says_when_its_run_was_removed_since() -> None:
    store = CountingStore()
    await collect(store, "a")
    source = StoreSource(store)
    (run_id,) = await source.list_ids()
    source._known[run_id] = msgspec.structs.replace(source._known[run_id], summary=b"")
    store._memory.runs.clear()
    with pytest.raises(UnknownRunError, match="any more"):
        await source.glance(run_id)
