"""The map of a dataset on the page of migrations goes on where it was killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.hangs import PROGRAM_S

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate.md"
PROGRAM = re.compile(r'^<!-- skip: next "needs datasets: .*?```python\n(.*?)^```$', re.M | re.S)
DIE = "import os\nif 'where' in examples['question']: os.kill(os.getpid(), 9)\n"


def test_a_killed_map_goes_on_with_the_slices_that_are_left(tmp_path: Path) -> None:
    found = PROGRAM.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    body = "    return {"
    note = f"    print(*examples['question'], flush=True)\n{body}"
    program = found[1].replace(body, note, 1).replace("concurrency=8", "concurrency=1")
    dies = "".join(f"    {line}\n" for line in DIE.splitlines())
    killed = program.replace(body, dies + body, 1)
    said = list[str]()
    for code, ends in ((killed, -signal.SIGKILL), (program, 0)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
            check=False,
        )
        assert done.returncode == ends, done.stderr
        said += done.stdout.split()
    assert said == ["who", "what", "where", "when", "where", "when", "why"]
