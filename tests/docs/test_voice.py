"""What a reader meets is plain technical English: the words below have no place in it.

Source (names, comments, docstrings, messages), pages and examples are read as text, so a phrase
is found wherever it stands, also where a line ends in the middle of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WORDS = {
    "nobody": "no process, no caller, no reader: the one that is meant",
    "somebody": "another process, the caller, a user",
    "anybody": "any process, any caller",
    "whoever": "the caller that, the process that",
    "anew": "again, from the start",
    "let go of": "drop, release",
    "lets go of": "drops, releases",
    "letting go of": "dropping, releasing",
    "take note": "record, mark",
    "takes note": "records, marks",
    "by now": "nothing, or when",
    "back to work": "re-queued",
    '"""The same.': "a docstring that stands alone",
    '"""The same,': "a docstring that stands alone",
}
"""What is not written -> what is written instead."""

LAST_OLD_DECISION = 22
"""Decisions up to this one keep their words: they are records of their time."""

KINDS = {".py", ".py-tpl", ".md", ".js", ".html"}


def pattern_of(phrase: str) -> re.Pattern[str]:
    """A phrase in any case; between two of its words a line may end, also that of a comment."""
    words = r"(?:\s+|\s*\n\s*(?:#|//|\*)\s*)".join(map(re.escape, phrase.split()))
    edge = r"\b" if phrase[0].isalpha() else ""
    return re.compile(edge + words + (r"\b" if phrase[-1].isalpha() else ""), re.IGNORECASE)


PATTERNS = {phrase: pattern_of(phrase) for phrase in WORDS}


def faults(text: str) -> list[str]:
    """Each forbidden phrase in a text, with its line and what to write."""
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {phrase!r}: write {WORDS[phrase]}"
        for phrase, pattern in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


def is_old_decision(path: Path) -> bool:
    number = re.match(r"(\d{4})-", path.name)
    return path.parent.name == "decisions" and bool(number) and int(number[1]) <= LAST_OLD_DECISION


def texts() -> Iterator[tuple[str, str]]:
    """Name and text of everything that a reader meets."""
    paths = [*sorted(ROOT.glob("*.md")), ROOT / "trio_ckpt_pytest.py"]
    for folder in ("trio_ckpt", "docs", "examples"):
        paths += sorted((ROOT / folder).rglob("*"))
    for path in paths:
        if path.suffix in KINDS and "_build" not in path.parts and not is_old_decision(path):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_nothing_that_a_reader_meets_has_a_forbidden_word() -> None:
    assert {name: found for name, text in texts() if (found := faults(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        '"""Nobody reads it."""',
        "# The store lets\n# go of it.",
        "it is let go\nof",
        "    /* by\n     * now */",
        "They go back to\n  work.",
        'def twice() -> None:\n    """The same."""',
        '"""The same, for two."""',
        "Role.NOBODY",
    ],
)
def test_a_forbidden_word_is_found_wherever_it_stands(text: str) -> None:
    assert len(faults(text)) >= 1


@pytest.mark.parametrize(
    "text",
    [
        "it is let. go of",
        "manewing",
        "back to worker 3",
        "by nowhere",
        '"""The same bytes have the same digest."""',
    ],
)
def test_another_word_is_not_taken_for_a_forbidden_one(text: str) -> None:
    assert faults(text) == []
