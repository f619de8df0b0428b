"""The run that docs/explanation/performance.md shows: the last one that was kept.

``python -m benchmarks --keep`` replaces it; tests never write here. What is kept is what belongs to
the rows of `benchmarks.targets`, and what was measured where; all figures are in ``--json FILE``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from benchmarks import Found

FILE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.json"


class Run(msgspec.Struct, forbid_unknown_fields=True):
    """One run of the benchmarks.

    Attributes:
        at: When it began, UTC, as ``2026-01-31T12:00:00Z``.
        machine: What was measured on.
        versions: Of what was measured, and of what it is built on.
        peers: Those that were measured, as ``dbos 3.4.0``.
        found: What was measured for each row, by its name.
    """

    at: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    peers: list[str]
    found: dict[str, Found]


def read_run(path: Path = FILE) -> Run:
    """The run that was kept last."""
    return msgspec.json.decode(path.read_bytes(), type=Run)


def keep_run(run: Run, path: Path = FILE) -> None:
    """Replace the kept run."""
    text = json.dumps(msgspec.to_builtins(run), indent=2, ensure_ascii=False) + "\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
