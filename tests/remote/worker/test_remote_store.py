"""The worker's store keeps the contract of stores, over a connection."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.opening import begin
from tests.remote.far_store import Far, far_maker, open_far
from trio_ckpt import RunStoppedError
from trio_ckpt._util.errors import StoreConflictError, StoreDamagedError, StoreError
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.remote._foreman import store_proxy
from trio_ckpt.remote._foreman.store_proxy import StoreProxy
from trio_ckpt.remote._wire.task_messages import BEGIN_AGAIN, PutBlob, StoreCall, TaskCheckpoint
from trio_ckpt.remote._worker import remote_store
from trio_ckpt.remote._worker.calls import RpcClient
from trio_ckpt.remote._worker.remote_store import RemoteStore
from trio_ckpt.stores import MemoryStore, open_store
from trio_ckpt.testing import Delay, FaultyStore, check_store

A = '["a"]'


async def test_the_contract_over_a_connection_in_memory(autojump_clock: MockClock) -> None:
    near = MemoryStore()

    async def maker() -> Store:
        return near.reopen()

    async with open_far() as far:
        await check_store(far_maker(far, maker))


@pytest.mark.parametrize("mac_key", [None, b"key"])
async def test_the_contract_over_a_connection_on_disk(
    tmp_path: Path, mac_key: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key in the foreman's store, too, though workers have none."""
    if mac_key is not None:  # the clauses save what is no record, so it has no seal to be opened
        monkeypatch.setattr(StoreProxy, "_seals", lambda *_: (_NoSeal(), _NoSeal()))
        monkeypatch.setattr(StoreProxy, "_sealed_in", _sealed_in)
    async with open_far() as far:
        await check_store(far_maker(far, lambda: open_store(tmp_path / "s", mac_key=mac_key)))


_real_sealed_in = StoreProxy._sealed_in


async def _sealed_in(proxy: StoreProxy, run: RunKey, one: Checkpoint) -> Checkpoint:
    """Without a seal a large record would be the blob that was put, and be put twice."""
    return one if one.blob is not None else await _real_sealed_in(proxy, run, one)


class _NoSeal:
    def open(self, _sequence: int, payload: bytes) -> bytes:
        return payload

    def close(self, _sequence: int, payload: bytes) -> bytes:
        return payload


async def given(
    far: Far, store: Store, run_id: str, owner: int
) -> tuple[StoreProxy, RemoteStore, RpcClient]:
    proxy = StoreProxy(store, run_id, owner)
    rpc = await far.give(proxy)
    proxy.run_id = rpc.task_id = run_id  # so that code of ours can open a run of that name
    far.proxies[run_id] = proxy
    far.rpcs[run_id] = rpc
    for connection in (far.worker.connection, far.foreman.connection):
        connection.tasks[run_id] = next(reversed(connection.tasks.values()))
    return proxy, RemoteStore(rpc), rpc


async def work(store: Store, run_id: str, stop_after: int | None) -> dict[str, object]:
    """Batches with arrays and lists in their state; may end early, as a stop does."""
    state = {"w": np.zeros(100_000), "losses": list[int]()}
    async with (
        begin(store, run_id) as run,
        run.open_stream("a", state=state) as stream,
    ):
        async for batch in stream.batches(range(6)):
            stream.state["w"][batch.index :: 7] += batch.index
            stream.state["losses"].append(batch.index)
            batch.complete()
            if batch.index == stop_after:
                run.request_stop()
        return {"w": stream.state["w"].copy(), "losses": list(stream.state["losses"])}


@pytest.mark.parametrize("mac_key", [None, b"key"])
async def test_a_run_with_typed_state_goes_on_over_the_connection(
    tmp_path: Path, mac_key: bytes | None
) -> None:
    """Deltas, blobs of arrays, resume: what works on a local store works here; the foreman reads
    it as a run of its own, sealed with its key."""
    expected = await work(MemoryStore(), "x", None)
    near = await open_store(tmp_path / "s", mac_key=mac_key)
    async with open_far() as far:
        async with near.lock_run("job-1.000000") as owner:
            _, store, _ = await given(far, near, "job-1.000000", owner)
            with pytest.raises(RunStoppedError):
                await work(store, "job-1.000000", 2)
        view = await near.load_run("job-1.000000")
        assert view is not None
        assert list(view.streams["a",].progress.confirmed) == [0, 1, 2]
        async with near.lock_run("job-1.000000") as owner:
            _, store, _ = await given(far, near, "job-1.000000", owner)
            found = await work(store, "job-1.000000", None)
    assert np.array_equal(found["w"], expected["w"])
    assert found["losses"] == expected["losses"]
    await near.aclose()


