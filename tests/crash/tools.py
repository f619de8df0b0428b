"""How a sweep is run by hand."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from tests.proof import Figures, keep_row

Sweep = Callable[[bool, int], Figures]


def run_as_command(name: str, sweep: Sweep, arguments: Sequence[str]) -> None:
    """Run one, print what it counted, and keep it if asked to.

    Args:
        name: Of its row.
        sweep: Given whether it is to be the full one, and a seed.
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="all of it; minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the row for the guarantees page")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    figures = sweep(options.full, options.seed)
    for what, figure in figures.items():
        print(f"{what}: {figure}")
    print(f"{time.monotonic() - started:.0f} s")
    if options.keep:
        keep_row(name, figures)
