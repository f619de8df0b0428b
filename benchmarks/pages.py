"""Pages: what totals, outputs and validation add to a batch, and what verifying outputs costs.

A page is a JSON document of about 4 KiB, written by `Batch.write_json`.  Its control is what no
durable file can avoid, a temporary file, its fsync, the rename and the fsync of the folder, beside
the commit that the batch costs without it.  Verifying is compared with reading and hashing the same
files in a plain loop, and with asking for their size and time.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from benchmarks import Found, Options, Section, median, median_ratio
from benchmarks.controls import append_fsync, rename_fsync
from trio_ckpt import Batch, Drift, Run, Stream, find_drift, open_run
from trio_ckpt.outputs import OutputDir
from trio_ckpt.stores import open_store

PAGES = 1_500
ROUNDS = 3
QUICK_ROUNDS = 1
OUTPUTS = 100_000
QUICK_SHARE = 100
WORDS = 600  # about 4 KiB of JSON
OUTPUT_BYTES = 4_096


@attrs.frozen
class Page:
    """What a page holds, for validation."""

    number: int
    words: list[str]
    confidence: float


SCHEMA = {
    "type": "object",
    "required": ["number", "words", "confidence"],
    "properties": {
        "number": {"type": "integer"},
        "words": {"type": "array", "items": {"type": "string"}},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
}


def document(index: int) -> dict[str, Any]:
    """The page of a batch."""
    return {"number": index, "words": [f"w{index % 97}"] * WORDS, "confidence": 0.5}


async def scan(run: Run, name: str, pages: int, *, writes: bool, totals: bool, check: Any) -> None:
    """One stream of pages."""
    stream: Stream[None]
    batch: Batch[int]
    async with run.open_stream(name, validate=check) as stream:
        async for batch in stream.batches(range(pages)):
            if totals:
                batch.spend(cost_usd=0.0125, tokens=900)
            if writes:
                await batch.write_json(f"{name}/{batch.index}.json", document(batch.index))
            batch.complete(
                records=WORDS, totals={"cost_usd": 0.0125, "tokens": 900} if totals else None
            )


KINDS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {"writes": False, "totals": False, "check": None},
    "totals": {"writes": False, "totals": True, "check": None},
    "outputs": {"writes": True, "totals": True, "check": None},
    "outputs + attrs class": {"writes": True, "totals": True, "check": Page},
    "outputs + JSON Schema": {"writes": True, "totals": True, "check": SCHEMA},
}


async def time_scan(folder: Path, pages: int, kind: Mapping[str, Any]) -> float:
    """Microseconds per batch."""
    async with open_run(
        "pages", store=folder / "store", output_dir=folder / "data", handle_signals=False
    ) as run:
        started = time.perf_counter()
        await scan(run, "p", pages, **kind)
        return (time.perf_counter() - started) / pages * 1e6


async def make_outputs(folder: Path, count: int) -> None:
    """A run whose batches have adopted so many files."""
    data = folder / "data"
    data.mkdir()
    for index in range(count):
        number = b"%d " % index
        (data / f"{index}.txt").write_bytes(number * (OUTPUT_BYTES // len(number)))
    names = [f"{index}.txt" for index in range(count)]
    stream: Stream[None]
    batch: Batch[list[str]]
    async with (
        open_run("outputs", store=folder / "store", output_dir=data, handle_signals=False) as run,
        run.open_stream("s") as stream,
    ):
        chunks = [names[start : start + 100] for start in range(0, count, 100)]
        async for batch in stream.batches(chunks):
            batch.complete(outputs=batch.item)


def hash_loop(folder: Path, count: int) -> None:
    """The control: every file read and hashed, one after the other."""
    for index in range(count):
        hashlib.sha256((folder / "data" / f"{index}.txt").read_bytes()).hexdigest()


def stat_loop(folder: Path, count: int) -> None:
    """The control: every file's size and time."""
    for index in range(count):
        os.stat(folder / "data" / f"{index}.txt")


async def drift(folder: Path, mode: Any) -> Drift:
    """Ours: every output against its record."""
    store = await open_store(folder / "store")
    outputs = OutputDir.open(folder / "data")
    try:
        view = await store.load_run("outputs")
        assert view is not None, "the run is gone"
        return await find_drift(store, view, outputs, mode=mode)
    finally:
        outputs.close()
        await store.aclose()


def files_per_s(action: Callable[[], object], count: int) -> float:
    """How many files an action looks at per second."""
    started = time.perf_counter()
    action()
    return count / (time.perf_counter() - started)


def measure(options: Options) -> Section:
    """Both, with their controls in turns."""
    share, rounds = (QUICK_SHARE, QUICK_ROUNDS) if options.is_quick else (1, ROUNDS)
    pages, count = PAGES // share, OUTPUTS // share
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    controls: dict[str, list[float]] = {"append + fsync": [], "temp + fsync + rename": []}
    for _ in range(rounds):
        for name, kind in KINDS.items():
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                taken[name].append(trio.run(time_scan, Path(folder), pages, kind))
        for name, control in (
            ("append + fsync", append_fsync),
            ("temp + fsync + rename", rename_fsync),
        ):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                controls[name].append(1e6 / control(Path(folder), pages).per_s)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text)
        trio.run(make_outputs, folder, count)
        for _ in range(rounds):
            for name, action in (
                ("sha256, plain loop", lambda: hash_loop(folder, count)),
                ("sha256, ours", lambda: trio.run(drift, folder, "sha256")),
                ("size, plain stat loop", lambda: stat_loop(folder, count)),
                ("size, ours", lambda: trio.run(drift, folder, "size")),
            ):
                rates.setdefault(name, []).append(files_per_s(action, count))
    costs = {name: median(values) for name, values in {**taken, **controls}.items()}
    speeds = {name: median(values) for name, values in rates.items()}
    lines = [f"{name:<24} {cost:>9,.0f} us per batch" for name, cost in costs.items()]
    lines += [f"{name:<24} {speed:>9,.0f} files/s" for name, speed in speeds.items()]
    with_outputs = costs["outputs"]
    schema_ms = [
        (schema - plain) / 1000
        for schema, plain in zip(taken["outputs + JSON Schema"], taken["outputs"], strict=True)
    ]
    return Section(
        figures={"us_per_batch": costs, "files_per_s": speeds, "outputs": count, "pages": pages},
        lines=lines,
        found={
            "JSON Schema on a page of 4 KiB": Found(
                median(schema_ms), f"{with_outputs / 1000:.2f} ms"
            ),
            "100,000 outputs verified by size": Found(
                median_ratio(rates["size, plain stat loop"], rates["size, ours"]),
                f"{speeds['size, plain stat loop']:,.0f} files/s",
            ),
            "100,000 outputs verified by sha256": Found(
                median_ratio(rates["sha256, plain loop"], rates["sha256, ours"]),
                f"{speeds['sha256, plain loop']:,.0f} files/s",
            ),
        },
    )
