"""What the owner publishes for other processes: when, what, and what becomes of it."""

# ruff: noqa: SIM117  (what a whole block does is the claim)

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from trio_ckpt import (
    Batch,
    RetryRule,
    RetryTable,
    Run,
    StoreError,
    Stream,
    open_run,
    run_batches,
)
from trio_ckpt._journal.live_view import (
    MAX_TOKENS,
    LiveToken,
    await_live,
    decode_live,
    first_look_s,
    read_live,
)
from trio_ckpt._journal.store import WATCHED_FOR_S
from trio_ckpt._runs.live_publisher import live_view
from trio_ckpt._runs.run import open_run_of
from trio_ckpt._tokens.attempts import attempt_age_s
from trio_ckpt._tokens.token import touch
from trio_ckpt.abc import Store
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.stores._local import live


class WindowStore(MemoryStore):
    """A store in memory that keeps every view that was published."""

    has_live = True

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[float, bytes]] = []
        self.is_full = False

    async def publish(self, run_id: str, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append((trio.current_time(), payload))
        if self.is_full:
            raise StoreError("no space left on device")

    async def read_live(self, run_id: str) -> bytes:
        return self.published[-1][1] if self.published else b""


async def work(store: Store, batches: int, every_s: float, **options: Any) -> None:
    async with open_run("r", store=store, handle_signals=False, **options) as run:
        async with run.open_stream("s") as stream:
            async for batch in stream.batches(range(batches)):
                await trio.sleep(every_s)
                batch.complete()


async def test_it_is_published_at_most_once_a_second(autojump_clock: MockClock) -> None:
    store = WindowStore()
    await work(store, 100, 0.1)
    times = [at for at, payload in store.published if payload]
    assert 5 <= len(times) <= 10
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))


async def test_a_run_of_less_than_a_second_publishes_nothing(autojump_clock: MockClock) -> None:
    store = WindowStore()
    await work(store, 9, 0.1)
    assert store.published == []


async def test_nothing_is_published_while_nothing_happens(autojump_clock: MockClock) -> None:
    store = WindowStore()
    await work(store, 2, 1_000)
    assert len(store.published) <= 6


async def test_it_is_taken_away_at_the_end(autojump_clock: MockClock) -> None:
    store = WindowStore()
    await work(store, 3, 2)
    assert store.published[-1][1] == b""


