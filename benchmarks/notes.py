"""Notes of open batches: what one costs beside the commit of a batch.

In each round the same number of notes and of batches, in new stores: first by one loop, which waits
for each, then by 64 tasks at once, which share commits.  The batch is the control.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from benchmarks import Found, Options, Section, median, median_ratio
from trio_ckpt import Batch, open_run, run_batches

AT_ONCE = 64
COUNTS = {1: 1_500, AT_ONCE: 12_800}
QUICK_COUNTS = {1: 30, AT_ONCE: 256}
ROUNDS, QUICK_ROUNDS = 5, 1
VALUE = {"job": "batch_0123456789abcdef"}


async def note(batch: Batch[int], times: int) -> None:
    """Notes, one after the other."""
    for number in range(times):
        await batch.note(f"job-{number % 8}", VALUE)
    batch.complete()


async def complete(batch: Batch[int]) -> None:
    """A batch with nothing in it."""
    batch.complete()


async def note_all(folder: Path, at_once: int, count: int) -> float:
    """Microseconds of a note, of as many batches at once."""
    async with (
        open_run("notes", store=folder, handle_signals=False) as run,
        run.open_stream("s") as stream,
    ):
        work = partial(note, times=count // at_once)
        began = time.perf_counter()
        await run_batches(stream, range(at_once), work, concurrency=at_once)
        return (time.perf_counter() - began) / count * 1e6


async def complete_all(folder: Path, at_once: int, count: int) -> float:
    """Microseconds of a batch, as many at once."""
    async with (
        open_run("batches", store=folder, handle_signals=False) as run,
        run.open_stream("s") as stream,
    ):
        began = time.perf_counter()
        await run_batches(stream, range(count), complete, concurrency=at_once)
        return (time.perf_counter() - began) / count * 1e6


def measure(options: Options) -> Section:
    """Notes and batches in turns."""
    counts = QUICK_COUNTS if options.is_quick else COUNTS
    notes: dict[int, list[float]] = {at_once: [] for at_once in counts}
    batches: dict[int, list[float]] = {at_once: [] for at_once in counts}
    for _ in range(QUICK_ROUNDS if options.is_quick else ROUNDS):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for at_once, count in counts.items():
                home = Path(folder)
                args = at_once, count
                batches[at_once].append(trio.run(complete_all, home / f"b{at_once}", *args))
                notes[at_once].append(trio.run(note_all, home / f"n{at_once}", *args))
    names = {1: "a note", AT_ONCE: f"a note, {AT_ONCE} at once"}
    return Section(
        {"notes_us": notes, "batches_us": batches},
        [
            f"{names[at_once]}: {median(notes[at_once]):,.0f} us, "
            f"a batch {median(batches[at_once]):,.0f} us"
            for at_once in counts
        ],
        {
            names[at_once]: Found(
                median_ratio(notes[at_once], batches[at_once]),
                f"{median(batches[at_once]):,.0f} us",
            )
            for at_once in counts
        },
    )
