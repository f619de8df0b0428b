"""The page of the benchmarks is what the kept run and the table of targets say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import Found, kept, targets
from docs import diagrams

ROOT = Path(__file__).parents[2]
ROW = targets.BY_NAME["64 loops: CPU"]


def a_run(found: dict[str, Found]) -> kept.Run:
    return kept.Run(
        at="2026-01-31T12:00:00Z",
        machine={
            "system": "Linux",
            "release": "6",
            "architecture": "x",
            "cpu": "c",
            "cores": 2,
            "load": "0.3",
        },
        versions={"trio": "0.30"},
        peers=["dbos 3.4.0"],
        found=found,
    )


def cells(found: dict[str, Found]) -> list[str]:
    """The cells of `ROW` on the page of a run that found this."""
    table = diagrams.performance_table(a_run(found))
    (line,) = (line for line in table.splitlines() if f"| {ROW.name} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_its_figure_control_peer_and_target() -> None:
    assert cells({ROW.name: Found(ROW.limit + 1, "12 us", "DBOS 345 us")}) == [
        ROW.name,
        f"{ROW.control}: 12 us",
        "DBOS 345 us",
        f"{ROW.limit + 1:g} {ROW.unit}",
        ROW.target,
        "**not met**",
    ]
    assert cells({ROW.name: Found(ROW.limit, "12 us")})[-1] == "met"


def test_a_row_without_a_measurement_says_so() -> None:
    assert cells({}) == [
        ROW.name,
        ROW.control,
        f"{ROW.peer}: not measured",
        "not measured",
        ROW.target,
        "",
    ]


def test_the_page_names_the_machine_and_the_peers() -> None:
    table = diagrams.performance_table(a_run({}))
    assert (
        "2026-01-31T12:00:00Z on Linux 6, x, 2 cores (c), load 0.3 at its start, with trio" in table
    )
    assert "Peers: dbos 3.4.0." in table


def test_what_is_kept_is_what_is_read(tmp_path: Path) -> None:
    run = a_run({ROW.name: Found(1.5, "12 us", "DBOS 345 us")})
    kept.keep_run(run, tmp_path / "run.json")
    assert kept.read_run(tmp_path / "run.json") == run


def test_the_kept_run_has_only_rows_of_the_table() -> None:
    assert kept.read_run().found.keys() <= targets.BY_NAME.keys()


def test_a_run_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    report = {**msgspec.to_builtins(a_run({})), "quick": True}
    path.write_bytes(msgspec.json.encode(report))
    with pytest.raises(msgspec.ValidationError, match="unknown field `quick`"):
        kept.read_run(path)


def test_a_quick_run_is_not_kept() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--keep", "--only", "tokens"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a quick run is not kept" in done.stderr
