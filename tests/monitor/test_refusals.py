"""Every refusal has a code, and the reference lists each."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_code_is_listed_with_its_status() -> None:
    code = "".join(
        path.read_text() for path in sorted((ROOT / "trio_ckpt" / "monitor").glob("_*.py"))
    )
    used = set(re.findall(r'AccessDenied\(\s*(\d+),\s*"(\w+)"', code)) - {("0", "code")}
    page = (ROOT / "docs" / "reference" / "rest-api.md").read_text()
    listed = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE))
    assert used == listed
