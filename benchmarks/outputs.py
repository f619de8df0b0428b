"""What an output file adds to a batch, by loops; what outputs that are confirmed take in memory.

An output is 4 KiB, written by `Batch.write_bytes`, or a line of `Batch.append_json`.  Its control
is what no durable file can avoid, in a plain loop: a temporary file, its fsync, the rename and the
fsync of the folder, or a write and its fdatasync; and a commit.  Memory is the slope between two
sizes, so that what a run takes without outputs is not in it.
"""

import gc
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import trio

from benchmarks import Found, Options, Section, median, median_ratio
from benchmarks.controls import INSERT, ROW, open_database
from trio_ckpt import Batch, Run, Stream, open_run

DATA = b"x" * 4_096
LINE = "x" * (len(DATA) - 3)  # in quotes, and with its newline
LOOPS = (1, 8, 64)
OUTPUTS = 3_200
ROUNDS = 3
LONG = 10_000  # outputs of one loop: its last ones are compared with those at a tenth of it
EDGE = 500
KEPT = (2_000, 20_000)
PER_BATCH = 100

QUICK_OUTPUTS = 64
QUICK_ROUNDS = 1
QUICK_LONG = 40
QUICK_EDGE = 2
QUICK_KEPT = (200, 2_000)


def replace_and_commit(folder: Path, count: int) -> float:
    """The control of an output: microseconds each."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with closing(open_database(folder / "raw.sqlite")) as connection:
        started = time.perf_counter()
        for index in range(count):
            temporary = folder / f"{index}.tmp"
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(file, DATA)
            os.fsync(file)
            os.close(file)
            os.rename(temporary, folder / f"{index}.bin")
            os.fsync(directory)
            connection.execute(INSERT, (ROW,))
        taken = time.perf_counter() - started
    os.close(directory)
    return taken / count * 1e6


def append_and_commit(folder: Path, count: int) -> float:
    """The control of an appended line: microseconds each."""
    log = os.open(folder / "lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with closing(open_database(folder / "raw.sqlite")) as connection:
        started = time.perf_counter()
        for _ in range(count):
            os.write(log, DATA)
            os.fdatasync(log)
            connection.execute(INSERT, (ROW,))
        taken = time.perf_counter() - started
    os.close(log)
    return taken / count * 1e6


async def work(run: Run, name: str, count: int, marks: list[float], *, appends: bool) -> None:
    """One loop, an output in each batch; marks the CPU time at the start of each."""
    stream: Stream[None]
    batch: Batch[int]
    async with run.open_stream(name) as stream:
        async for batch in stream.batches(range(count)):
            marks.append(time.process_time())
            if appends:
                batch.append_json("lines.jsonl", LINE)
            else:
                await batch.write_bytes(f"{name}-{batch.index}.bin", DATA)
            batch.complete()


async def run_loops(folder: Path, loops: int, count: int, *, appends: bool) -> list[float]:
    """So many outputs by so many loops: the seconds of all, then the CPU marks."""
    marks = list[float]()
    store, outputs = folder / "store", folder / "data"
    async with open_run("outputs", store=store, output_dir=outputs, handle_signals=False) as run:
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(loops):
                each = partial(work, appends=appends)
                nursery.start_soon(each, run, f"loop {number}", count // loops, marks)
        return [time.perf_counter() - started, *marks]


def output_us(folder: Path, count: int, *, loops: int = 1, appends: bool = False) -> float:
    """Ours: microseconds of each output."""
    seconds, *_ = trio.run(partial(run_loops, appends=appends), folder, loops, count)
    return seconds / count * 1e6


def growth(folder: Path, count: int, edge: int) -> tuple[float, float]:
    """CPU microseconds of an output where a tenth of so many is confirmed, and where all are."""
    _, *marks = trio.run(partial(run_loops, appends=False), folder, 1, count)
    few, many = ((marks[at - 1] - marks[at - 1 - edge]) / edge * 1e6 for at in (count // 10, count))
    return few, many


async def held_bytes(folder: Path, count: int) -> int:
    """The memory that a run with so many outputs holds; a second call resumes it."""
    data = folder / "data"
    if not data.exists():
        data.mkdir()
        for index in range(count):
            (data / f"{index}.txt").write_bytes(b"%d" % index)
    stream: Stream[None]
    batch: Batch[int]
    tracemalloc.start()
    try:
        async with open_run(
            "kept", store=folder / "store", output_dir=data, handle_signals=False
        ) as run:
            async with run.open_stream("s") as stream:
                async for batch in stream.batches(range(count // PER_BATCH)):
                    first = batch.index * PER_BATCH
                    batch.complete(outputs=[f"{first + at}.txt" for at in range(PER_BATCH)])
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def memory(home: Path, sizes: tuple[int, int]) -> tuple[float, float, int]:
    """Bytes for each output in the session that confirmed it, and in one that resumes; a base."""
    held = []
    for count in sizes:
        folder = home / f"kept {count}"
        folder.mkdir()
        held.append([trio.run(held_bytes, folder, count) for _ in range(2)])
    few, many = held
    new, resumed = (
        (last - first) / (sizes[1] - sizes[0]) for first, last in zip(few, many, strict=True)
    )
    return new, resumed, few[0]


def measure(options: Options) -> Section:
    """Run it."""
    count, rounds, long, edge, kept = OUTPUTS, ROUNDS, LONG, EDGE, KEPT
    if options.is_quick:
        count, rounds, long, edge = QUICK_OUTPUTS, QUICK_ROUNDS, QUICK_LONG, QUICK_EDGE
        kept = QUICK_KEPT
    kinds: dict[str, Callable[[Path, int], float]] = {
        "temp, fsync, rename, folder fsync, commit": replace_and_commit,
        "write, fdatasync, commit": append_and_commit,
        **{f"ours, {loops} loops": partial(output_us, loops=loops) for loops in LOOPS},
        "ours, append, 1 loop": partial(output_us, appends=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="outputs-") as temporary:
        home = Path(temporary)
        for number in range(rounds):
            for name, kind in kinds.items():
                folder = home / f"{number} {name}"
                folder.mkdir()
                taken[name].append(kind(folder, count))
        few_us, many_us = growth(home / "long", long, edge)
        new, resumed, base = memory(home, kept)
    files, lines = (taken[name] for name in list(kinds)[:2])
    return Section(
        {
            "us": taken,
            "cpu_us": [few_us, many_us],
            "bytes": new,
            "bytes_resumed": resumed,
        },
        [
            *(f"{name:<44} {median(each):>9,.0f} us each" for name, each in taken.items()),
            f"CPU of an output: {few_us:,.0f} us where {long // 10:,} are confirmed, "
            f"{many_us:,.0f} us where {long:,} are",
            f"memory of an output: {new:.0f} bytes, {resumed:.0f} where the run is resumed",
        ],
        {
            **{
                f"output of 4 KiB, {loops} loop{'s' * (loops > 1)}": Found(
                    median_ratio(taken[f"ours, {loops} loops"], files), f"{median(files):,.0f} us"
                )
                for loops in LOOPS
            },
            "appended line of 4 KiB, 1 loop": Found(
                median_ratio(taken["ours, append, 1 loop"], lines), f"{median(lines):,.0f} us"
            ),
            "CPU of an output: 10,000 outputs against 1,000": Found(
                many_us / few_us, f"{few_us:,.0f} us"
            ),
            "memory of a confirmed output": Found(new, f"{base:,} bytes"),
            "memory of a confirmed output, on resume": Found(resumed, f"{base:,} bytes"),
        },
    )
