"""Whatever the bytes, a reader raises nothing but its own errors; what it takes comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.found import FOUND
from tests.fuzz.guided import unguided
from tests.fuzz.plain import run_plain
from tests.fuzz.table import TARGETS

EXECUTIONS = 20_000  # of a fast target; some minutes of it are done by hand


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_raise_nothing_but_our_own_errors(name: str) -> None:
    target = TARGETS[name]
    executions = int(EXECUTIONS * target.share)
    ends = run_plain(name, target, executions, seed=1)
    assert ends.total() == executions
    assert set(ends) >= target.ends, f"it tests refusals alone: {ends}"
    assert len(ends) > 1, "nothing was refused"


@pytest.mark.parametrize(("name", "what", "data"), FOUND, ids=[what for _, what, _ in FOUND])
def test_what_was_found_once_is_mended(name: str, what: str, data: bytes) -> None:
    reader = TARGETS[name].open()
    TARGETS[name].try_one(reader, data)
    reader.close()


@pytest.mark.parametrize(
    ("said", "complains"),
    [
        ("#5 INITED exec/s: 0\n#20000 DONE corp: 1/1b", True),
        ("#19 NEW cov: 64 ft: 231 corp: 29/890b", False),
    ],
)
def test_a_run_that_was_guided_by_nothing_says_so(said: str, complains: bool) -> None:
    """So it was when what is fuzzed had been imported before atheris could look at it."""
    assert bool(unguided(said)) is complains


def test_the_process_of_a_target_imports_atheris_before_our_code() -> None:
    code = "import sys, tests.fuzz.process; sys.exit(any('trio_ckpt' in m for m in sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0