async def test_a_store_that_refuses_it_breaks_no_run(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = WindowStore()
    store.is_full = True
    with caplog.at_level(logging.WARNING, "trio_ckpt._runs.live_publisher"):
        await work(store, 5, 2)
    view = await store.load_run("r")
    assert view is not None
    assert len(view.streams["s",].progress.confirmed) == 5
    assert [r.message for r in caplog.records if r.name == "trio_ckpt._runs.live_publisher"] == [
        "the live view of run 'r' is not published any more: no space left on device"
    ]


async def test_a_window_that_breaks_in_its_own_way_breaks_no_run(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(WindowStore):
        async def publish(self, run_id: str, payload: bytes) -> None:
            raise LookupError("no such window")

    store = Broken()
    await work(store, 5, 2)
    view = await store.load_run("r")
    assert view is not None
    assert len(view.streams["s",].progress.confirmed) == 5
    assert "the live view of run 'r' is not published any more: no such window" in caplog.text


async def test_a_store_without_a_window_is_never_asked(autojump_clock: MockClock) -> None:
    class NoWindow(WindowStore):
        has_live = False

    store = NoWindow()
    await work(store, 5, 2)
    assert store.published == []


async def test_what_the_contract_does_by_itself_is_nothing() -> None:
    store = MemoryStore()
    await store.publish("r", b"x")
    assert await store.read_live("r") == b""


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
async def test_another_process_sees_the_pending_tokens(tmp_path: Path, scheme: str) -> None:
    """Another handle onto the store stands for it: it shares nothing but the folder."""
    url = f"{scheme}:{tmp_path / 's'}"
    async with begin(url) as run:
        async with run.open_stream("a", "b") as stream, stream.open_batch() as batch:
            batch.complete()
            await open_run_of(run).store.publish("r", b"")  # whatever the run itself has published
            other = await open_store(url, create=False)
            view = await other.load_run("r")
            assert view is not None
            assert await read_live(other, "r", view.owner) is None
            while (live := await read_live(other, "r", view.owner)) is None:
                await trio.sleep(0.05)
                touch(run.coordinator.registry)
            (token,) = live.tokens
            assert (token.stream, token.batch_index, token.state) == (("a", "b"), 0, "completed")
            assert await read_live(other, "r", view.owner + 1) is None  # that of an owner before
    assert await other.read_live("r") == b""
    await other.aclose()


async def test_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    await store.publish("r", b"torn")
    assert await read_live(store, "r", 1) is None
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        await store.publish("r", b"x")


async def test_very_many_tokens_are_cut_to_the_oldest() -> None:
    async with begin(MemoryStore()) as run:
        tokens = [
            run.coordinator.create_checkpoint("r", index, stream=("s",))
            for index in range(MAX_TOKENS + 5)
        ]
        view = live_view(run)
        assert (len(view.tokens), view.pending) == (MAX_TOKENS, MAX_TOKENS + 5)
        assert view.tokens[0].batch_index == 0
        for token in tokens:
            token.complete()


async def fail_once(batch: Batch[int]) -> None:
    await trio.sleep(1)
    if batch.attempt == 1:
        raise ConnectionError("the server is down")
    await trio.sleep(100)
    batch.complete()


async def loop_once(stream: Stream[None], retry: RetryTable) -> None:
    async for batch in stream.batches(range(1)):
        await trio.sleep(1)
        if batch.attempt == 1:
            batch.fail(ConnectionError("the server is down"))
            continue
        await trio.sleep(100)
        batch.complete()


async def batches_once(stream: Stream[None], retry: RetryTable) -> None:
    await run_batches(stream, range(1), fail_once, retry=retry)


async def seen_when(run: Run, is_waiting: bool) -> LiveToken:
    """The token in the live view as soon as the registry says that it waits, or is at work."""
    version = -1
    while True:
        version = await run.coordinator.registry.wait_changed(version)
        for token in live_view(run).tokens:
            if (token.waits_until is not None) is is_waiting:
                return token


@pytest.mark.parametrize("loop", [loop_once, batches_once])
async def test_a_batch_that_waits_for_its_next_attempt_is_shown_so(
    loop: Callable[[Stream[None], RetryTable], Awaitable[None]], autojump_clock: MockClock
) -> None:
    retry = RetryTable([RetryRule((OSError,), attempts=2, backoff_s=60, jitter=0)])
    seen: list[LiveToken] = []
    ages: list[tuple[float, float]] = []
    looked = trio.Event()

    async def look(run: Run) -> None:
        seen.append(await seen_when(run, False))
        seen.append(await seen_when(run, True))
        seen.append(await seen_when(run, False))
        (token,) = run.coordinator.get_pending_checkpoints()
        await trio.sleep(5)
        ages.append((token.age_s, attempt_age_s(token)))
        looked.set()

    async with (
        begin("memory:") as run,
        run.open_stream("s", retry=retry) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(look, run)
        with trio.fail_after(1_000):  # on the mock clock
            await loop(stream, retry)
            await looked.wait()
    _, held_back, again = seen
    assert held_back.state == "pending"
    assert held_back.waits_until is not None
    assert held_back.waits_until - held_back.begun_at == pytest.approx(61, abs=0.01)
    assert again.waits_until is None
    assert ages == [(pytest.approx(66, abs=0.01), pytest.approx(5, abs=0.01))]


async def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    await store.publish("r", b"first")
    (path,) = (tmp_path / "s" / "live").iterdir()
    (tmp_path / "secret").write_bytes(b"secret")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError):
        await store.read_live("r")
    await store.publish("r", b"second")
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert await store.read_live("r") == b"second"
    await store.aclose()


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\x99\xcb" + bytes(8) + b"\x03\x91\x94\x91\xa1\xff"]
)
def test_text_that_is_no_text_is_nothing_to_see(payload: bytes) -> None:
    assert decode_live(payload) is None


# -- while it is read ------------------------------------------------------------------------------


class ReadStore(WindowStore):
    """Knows when it was read last, and how often its owner asked."""

    publish_every_s = 5.0
    asked = 0

    def __init__(self) -> None:
        super().__init__()
        self.read_at = -math.inf

    async def read_live(self, run_id: str) -> bytes:
        self.read_at = trio.current_time()
        return await super().read_live(run_id)

    async def is_watched(self, run_id: str) -> bool:
        self.asked += 1
        return trio.current_time() - self.read_at <= WATCHED_FOR_S


async def test_nothing_is_published_that_no_process_reads(autojump_clock: MockClock) -> None:
    store = ReadStore()
    await work(store, 300, 1.0)
    assert [payload for _, payload in store.published] == [b""]  # the removal at the end
    assert store.asked in (59, 60)


async def test_it_is_published_for_a_minute_after_it_was_read(autojump_clock: MockClock) -> None:
    store = ReadStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, store, 300, 1.0)
        await trio.sleep(101)
        assert await store.read_live("r") == b""
        await trio.sleep(store.publish_every_s)
        assert store.published[-1][1] != b""
        await trio.sleep(WATCHED_FOR_S)
        times = [at for at, payload in store.published if payload]
        assert 11 <= len(times) <= 13
        assert min(times) > 100
        assert store.published[-1][1] == b""  # else the next reader would take it for what is so
        await trio.sleep(WATCHED_FOR_S)
        assert len(store.published) == len(times) + 1
        assert await store.read_live("r") == b""
        await trio.sleep(store.publish_every_s)
        view = decode_live(await store.read_live("r"))
        assert view is not None
        assert view.session_s > 200


