"""Whatever the bytes, a reader raises nothing but its own errors; what it takes comes back."""

from __future__ import annotations

import pytest

from tests.fuzz.found import FOUND
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
