"""A few schedules of kills; many by hand: ``python -m tests.remote.kills aimed 500``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.kills import main, run_aimed, run_random


@pytest.mark.parametrize("seed", range(1, 9))
def test_sigkill_of_anything_in_any_order_changes_no_result(seed: int, tmp_path: Path) -> None:
    """No item is lost, none is counted twice, and nothing that was saved is done again."""
    outcome = run_random(seed, tmp_path)
    assert outcome.is_right, outcome


@pytest.mark.parametrize("seed", range(3, 90, 11))
def test_sigkill_at_a_transition_changes_no_result(seed: int, tmp_path: Path) -> None:
    """A process kills itself when a message is about to be sent, or has just come."""
    outcome = run_aimed(seed, tmp_path)
    assert outcome.is_right, outcome


def test_when_the_time_is_over_the_counts_so_far_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["aimed", "500", "--minutes", "0"]) == 0
    assert capsys.readouterr().out.startswith("0 of 500 schedules")