async def test_a_save_that_is_sent_again_is_acknowledged_again(autojump_clock: MockClock) -> None:
    """A lost acknowledgement: the same bytes are fine, others are a conflict; what follows in the
    same message is saved."""
    near = MemoryStore()
    async with near.lock_run("r") as owner:
        proxy = StoreProxy(near, "r", owner)

        async def save(*checkpoints: Checkpoint) -> list[str | None]:
            ack = await proxy.save(TaskCheckpoint("r", owner, 1, 0, checkpoints))
            assert ack.fault is None
            return [fault and fault.code for fault in ack.outcomes]

        one, two, three = (Checkpoint(A, n, b"%d" % n) for n in (1, 2, 3))
        assert await save(one, two) == [None, None]
        assert await save(one, two) == [None, None]
        assert await save(two, three) == [None, None]
        assert await save(Checkpoint(A, 2, b"other")) == ["conflict"]
        assert await save(Checkpoint(A, 5, b"5")) == ["conflict"]
        payload = b"x" * 100
        digest = hashlib.sha256(payload).hexdigest()
        await near.put_blob(RunKey("r", 0, owner), payload)
        four = Checkpoint(A, 4, b"", digest)
        assert await save(four) == [None]
        assert await save(four, Checkpoint('["b"]', 1, b"1")) == [None, None]
    stored = await near.read_run("r")
    assert stored is not None
    assert {entry.stream: entry.sequence for entry in stored.streams} == {A: 4, '["b"]': 1}


async def test_an_old_lease_saves_nothing(autojump_clock: MockClock) -> None:
    near = MemoryStore()
    async with open_far() as far:
        async with near.lock_run("r") as old:
            _, store, _ = await given(far, near, "r", old)
            async with store.lock_run("r") as number:
                assert number == old
        async with near.lock_run("r"):
            with pytest.raises(StoreConflictError, match="owner 2 has the run"):
                await store.save(RunKey("r", 0, old), [Checkpoint(A, 1, b"1")])


async def test_a_worker_goes_on_under_a_new_number_without_noticing(
    autojump_clock: MockClock,
) -> None:
    """The foreman was started again: it owns the run again, and the worker's code saves on."""
    near = MemoryStore()
    async with open_far() as far:
        async with near.lock_run("r") as old:
            proxy, store, rpc = await given(far, near, "r", old)
            async with store.lock_run("r") as number:
                assert await store.save(RunKey("r", 0, number), [Checkpoint(A, 1, b"1")]) == [None]
        async with near.lock_run("r") as new:
            proxy.owner = new
            rpc.connect(far.worker, new)
            assert await store.save(RunKey("r", 0, number), [Checkpoint(A, 2, b"2")]) == [None]


async def test_a_worker_sees_only_the_blobs_of_its_item(autojump_clock: MockClock) -> None:
    near = MemoryStore()
    secret, own = b"of another", b"of this one"
    async with open_far() as far, near.lock_run("r") as owner, near.lock_run("other") as other:
        hidden = await near.put_blob(RunKey("other", 0, other), secret)
        name = await near.put_blob(RunKey("r", 0, owner), own)
        _, store, _ = await given(far, near, "r", owner)
        assert await store.read_blob("r", name) == own
        with pytest.raises(StoreDamagedError):
            await store.read_blob("r", hidden)
        with pytest.raises(StoreError, match="for run 'r'"):
            await store.read_blob("other", hidden)


async def test_a_worker_has_one_run(autojump_clock: MockClock) -> None:
    near = MemoryStore()
    async with open_far() as far, near.lock_run("r") as owner:
        _, store, _ = await given(far, near, "r", owner)
        with pytest.raises(StoreError, match="for run 'r'"):
            await store.read_run("other")
        with pytest.raises(StoreError, match="cannot list"):
            await store.list_runs()
        with pytest.raises(StoreError, match="cannot prune"):
            await store.prune(RunKey("r", 0, owner), keep=0)


