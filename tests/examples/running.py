"""An example as its users run it: as a command, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[2]


def run_example(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m examples.NAME WORDS``; a warning of Python is an error there."""
    return subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )
