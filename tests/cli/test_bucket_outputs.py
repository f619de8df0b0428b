"""The commands on a run whose outputs are in a bucket: here objects in a folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import trio

if importlib.util.find_spec("obstore") is None:
    pytest.skip("obstore is missing: pip install 'trio-ckpt[objects]'", allow_module_level=True)

from tests.cli.test_changing import write_pages
from tests.cli.tools import Terminal
from tests.outputs.faulty import files_in

EXIT_FILE = 7


@pytest.fixture
def place(store: Path, tmp_path: Path) -> str:
    """The URL of the outputs of a run."""
    place = f"file://{tmp_path}/bucket"
    assert trio.run(write_pages, store, place) == [0, 1, 2, 3, 4]
    return place


def test_outputs_in_a_bucket_are_verified(
    run: Terminal, store: Path, place: str, tmp_path: Path
) -> None:
    assert run("verify", store).out == (
        "5 files (30 bytes) checked by size and ETag, hash where the ETag differs: all are as "
        "confirmed\n"
    )
    assert run("verify", store, "--full").code == 0
    (tmp_path / "bucket" / "3.txt").write_text("PAGE 3")
    (tmp_path / "bucket" / "4.txt").unlink()
    found = run("verify", store, "--sha256")
    assert found.code == 1
    assert "4.txt  missing" in found.out
    assert "3.txt  altered" in found.out
    assert "missing" in run("explain", store).out


def test_outputs_in_a_bucket_are_exported_imported_and_moved(
    run: Terminal, store: Path, place: str, tmp_path: Path
) -> None:
    (name,) = [line.split()[0] for line in run("ls", store).out.splitlines() if "complete" in line]
    archive, other, copy = tmp_path / "x.run", tmp_path / "other", f"file://{tmp_path}/copy"
    assert run("export", store, name, archive).code == 0
    assert run("import", other, archive, "--output-dir", copy).code == 0
    assert run("verify", other, "--sha256").code == 0
    assert run("rewind", store, name, "--to", "1", "--yes").code == 0
    left = files_in(tmp_path / "bucket")
    assert {path for path in left if ".archive" not in path} == {"0.txt", "1.txt"}
    assert run("reset", store, name, "--yes").code == 0
    assert {path for path in files_in(tmp_path / "bucket") if ".archive" not in path} == set()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s4://bucket/out", "did you mean s3://?"),
        ("s3://Bucket", "is not the name of a bucket"),
        ("file:///proc/none/of/it", "file:///proc/none/of/it"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_said(
    run: Terminal, store: Path, place: str, url: str, why: str
) -> None:
    answer = run("verify", store, "--output-dir", url)
    assert answer.code == EXIT_FILE
    assert why in answer.err
