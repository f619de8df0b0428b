"""The table of a very large collection is made of what is measured, and of what `doctor` counts."""

from __future__ import annotations

import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed")
pytest.importorskip("obstore", reason="obstore is not installed")

from benchmarks import scale
from benchmarks.postgres import Rate
from tests.stores.postgres.servers import find_programs


def test_figures_are_multiplied() -> None:
    found = scale.Measured(64, Rate(10_000.0, 1.0, 250.0), 130.0)
    (_, line) = scale.lines_of_database([found])
    assert line.split() == ["64", "1.6e+07", "(0.1)", "250", "GB", "130", "GB", "27.8", "h"]
    assert [line.split() for line in scale.lines_of_bucket()[1:]] == [
        ["1", "1.03e+09", "$5,156"],
        ["8", "1.29e+08", "$645"],
        ["64", "1.61e+07", "$81"],
    ]
    leases = scale.lines_of_leases(Rate(1.0, 1.0, 200.0))
    assert "  PostgreSQL, 30 s: 1,000 renewals/s, 0.20 MB/s of log" in leases
    assert "  a bucket, 120 s: 250 renewals/s, $108 a day" in leases
    assert leases[-1].endswith("417 takeovers an hour")


def test_it_measures_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    if find_programs() is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    scale.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1e+09 batches, 1e+04 owners"
    assert [line.split()[0] for line in lines[2:5]] == ["1", "8", "64"]
