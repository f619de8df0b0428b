"""``python -m tests.random_programs --programs 2000``: run as many, and say what was found."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.random_programs.program import run_program
from tests.random_programs.server import Server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=2_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep what violations leave")
    options = parser.parse_args()
    began, sessions, violations = time.monotonic(), 0, 0
    with Server() as server:
        for seed in range(options.first_seed, options.first_seed + options.programs):
            root = Path(tempfile.mkdtemp(prefix=f"program-{seed}-"))
            try:
                sessions += run_program(seed, root, server)
            except AssertionError as error:
                violations += 1
                traceback.print_exception(error)
                if options.keep:
                    print(f"seed {seed}: {root}", flush=True)
                    continue
            shutil.rmtree(root)
    took = time.monotonic() - began
    print(f"{options.programs:,} programs, {sessions:,} sessions and commands, {took:.0f} s")
    print(f"{violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
