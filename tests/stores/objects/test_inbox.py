"""An act on a run in a bucket that is killed at any change of the store was done, or never was."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from tests.crash.act_sweep import kill_at_each_call
from tests.crash.acts import AimedKills, prepare
from tests.fork_server import Told
from tests.opening import begin
from trio_ckpt._buckets.bucket import Bucket, Clients, memory_bucket
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.abc import Store
from trio_ckpt.stores import open_store
from trio_ckpt.stores._objects.store import ObjectsStore

YEAR_S = 31_536_000.0


@pytest.fixture(scope="module")
def acts() -> Iterator[AimedKills]:
    with AimedKills(None) as started:
        yield started


@pytest.mark.parametrize("place", ["file_url", "s3_url"])
async def test_an_empty_object_is_in_no_ones_way(
    place: str, request: pytest.FixtureRequest
) -> None:
    store = await open_store(request.getfixturevalue(place))
    async with store.lock_run("r"):
        await store.write_inbox("r", b"asked")
        (key,) = [entry.key for entry in _bucket_of(store).list("") if "inbox" in entry.key]
        _bucket_of(store).put(key, b"")
        assert await store.read_inbox("r") == b""
        await store.write_inbox("r", b"asked")
        assert await store.read_inbox("r") == b"asked"
    await store.aclose()


async def test_an_open_run_reads_one_object_every_ten_seconds(autojump_clock: MockClock) -> None:
    requests = Requests(memory_bucket())
    store = await ObjectsStore.open("s3://bucket", requests=requests)
    async with begin(store):
        before = Counter(requests.counts)
        await trio.sleep(1_001)
        found = requests.counts - before
    assert found["GET"] == 100
    assert found["LIST"] == 0
    await store.aclose()


async def test_a_look_waits_no_longer_than_a_save() -> None:
    """The end of a run waits for a look that has begun."""
    quick, none = memory_bucket()._clients.quick, cast("Any", None)
    bucket = Bucket("memory", Clients(quick, quick, patient=none))
    store = await ObjectsStore.open("s3://bucket", requests=Requests(bucket))
    await store.write_inbox("r", b"asked")
    assert await store.read_inbox("r") == b"asked"
    await store.aclose()


def _bucket_of(store: Store) -> Bucket:
    assert isinstance(store, ObjectsStore)
    return store._requests.bucket


@pytest.mark.parametrize("do", ["pause", "resume", "requeue", "snapshot"])
def test_an_act_that_is_killed_was_done_or_never_was(
    do: str, acts: AimedKills, tmp_path: Path
) -> None:
    numbers = itertools.count()
    folder = tmp_path

    def prepare_store() -> str:
        nonlocal folder
        folder = tmp_path / str(next(numbers))
        trio.run(prepare, f"file://{folder}", do)
        return f"file://{folder}"

    def end_lease() -> None:
        """Make the entries of the log a year old."""
        for path in folder.rglob("log/*"):
            at = path.stat().st_mtime - YEAR_S
            os.utime(path, (at, at))

    def ask(point: int) -> Told:
        return acts.kill_at_call(f"file://{folder}", do, point)

    kill_at_each_call(ask, prepare_store, do, end_lease)
