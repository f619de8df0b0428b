"""Explore all crashes of our examples, and many random schedules: by hand, minutes.

python -m tests.testing.explore_examples [--schedules N] [--seed N] [--keep]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from functools import partial
from pathlib import Path

from tests.proof import keep_row
from tests.testing import llm
from tests.testing.examples import Book, check_crawl, crawl
from tests.testing.more_programs import MORE
from tests.testing.programs import check_good, good
from trio_ckpt.testing import explore_crashes

HOURS_S = 4 * 3600.0  # for each: in effect no limit


def main() -> int:
    """Explore, and say what was found; an error ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=1500, help="random schedules of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    options = parser.parse_args()
    crashes = sessions = 0
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        book, busy = Book(Path(folder)), Book(Path(folder), workers=3)
        for name, program, check in (
            ("loop", good, check_good),
            ("crawler", crawl, check_crawl),
            ("book", book.scan, book.check),
            ("book, 3 at once", busy.scan, busy.check),
            ("questions by the batch", partial(llm.ask, provider="openai"), llm.check),
            *MORE,
        ):
            with contextlib.redirect_stderr(nowhere):  # the examples tell how it goes
                found = explore_crashes(
                    program,
                    check,
                    seed=options.seed,
                    schedules=options.schedules,
                    time_limit_s=HOURS_S,
                )
            print(f"{name}: {found}", flush=True)
            crashes += found.crash_points
            sessions += found.sessions
            seconds += found.duration_s
    print(f"{crashes:,} crashes, {sessions:,} sessions, {seconds:.0f} s, no violation")
    if options.keep:
        figures = {"crashes": crashes, "sessions": sessions, "violations": 0}
        keep_row("explored crashes of the examples", figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
