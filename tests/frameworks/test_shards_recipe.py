"""The recipe of Parquet shards leaves the same files where it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.docs.recipes import change, recipe
from tests.hangs import PROGRAM_S


@pytest.mark.parametrize("place", ["append_json(", "write_bytes("])
def test_the_recipe_of_shards_leaves_the_same_files(tmp_path: Path, place: str) -> None:
    """Killed in each of its loops, where half of the batches are done."""
    program = recipe("pyarrow")
    index = 20 if place == "append_json(" else 3
    killed = f"(batch.index == {index} and os.kill(os.getpid(), 9) or batch).{place}"
    broken = "import os\n" + change(program, f"batch.{place}", killed)
    shards = []
    for name, codes in (
        ("whole", [(program, 0)]),
        ("killed", [(broken, -signal.SIGKILL), (program, 0)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for code, ends in codes:
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, timeout=PROGRAM_S, capture_output=True
            )
            assert done.returncode == ends, done.stderr
        shards.append({p.name: p.read_bytes() for p in (folder / "shards").glob("*.parquet")})
    assert shards[0] == shards[1]
    assert len(shards[0]) > 3
    rows = [
        pyarrow.parquet.read_table(path).num_rows
        for path in tmp_path.glob("killed/shards/*.parquet")
    ]
    assert sum(rows) == 400
