"""The live view: one picture for all, never a stale last one, and a bound on what it costs."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.hangs import HANG_S
from tests.monitor.client import events, serving
from tests.opening import begin
from trio_ckpt import StoreError, UnknownRunError
from trio_ckpt.monitor import _events
from trio_ckpt.monitor._events import (
    COMMENT_EVERY_S,
    EVERY_S,
    IDLE_EVERY_S,
    MAX_STREAM_S,
    PER_VIEWER_S,
    Broadcast,
    EventStream,
)
from trio_ckpt.stores import MemoryStore


class Scene:
    """Something that changes, and what was made of it."""

    def __init__(self) -> None:
        self.value = self.waits = 0
        self.made: list[tuple[float, str | None]] = []
        self.changed = trio.Event()
        self.error: Exception | None = None

    def change(self) -> None:
        self.value += 1
        self.changed.set()
        self.changed = trio.Event()

    async def make(self, run_id: str | None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.made.append((trio.current_time(), run_id))
        if self.error is not None:
            raise self.error
        return b"%d" % self.value

    async def wait_changed(self) -> None:
        self.waits += 1
        await self.changed.wait()


@pytest.fixture
async def scene() -> Scene:
    return Scene()


@pytest.fixture
async def broadcast(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Broadcast]:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # a busy machine would change the rests
    broadcast = Broadcast(scene.make, scene.wait_changed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broadcast.run)
        yield broadcast
        nursery.cancel_scope.cancel()


async def test_nothing_is_made_while_no_viewer_watches(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    for _ in range(5):
        scene.change()
        await trio.sleep(10)
    assert scene.made == []
    assert scene.waits == 0  # it does not even look


async def test_all_who_watch_one_thing_get_the_same_bytes(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    got: list[bytes] = []

    async def watch() -> None:
        with broadcast.watching("r") as topic:
            await topic.wait_newer(0)
            got.append(topic.payload)

    async with trio.open_nursery() as viewers:
        for _ in range(200):
            viewers.start_soon(watch)
    assert len(got) == 200
    assert len(set(map(id, got))) == 1
    assert len(scene.made) == 1


async def test_who_comes_later_sees_the_newest_picture_at_once(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    with broadcast.watching("r") as first:
        await first.wait_newer(0)
        with broadcast.watching("r") as second:
            began = trio.current_time()
            await second.wait_newer(0)
            assert trio.current_time() == began
            assert second.payload == first.payload
    assert len(scene.made) == 1


async def test_who_leaves_takes_nothing_from_who_stays(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    with broadcast.watching("r") as topic:
        with broadcast.watching("r") as other:
            await other.wait_newer(0)
        seen = topic.version
        scene.change()
        with trio.fail_after(60):
            await topic.wait_newer(seen)
        assert topic.payload == b"1"


async def test_a_slow_viewer_misses_pictures_but_never_the_last(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    with broadcast.watching("r") as topic:
        await topic.wait_newer(0)
        seen = topic.version
        for _ in range(10):
            scene.change()
            await trio.sleep(1)
        await topic.wait_newer(seen)
        assert topic.payload == b"10"
        assert topic.version > seen + 5


async def test_pictures_are_made_no_more_often_than_the_viewers_allow(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    async def change() -> None:
        while True:
            scene.change()
            await trio.sleep(0.01)

    for viewers, least_s in ((1, EVERY_S), (200, 200 * PER_VIEWER_S)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            with trio.move_on_after(30):
                async with trio.open_nursery() as watching:

                    async def watch() -> None:
                        with broadcast.watching("r"):
                            await trio.sleep_forever()

                    for _ in range(viewers):
                        watching.start_soon(watch)
            nursery.cancel_scope.cancel()
        times = [at for at, _ in scene.made]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert gaps
        assert min(gaps[1:]) >= least_s * 0.999
        scene.made.clear()
        await trio.sleep(10)


async def test_a_dear_picture_is_made_seldom(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real time is measured: what making costs is what the program loses."""
    clock = iter(range(0, 10**6, 1))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)) * 0.2)
    with broadcast.watching("r"):
        for _ in range(3_000):
            scene.change()
            await trio.sleep(0.01)
    assert 2 <= len(scene.made) <= 4  # 0.2 s each, so 10 s apart: 2 % of the time


