"""Blobs in a bucket: large ones are streamed, and a late removal hits none that is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest
import trio

from tests.stores.objects.buckets import KEYS, LEASE_S, ClockedBucket, HandClock, Process
from trio_ckpt._buckets.requests import Requests
from trio_ckpt._util.errors import StoreConflictError, StoreDamagedError
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._objects import blobs
from trio_ckpt.stores._objects.store import ObjectsStore

STREAM = '["s"]'


async def open_on(bucket: ClockedBucket) -> ObjectsStore:
    requests = Requests(bucket, pause=lambda _: None)
    store = await ObjectsStore.open("s3://bucket", requests=requests)
    store._clock.local = bucket.clock  # type: ignore[assignment]
    store._clock.local_at = bucket.clock.current_time()
    return store


def blobs_in(bucket: ClockedBucket) -> list[str]:
    return [one.key for one in bucket.list(KEYS.run("run").blobs)]


def naming(sequence: int, *digests: str) -> Checkpoint:
    return Checkpoint(STREAM, sequence, b"", None, digests)


@pytest.fixture(params=["file", "s3"])
def large_url(request: pytest.FixtureRequest) -> str:
    url = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(url, str)
    return url


async def test_a_large_blob_is_uploaded_in_parts(large_url: str) -> None:
    store: Store = await open_store(large_url)
    parts = [os.urandom(3 * 2**20) for _ in range(7)]

    def lazily() -> Iterator[bytes]:
        yield from parts

    whole = b"".join(parts)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for _ in range(2):  # the second time it is there already
            digest = await store.put_blob(run, lazily())
            assert digest == hashlib.sha256(whole).hexdigest()
        assert await store.save(run, [naming(1, digest)]) == [None]
    assert await store.read_blob("run", digest, 5, 2**20) == whole[5 : 5 + 2**20]
    async with store.lock_run("run"):
        assert await store.read_blob("run", digest) == whole
    assert [found async for found in store.check()] == []


async def test_what_a_killed_owner_put_goes_with_the_next() -> None:
    clock = HandClock()
    bucket = ClockedBucket(clock)
    former, heir = await open_on(bucket), await open_on(bucket)
    lock = former.lock_run("run")
    run = RunKey("run", 0, await lock.__aenter__())
    named = await former.put_blob(run, b"named")
    assert await former.save(run, [naming(1, named)]) == [None]
    await former.put_blob(run, b"not named")
    assert len(blobs_in(bucket)) == 2
    clock.now += LEASE_S + 1
    async with heir.lock_run("run"):
        assert blobs_in(bucket) == [key for key in blobs_in(bucket) if named in key]
        with pytest.raises(StoreConflictError, match="does not have the run any more"):
            await former.put_blob(run, b"by a former owner")
        assert len(blobs_in(bucket)) == 1
    await lock.__aexit__(None, None, None)


async def test_a_late_removal_hits_no_blob_of_the_heir() -> None:
    """The former owner is paused before it removes what its heir puts and names."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    former, heir = await open_on(bucket), await open_on(bucket)
    lock = former.lock_run("run")
    run = RunKey("run", 0, await lock.__aenter__())
    digest = await former.put_blob(run, b"shared")
    assert await former.save(run, [naming(1, digest)]) == [None]
    token = trio.lowlevel.current_trio_token()
    has_heir = False

    async def take_over() -> None:
        async with heir.lock_run("run") as owner:
            mine = RunKey("run", 0, owner)
            assert await heir.put_blob(mine, b"shared") == digest
            assert await heir.save(mine, [naming(2, digest)]) == [None]

    def pause(verb: str, key: str) -> None:
        nonlocal has_heir
        if verb == "delete" and digest in key and not has_heir:
            has_heir = True
            clock.now += LEASE_S + 1
            trio.from_thread.run(take_over, trio_token=token)

    bucket.before = pause
    await former.drop_blobs(run, STREAM, [1])
    assert has_heir
    assert await heir.read_blob("run", digest) == b"shared"
    await lock.__aexit__(None, None, None)
    assert await heir.read_blob("run", digest) == b"shared"


async def test_an_altered_blob_is_not_read_as_a_record() -> None:
    bucket = ClockedBucket(HandClock())
    store = await open_on(bucket)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        digest = await store.put_blob(run, b"payload")
        assert await store.save(run, [Checkpoint(STREAM, 1, b"", digest)]) == [None]
    (key,) = blobs_in(bucket)
    bucket.put(key, b"altered")
    with pytest.raises(StoreDamagedError, match="missing or was altered"):
        await store.read_run("run")
    found = [(one.blob, one.is_damage) async for one in store.check()]
    assert found == [(digest, True)]
    bucket.delete([key])
    found = [(one.blob, one.what) async for one in store.check()]
    assert found == [(digest, "it is missing, and a record names it")]


async def test_two_equal_puts_at_once_leave_one_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = ClockedBucket(HandClock())
    store = await open_on(bucket)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(store.put_blob, run, b"equal")
        assert len(blobs_in(bucket)) == 1
        assert store._runs["run"].puts.popitem()[1].pins == 5
    monkeypatch.setattr(blobs, "SMALL_BYTES", 10)


def test_a_paused_owner_removes_no_blob_of_its_heir() -> None:
    """It was paused after it took the run, before it lists what a former owner left."""
    clock = HandClock()
    bucket = ClockedBucket(clock)
    former, heir = Process.on(bucket), Process.on(bucket)
    former.take()
    clock.now += LEASE_S + 1
    heir.take()
    assert former.owned is not None
    assert heir.owned is not None
    spooled = blobs.spool(heir.requests, heir.owned.keys, b"payload")
    name = blobs.upload(heir.requests, heir.owned.keys, spooled)
    blobs.pin_new(heir.requests, heir.owned, spooled, name)
    with pytest.raises(StoreConflictError):
        blobs.remove_unnamed(former.requests, former.owned)
    assert blobs.read_whole(heir.requests, heir.owned.keys, spooled.digest, name) == b"payload"
