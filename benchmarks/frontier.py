"""A list that grows while it is worked on: what a checkpoint costs at 10,000 and 100,000 items.

A crawl's checkpoint must cost what its page added, not what the frontier holds.  Every batch adds
ITEMS_PER_BATCH new items; then the run is opened again and the frontier is there once more.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from benchmarks import Found, Options, Section, folder_bytes
from trio_ckpt import Batch, Frontier, RunStoppedError, open_run, run_batches
from trio_ckpt._journal.record import Record, RecordKind, encode_record
from trio_ckpt._util.plain import encode_key
from trio_ckpt.abc import Checkpoint, RunKey
from trio_ckpt.state._frontier import FrontierItems
from trio_ckpt.stores import open_store

SIZES = (10_000, 100_000)
QUICK_SIZES = (200, 2_000)
ITEMS_PER_RECORD = 100
ITEMS_PER_BATCH = 5
BATCHES = 2_000
QUICK_BATCHES = 20
RUN = "frontier"
STREAM = ("pages",)


@attrs.frozen
class Size:
    """What one size came to; figures per batch are means over the loop."""

    batch_us: float
    cpu_us: float
    bytes_each: float
    open_s: float


def item(number: int) -> str:
    """An item like a page's address."""
    return f"https://site.test/section/{number // 1000}/page/{number}"


async def build(folder: Path, items: int) -> None:
    """A run whose frontier has so many items, none of them done."""
    store = await open_store(folder)
    try:
        async with store.lock_run(RUN) as owner:
            seal, text = store.seal(RUN, 0, STREAM), encode_key(STREAM)
            group = []
            for sequence, start in enumerate(range(0, items, ITEMS_PER_RECORD), start=1):
                added = [item(n) for n in range(start, min(items, start + ITEMS_PER_RECORD))]
                record = Record(
                    kind=RecordKind.SAVE, at=time.time(), adds=FrontierItems.encode(added)
                )
                payload = seal.close(sequence, encode_record(record))
                group.append(Checkpoint(text, sequence, payload))
            outcomes = await store.save(RunKey(RUN, 0, owner), group)
            assert not any(outcomes), "the store refused a checkpoint"
    finally:
        await store.aclose()


async def work(folder: Path, items: int, batches: int) -> tuple[float, float, float]:
    """Open the run and do so many batches; seconds to open, seconds and CPU seconds of the loop."""
    numbers = iter(range(items, items + batches * ITEMS_PER_BATCH * 2))
    marks: list[tuple[float, float]] = []
    opened_s = 0.0
    started_s = time.perf_counter()
    try:
        async with open_run(RUN, store=folder, handle_signals=False) as run:
            state: Frontier[str] = Frontier()
            async with run.open_stream(*STREAM, state=state) as stream:
                opened_s = time.perf_counter() - started_s

                async def handle(batch: Batch[str]) -> None:
                    marks.append((time.perf_counter(), time.process_time()))
                    batch.add(new_items(numbers))
                    batch.complete()
                    if len(marks) > batches:
                        run.request_stop()

                await run_batches(stream, None, handle)
    except RunStoppedError:
        pass  # as asked
    (begin_s, begin_cpu_s), (end_s, end_cpu_s) = marks[0], marks[-1]
    return opened_s, end_s - begin_s, end_cpu_s - begin_cpu_s


def new_items(numbers: Iterator[int]) -> list[str]:
    """Links of a page that no other page has."""
    return [item(next(numbers)) for _ in range(ITEMS_PER_BATCH)]


def measure_size(folder: Path, items: int, batches: int) -> Size:
    """One size, in a folder of its own."""
    store = folder / "store"
    trio.run(build, store, items)
    before = folder_bytes(store)
    _, seconds, cpu_s = trio.run(work, store, items, batches)
    grown = folder_bytes(store) - before
    open_s, _, _ = trio.run(work, store, items + batches * ITEMS_PER_BATCH * 2, 1)
    return Size(seconds / batches * 1e6, cpu_s / batches * 1e6, grown / batches, open_s)


def measure(options: Options) -> Section:
    """Run it."""
    sizes = QUICK_SIZES if options.is_quick else SIZES
    batches = QUICK_BATCHES if options.is_quick else BATCHES
    found = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="frontier-") as temporary:
            found[size] = measure_size(Path(temporary), size, batches)
    lines = [f"{'items':>10} {'us/batch':>9} {'CPU us':>8} {'bytes':>7} {'resume s':>9}"]
    lines += [
        f"{size:>10,} {each.batch_us:>9,.0f} {each.cpu_us:>8,.0f} {each.bytes_each:>7,.0f}"
        f" {each.open_s:>9.2f}"
        for size, each in found.items()
    ]
    small, large = (found[size] for size in sizes)
    return Section(
        {str(size): attrs.asdict(each) for size, each in found.items()},
        lines,
        {
            "time of a batch: 100,000 items against 10,000": Found(
                large.batch_us / small.batch_us, f"{small.batch_us:,.0f} us"
            ),
            "bytes of a batch: 100,000 items against 10,000": Found(
                large.bytes_each / small.bytes_each, f"{small.bytes_each:,.0f} bytes"
            ),
        },
    )
