"""`trio-ckpt ls` of many runs that have ended: what it costs beyond that of one run.

Each run has two streams and a summary, as the end of a session leaves it.  The command is run as a
process, in turns on a store with one run and on one with 10,000, as a table and as JSON; what it
takes for many, over what it takes for one, is the figure: starting Python and importing is in both.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import trio

from benchmarks import Found, Options, Section, median
from trio_ckpt import open_run
from trio_ckpt._journal.overview import encode_overview
from trio_ckpt._util.plain import encode_key
from trio_ckpt.abc import Checkpoint, RunKey, RunView, Store
from trio_ckpt.stores import MemoryStore, open_store

MANY = 10_000
ROUNDS = 7


async def a_view() -> RunView:
    """A run that has ended."""
    store = MemoryStore()
    async with (
        open_run("run", store=store, handle_signals=False) as run,
        run.open_stream("pages") as stream,
    ):
        async for batch in stream.batches(range(3)):
            batch.complete(records=10, totals={"cost_usd": 0.25})
    view = await store.load_run("run")
    assert view is not None
    return view


async def fill(store: Store, count: int) -> None:
    """Make runs that have ended, each with its summary; their records are never read."""
    sample = await a_view()
    group = [
        Checkpoint(encode_key(key), n, bytes(200))
        for key, part in sample.streams.items()
        for n in range(1, part.progress.sequence + 1)
    ]
    for number in range(count):
        run_id = f"crawl.{number:06d}"
        async with store.lock_run(run_id) as owner:
            view = msgspec.structs.replace(sample, run_id=run_id, owner=owner)
            summary = encode_overview(store, view)
            assert not any(await store.save(RunKey(run_id, 0, owner), group, summary=summary))


def list_in_process(folder: Path, *options: str) -> float:
    """Seconds of the command, with all that a process costs."""
    command = [sys.executable, "-m", "trio_ckpt", "ls", str(folder), *options]
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


async def make(folder: Path, many: int) -> dict[int, Path]:
    """The two stores, by their numbers of runs."""
    folders = {count: folder / str(count) for count in (1, many)}
    for count, path in folders.items():
        store = await open_store(path, durability="process")
        await fill(store, count)
        await store.aclose()
    return folders


def measure(options: Options) -> Section:
    """One run and many, in turns."""
    many, rounds = (100, 2) if options.is_quick else (MANY, ROUNDS)
    found: dict[str, dict[int, list[float]]] = {"table": {}, "json": {}}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folders = trio.run(make, Path(folder), many)
        for _ in range(rounds):
            for count, path in folders.items():
                found["table"].setdefault(count, []).append(list_in_process(path))
                found["json"].setdefault(count, []).append(list_in_process(path, "--json"))
    one_s, many_s = median(found["table"][1]), median(found["table"][many])
    json_s = median(found["json"][many]) - median(found["json"][1])
    return Section(
        {"one_s": one_s, "many_s": many_s, "many": many, "json_extra_s": json_s},
        [
            f"ls of {many:,} runs: {1e3 * (many_s - one_s):.0f} ms more than of one run, which "
            f"takes {1e3 * one_s:.0f} ms; as JSON {1e3 * json_s:.0f} ms more"
        ],
        {"ls of 10,000 runs, beyond that of one": Found(many_s - one_s, f"{1e3 * one_s:.0f} ms")},
    )
