"""What the tests of all frameworks need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from trio_ckpt import open_run
from trio_ckpt.state._arrays.buffers import Collected, check_view, rebuild
from trio_ckpt.state._arrays.memory import allocate
from trio_ckpt.state._tree.frame import View
from trio_ckpt.stores import MemoryStore


def restore(collected: Collected) -> list[Any]:
    """Through plain bytes and copies of the buffers, as a store would."""
    sizes = [buffer.data.nbytes for buffer in collected.buffers]
    data = msgspec.msgpack.encode(collected.views)
    views = msgspec.msgpack.decode(data, type=list[View])
    memory = [allocate(size) for size in sizes]
    for target, buffer in zip(memory, collected.buffers, strict=True):
        target[:] = buffer.data
    for view in views:
        check_view(view, sizes)
    return rebuild(views, memory)


async def train(
    store: MemoryStore, new: Callable[[], Any], step: Callable[[Any], None], die_at: int = -1
) -> Any:
    """Take nine steps, three in each batch, with a snapshot after each; returns the state."""
    async with (
        open_run("r", store=store, handle_signals=False) as run,
        run.open_stream("train", state=new()) as stream,
    ):
        async for batch in stream.batches(range(3)):
            state = stream.state
            async with stream.snapshots(every_s=0.0) as snapshot:
                while state["steps"] < 3 * (batch.index + 1):
                    if state["steps"] == die_at:
                        raise KeyboardInterrupt
                    step(state)
                    state["steps"] += 1
                    await snapshot.point()
                    await snapshot.wait()
            batch.complete()
        return stream.state


async def train_killed(new: Callable[[], Any], step: Callable[[Any], None]) -> Any:
    """Take the nine steps in sessions that die at every other step; returns the last state."""
    store = MemoryStore()
    for die_at in (1, 3, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            await train(store, new, step, die_at)
        store = store.after_crash()
    return await train(store, new, step)
