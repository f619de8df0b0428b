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


def test_no_recipe_is_skipped_without_a_test_that_runs_it() -> None:
    needs = [what for what, _ in SKIPPED.findall(PAGE.read_text(encoding="utf-8"))]
    assert needs == ["a browser", "a PostgreSQL server", "pyarrow"]
    assert PAGE.read_text(encoding="utf-8").count("skip: next") == len(needs)
