"""A process that owns a run of a store and saves without end: ``python -m … URL RUN``.

It prints a line for what happens to it: ``own 3`` when it has the run, ``saved 5`` after a save,
``fenced`` when it has lost the run.
"""

from __future__ import annotations

import sys

import trio

from trio_ckpt import StoreConflictError
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.stores import open_store

STREAM = '["s"]'


async def main(url: str, run_id: str) -> None:
    store = await open_store(url)
    async with store.lock_run(run_id) as owner:
        print(f"own {owner}", flush=True)
        stored = await store.read_run(run_id)
        assert stored is not None
        sequence = max((entry.sequence for entry in stored.streams), default=0)
        try:
            while True:
                sequence += 1
                group = [Checkpoint(STREAM, sequence, b"%d" % owner)]
                assert await store.save(RunKey(run_id, 0, owner), group) == [None]
                print(f"saved {sequence}", flush=True)
                await trio.sleep(0.02)
        except StoreConflictError:
            print("fenced", flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
