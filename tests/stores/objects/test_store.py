"""The store in a bucket keeps the whole contract, wherever the bucket is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.stores.objects.buckets import ClockedBucket, FaultyBucket
from trio_ckpt import RunLockedError
from trio_ckpt.__main__ import main
from trio_ckpt._buckets.bucket import Bucket, RefusedError, memory_bucket
from trio_ckpt._buckets.requests import Requests
from trio_ckpt._util.errors import StoreError, StoreVersionError
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores import open_store
from trio_ckpt.stores._objects.layout import seal
from trio_ckpt.stores._objects.store import ObjectsStore
from trio_ckpt.testing import check_store

URL = "s3://bucket/prefix"


async def open_on(bucket: Bucket, url: str = URL, *, create: bool = True) -> ObjectsStore:
    requests = Requests(bucket, pause=lambda _: None)
    return await ObjectsStore.open(url, requests=requests, create=create)


async def test_the_contract_in_memory(autojump_clock: MockClock) -> None:
    bucket = memory_bucket()
    await check_store(lambda: open_on(bucket))
    assert trio.current_time() == 0


async def test_the_contract_in_a_folder(file_url: str) -> None:
    await check_store(lambda: open_store(file_url))


async def test_the_contract_on_s3(s3_url: str) -> None:
    await check_store(lambda: open_store(s3_url))


async def test_the_contract_with_its_lease(autojump_clock: MockClock) -> None:
    bucket = ClockedBucket(autojump_clock)
    await check_store(lambda: open_on(bucket), lease_s=60.0)


async def test_the_contract_while_requests_fail(autojump_clock: MockClock) -> None:
    bucket = FaultyBucket(autojump_clock, random.Random(1), rate=0.1)
    await check_store(lambda: open_on(bucket), lease_s=60.0)


class BlindBucket(Bucket):
    """A server that does not know If-None-Match."""

    def create(self, key: str, data: bytes) -> str:
        self.put(key, data)
        return ""


async def test_a_bucket_that_creates_twice_is_refused() -> None:
    memory = memory_bucket()
    blind = BlindBucket("s3://blind", memory._clients)
    with pytest.raises(StoreError, match=r"s3://blind: .* does not honour If-None-Match"):
        await open_on(blind)
    assert list(memory.list("prefix")) == [], "it was changed"


class ReadOnlyBucket(Bucket):
    """A bucket that this user may not write to."""

    def create(self, key: str, data: bytes) -> str:
        raise RefusedError("403 Forbidden")


async def test_a_reader_needs_no_right_to_write() -> None:
    memory = memory_bucket()
    store = await open_on(memory)
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), [Checkpoint("[]", 1, b"x")]) == [None]
    reader = await open_on(ReadOnlyBucket("s3://bucket", memory._clients))
    assert [run.records for run in await reader.list_runs()] == [1]
    with pytest.raises(StoreError, match="this user may not write to it"):
        async with reader.lock_run("run"):
            pass
    found = {one.where: one.what for one in await reader.examine_bucket()}
    assert found["owning"] == "this user may not write to it: runs can be read here, not run"


async def test_a_store_that_is_not_there_is_not_made_by_a_reader() -> None:
    bucket = memory_bucket()
    with pytest.raises(StoreError, match="no store in memory; make one with: trio-ckpt init"):
        await open_on(bucket, create=False)
    assert list(bucket.list("prefix")) == []


async def test_a_bucket_that_does_not_exist_is_named(s3_url: str) -> None:
    url = s3_url.replace("ckpt-tests", "no-such-bucket")
    for create in (True, False):
        with pytest.raises(
            StoreError, match=r"s3://no-such-bucket/.*(no such bucket|NoSuchBucket: The spec)"
        ):
            await open_store(url, create=create)


async def test_a_newer_format_is_refused() -> None:
    bucket = memory_bucket()
    bucket.put("prefix/store", seal({"format": 2}))
    with pytest.raises(StoreVersionError, match="has format 2, this version reads format 1"):
        await open_on(bucket)


async def test_what_is_no_store_is_left_alone() -> None:
    bucket = memory_bucket()
    bucket.put("prefix/store", b"another program's object")
    with pytest.raises(StoreError, match="prefix/store is not what was saved"):
        await open_on(bucket)


async def test_a_run_is_taken_over_when_its_lease_ends(autojump_clock: MockClock) -> None:
    bucket = ClockedBucket(autojump_clock)
    store, other = await open_on(bucket), await open_on(bucket)
    async with store.lock_run("run") as owner:
        assert await store.save(RunKey("run", 0, owner), []) == []
        await trio.sleep(59)
        with pytest.raises(RunLockedError, match=r"its lease ends in [01]\.[0-9] s"):
            async with other.lock_run("run"):
                pass
        await trio.sleep(2)
        async with other.lock_run("run") as heir:
            assert heir == owner + 1


async def test_a_store_in_a_folder_survives_the_process_alone(tmp_path: Path) -> None:
    store = await open_store(f"file://{tmp_path}/x")
    assert store.durability == "process"
    assert (await open_on(memory_bucket())).durability == "full"


def test_doctor_says_what_saving_costs(file_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", file_url]) == 0
    assert main(["doctor", file_url]) == 0
    said = capsys.readouterr().out
    assert "1,031,250 PUTs ($5.16) in 1 loop" in " ".join(said.split())
    assert "it creates an object once only" in " ".join(said.split())
    assert "power loss may take the newest saves" in " ".join(said.split())


def test_the_command_says_that_a_store_is_not_there(
    file_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", file_url]) != 0
    assert f"there is no store in {file_url}; make one with: trio-ckpt init" in (
        " ".join(capsys.readouterr().err.split())
    )
