"""A share of the random programs; ``python -m tests.random_programs`` runs as many as one likes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.random_programs.program import run_program
from tests.random_programs.server import Server

PROGRAMS = 120
AT_ONCE = 10  # in one test: a failure says which seed it was


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.mark.parametrize("first", range(0, PROGRAMS, AT_ONCE))
def test_totals_and_outputs_are_right_whatever_happens(
    first: int, server: Server, tmp_path: Path
) -> None:
    for seed in range(first, first + AT_ONCE):
        root = tmp_path / str(seed)
        root.mkdir()
        run_program(seed, root, server)
