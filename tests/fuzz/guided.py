"""The engine of long runs: libFuzzer by way of atheris, which looks at what each input reaches.

libFuzzer ends its process, so each target has one of its own: `run_guided` starts it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs

from tests.fuzz.case import MAX_INPUT_BYTES, MAX_INPUT_S, MAX_RSS_MIB, Target
from tests.fuzz.plain import damaged

FRESH_SEEDS = 300  # in the corpus, where a target makes its own
OWN_SHARE = 0.5  # of the inputs, made as the tests make them
WRITE_EVERY = 100_000
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
    """Fuzz a target in a process of its own, at most so often and so long (0: for ever)."""
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
            [sys.executable, "-m", "tests.fuzz.guided", name, *options],
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
            said[said.rfind("=== Uncaught") :][:MOST_SAID] if culprits or done.returncode else "",
            culprits[0].read_bytes() if culprits else b"",
        )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def main() -> None:
    """The process of one target; the rest of the command line is libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=["trio_ckpt"]):
        from tests.fuzz.table import TARGETS

    logging.disable(logging.CRITICAL)
    folder, name = Path(os.environ["FUZZ_FOLDER"]), sys.argv.pop(1)
    target: Target = TARGETS[name]
    reader = target.open()
    corpus = folder / "corpus"
    corpus.mkdir()
    rng = random.Random(name)
    made = [reader.fresh(rng) for _ in range(FRESH_SEEDS)] if reader.fresh else []
    for number, data in enumerate([*reader.seeds, *made]):
        (corpus / f"{number:04}").write_bytes(data[:MAX_INPUT_BYTES])
    ends: Counter[str] = Counter()
    count = 0

    def test_one_input(data: bytes) -> None:
        nonlocal count
        ends[target.try_one(reader, data)] += 1
        count += 1
        if not count % WRITE_EVERY:
            (folder / "ends.json").write_text(json.dumps(ends))

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        # libFuzzer forgets good inputs that reach nothing new in Python: C reads most of them.
        own = random.Random(seed)
        if own.random() > OWN_SHARE:
            return bytes(atheris.Mutate(data, len(data)))
        return damaged(own, reader)[:max_size]

    arguments = [sys.argv[0], *sys.argv[1:], str(corpus)]
    atheris.Setup(arguments, test_one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
