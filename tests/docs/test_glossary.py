"""The glossary has each term once, briefly, with a file that exists."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "glossary.md"
MAX_SENTENCES = 2


@attrs.frozen
class Entry:
    term: str
    meaning: str
    where: str


def entries(text: str) -> list[Entry]:
    found = re.findall(r"^(\S.*)\n: (.+) — `(.+)`$", text, re.MULTILINE)
    return [Entry(*parts) for parts in found]


ENTRIES = entries(PAGE.read_text(encoding="utf-8"))


def test_every_definition_is_an_entry() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^: ", text, re.MULTILINE)) == len(ENTRIES) > 50


def test_terms_stand_once_and_in_their_order() -> None:
    terms = [entry.term for entry in ENTRIES]
    assert terms == sorted(set(terms), key=lambda term: re.sub(r"[^a-z ]", "", term))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.term)
def test_an_entry_is_brief_and_its_file_exists(entry: Entry) -> None:
    assert (ROOT / "trio_ckpt" / entry.where).is_file()
    assert 1 <= len(re.findall(r"[.](?:\s|$)", entry.meaning)) <= MAX_SENTENCES
