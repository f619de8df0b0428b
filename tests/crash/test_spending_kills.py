"""A budget over sessions that are killed: no more is paid than it has, and all is on record."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import trio

from tests.crash.spending import AT_ONCE, BATCHES, MOST_USD
from tests.hangs import PROGRAM_S
from trio_ckpt import Progress
from trio_ckpt._util.exact_sum import ExactSum
from trio_ckpt.stores import open_store

ROOT = Path(__file__).parents[2]
KILLS = 20
MOST_CALLS = 75  # that a process pays before it is killed
MOST_MORE = 20  # and after that, at most: 30 processes together do not pay all
BUDGET_USD = 6.0


def exact(sums: dict[str, ExactSum]) -> Fraction:
    return sum((Fraction(s.numerator, 1 << s.shift) for s in sums.values()), Fraction())


def paid_usd(folder: Path) -> Fraction:
    """What was paid, exactly; the last line may be of a call that a kill has met."""
    path = folder / "paid"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum((Fraction(float(line)) for line in lines), Fraction())


def calls_paid(folder: Path) -> int:
    path = folder / "paid"
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def read_progress(folder: Path) -> Progress:
    """What the store has; nothing if it was not made yet."""
    store = await open_store(folder / "spending.ckpt")
    view = await store.load_run("spending")
    await store.aclose()
    entry = None if view is None else view.streams.get(("calls",))
    return Progress() if entry is None else entry.progress


def session(folder: Path, budget_usd: float, kill_after: int | None, chance: random.Random) -> int:
    """One process, killed when it has paid so many calls; returns its exit code."""
    command = [sys.executable, "-m", "tests.crash.spending", str(folder), str(budget_usd)]
    kill_at = None
    if kill_after is not None:
        command.append(str(kill_after + MOST_MORE))
        kill_at = calls_paid(folder) + kill_after
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PROGRAM_S
        while kill_at is not None and process.poll() is None and time.monotonic() < deadline:
            if calls_paid(folder) >= kill_at:
                time.sleep(chance.random() * 0.01)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        try:
            return process.wait(PROGRAM_S)
        finally:
            process.kill()


def test_a_budget_holds_over_sessions_that_are_killed(tmp_path: Path) -> None:
    """What is on record covers what was paid, and no more is paid than the budget has."""
    chance, kills, budget_usd, code = random.Random(20), 0, BUDGET_USD, -1
    stops = 0
    while code != 0:
        kill_after = chance.randint(1, MOST_CALLS) if kills < KILLS else None
        code = session(tmp_path, budget_usd, kill_after, chance)
        assert code in (0, 75, -signal.SIGKILL)
        progress, paid = trio.run(read_progress, tmp_path), paid_usd(tmp_path)
        recorded = exact(progress.spent) + exact(progress.reserved)
        assert paid <= recorded <= Fraction(budget_usd)
        left = len(progress.confirmed) < BATCHES
        if code == 75:  # the limit has no room, or too little for what is open at once
            assert left
            assert recorded > Fraction(budget_usd) - (AT_ONCE + 1) * Fraction(MOST_USD)
            budget_usd += BUDGET_USD
            stops += 1
        kills += code == -signal.SIGKILL
    assert kills == KILLS
    assert stops >= 1
    # What was settled was paid; what kills have met was paid or not, and is assumed.
    assert exact(progress.spent) <= paid <= exact(progress.spent) + exact(progress.reserved)
    assert exact(progress.reserved) <= KILLS * AT_ONCE * 3 * Fraction(MOST_USD)


def test_without_kills_what_was_paid_is_spent_to_the_last_bit(tmp_path: Path) -> None:
    chance, budget_usd, codes = random.Random(0), 30.0, list[int]()
    while 0 not in codes:
        codes.append(session(tmp_path, budget_usd, None, chance))
        progress = trio.run(read_progress, tmp_path)
        assert exact(progress.spent) == paid_usd(tmp_path) <= Fraction(budget_usd)
        assert progress.reserved == {}
        budget_usd += 30.0
    assert codes[:-1] == [75] * (len(codes) - 1)
    assert len(codes) >= 2