async def test_without_changes_there_is_a_picture_now_and_then(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    with broadcast.watching("r"):
        await trio.sleep(10 * IDLE_EVERY_S)
    assert 8 <= len(scene.made) <= 11


async def test_a_newcomer_does_not_wait_for_the_rest_of_the_others(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    with broadcast.watching("one") as one:
        await one.wait_newer(0)
        began = trio.current_time()
        with broadcast.watching("two") as two:
            await two.wait_newer(0)
            assert trio.current_time() - began < EVERY_S / 2


async def test_a_store_that_fails_for_a_moment_is_said_and_survived(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    with broadcast.watching("r") as topic:
        scene.error = StoreError("the disk is away")
        await topic.wait_newer(0)
        assert topic.payload.startswith(b"event: problem\ndata: ")
        assert b"the disk is away" in topic.payload
        scene.error = None
        seen = topic.version
        scene.change()
        await topic.wait_newer(seen)
        assert topic.payload == b"1"


# -- the answer on the wire ------------------------------------------------------------------------


class Wire:
    """The two ends of an ASGI application."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.times: list[float] = []
        self.gone = trio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        self.sent.append(message.get("body", b""))


async def test_a_stream_is_pictures_and_now_and_then_a_comment(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_events, "IDLE_EVERY_S", 1_000.0)
    wire = Wire()
    with trio.move_on_after(35):
        await EventStream(broadcast, "r")({"method": "GET"}, wire.receive, wire.send)
    assert wire.sent == [b"", b"retry: 2000\n\n", b"0", b":\n\n", b":\n\n", b":\n\n"]
    assert wire.times[-1] - wire.times[-2] == pytest.approx(COMMENT_EVERY_S)


async def test_a_stream_ends_when_the_client_is_gone(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    wire = Wire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EventStream(broadcast, "r"), {"method": "GET"}, wire.receive, wire.send)
        await wait_all_tasks_blocked()
        assert broadcast.viewers == 1
        wire.gone.set()
    assert broadcast.viewers == 0


async def test_a_stream_ends_by_itself_some_day(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    wire, began = Wire(), trio.current_time()
    await EventStream(broadcast, "r")({"method": "GET"}, wire.receive, wire.send)
    assert trio.current_time() - began == pytest.approx(MAX_STREAM_S)
    assert broadcast.viewers == 0


async def test_a_stream_ends_when_its_run_is_gone(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    wire = Wire()
    scene.error = UnknownRunError("there is no run 'r' any more")
    with trio.fail_after(60):
        await EventStream(broadcast, "r")({"method": "GET"}, wire.receive, wire.send)
    assert b"not_found" in wire.sent[-2]


async def test_head_has_no_body(
    scene: Scene, broadcast: Broadcast, autojump_clock: MockClock
) -> None:
    wire = Wire()
    await EventStream(broadcast, "r")({"method": "HEAD"}, wire.receive, wire.send)
    assert wire.sent == [b"", b""]


# -- over a socket ---------------------------------------------------------------------------------


async def next_run(found: AsyncIterator[tuple[str, Any]]) -> Any:
    with trio.fail_after(HANG_S):
        async for name, data in found:
            if name == "run":
                return data
    raise AssertionError("the stream ended")


async def test_progress_and_pending_tokens_are_seen_as_they_change() -> None:
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            async with client.open("GET", "/api/events?run=r") as (_, _, pieces):
                found = events(pieces)
                assert (await next_run(found))["streams"] == []
                async with run.open_stream("a", "b") as stream:
                    async for batch in stream.batches(range(2)):
                        picture = await next_run(found)
                        while not picture["pending"] or (
                            picture["pending"][0]["batch_index"] != batch.index
                        ):
                            picture = await next_run(found)
                        assert picture["run"]["batches"]["confirmed"] == batch.index
                        assert picture["pending"][0]["name"] == "a/b"
                        batch.complete()
                picture = await next_run(found)
                while picture["run"]["batches"]["confirmed"] < 2:
                    picture = await next_run(found)
                assert picture["pending"] == []


async def test_there_is_a_limit_on_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_ckpt.monitor._routes.MAX_VIEWERS", 2)
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            async with client.open("GET", "/api/events") as (_, _, one):
                async with client.open("GET", "/api/events") as (_, _, two):
                    with trio.fail_after(HANG_S):
                        await anext(one)
                        await anext(two)
                    reply = await client.get("/api/events")
                    assert (reply.status, reply.code) == (503, "too_many")
            with trio.fail_after(HANG_S):
                while True:
                    async with client.open("GET", "/api/events") as (status, _, _):
                        if status == 200:
                            break


async def test_a_run_that_is_not_there_is_not_watched() -> None:
    async with begin(MemoryStore()) as run:
        async with serving(run) as (client, _):
            reply = await client.get("/api/events?run=other")
            assert (reply.status, reply.code) == (404, "not_found")
