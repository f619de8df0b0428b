"""A program that pays for each batch, 64 at once; tests kill it.

    python -m tests.crash.spending FOLDER BUDGET [CALLS]

What is paid is in a file beside the store, a line for each call, as a provider would charge for it:
before the program knows of the answer.  With CALLS the program stops itself after so many.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import trio

from tests.leash import stop_here
from trio_ckpt import Batch, Limits, RunStoppedError, open_run, run_batches

BATCHES, AT_ONCE = 1_500, 64
MOST_USD = 0.03125


def cost_usd(index: int, call: int) -> float:
    """What a call costs: less than the most, and exact in binary."""
    return MOST_USD * ((index * 7 + call * 3) % 8 + 1) / 8


async def main(folder: Path, budget_usd: float, most_calls: int) -> int:
    """Work on what is left, within the budget; returns the exit code."""
    calls = itertools.count(1)
    paid = os.open(folder / "paid", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def pay(batch: Batch[int]) -> None:
        for call in range(1 + batch.index % 3):
            await batch.reserve(usd=MOST_USD)
            os.write(paid, f"{cost_usd(batch.index, call)!r}\n".encode())
            if next(calls) == most_calls:
                stop_here()
            await trio.lowlevel.checkpoint()
            batch.spend(usd=cost_usd(batch.index, call))
        batch.complete()

    limits = Limits(spent={"usd": budget_usd})
    async with (
        open_run("spending", store=folder / "spending.ckpt", limits=limits) as run,
        run.open_stream("calls") as stream,
    ):
        await run_batches(stream, range(BATCHES), pay, concurrency=AT_ONCE)
    return run.exit_code


if __name__ == "__main__":
    try:
        most_calls = int(sys.argv[3]) if sys.argv[3:] else 0
        sys.exit(trio.run(main, Path(sys.argv[1]), float(sys.argv[2]), most_calls))
    except RunStoppedError as stopped:
        sys.exit(stopped.exit_code)
