"""The blocks of the cookbook that need what only some machines have."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "cookbook.md"
SKIPPED = re.compile(
    r'^<!-- skip: next "needs ([^:\n]+): [^"\n]+" -->\n```python\n(.*?)^```$', re.M | re.S
)
HEAD = 'import trio\nimport trio_ckpt\n\nSTORE = "cookbook.ckpt"\n'


def recipe(needs: str) -> str:
    """The program of the block that says that it needs this."""
    return HEAD + dict(SKIPPED.findall(PAGE.read_text(encoding="utf-8")))[needs]


def change(program: str, text: str, by: str) -> str:
    """A program with one text changed, which must be there."""
    assert program.count(text) == 1, text
    return program.replace(text, by)