async def test_the_first_reader_gets_an_answer_soon(autojump_clock: MockClock) -> None:
    store = ReadStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, store, 300, 1.0)
        await trio.sleep(33.3)
        stored = await store.read_run("r")
        assert stored is not None
        began = trio.current_time()
        view = await await_live(store, "r", stored.owner)
        assert view is not None
        assert trio.current_time() - began <= first_look_s(store)
        began = trio.current_time()
        assert await await_live(store, "r", stored.owner) is not None
        assert trio.current_time() == began


@pytest.mark.parametrize("has_live", [False, True])
async def test_a_reader_waits_once_for_an_owner_that_is_silent(
    autojump_clock: MockClock, has_live: bool
) -> None:
    store = ReadStore()
    store.has_live = has_live
    assert await await_live(store, "r", 1) is None
    assert trio.current_time() == (first_look_s(store) if has_live else 0.0)


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
async def test_only_the_owner_makes_files(tmp_path: Path, scheme: str) -> None:
    """And removes them: nothing is left of a run, or of those who looked at it."""
    url, live = f"{scheme}:{tmp_path / 's'}", tmp_path / "s/live"
    store, other = await open_store(url), await open_store(url)
    assert await other.read_live("r") == b""
    assert not live.exists()
    async with store.lock_run("r"):
        (sign,) = live.iterdir()
        assert sign.read_bytes() == b""
        assert not await store.is_watched("r")
        await other.read_live("another")
        assert not await store.is_watched("r")
        await other.read_live("r")
        assert await store.is_watched("r")
        os.utime(sign, (0, time.time() - WATCHED_FOR_S - 1))
        assert not await store.is_watched("r")
        await other.read_live("r")
        await store.publish("r", b"view")
        assert await store.is_watched("r")
        assert len(list(live.iterdir())) == 2
    assert list(live.iterdir()) == []
    await store.aclose()
    await other.aclose()


@pytest.mark.parametrize("scheme", ["sqlite", "json"])
async def test_who_reads_before_the_owner_asks_is_noticed(tmp_path: Path, scheme: str) -> None:
    """A reader waits for one answer of the owner, so the owner's first one has to be right."""
    url = f"{scheme}:{tmp_path / 's'}"
    store, other = await open_store(url), await open_store(url)
    async with store.lock_run("r"):
        assert await other.read_live("r") == b""
        assert await store.is_watched("r")
    async with store.lock_run("r"):  # another owner, whom no process has looked at
        assert not await store.is_watched("r")
    await store.aclose()
    await other.aclose()


async def test_a_reader_that_may_not_write_reads_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a read-only mount: its owner does not notice it, and what is stored is shown."""
    store, other = await open_store(tmp_path / "s"), await open_store(tmp_path / "s")
    async with store.lock_run("r"):
        assert not await store.is_watched("r")

        def refuse(*_arguments: object, **_named: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(live.os, "utime", refuse)
        assert await other.read_live("r") == b""
        await store.publish("r", b"view")
        assert await other.read_live("r") == b"view"
        monkeypatch.undo()
        assert not await store.is_watched("r")
    await store.aclose()
    await other.aclose()


async def test_a_link_in_place_of_the_sign_is_not_followed(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "s")
    assert not await store.is_watched("r")
    (sign,) = (tmp_path / "s/live").iterdir()
    (tmp_path / "secret").write_bytes(b"secret")
    os.utime(tmp_path / "secret", (0, 0))
    sign.unlink()
    sign.symlink_to(tmp_path / "secret")
    await store.read_live("r")
    assert (tmp_path / "secret").stat().st_mtime == 0
    await store.aclose()


async def test_a_store_that_cannot_be_asked_breaks_no_run(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf(ReadStore):
        async def is_watched(self, run_id: str) -> bool:
            raise StoreError("it is gone")

    store = Deaf()
    await work(store, 30, 1.0)
    view = await store.load_run("r")
    assert view is not None
    assert len(view.streams["s",].progress.confirmed) == 30
    assert "the live view of run 'r' is not published any more: it is gone" in caplog.text
