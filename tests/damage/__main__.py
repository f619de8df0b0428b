"""Plant damages by hand: ``python -m tests.damage [--count N] [--seed N] [--jobs N] [--keep]``."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.damage.sweep import Tally, plant_many
from tests.proof import keep_row

DEFAULT_COUNT = 5_000
REPAIR_EVERY = 10  # of those that are planted one in so many is repaired, too
CHUNK = 125  # damages that are planted in one set of samples
SEEDS = 10 * CHUNK  # that belong to a chunk: some plant nothing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--repair-every", type=int, default=REPAIR_EVERY)
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    began = time.monotonic()
    if asked.count <= CHUNK:
        tally = plant_many(asked.seed, asked.count, asked.repair_every)
    else:
        tally = Tally()
        with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
            chunks = [
                pool.submit(
                    plant_many, asked.seed + place * SEEDS // CHUNK, CHUNK, asked.repair_every
                )
                for place in range(0, asked.count, CHUNK)
            ]
            for done in as_completed(chunks):
                found = done.result()
                tally.add(found)
                tell(found)
                planted = sum(tally.verdicts.values())
                print(f"{planted:,} planted, {time.monotonic() - began:.0f} s", flush=True)
    figures = {
        "planted": sum(tally.verdicts.values()),
        "kinds": len(tally.kinds),
        "found": tally.verdicts["found"],
        "harmless": tally.verdicts["harmless"],
        "silent": tally.verdicts["silent"],
        "repairs": sum(tally.repaired.values()),
        "sound after it": tally.repaired["sound"],
        "the rest said": tally.repaired["left some"] + tally.repaired["refused"],
        "repairs that broke a promise": len(tally.broken),
    }
    if asked.count <= CHUNK:
        tell(tally)
    for name, figure in figures.items():
        print(f"{name:30} {figure:8,}")
    print(f"{'seconds':30} {time.monotonic() - began:8.0f}")
    if asked.keep:
        keep_row("planted damages", figures)
    return 1 if tally.silent or tally.broken else 0


def tell(tally: Tally) -> None:
    """Say what must not be."""
    for silent in tally.silent:
        print(f"silent: {silent}", flush=True)
    for problem in tally.broken:
        print(f"broken: {problem}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
