"""The end of a work item: what removing its saved states costs beside other runs in the store.

Each of the other runs has a few records, as items that are still running have.  Two stores are
measured in turns, one with 100 other runs and one with 10,000; what an end costs beside many, over
what it costs beside few, is the figure, and a commit of the same store is the control.
"""

import tempfile
import time
from pathlib import Path

import trio

from benchmarks import Found, Options, Section, median
from trio_ckpt.abc import Checkpoint, RunKey, Store
from trio_ckpt.remote._foreman.dispatch import prune_task
from trio_ckpt.stores import open_store

FEW, MANY = 100, 10_000
RECORDS = 3  # of each run
ROUNDS = 40
STREAM = '["state"]'


async def fill(store: Store, run_id: str) -> None:
    """Make a run as an item has that has saved its state."""
    async with store.lock_run(run_id) as owner:
        group = [Checkpoint(STREAM, n, bytes(200)) for n in range(1, RECORDS + 1)]
        assert not any(await store.save(RunKey(run_id, 0, owner), group))


async def end_item(store: Store, task_id: str) -> tuple[float, float]:
    """Milliseconds of the end of an item, and of a commit beside it."""
    async with store.lock_run("job-x") as owner:  # as its foreman does
        await fill(store, task_id)
        began = time.perf_counter()
        await prune_task(store, task_id)
        ended = time.perf_counter()
        await store.save(RunKey("job-x", 0, owner), [])
        return 1e3 * (ended - began), 1e3 * (time.perf_counter() - ended)


async def compare(folder: Path, many: int, rounds: int) -> dict[int, tuple[float, float]]:
    """The medians for either store, by their numbers of other runs."""
    stores: dict[int, Store] = {}
    found: dict[int, list[tuple[float, float]]] = {FEW: [], many: []}
    for count in found:
        stores[count] = await open_store(folder / str(count), durability="process")
        for number in range(count):
            await fill(stores[count], f"job-y.{number:06d}")
    for number in range(rounds):
        for count, store in stores.items():
            found[count].append(await end_item(store, f"job-x.{number:06d}"))
    for store in stores.values():
        await store.aclose()
    return {
        count: (median([end for end, _ in times]), median([commit for _, commit in times]))
        for count, times in found.items()
    }


def measure(options: Options) -> Section:
    """Beside few runs and beside many, in turns."""
    many, rounds = (2 * FEW, 5) if options.is_quick else (MANY, ROUNDS)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = trio.run(compare, Path(folder), many, rounds)
    few_ms, many_ms, commit_ms = found[FEW][0], found[many][0], found[many][1]
    return Section(
        {"few_ms": few_ms, "many_ms": many_ms, "many": many, "commit_ms": commit_ms},
        [
            f"the end of a work item: {few_ms:.2f} ms beside {FEW} runs, "
            f"{many_ms:.2f} ms beside {many:,}; a commit takes {commit_ms:.2f} ms"
        ],
        {"end of a work item beside 10,000 runs": Found(many_ms / few_ms, f"{few_ms:.2f} ms")},
    )
