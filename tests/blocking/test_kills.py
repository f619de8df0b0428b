"""The program of the page on synchronous programs is killed again and again: nothing is lost."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.hangs import PROGRAM_S

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "programs-without-trio.md"
KILLS = 20
PAGES = range(1, 448)
MOST_PAGES = 40  # of a session that is killed
MAX_LINES = 20


def program_of_page() -> str:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code is not None
    return code[1]


def written(folder: Path) -> int:
    return len(list(folder.glob("book/[0-9]*.json")))


def kill_after(folder: Path, pages: int, delay_s: float) -> None:
    """Start the program, and kill it some time after it has written some more pages."""
    before = written(folder)
    with subprocess.Popen([sys.executable, "program.py"], cwd=folder) as process:
        deadline = time.monotonic() + PROGRAM_S
        while written(folder) < before + pages and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay_s)
        process.kill()
        process.wait(PROGRAM_S)
    assert process.returncode in (-signal.SIGKILL, 0)


def test_a_program_of_20_lines_is_killed_20_times(tmp_path: Path) -> None:
    program = program_of_page()
    assert len([line for line in program.splitlines() if line.strip()]) <= MAX_LINES
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    chance = random.Random(20)
    for _ in range(KILLS):
        kill_after(tmp_path, chance.randint(0, MOST_PAGES), chance.uniform(0, 0.02))
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, check=True, timeout=PROGRAM_S)
    assert written(tmp_path) == len(PAGES)
    for number in PAGES:
        page = json.loads((tmp_path / "book" / f"{number:03}.json").read_text("utf-8"))
        assert page == {"page": number, "text": f"text of page {number}"}
    lines = (tmp_path / "book" / "pages.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(PAGES)
