"""A run that saves while its database fails, and what must hold of it afterwards."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import attrs
import trio

from tests.hangs import PROGRAM_S
from trio_ckpt import Run, open_run
from trio_ckpt._journal.record import RecordKind, decode_record
from trio_ckpt.abc import Store
from trio_ckpt.stores import open_store

LOOPS = 4


@attrs.define(eq=False)
class Faults:
    """Does something to the database again and again, in a thread.

    Attributes:
        wanted: How many faults.
        inject: Makes one; returns how many it made.
        limit_s: After this time it ends, with fewer faults than were wanted.
        made: How many were made.
    """

    wanted: int
    inject: Callable[[], int]
    limit_s: float = PROGRAM_S
    made: int = 0
    is_over: threading.Event = attrs.field(factory=threading.Event)

    def run(self) -> None:
        chance, until = random.Random(7), time.monotonic() + self.limit_s
        try:
            while self.made < self.wanted and time.monotonic() < until:
                time.sleep(chance.uniform(0.005, 0.05))
                self.made += self.inject()
        finally:
            self.is_over.set()


async def save_through(url: str, run_id: str, faults: Faults) -> Counter[str]:
    """Run loops while faults are made; returns how many of their batches were lost and doubled.

    *failed* are batches that were complete and not confirmed: no fault may fail a token.
    """
    completed, acknowledged = set[tuple[str, int]](), set[tuple[str, int]]()
    store = await open_store(url)
    try:
        async with open_run(run_id, store=store, handle_signals=False) as run:
            thread = threading.Thread(target=faults.run)
            thread.start()
            async with trio.open_nursery() as nursery:
                for number in range(LOOPS):
                    work = partial(_loop, run, f"loop {number}", faults)
                    nursery.start_soon(work, completed, acknowledged)
            await trio.to_thread.run_sync(thread.join)
        found = await _count(store, run_id, acknowledged)
        found["failed"] = len(completed - acknowledged)
        return found
    finally:
        await store.aclose()


async def _loop(
    run: Run,
    name: str,
    faults: Faults,
    completed: set[tuple[str, int]],
    acknowledged: set[tuple[str, int]],
) -> None:
    async with run.open_stream(name) as stream:
        async for batch in stream.batches():
            batch.complete(last=faults.is_over.is_set())
            completed.add((name, batch.index))
            await batch.confirm()
            acknowledged.add((name, batch.index))


async def _count(store: Store, run_id: str, acknowledged: set[tuple[str, int]]) -> Counter[str]:
    found = Counter({"acknowledged": len(acknowledged), "lost": 0, "doubled": 0})
    for number in range(LOOPS):
        name = f"loop {number}"
        sequences, indexes = await _read_stream(store, run_id, name)
        assert sequences == list(range(len(sequences), 0, -1)), "the chain has gaps"
        wanted = {index for stream, index in acknowledged if stream == name}
        found["lost"] += len(wanted - set(indexes))
        found["doubled"] += sum(count > 1 for count in indexes.values())
    return found


async def _read_stream(store: Store, run_id: str, name: str) -> tuple[list[int], Counter[int]]:
    sequences, indexes, cursor = list[int](), Counter[int](), None
    seal = store.seal(run_id, 0, (name,))
    while True:
        page = await store.history(run_id, f'["{name}"]', cursor=cursor)
        for stored in page.records:
            sequences.append(stored.sequence)
            record = decode_record(seal.open(stored.sequence, stored.payload))
            if record.kind is RecordKind.BATCH:
                indexes[record.index] += 1
        cursor = page.cursor
        if cursor is None:
            return sequences, indexes
