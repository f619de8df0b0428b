"""Every Python block of the README and the documentation is executed, or says why not.

The blocks themselves are collected by the `conftest.py` at the root.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hangs import PROGRAM_S

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts),
]

NEAR_MISS = re.compile(
    r"^ *(?!```python\n)(?:`{3,}|~{3,}|:{3,}) *(?:\{[\w-]+\} *)?(?:python3?|py|pycon)\b.*$",
    re.MULTILINE | re.IGNORECASE,
)
"""An opening fence for Python that is not exactly "```python", the one spelling that is run."""

SKIP = re.compile(r"^.*(?:<!--|%) *skip:.*$", re.MULTILINE)
SKIP_WITH_REASON = re.compile(r'<!-- skip: next "[^"]+" -->')


def faults(text: str) -> list[str]:
    """What in a document would keep a Python block from being run, unsaid."""
    found = [f"write ```python: {match[0]}" for match in NEAR_MISS.finditer(text)]
    found += [
        f'write <!-- skip: next "the reason" -->: {match[0]}'
        for match in SKIP.finditer(text)
        if not SKIP_WITH_REASON.fullmatch(match[0])
    ]
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_python_block_escapes_being_run(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_each_page_with_a_python_block_is_collected() -> None:
    command = [
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "README.md",
        "docs",
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_S
    )
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    pages = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCUMENTS}
    assert collected == {name for name, text in pages.items() if BLOCK.search(text)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_loop_under_a_table_of_retries_gives_it_the_errors(path: Path) -> None:
    """What a body raises ends its loop; without ``batch.fail`` only a validator asks the table."""
    for block in BLOCK.findall(path.read_text(encoding="utf-8")):
        if re.search(r"open_stream\([^)]*retry=", block) and "in stream.batches(" in block:
            assert "batch.fail(" in block or "validate=" in block


@pytest.mark.parametrize(
    "text",
    [
        "```py\nx\n```\n",
        "```python3\nx\n```\n",
        "```Python notest\nx\n```\n",
        "```{code-block} python\nx\n```\n",
        "- a list\n\n  ```py\n  x\n  ```\n",
        "~~~python\nx\n~~~\n",
        "<!-- skip: next -->\n```python\nx\n```\n",
        "<!-- skip: start -->\n```python\nx\n```\n",
        '% skip: next "a reason"\n```python\nx\n```\n',
    ],
)
def test_faults_finds_what_would_escape(text: str) -> None:
    assert faults(text) != []


def test_faults_accepts_a_block_that_runs_and_a_skip_with_a_reason() -> None:
    assert faults('```python\nx\n```\n<!-- skip: next "needs S3" -->\n```python\ny\n```\n') == []
