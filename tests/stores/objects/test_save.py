"""A save is one PUT, and nothing is read or listed: the requests of a million batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from trio_ckpt import open_run
from trio_ckpt._buckets.bucket import memory_bucket
from trio_ckpt._buckets.requests import Requests
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores._objects import merge
from trio_ckpt.stores._objects.store import ObjectsStore

BATCHES = 6_400


class DistantStore(ObjectsStore):
    """Each save takes as long as a request to a bucket does, on a virtual clock."""

    inbox_every_s = None  # looks into the inbox come with time, not with batches

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        await trio.sleep(0.03)
        return await super().save(run, group, folds, summary=summary)


async def count_requests(loops: int) -> Counter[str]:
    """The requests of loops side by side while they save, by kind, for a million batches."""
    requests = Requests(memory_bucket())
    store = await DistantStore.open("s3://bucket", requests=requests)
    found = Counter[str]()
    async with open_run("run", store=store, handle_signals=False) as run:
        async with trio.open_nursery() as nursery:
            streams = [await _enter(nursery, run, number, loops) for number in range(loops)]
            before = Counter(requests.counts)
            for begin in streams:
                begin.set()
        found = requests.counts - before
    await store.aclose()
    return Counter({kind: count * 1_000_000 // BATCHES for kind, count in found.items()})


async def _enter(nursery: trio.Nursery, run: object, number: int, loops: int) -> trio.Event:
    begin = trio.Event()
    await nursery.start(_loop, run, f"loop {number}", BATCHES // loops, begin)
    return begin


async def _loop(
    run: object,
    name: str,
    count: int,
    begin: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with run.open_stream(name) as stream:  # type: ignore[attr-defined]
        task_status.started()
        await begin.wait()
        async for batch in stream.batches(range(count)):
            batch.complete()


@pytest.mark.parametrize(("loops", "most"), [(1, 1_070_000), (8, 142_000), (64, 19_000)])
async def test_a_million_batches_cost_so_many_requests(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, loops: int, most: int
) -> None:
    # pytest-trio shuffles all tasks that wake at one moment; trio itself at most turns them round.
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", False)
    found = await count_requests(loops)
    print(f"{loops} loops: {found}")
    assert found["PUT"] <= most, found
    assert found["GET"] == found["LIST"] == 0, found


async def test_a_save_is_one_request() -> None:
    requests = Requests(memory_bucket())
    store = await ObjectsStore.open("s3://bucket", requests=requests)
    async with store.lock_run("run") as owner:
        run = RunKey("run", 0, owner)
        for number in range(1, merge.EVERY - 1):
            before = Counter(requests.counts)
            assert await store.save(run, [Checkpoint("[]", number, b"x" * 100)]) == [None]
            assert requests.counts - before == Counter(PUT=1)


async def test_a_record_is_never_older_than_the_one_before() -> None:
    requests = Requests(memory_bucket())
    store = await ObjectsStore.open("s3://bucket", requests=requests)
    times = list[float]()
    for number in range(1, 4):
        async with store.lock_run("run") as owner:
            store._clock.store_at -= 3600  # this machine believes in an earlier time
            await store.save(RunKey("run", 0, owner), [Checkpoint("[]", number, b"")])
        (run,) = await store.list_runs()
        assert run.updated_at is not None
        times.append(run.updated_at)
    assert times == sorted(set(times))
