"""``python -m tests.fuzz TARGET|all [--executions N] [--seconds S] [--seed N] [--keep]``."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.guided import Outcome, run_guided
from tests.fuzz.plain import run_plain
from tests.fuzz.table import TARGETS
from tests.proof import keep_row

EXECUTIONS = 10_000_000


def main() -> int:
    """Fuzz one target or all; 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--executions", type=int, default=EXECUTIONS)
    parser.add_argument("--seconds", type=int, default=0, help="per target at most; 0: no limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep a row of each for the docs")
    parser.add_argument("--plain", action="store_true", help="without atheris, as the tests do")
    parser.add_argument("--input", type=bytes.fromhex, help="read this one, in hexadecimal")
    given = parser.parse_args()
    names = list(TARGETS) if given.target == "all" else [given.target]
    found = False
    for name in names:
        if given.input is not None:
            reader = TARGETS[name].open()
            print(name, TARGETS[name].try_one(reader, given.input))
            reader.close()
        elif given.plain:
            print(name, dict(run_plain(name, TARGETS[name], given.executions, given.seed)))
        else:
            outcome = run_guided(name, given.executions, given.seed, given.seconds)
            found |= _say(name, outcome, given.seed, keep=given.keep)
    return int(found)


def _say(name: str, outcome: Outcome, seed: int, *, keep: bool) -> bool:
    """Print what came of a run, and keep it; whether something was found."""
    rate = outcome.executions / outcome.seconds
    print(
        f"{name}: {outcome.executions:,} executions, seed {seed}, {outcome.seconds:,.0f} s "
        f"({rate:,.0f}/s), peak {outcome.peak_rss_mib} MiB: {dict(outcome.ends)}",
        flush=True,
    )
    if outcome.finding:
        print(f"{outcome.finding}\npython -m tests.fuzz {name} --input {outcome.culprit.hex()}")
        return True
    if keep:
        figures = {
            "executions": outcome.executions,
            "findings": 0,
            "seconds": round(outcome.seconds),
            "peak MiB": outcome.peak_rss_mib,
        }
        keep_row(f"fuzz {name}", figures)
    return False


if __name__ == "__main__":
    sys.exit(main())
