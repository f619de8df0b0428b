"""What the long sweeps printed last: a row each, shown in docs/explanation/.

A sweep that is run by hand with ``--keep`` replaces its row; tests never write here.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).parents[1] / "docs" / "explanation" / "proof.json"

Figures = Mapping[str, int | str]


def read_rows() -> dict[str, dict[str, int | str]]:
    """The rows by their names."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def keep_row(name: str, figures: Figures) -> None:
    """Replace one row.

    Args:
        name: Of the sweep.
        figures: What it counted, by what it is called, in the order in which it is read.
    """
    where = f"Python {platform.python_version()}, {platform.system()} {_kernel()}"
    day = datetime.now(UTC).date().isoformat()
    rows = read_rows() | {name: {**figures, "day": day, "where": where}}
    text = json.dumps(dict(sorted(rows.items())), indent=2, ensure_ascii=False) + "\n"
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, FILE)


def _kernel() -> str:
    return ".".join(platform.release().split(".")[:2])
