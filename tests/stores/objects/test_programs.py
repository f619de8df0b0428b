"""A program keeps its runs in a bucket as in a folder: killed anywhere, it goes on elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trio_ckpt
from tests.opening import begin
from tests.stores.objects.buckets import ClockedBucket, HandClock, killed_before
from trio_ckpt import Run, Stream
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.stores import open_store
from trio_ckpt.stores._objects.store import ObjectsStore

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
import trio
from trio_ckpt import open_run

async def main():
    async with open_run("run", store=sys.argv[1], wait_for_lock_s=60) as run:
        async with run.open_stream("pages") as stream:
            async for batch in stream.batches(range(20)):
                batch.complete(records=1)
                await batch.confirm()
                print(batch.index, flush=True)

trio.run(main)
"""


async def save_batches(run: Run, count: int, stop_at: int | None = None) -> list[int]:
    indexes = list[int]()
    async with run.open_stream("pages") as stream:
        async for batch in stream.batches(range(count)):
            if batch.index == stop_at:
                raise KeyError("it stops here")
            batch.complete(records=1)
            await batch.confirm()
            indexes.append(batch.index)
    return indexes


async def test_a_program_goes_on_where_it_stopped(file_url: str) -> None:
    with pytest.raises(KeyError):
        async with begin(file_url, "run") as run:
            await save_batches(run, 100, stop_at=70)
    async with begin(file_url, "run") as run:
        assert await save_batches(run, 100) == list(range(70, 100))
    store = await open_store(file_url, create=False)
    (line,) = await store.list_runs()
    assert line.is_complete
    assert [found async for found in store.check() if found.is_damage] == []
    history = [entry async for entry in trio_ckpt.read_history(store, "run", ("pages",))]
    assert len(history) >= 100
    await store.aclose()


def test_a_killed_program_is_taken_over_when_its_lease_ends(file_url: str) -> None:
    command = [sys.executable, "-c", PROGRAM, f"{file_url}?lease_s=1.5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(5)]
        process.kill()
        seen += [int(line) for line in process.stdout.read().split()]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [int(line) for line in again.stdout.split()]
    assert seen == list(range(len(seen)))
    assert found in (list(range(len(seen), 20)), list(range(len(seen) + 1, 20)))


async def test_a_run_killed_at_any_request_loses_no_confirmed_batch() -> None:
    """At each request of a run everything stops; the next start goes on."""
    at = 0
    while await _killed_at(at):
        at += 1
    assert at > 20


async def _killed_at(at: int) -> bool:
    clock = HandClock()
    bucket = ClockedBucket(clock)
    confirmed = list[int]()
    with killed_before(bucket, at) as kill:
        await _confirm_all(await _open(bucket), confirmed)
    clock.now += 100
    found = list[int]()
    await _confirm_all(await _open(bucket), found)
    assert set(found) | set(confirmed) == set(range(6)), (at, found, confirmed)
    assert not set(found) & set(confirmed), "a confirmed batch ran again"
    return kill.is_done


async def _open(bucket: ClockedBucket) -> ObjectsStore:
    return await ObjectsStore.open("s3://bucket", requests=Requests(bucket, pause=lambda _: None))


async def _confirm_all(store: ObjectsStore, confirmed: list[int]) -> None:
    stream: Stream[None]
    async with begin(store) as run, run.open_stream("s") as stream:
        async for batch in stream.batches(range(6)):
            batch.complete(records=1)
            await batch.confirm()
            confirmed.append(batch.index)