async def test_a_large_blob_goes_in_parts_and_a_lost_part_begins_it_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = MemoryStore()
    payload = np.random.default_rng(1).bytes(3 * remote_store.PART_BYTES + 17)
    digest = hashlib.sha256(payload).hexdigest()
    async with open_far() as far, near.lock_run("r") as owner:
        proxy, store, _ = await given(far, near, "r", owner)
        async with store.lock_run("r") as number:
            run = RunKey("r", 0, number)
            assert await store.put_blob(run, [payload[:5], memoryview(payload)[5:]]) == digest
            assert await near.read_blob("r", digest) == payload
            assert await store.read_blob("r", digest) == payload
            near._memory.runs["r"].blobs.clear()
            whole, parts = StoreProxy._put, 0

            async def forgetful(self: StoreProxy, part: PutBlob) -> bytes:
                nonlocal parts
                parts += 1
                if parts == 3:
                    self.close()  # as a foreman that was started again
                    self._finished = ""
                return await whole(self, part)

            monkeypatch.setattr(StoreProxy, "_put", forgetful)
            await store.put_blob(run, payload)
            assert await near.read_blob("r", digest) == payload
            assert parts == 3 + 4
            parts = -1_000
            monkeypatch.setattr(StoreProxy, "_put", lambda *_: _begin_again())
            with pytest.raises(StoreError, match="cannot be written"):
                await store.put_blob(run, payload)
        assert proxy._incoming is None


async def _begin_again() -> bytes:
    return BEGIN_AGAIN


async def test_a_blob_that_is_not_what_its_name_says_is_refused(autojump_clock: MockClock) -> None:
    near = MemoryStore()
    async with open_far() as far, near.lock_run("r") as owner:
        proxy, store, _ = await given(far, near, "r", owner)
        for wrong, says in (
            (PutBlob("0" * 64, 1, 0, b"x"), "the SHA-256 of the received blob is"),
            (PutBlob("0" * 64, 5, 0, b"123456"), "a part of a blob goes beyond its end"),
            (PutBlob("0" * 64, store_proxy.MAX_BLOB_BYTES + 1, 0, b"1"), "a blob of"),
        ):
            (reply,) = await proxy.answer(StoreCall("r", owner, 1, wrong))
            assert reply.fault is not None
            assert reply.fault.message.startswith(says)
        with pytest.raises(StoreDamagedError):
            await store.read_blob("r", "0" * 64)
    with pytest.raises(StoreDamagedError):  # no record named it
        await near.read_blob("r", hashlib.sha256(b"x").hexdigest())


async def test_a_long_history_comes_in_pages_that_fit(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_proxy, "MAX_PAGE_BYTES", 1_000)
    near = MemoryStore()
    async with open_far() as far, near.lock_run("r") as owner:
        _, store, _ = await given(far, near, "r", owner)
        group = [Checkpoint(A, n, b"x" * 300) for n in range(1, 12)]
        await near.save(RunKey("r", 0, owner), group)
        found: list[int] = []
        cursor = None
        while True:
            page = await store.history("r", A, cursor=cursor)
            assert len(page.records) <= 3
            found += [record.sequence for record in page.records]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == list(range(11, 0, -1))


# -- calls over a connection ------------------------------------------------------------------


async def test_what_was_asked_is_asked_again_on_the_next_connection(
    autojump_clock: MockClock,
) -> None:
    near = MemoryStore()
    async with open_far() as far, near.lock_run("r") as owner:
        _, store, rpc = await given(far, near, "r", owner)
        rpc.disconnect()

        async def save() -> None:
            async with store.lock_run("r") as number:
                key = RunKey("r", 0, number)
                assert await store.save(key, [Checkpoint(A, 1, b"1")]) == [None]
                saved.append(True)

        saved: list[bool] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(save)
            await trio.sleep(100)
            assert saved == []
            rpc.connect(far.worker, owner)
        assert saved == [True]


async def test_patience_ends(autojump_clock: MockClock) -> None:
    near = MemoryStore()
    async with open_far() as far, near.lock_run("r") as owner:
        _, store, rpc = await given(far, near, "r", owner)
        rpc.disconnect()
        rpc.patience_s = 30
        with pytest.raises(StoreError, match="did not answer for 30 s"):
            await store.read_run("r")


async def test_a_lost_item_lets_no_call_wait(autojump_clock: MockClock) -> None:
    near = MemoryStore()
    async with open_far() as far, near.lock_run("r") as owner:
        _, store, rpc = await given(far, near, "r", owner)
        rpc.disconnect()

        async def ask() -> None:
            with pytest.raises(StoreConflictError, match="went to another"):
                await store.read_run("r")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            rpc.lose("it went to another")
        await ask()


async def test_a_store_that_hangs_is_an_unknown_outcome(autojump_clock: MockClock) -> None:
    near = FaultyStore(MemoryStore(), {1: Delay(10 * store_proxy.SAVE_TIMEOUT_S)})
    async with near.lock_run("r") as owner:
        proxy = StoreProxy(near, "r", owner)
        ack = await proxy.save(TaskCheckpoint("r", owner, 1, 0, (Checkpoint(A, 1, b"1"),)))
        assert ack.fault is not None
        assert ack.fault.code == "unknown"
