"""The engine of long runs: libFuzzer by way of atheris, which looks at what each input reaches.

libFuzzer ends its process, so each target has one of its own: `run_guided` starts it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs

from tests.fuzz.case import MAX_INPUT_BYTES, MAX_INPUT_S, MAX_RSS_MIB

PER_PROCESS = 2_500_000  # atheris itself keeps some 250 bytes for each, of some targets
MOST_SAID = 6_000  # characters of a finding
STATISTICS = re.compile(r"stat::(\w+): +(\d+)")


@attrs.frozen
class Outcome:
    """How a guided run ended.

    Attributes:
        executions: How many there were.
        seconds: How long it took.
        peak_rss_mib: The most memory that the process had.
        ends: How the inputs ended.
        finding: What it printed, if an input broke a law; else empty.
        culprit: That input.
    """

    executions: int
    seconds: float
    peak_rss_mib: int
    ends: Counter[str]
    finding: str = ""
    culprit: bytes = b""


def run_guided(name: str, executions: int, seed: int, most_s: int) -> Outcome:
    """Fuzz a target, at most so often and so long (0: for ever), in a row of processes."""
    whole = Outcome(0, 0.0, 0, Counter())
    while whole.executions < executions and not whole.finding:
        left_s = max(1, round(most_s - whole.seconds)) if most_s else 0
        if most_s and whole.seconds >= most_s:
            break
        count = min(PER_PROCESS, executions - whole.executions)
        part = _run_process(name, count, seed, left_s)
        whole = attrs.evolve(
            part,
            executions=whole.executions + part.executions,
            seconds=whole.seconds + part.seconds,
            peak_rss_mib=max(whole.peak_rss_mib, part.peak_rss_mib),
            ends=whole.ends + part.ends,
        )
        seed += 1
    return whole


def _run_process(name: str, executions: int, seed: int, most_s: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        ends = Path(folder) / "ends.json"
        limits = {
            "runs": executions,
            "max_total_time": most_s,
            "seed": seed or 1,  # 0 is any
            "max_len": MAX_INPUT_BYTES,
            "timeout": MAX_INPUT_S,
            "rss_limit_mb": MAX_RSS_MIB,
            "print_final_stats": 1,
            "artifact_prefix": f"{folder}/",
        }
        options = [f"-{option}={value}" for option, value in limits.items()]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.process", name, *options],
            env={**_environment(), "FUZZ_FOLDER": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        took = time.perf_counter() - began
        said = done.stdout.decode(errors="replace")
        found = dict(STATISTICS.findall(said))
        culprits = [
            path
            for kind in ("crash", "timeout", "oom", "leak")
            for path in Path(folder).glob(f"{kind}-*")
        ]
        return Outcome(
            int(found.get("number_of_executed_units", 0)),
            took,
            int(found.get("peak_rss_mb", 0)),
            Counter(json.loads(ends.read_text()) if ends.exists() else {}),
            _finding(said) if culprits or done.returncode else unguided(said),
            culprits[0].read_bytes() if culprits else b"",
        )


def unguided(said: str) -> str:
    """A complaint if libFuzzer saw nothing of what inputs reach: what it ran proves less."""
    return "" if " cov: " in said else "no coverage: what is imported before atheris looks?"


def _finding(said: str) -> str:
    """The traceback, or the last words where there is none: too slow, or too much memory."""
    start = said.rfind("=== Uncaught")
    return said[start:][:MOST_SAID] if start >= 0 else said[-MOST_SAID:]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
