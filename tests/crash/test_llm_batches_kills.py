"""The pipeline of language models, killed with kill -9: it submits nothing twice.

The provider is a process of its own, which no kill meets.  Its file says what was submitted, and so
what was paid; the store says after each kill what is on record.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import trio

from examples.llm_batches import USD_PER_REQUEST
from tests.hangs import PROGRAM_S
from tests.testing.llm import paid_usd
from trio_ckpt import Progress
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
KILLS = 20
QUESTIONS, PER_BATCH, AT_ONCE = 120, 3, 8
BUDGET_USD = 12 * PER_BATCH * USD_PER_REQUEST  # for twelve batches at their most


@contextmanager
def serving(file: Path) -> Iterator[str]:
    """The URL of a provider that remembers in a file."""
    command = [sys.executable, "-m", "examples._llm.server", "--port", "0", "--takes", "0.2"]
    with subprocess.Popen(
        [*command, "--file", str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def start(out: Path, url: str, provider: str, budget_usd: float) -> subprocess.Popen[bytes]:
    """The next process of the pipeline."""
    command = [sys.executable, "-m", "examples.llm_batches", "--out", str(out), "--url", url]
    command += ["--provider", provider, "--poll", "0.05", "--max-cost", str(budget_usd)]
    command += ["--questions", str(QUESTIONS), "--per-batch", str(PER_BATCH)]
    return subprocess.Popen(
        [*command, "--concurrency", str(AT_ONCE)], cwd=ROOT, stderr=subprocess.DEVNULL
    )


def submitted(file: Path) -> list[dict[str, Any]]:
    """What the provider has accepted."""
    text = file.read_text() if file.exists() else ""
    whole, _, _ = text.rpartition("\n")  # a line may be on its way
    return [json.loads(line) for line in whole.splitlines()]


async def read_progress(folder: Path) -> Progress:
    """What the store has."""
    store = await open_store(folder)
    view = await store.load_run("answers")
    await store.aclose()
    entry = None if view is None else view.streams.get(("questions",))
    return Progress() if entry is None else entry.progress


def check(out: Path, file: Path, budget_usd: float) -> Progress:
    """See that nothing was submitted twice, and that records and budget cover what was paid."""
    store = out / "answers.ckpt"
    progress = trio.run(read_progress, store) if store.exists() else Progress()
    batches = submitted(file)
    requests = Counter(one for batch in batches for one in batch["requests"])
    assert set(requests.values()) <= {1}, "a request was submitted twice"
    recorded = Fraction()
    for sums in (progress.spent, progress.reserved):
        for total in sums.values():
            recorded += Fraction(total.numerator, 1 << total.shift)
    assert paid_usd(batches) <= recorded <= Fraction(budget_usd)
    return progress


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_sigkill_pays_no_batch_twice_and_keeps_the_budget(tmp_path: Path, provider: str) -> None:
    chance, kills, codes, scans = random.Random(provider), 0, Counter[int](), 0
    while kills < KILLS:
        scans += 1  # one that ends before its kill leaves the number of kills as it is
        file, out = tmp_path / f"provider {scans}.jsonl", tmp_path / f"out {scans}"
        budget_usd, code = BUDGET_USD, -1
        with serving(file) as url:
            while code != 0:
                process = start(out, url, provider, budget_usd)
                try:
                    if kills < KILLS and wait_for_work(process, file, chance):
                        os.kill(process.pid, signal.SIGKILL)
                    code = process.wait(PROGRAM_S)
                finally:
                    process.kill()
                    process.wait()
                assert code in (0, 75, -signal.SIGKILL)
                progress = check(out, file, budget_usd)
                kills += code == -signal.SIGKILL
                codes[code] += 1
                budget_usd += BUDGET_USD if code == 75 else 0.0  # the next start has more
        lines = (out / "answers.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["question"] for line in lines) == list(range(QUESTIONS))
        spent = progress.spent["cost_usd"]
        assert Fraction(spent.numerator, 1 << spent.shift) == paid_usd(submitted(file))
        assert progress.reserved == {}
    assert codes[75] >= 1, "the budget was never used up"


def wait_for_work(process: subprocess.Popen[bytes], file: Path, chance: random.Random) -> bool:
    """Wait until some batches are submitted; False: it ended before."""
    goal = len(submitted(file)) + chance.randint(1, 5)
    deadline = time.monotonic() + PROGRAM_S
    while len(submitted(file)) < goal:
        assert time.monotonic() < deadline, "the pipeline neither submits nor ends"
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    time.sleep(chance.random() * chance.choice([0.0, 0.01, 0.1]))
    return process.poll() is None
