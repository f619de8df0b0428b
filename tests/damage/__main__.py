"""Plant damages by hand: ``python -m tests.damage [--count N] [--seed N] [--keep]``."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.proof import keep_row

from .sweep import Sweep, make_samples

DEFAULT_COUNT = 5_000
REPAIR_EVERY = 10  # of those that are found one in so many is repaired, too


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repair-every", type=int, default=REPAIR_EVERY)
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the library says each damage
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="damage", dir=memory))
    began = time.monotonic()
    try:
        sweep, said = Sweep(make_samples(root)), 0
        for number, planted in enumerate(sweep.damages(asked.seed, asked.count), 1):
            repairs = asked.count == 1 or number % asked.repair_every == 0
            verdict = sweep.judge(planted, repairs=repairs)
            if verdict == "silent" or asked.count == 1:
                print(f"{verdict}: {planted}", flush=True)
            for problem in sweep.tally.broken[said:]:
                print(f"broken: {problem}", flush=True)
            said = len(sweep.tally.broken)
            if number % 250 == 0:
                print(f"{number:,} planted, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(root)
    tally = sweep.tally
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
    for name, figure in figures.items():
        print(f"{name:30} {figure:8,}")
    print(f"{'seconds':30} {time.monotonic() - began:8.0f}")
    if asked.keep:
        keep_row("planted damages", figures)
    return 1 if tally.silent or tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
