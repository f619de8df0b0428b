"""The engine of the tests: so many damaged inputs by seed, without any library."""

from __future__ import annotations

import random
from collections import Counter

from tests.fuzz.case import MAX_INPUT_BYTES, Reader, Target
from tests.fuzz.mutate import mutate

FRESH_SHARE = 0.4  # of the inputs, where a target makes its own
UNTOUCHED_SHARE = 0.02


def damaged(rng: random.Random, reader: Reader) -> bytes:
    """A damaged input; seldom a good one."""
    if reader.fresh is not None and rng.random() < FRESH_SHARE:
        return reader.fresh(rng)
    data = rng.choice(reader.seeds)
    return data if rng.random() < UNTOUCHED_SHARE else mutate(rng, data, reader.seeds)


def run_plain(name: str, target: Target, executions: int, seed: int) -> Counter[str]:
    """Run so many; how they ended.

    Raises:
        AssertionError: an input ended in a way that is not allowed; with the command that
            reads it again.
    """
    rng = random.Random(f"{name} {seed}")  # a seed is an order
    reader = target.open()
    ends: Counter[str] = Counter()
    try:
        for _ in range(executions):
            data = damaged(rng, reader)[:MAX_INPUT_BYTES]
            try:
                ends[target.try_one(reader, data)] += 1
            except Exception as error:
                again = f"python -m tests.fuzz {name} --input {data.hex()}"
                raise AssertionError(f"{type(error).__name__}: {error}; {again}") from error
    finally:
        reader.close()
    return ends
