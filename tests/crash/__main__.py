"""Crash tests from outside, by hand: ``python -m tests.crash --full``.

Each row of `SWEEPS` is run; what is broken is printed with the command that shows it again.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests import proof
from tests.crash import sweeps
from tests.crash.ext4 import CannotCutError
from tests.crash.lab import ViolationError
from tests.crash.owners import sweep_owners
from tests.crash.power_cut import sweep_power_cuts
from tests.proof import Figures

AT_ONCE = 2  # sweeps; each is one process at a time
SAY_EVERY_S = 0.5
SAY_EVERY_S_TO_A_FILE = 30.0


class _Progress:
    """The progress line: what each sweep is at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, str] = {}
        self._is_seen = sys.stderr.isatty()
        self._said_at = 0.0

    def say(self, name: str, text: str) -> None:
        """Take note of what a sweep is at; shown now and then."""
        with self._lock:
            self._lines[name] = text
            now = time.monotonic()
            if now - self._said_at >= (SAY_EVERY_S if self._is_seen else SAY_EVERY_S_TO_A_FILE):
                self._said_at = now
                line = " | ".join(self._lines.values())
                print("\r\x1b[K" + line if self._is_seen else line, end="", file=sys.stderr)
                print("" if self._is_seen else "\n", end="", file=sys.stderr, flush=True)

    def end(self, name: str, text: str) -> None:
        """A sweep is over."""
        with self._lock:
            self._lines.pop(name, None)
            print(("\r\x1b[K" if self._is_seen else "") + text, flush=True)


progress = _Progress()


def _run(name: str, store: str, full: bool, seed: int) -> Figures:
    say = partial(progress.say, f"{name} {store}")
    found = sweeps.run_sweep(name, store, full=full, seed=seed, say=say)
    for violation in found.violations:
        progress.end("", violation)
    return found.figures


# What is run, by name: called with whether it is to be full, and a seed.
SWEEPS: dict[str, Callable[[bool, int], Figures]] = {
    f"{name} {store}": partial(_run, name, store)
    for name in ("errors", "power", "syncs", "kills")  # the longest first
    for store in sweeps.STORES
} | {"owners": sweep_owners, "ext4": sweep_power_cuts}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1: something is broken."""
    options = _parse(arguments)
    if options.replay:
        return _replay(options.replay)
    wanted = [
        name
        for name in SWEEPS
        if options.sweep in (None, name.split()[0]) and options.store in (None, name.split()[-1])
    ]
    if not wanted:
        print(f"there is no such sweep; there are: {', '.join(SWEEPS)}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda name: _run_one(name, options.full, options.seed), wanted)
        rows = dict(zip(wanted, results, strict=True))
    if options.report:
        options.report.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.keep:
        for name, figures in rows.items():
            if figures:
                proof.keep_row(f"crash: {name}", figures)
    return int(any(figures.get("violations") for figures in rows.values()))


def _run_one(name: str, full: bool, seed: int) -> Figures:
    try:
        figures = SWEEPS[name](full, seed)
    except CannotCutError as error:
        progress.end(name, f"{name}: not run: {error}")
        return {}
    except AssertionError as error:
        progress.end(name, f"{name}: {error}")
        return {"violations": 1}
    told = ", ".join(f"{number} {what}" for what, number in figures.items())
    progress.end(name, f"{name}: {told}")
    return figures


def _replay(text: str) -> int:
    try:
        sweeps.replay(text)
    except ViolationError as problem:
        print(f"{text}: {problem}")
        return 1
    print(f"{text}: every promise was kept")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.crash", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every operation, not a share of them")
    parser.add_argument("--store", choices=sweeps.STORES, help="only with this kind of store")
    parser.add_argument("--sweep", metavar="NAME", help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="decides what is left to chance")
    parser.add_argument("--jobs", type=int, default=AT_ONCE, help="how many sweeps at once")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the figures as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the figures in the docs")
    parser.add_argument("--replay", metavar="SCHEDULE", help="play one that was broken again")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
