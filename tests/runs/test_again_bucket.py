"""A run that is done again with its store and its outputs in a bucket."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("obstore") is None:
    pytest.skip("obstore is missing: pip install 'trio-ckpt[objects]'", allow_module_level=True)

from tests.opening import begin
from tests.outputs.buckets import URL
from tests.runs.test_bucket_outputs import bucket as bucket, objects
from tests.stores.objects.buckets import ClockedBucket
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.abc import Store
from trio_ckpt.stores._objects.store import ObjectsStore


async def do(store: Store, items: dict[str, str], *, again: bool) -> list[str]:
    written: list[str] = []
    async with begin(store, output_dir=URL, again=again) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(sorted(items)):
            was, value = batch.previous, items[batch.item]
            if was is not None and was.metadata["v"] == value:
                batch.unchanged()
                continue
            written.append(batch.item)
            await batch.write_text(f"{batch.item}.txt", value)
            batch.complete(metadata={"v": value})
    return written


async def test_objects_are_carried_over_replaced_and_archived(bucket: ClockedBucket) -> None:
    requests = Requests(bucket, pause=lambda _: None)
    store = await ObjectsStore.open("s3://bucket/ckpt", requests=requests)
    assert await do(store, {"a": "1", "b": "1", "c": "1"}, again=False) == ["a", "b", "c"]
    assert await do(store, {"a": "1", "b": "2", "d": "1"}, again=True) == ["b", "d"]
    found = {name: data for name, data in objects(bucket).items() if "manifest" not in name}
    assert found == {
        "a.txt": b"1",
        "b.txt": b"2",
        "d.txt": b"1",
        ".archive/r-0/b.txt": b"1",
        ".archive/r-0/c.txt": b"1",
    }
