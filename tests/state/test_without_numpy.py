"""Plain typed state needs nothing of the extra ``arrays``, and imports nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[2]

BLOCK = """
import sys

BLOCKED = {"numpy", "xxhash", "blosc2", "zstandard", "ml_dtypes", "torch", "jax", "tensorflow"}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocker())
"""

PROGRAM = (
    BLOCK
    + """
import dataclasses
import datetime
import enum
import logging
import random
from decimal import Decimal
from pathlib import Path

import attrs
import trio

from tests.hangs import PROGRAM_S
from tests.hangs import PROGRAM_S
import trio_ckpt


class Phase(enum.Enum):
    WARM, HOT = "warm", "hot"


@dataclasses.dataclass
class Inner:
    at: datetime.datetime
    prices: dict[str, Decimal]


@attrs.define
class State:
    inner: Inner
    phase: Phase = Phase.WARM
    losses: list[float] = attrs.field(factory=list)
    seen: set[tuple[int, str]] = attrs.field(factory=set)
    huge: int = 2**200
    rng: random.Random = attrs.field(factory=lambda: random.Random(7))


def new():
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return State(Inner(at, {"a": Decimal("1.10")}))


def step(state):
    state.losses.extend(state.rng.random() for _ in range(3_000))
    state.seen.add((len(state.losses), "x"))
    state.phase = Phase.HOT
    state.huge *= 3


async def main(die_at=None):
    async with trio_ckpt.open_run("r", store="plain.ckpt", handle_signals=False) as run:
        async with run.open_stream("s", state=new()) as stream:
            async for batch in stream.batches(range(6)):
                async with stream.snapshots(every_s=0) as snapshot:
                    if batch.resumed_from is None:
                        step(stream.state)
                    await snapshot.point("stepped")
                    await snapshot.wait()
                if batch.index == die_at:
                    raise KeyboardInterrupt
                batch.complete()
            return stream.state


def killed(die_at):
    try:
        trio.run(main, die_at)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not killed")


logging.basicConfig(level=logging.ERROR)
killed(2)
killed(4)
found, expected = trio.run(main), new()
for _ in range(6):
    step(expected)
assert found.rng.getstate() == expected.rng.getstate()
found.rng = expected.rng
assert found == expected
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
print("as it was")
"""
)


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )


def test_plain_typed_state_works_and_imports_nothing_of_it(tmp_path: Path) -> None:
    done = run_program(PROGRAM, tmp_path)
    assert (done.returncode, done.stdout) == (0, "as it was\n"), done.stderr


def test_importing_everything_public_imports_nothing_of_it(tmp_path: Path) -> None:
    modules = "trio_ckpt, trio_ckpt.state, trio_ckpt.stores, trio_ckpt.outputs, trio_ckpt.abc"
    done = run_program(f"{BLOCK}\nimport {modules}, trio_ckpt.testing\n", tmp_path)
    assert done.returncode == 0, done.stderr
