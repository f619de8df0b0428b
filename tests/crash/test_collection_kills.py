"""Processes that share a collection are killed: each batch is confirmed once, the end is done once.

The full form is run by hand: ``python -m tests.crash.collection``.
"""

from __future__ import annotations

import random
from pathlib import Path

import attrs
import pytest

from tests.crash.collection import Plan, kill_processes, problems_of

KILLS = 6


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_killed_processes_confirm_each_batch_of_a_collection_once(
    kind: str, tmp_path: Path
) -> None:
    url = f"{kind}:{tmp_path / 'store'}"
    plan = Plan(tmp_path, url, partitions=40, processes=3, kills=KILLS, pause_s=0.01)
    found = kill_processes(plan, random.Random(kind))
    assert problems_of(plan, found) == []
    assert (found.kills, found.starts) == (KILLS, KILLS + plan.processes - 1)


def test_what_must_hold_of_a_collection_is_judged(tmp_path: Path) -> None:
    plan = Plan(tmp_path, f"sqlite:{tmp_path / 'store'}", partitions=4, processes=2, kills=1)
    found = kill_processes(plan, random.Random(1))
    assert problems_of(plan, found) == []
    found.confirmed[3] += 1
    del found.confirmed[7]
    broken = attrs.evolve(found, finished=2, runs=4)
    assert len(problems_of(plan, broken)) == 4
