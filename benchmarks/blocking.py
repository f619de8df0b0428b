"""What a batch of a synchronous program costs beside one of a trio program.

One loop with nothing in the body but ``batch.complete()``, in memory, where the difference is the
ways between the threads, and on the SQLite store, whose commit both wait for.  Both take turns, the
differences and ratios are made within a round, and the median round is shown.
"""

import tempfile
import time
from pathlib import Path

import trio

from benchmarks import Found, Options, Section, median, median_ratio
from trio_ckpt import blocking, open_run

BATCHES = {"memory": 5_000, "disk": 2_000}
QUICK_BATCHES = {"memory": 100, "disk": 20}
ROUNDS = 5
QUICK_ROUNDS = 1


async def trio_loop(store: str, batches: int) -> float:
    """Microseconds of a batch; opening and closing the run are left out."""
    async with (
        open_run("trio", store=store, handle_signals=False) as run,
        run.open_stream("loop") as stream,
    ):
        began_s = time.perf_counter()
        async for batch in stream.batches(range(batches)):
            batch.complete()
        return (time.perf_counter() - began_s) / batches * 1e6


def blocking_loop(store: str, batches: int) -> float:
    """Microseconds of a batch; opening and closing the run are left out."""
    with (
        blocking.open_run("blocking", store=store, handle_signals=False) as run,
        run.open_stream("loop") as stream,
    ):
        began_s = time.perf_counter()
        for batch in stream.batches(range(batches)):
            batch.complete()
        return (time.perf_counter() - began_s) / batches * 1e6


def measure_round(folder: Path, batches: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Of each store: microseconds of a batch in trio, and in a synchronous program."""
    stores = {"memory": "memory:", "disk": f"sqlite:{folder / 'store'}"}
    return {
        name: (trio.run(trio_loop, store, batches[name]), blocking_loop(store, batches[name]))
        for name, store in stores.items()
    }


def measure(options: Options) -> Section:
    """Both loops on both stores, in turns."""
    rounds = list[dict[str, tuple[float, float]]]()
    for _ in range(QUICK_ROUNDS if options.is_quick else ROUNDS):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="blocking-") as folder:
            batches = QUICK_BATCHES if options.is_quick else BATCHES
            rounds.append(measure_round(Path(folder), batches))
    in_trio = {name: [found[name][0] for found in rounds] for name in BATCHES}
    beside = {name: [found[name][1] for found in rounds] for name in BATCHES}
    more_us = median([b - a for a, b in zip(in_trio["memory"], beside["memory"], strict=True)])
    return Section(
        {"trio_us": in_trio, "blocking_us": beside},
        [
            f"a batch of one loop, {name}: trio {median(in_trio[name]):.0f} us, "
            f"synchronous {median(beside[name]):.0f} us"
            for name in BATCHES
        ],
        {
            "a synchronous batch in memory, beyond trio's": Found(
                more_us, f"{median(in_trio['memory']):.0f} us"
            ),
            "a synchronous batch on disk": Found(
                median_ratio(beside["disk"], in_trio["disk"]),
                f"{median(in_trio['disk']):.0f} us",
            ),
        },
    )
