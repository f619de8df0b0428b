"""How long a start takes after 10,000 and after 1,000,000 confirmed batches.

The runs are built through the store's own `save`, in big groups.  They are left as kill -9 leaves
them at the worst moment: the newest fold is as many records behind as the saver ever lets it be.
"""

import tempfile
import time
from pathlib import Path

import trio

from benchmarks import Found, Options, Section, folder_bytes, median
from trio_ckpt import Batch, Progress, Stream, open_run
from trio_ckpt._commit.fold_schedule import RECORDS_PER_FOLD
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.record import Record, encode_record
from trio_ckpt._util.plain import encode_key
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import open_store

SIZES = (10_000, 1_000_000)
QUICK_SIZES = (300, 1_000)
GROUP = 20_000
RUN = "resume"
STREAM = ("batches",)


async def build(folder: Path, batches: int) -> None:
    """A run of so many confirmed batches."""
    store = await open_store(folder)
    try:
        async with store.lock_run(RUN) as owner:
            run_key = RunKey(RUN, 0, owner)
            seal = store.seal(RUN, 0, STREAM)
            text = encode_key(STREAM)
            progress = Progress()
            folded_at = max(0, batches - RECORDS_PER_FOLD + 1)
            began = time.time()
            group: list[Checkpoint] = []
            folds: list[Fold] = []
            for index in range(batches):
                record = Record(at=began + index / 1000, index=index)
                apply(progress, index + 1, record)
                payload = seal.close(index + 1, encode_record(record))
                group.append(Checkpoint(text, index + 1, payload))
                if index + 1 == folded_at:
                    sealed = seal.close(-folded_at, encode_progress(progress))
                    folds = [Fold(text, folded_at, sealed)]
                if len(group) == GROUP or index + 1 == batches:
                    outcomes = await store.save(run_key, group, folds)
                    assert not any(outcomes), "the store refused a checkpoint"
                    group, folds = [], []
    finally:
        await store.aclose()


async def time_load(folder: Path, batches: int, repeats: int) -> float:
    """Milliseconds of `load_run`, the median; the store is open."""
    store = await open_store(folder)
    taken = []
    try:
        for _ in range(repeats):
            started = time.perf_counter()
            view = await store.load_run(RUN)
            taken.append((time.perf_counter() - started) * 1000)
            assert view is not None, "the run is gone"
            assert len(view.streams[STREAM].progress.confirmed) == batches, "batches are gone"
    finally:
        await store.aclose()
    return median(taken)


async def time_first_batch(folder: Path) -> float:
    """Milliseconds from calling `open_run` to holding a batch: all of a start but imports."""
    started = time.perf_counter()
    taken = 0.0
    stream: Stream[None]
    batch: Batch[None]
    async with (
        open_run(RUN, store=folder, handle_signals=False) as run,
        run.open_stream(*STREAM) as stream,
    ):
        async for batch in stream.batches():
            taken = (time.perf_counter() - started) * 1000
            batch.withdraw()
    return taken


def measure(options: Options) -> Section:
    """Run it."""
    figures: dict[str, object] = {}
    lines = [f"{'batches':>10} {'load_run ms':>12} {'to 1st batch ms':>16} {'bytes/batch':>12}"]
    found = {}
    for name, batches in zip(SIZES, QUICK_SIZES if options.is_quick else SIZES, strict=True):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="resume-") as temporary:
            store = Path(temporary) / "store"
            trio.run(build, Path(temporary) / "one", 1)
            trio.run(build, store, batches)
            one_ms = trio.run(time_load, Path(temporary) / "one", 1, 5 if options.is_quick else 21)
            load_ms = trio.run(time_load, store, batches, 5 if options.is_quick else 21)
            bytes_each = folder_bytes(store) / batches
            first_ms = trio.run(time_first_batch, store)  # later ones find it complete
        figures[str(batches)] = {
            "load_ms": load_ms,
            "load_one_batch_ms": one_ms,
            "first_batch_ms": first_ms,
            "bytes_per_batch": bytes_each,
        }
        lines.append(f"{batches:>10,} {load_ms:>12.2f} {first_ms:>16.1f} {bytes_each:>12.0f}")
        found[f"load_run after {name:,} batches"] = Found(load_ms, f"{one_ms:.2f} ms")
    return Section(figures, lines, found)
