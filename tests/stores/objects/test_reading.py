"""Reading a run that changes meanwhile, lists of long ids, the store's clock, and damage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trio

from tests.hangs import HANG_S
from tests.stores.objects.buckets import (
    LEASE_S,
    ClockedBucket,
    HandClock,
    Process,
    payloads_in,
    run_keys,
)
from trio_ckpt._buckets.bucket import memory_bucket
from trio_ckpt._buckets.clock import StoreClock
from trio_ckpt._buckets.requests import Requests
from trio_ckpt._util.errors import StoreDamagedError
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores._objects.load import MissingObjectError, load
from trio_ckpt.stores._objects.read import read_run
from trio_ckpt.stores._objects.store import ObjectsStore


def test_a_reader_finds_a_run_whole_whenever_it_is_merged() -> None:
    """At each request of the reader the owner saves and merges."""
    at = 0
    while True:
        bucket = ClockedBucket(HandClock())
        process = Process.on(bucket)
        process.take()
        for _ in range(4):
            process.save()
        process.merge()
        process.save()
        merging = _Merging(bucket, process, at)
        stored = read_run(Requests(bucket), run_keys(), None)
        assert stored is not None
        records = [record.payload for record in stored.streams[0].tail]
        assert records in (process.confirmed[:5], process.confirmed)
        if not merging.is_over:
            break
        at += 1
    assert at > 4


class _Merging:
    def __init__(self, bucket: ClockedBucket, process: Process, at: int) -> None:
        self.bucket, self.process, self.left, self.is_over = bucket, process, at, False
        bucket.before = self.act

    def act(self, _verb: str, _key: str) -> None:
        self.left -= 1
        if self.left == -1:
            self.bucket.before = lambda verb, key: None
            self.is_over = True
            self.process.save()
            self.process.merge()


def test_an_entry_that_is_missing_is_damage() -> None:
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    for _ in range(3):
        process.save()
    bucket.delete([run_keys().log(2)])
    with pytest.raises(MissingObjectError, match="log/0000000000000002 of run 'run' is missing"):
        load(Requests(bucket), run_keys())


def test_an_altered_entry_is_damage() -> None:
    bucket = ClockedBucket(HandClock())
    process = Process.on(bucket)
    process.take()
    process.save()
    bucket.put(run_keys().log(2), b"x" * 40)
    with pytest.raises(StoreDamagedError, match="is not what was saved"):
        load(Requests(bucket), run_keys())


async def test_check_names_what_is_wrong() -> None:
    bucket = memory_bucket()
    store = await ObjectsStore.open("s3://bucket", requests=Requests(bucket))
    for name in ("good", "bad"):
        async with store.lock_run(name) as owner:
            run = RunKey(name, 0, owner)
            assert await store.save(run, [Checkpoint("[]", 1, b"x")]) == [None]
    bucket.put("probe/left", b"")
    keys = store._layout.run("bad")
    bucket.put(keys.log(2), b"x" * 40)
    found = [(one.run_id, one.where, one.is_damage) async for one in store.check()]
    assert found == [(None, "probe/left", False), ("bad", keys.folder, True)]


async def test_long_ids_that_begin_alike_are_in_order() -> None:
    store = await ObjectsStore.open("s3://bucket", requests=Requests(memory_bucket()))
    ids = [f"{'x' * 120}{end}" for end in ("c", "a", "b", "")] + ["x" * 99, "x" * 100, "y"]
    for run_id in ids:
        async with store.lock_run(run_id):
            pass
    assert [run.run_id for run in await store.list_runs()] == sorted(ids)
    found = [run.run_id for run in await store.list_runs("x" * 110, "x" * 120, 2)]
    assert found == [f"{'x' * 120}a", f"{'x' * 120}b"]


def test_the_clock_of_the_store_is_never_ahead() -> None:
    local = HandClock(1000.0)
    clock = StoreClock(local)  # type: ignore[arg-type]
    clock.set(datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC))
    local.now += 30
    assert clock.age(datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC)) == 19.0  # whole seconds: 1 less
    clock.set(datetime(2026, 1, 1, 0, 0, 10, 5, tzinfo=UTC))
    assert clock.slack_s == 0.0
    assert not clock.is_old
    local.now += 61
    assert clock.is_old


async def test_clocks_of_machines_may_differ() -> None:
    """A process whose clock is a day ahead takes no run whose lease has not ended."""
    bucket = memory_bucket()
    store = await ObjectsStore.open("s3://bucket", requests=Requests(bucket))
    other = await ObjectsStore.open("s3://bucket", requests=Requests(bucket))
    assert abs(store._clock.now() - other._clock.now()) < 60
    async with store.lock_run("run"):
        owner = await other.read_owner("run")
        assert owner is not None
        assert owner.lease_left_s is not None
        assert 0 < owner.lease_left_s <= 60


async def test_a_closed_store_answers_no_more() -> None:
    store = await ObjectsStore.open("s3://bucket", requests=Requests(memory_bucket()))
    await store.aclose()
    with trio.fail_after(HANG_S), pytest.raises(Exception, match="is closed"):
        await store.list_runs()


def test_a_reader_is_not_misled_by_a_base_that_stays() -> None:
    """That of a former owner, which wrote it after its heir had begun."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    former, heir = Process.on(bucket), Process.on(bucket)
    former.take()
    former.save()
    clock.now += LEASE_S + 1
    heir.take()
    former.merge()
    has_merged = False

    def go_on(verb: str, key: str) -> None:
        nonlocal has_merged
        if verb == "list" and key == run_keys().logs and not has_merged:
            has_merged = True
            for _ in range(5):
                heir.save()
            heir.merge()

    bucket.before = go_on
    assert payloads_in(bucket) == former.confirmed + heir.confirmed
    assert has_merged
