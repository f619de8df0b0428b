"""A collection of pages, and a process that does what it gets of it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from trio_ckpt import Collection, Partition, open_collection


def take_part(
    store: Any, name: str = "crawl", partitions: int = 10, items: int | None = 100, **options: Any
) -> AbstractAsyncContextManager[Collection]:
    """Open a collection that leaves the signals to pytest."""
    given = {"partitions": partitions, "items": items, "handle_signals": False}
    return open_collection(name, store=store, **given | options)


async def do_items(partition: Partition, done: list[int], *, seconds: float = 0.0) -> None:
    async with partition.run.open_stream("pages") as stream:
        async for batch in stream.batches(partition.range):
            await trio.sleep(seconds)
            batch.complete(records=1)
            done.append(partition.range[batch.index])


async def work(
    store: Any, *, seconds: float = 0.0, finished: list[str] | None = None, **options: Any
) -> tuple[list[int], list[int]]:
    """Do all that one process gets; returns the items and the partitions that it did."""
    done: list[int] = []
    claimed: list[int] = []
    async with take_part(store, **options) as collection:
        while True:
            async with collection.claim() as partition:
                if partition is None:
                    break
                claimed.append(partition.index)
                await do_items(partition, done, seconds=seconds)
        async with collection.finish() as run:
            if run is not None and finished is not None:
                finished.append("once")
        assert collection.exit_code == 0
    return done, claimed
