"""A few schedules of kills; many by hand: ``python -m tests.remote.kills 200``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.kills import ITEMS, STEPS, run_schedule

SEEDS = range(1, 13)


@pytest.mark.parametrize("seed", SEEDS)
def test_sigkill_of_anything_in_any_order_changes_no_result(seed: int, tmp_path: Path) -> None:
    """No item is lost, none is counted twice, and little is done again."""
    outcome = run_schedule(seed, tmp_path)
    assert outcome.results == outcome.wanted
    assert set(outcome.steps) == {(n, k) for n in range(ITEMS) for k in range(1, STEPS + 1)}
    assert outcome.redone <= outcome.allowed
