"""What the tests of the local stores share."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.stores import open_store

A, B = '["a"]', '["b"]'


async def make(
    folder: Path, *group: Checkpoint, blobs: tuple[bytes, ...] = (), scheme: str = "sqlite"
) -> None:
    """A store with a run that has these checkpoints."""
    store = await open_store(f"{scheme}:{folder}")
    async with store.lock_run("run") as owner:
        for payload in blobs:
            await store.put_blob(hashlib.sha256(payload).hexdigest(), payload)
        assert await store.save(RunKey("run", 0, owner), group) == [None] * len(group)
    await store.aclose()


async def heads(store: Store) -> dict[str, int]:
    stored = await store.read_run("run")
    assert stored is not None
    return {entry.stream: entry.sequence for entry in stored.streams}


def chain(stream: str, first: int, last: int) -> list[Checkpoint]:
    return [Checkpoint(stream, n, b"%d" % n) for n in range(first, last + 1)]
