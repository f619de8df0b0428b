"""What the store in memory has beyond the contract, and the faults of `FaultyStore`."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from tests.hangs import HANG_S
from trio_ckpt._util.errors import (
    RunLockedError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
)
from trio_ckpt.abc import Checkpoint, Pruned, RunKey
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import CommitThenError, Delay, Fail, FaultyStore, Hang, Reject

A, B = '["a"]', '["b"]'


async def _heads(store: MemoryStore) -> dict[str, int]:
    stored = await store.read_run("run")
    assert stored is not None
    return {entry.stream: entry.sequence for entry in stored.streams}


async def test_each_url_is_a_store_of_its_own() -> None:
    one, other = await open_store("memory:"), await open_store("memory:")
    async with one.lock_run("run"), other.lock_run("run"):
        pass
    assert one.durability == "none"


async def test_inline_limit() -> None:
    assert MemoryStore(inline_limit_bytes=10).reopen().inline_limit_bytes == 10


async def test_after_crash_has_the_data_and_no_locks() -> None:
    store = MemoryStore(mac_key=b"key")
    async with store.lock_run("run") as owner:
        await store.save(RunKey("run", 0, owner), [Checkpoint(A, 1, b"")])
        survivor = store.after_crash()
        await store.save(RunKey("run", 0, owner), [Checkpoint(A, 2, b"")])
        with pytest.raises(RunLockedError):
            async with store.reopen().lock_run("run"):
                pass
        async with survivor.lock_run("run") as next_owner:
            assert next_owner == owner + 1
            await survivor.save(RunKey("run", 0, next_owner), [Checkpoint(B, 1, b"")])
    assert await _heads(survivor) == {A: 1, B: 1}
    assert await _heads(store) == {A: 2}
    assert survivor.mac_key == b"key"


async def test_lock_is_kept_after_a_save_was_given_up_on() -> None:
    store = MemoryStore()
    async with store.lock_run("run") as owner:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.save(RunKey("run", 0, owner), [])
    with pytest.raises(RunLockedError):
        async with store.lock_run("run"):
            pass
    async with store.after_crash().lock_run("run"):
        pass


async def test_after_crash_a_pruned_run_goes_on_from_its_numbers() -> None:
    store = MemoryStore()
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        await store.save(run, [Checkpoint(A, 1, b"")])
        await store.prune(run, keep=0)
    survivor = store.after_crash()
    assert await survivor.read_run("run") is None
    async with survivor.lock_run("run") as next_owner:
        stored = await survivor.read_run("run")
        assert stored is not None
        assert (stored.owner, stored.generation) == (next_owner, 1) == (owner + 1, 1)


async def test_a_blob_that_was_put_again_outlives_a_prune() -> None:
    store = MemoryStore()
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        digest = await store.put_blob(run, b"blob")
        await store.save(run, [Checkpoint(A, 1, b"", digest)])
        await store.put_blob(run, b"blob")
        assert await store.prune(run, keep=0) == Pruned(1, 1, 4)
        run = RunKey("run", 1, owner)
        assert await store.save(run, [Checkpoint(A, 1, b"", digest)]) == [None]
        await store.prune(run, keep=0)
        (outcome,) = await store.save(RunKey("run", 2, owner), [Checkpoint(A, 1, b"", digest)])
        assert isinstance(outcome, StoreError)


async def test_a_put_whose_run_goes_to_another_owner_stores_nothing() -> None:
    store = MemoryStore()
    token = trio.lowlevel.current_trio_token()
    taken, goes_on = trio.Event(), threading.Event()
    raised: list[Exception] = []

    def payload() -> Iterator[bytes]:
        token.run_sync_soon(taken.set)
        assert goes_on.wait(HANG_S)
        yield b"blob"

    async def put(run: RunKey) -> None:
        try:
            await store.put_blob(run, payload())
        except StoreConflictError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        async with store.lock_run("run") as owner:
            nursery.start_soon(put, RunKey("run", 0, owner))
            await taken.wait()
        async with store.lock_run("run"):
            goes_on.set()
            while not raised:
                await trio.lowlevel.checkpoint()
            with pytest.raises(StoreDamagedError):
                await store.read_blob("run", hashlib.sha256(b"blob").hexdigest())


async def test_faults(autojump_clock: MockClock) -> None:
    inner = MemoryStore()
    plan = {1: Fail(), 2: Hang(), 3: Delay(100.0), 4: CommitThenError(), 5: Reject(A)}
    store = FaultyStore(inner, plan)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)

        with pytest.raises(StoreError, match="save 1 fails as planned; nothing was saved"):
            await store.save(run, [Checkpoint(A, 1, b"")])
        assert await _heads(inner) == {}

        with trio.move_on_after(60) as scope:
            await store.save(run, [Checkpoint(A, 1, b"")])
        assert scope.cancelled_caught
        assert await _heads(inner) == {}

        before = trio.current_time()
        assert await store.save(run, [Checkpoint(A, 1, b"")]) == [None]
        assert trio.current_time() == before + 100

        with pytest.raises(StoreError, match="save 4 fails as planned, after it was saved"):
            await store.save(run, [Checkpoint(A, 2, b"")])
        assert await _heads(inner) == {A: 2}

        group = [Checkpoint(B, 1, b""), Checkpoint(A, 3, b""), Checkpoint(B, 2, b"")]
        outcomes = await store.save(run, group)
        assert [outcome is None for outcome in outcomes] == [True, False, True]
        assert await _heads(inner) == {A: 2, B: 2}

        assert await store.save(run, [Checkpoint(A, 3, b"")]) == [None]
    assert store.saves == 6
