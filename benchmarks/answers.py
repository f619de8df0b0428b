"""How fast the command answers: `ls`, `show` and `explain` of large runs, whole processes.

One run of 1,000 streams of 100 batches and one of 1 stream of 1,000,000 batches, built through the
store's own `save` and left with a fold as old as it may be.  The control is a process that imports
what any trio program imports, and does nothing.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from benchmarks import Found, Options, Section, median, median_ratio
from benchmarks.resume import RUN, build as build_long
from trio_ckpt._journal.apply import apply
from trio_ckpt._journal.folds import encode_progress
from trio_ckpt._journal.progress import Progress
from trio_ckpt._journal.record import Record, encode_record
from trio_ckpt._util.plain import encode_key
from trio_ckpt.abc import Checkpoint, Fold, RunKey
from trio_ckpt.stores import open_store

COMMANDS = ("ls", "show", "explain")
STREAMS = 1_000
BATCHES = 100
LONG = 1_000_000
QUICK_STREAMS = 20
QUICK_LONG = 1_000
REPEATS = 5
QUICK_REPEATS = 1


async def build_wide(folder: Path, streams: int, batches: int) -> None:
    """A run of many streams, folded but for the newest batch of some."""
    store = await open_store(folder)
    try:
        async with store.lock_run(RUN) as owner:
            run_key = RunKey(RUN, 0, owner)
            for number in range(streams):
                key = (f"org/repo{number // 4}", f"endpoint{number % 4}")
                seal, text = store.seal(RUN, 0, key), encode_key(key)
                progress, group = Progress(), list[Checkpoint]()
                for index in range(batches):
                    record = Record(at=time.time(), index=index, records=10)
                    apply(progress, index + 1, record)
                    payload = seal.close(index + 1, encode_record(record))
                    group.append(Checkpoint(text, index + 1, payload))
                through = progress.sequence
                fold = Fold(text, through, seal.close(-through, encode_progress(progress)))
                outcomes = await store.save(run_key, group, [fold])
                assert not any(outcomes), "the store refused a checkpoint"
    finally:
        await store.aclose()


def seconds(*arguments: str) -> float:
    """Of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def measure(options: Options) -> Section:
    """Every command on both runs, in turns with the control."""
    streams, long, repeats = STREAMS, LONG, REPEATS
    if options.is_quick:
        streams, long, repeats = QUICK_STREAMS, QUICK_LONG, QUICK_REPEATS
    names = {"wide": f"{streams:,} x {BATCHES}", "long": f"1 x {long:,}"}
    control_s = list[float]()
    taken_s: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text)
        trio.run(build_wide, folder / "wide", streams, BATCHES)
        trio.run(build_long, folder / "long", long)
        for _ in range(repeats):
            control_s.append(seconds("-c", "import trio"))
            for kind in names:
                for command in COMMANDS:
                    taken_s.setdefault((command, kind), []).append(
                        seconds("-m", "trio_ckpt", command, str(folder / kind))
                    )
    control = f"{median(control_s) * 1000:.0f} ms"
    return Section(
        figures={
            "seconds": {
                f"{command}, {names[kind]}": each for (command, kind), each in taken_s.items()
            },
            "import_trio_s": control_s,
        },
        lines=[f"{'import trio':<28} {control:>9}"]
        + [
            f"{f'{command}, {names[kind]}':<28} {median(each) * 1000:>6.0f} ms"
            for (command, kind), each in taken_s.items()
        ],
        found={
            command: Found(median_ratio(taken_s[command, "wide"], control_s), control)
            for command in COMMANDS
        }
        | {
            f"{command} of 1,000,000 batches": Found(median(taken_s[command, "long"]), control)
            for command in COMMANDS
        },
    )
