"""The recipes that need what only some machines have run where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.recipes import PAGE, SKIPPED, change, recipe
from tests.hangs import PROGRAM_S

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to browse with")
def test_the_recipe_of_a_browser_goes_on_where_it_was(tmp_path: Path) -> None:
    launch = f"launch(executable_path={CHROMIUM!r}, args=['--no-sandbox'])"
    program = change(recipe("a browser"), "launch()", launch)
    broken = change(program, "        batch.complete(records=1)", "        batch.complete(); 1 / 0")
    for code, ends in ((broken, 1), (program, 0)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, timeout=PROGRAM_S, capture_output=True
        )
        assert done.returncode == ends, done.stderr
    assert (tmp_path / "browsed" / "titles.jsonl").read_text() == '"Moby Dick"\n"Emma"\n'


@pytest.mark.parametrize("place", ["append_json(", "write_bytes("])
def test_the_recipe_of_shards_leaves_the_same_files(tmp_path: Path, place: str) -> None:
    """Killed in each of its loops, where half of the batches are done."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    program = recipe("pyarrow")
    index = 20 if place == "append_json(" else 3
    killed = f"(batch.index == {index} and os.kill(os.getpid(), 9) or batch).{place}"
    broken = "import os\n" + change(program, f"batch.{place}", killed)
    shards = []
    for name, codes in (("whole", [(program, 0)]), ("killed", [(broken, -9), (program, 0)])):
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
    rows = [parquet.read_table(path).num_rows for path in tmp_path.glob("killed/shards/*.parquet")]
    assert sum(rows) == 400


def test_no_recipe_is_skipped_without_a_test_that_runs_it() -> None:
    needs = [what for what, _ in SKIPPED.findall(PAGE.read_text(encoding="utf-8"))]
    assert needs == ["a browser", "a PostgreSQL server", "pyarrow"]
    assert PAGE.read_text(encoding="utf-8").count("skip: next") == len(needs)
