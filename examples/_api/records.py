"""What the API serves: blocks of Unicode, and the records of their characters.

The records are those of `unicodedata`, which every Python ships; the ranges are those of
https://www.unicode.org/Public/UCD/latest/ucd/Blocks.txt. A block is called ``script/block``, as a
repository is called ``owner/name``.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

BLOCKS: Mapping[str, tuple[int, int]] = {
    "latin/basic-latin": (0x0000, 0x007F),
    "latin/latin-1-supplement": (0x0080, 0x00FF),
    "latin/latin-extended-a": (0x0100, 0x017F),
    "latin/ipa-extensions": (0x0250, 0x02AF),
    "greek/greek-and-coptic": (0x0370, 0x03FF),
    "cyrillic/cyrillic": (0x0400, 0x04FF),
    "hebrew/hebrew": (0x0590, 0x05FF),
    "kana/hiragana": (0x3040, 0x309F),
    "kana/katakana": (0x30A0, 0x30FF),
    "symbols/currency-symbols": (0x20A0, 0x20CF),
    "symbols/letterlike-symbols": (0x2100, 0x214F),
    "symbols/number-forms": (0x2150, 0x218F),
    "symbols/arrows": (0x2190, 0x21FF),
}

Record = dict[str, Any]

FIRST_CHANGE = datetime(2026, 1, 1, tzinfo=UTC)
CHANGED_EVERY = timedelta(days=1)  # each character, at a time of day of its own


def codepoint(character: str) -> str:
    """How a character is written about: U+0041."""
    return f"U+{ord(character):04X}"


def assigned(block: str) -> list[str]:
    """The characters of a block; not all of its numbers have one."""
    first, last = BLOCKS[block]
    characters = map(chr, range(first, last + 1))
    return [character for character in characters if unicodedata.category(character) != "Cn"]


def describe(character: str) -> Record:
    """A record of the endpoint ``characters``."""
    return {
        "codepoint": codepoint(character),
        "name": unicodedata.name(character, None),
        "category": unicodedata.category(character),
        "bidirectional": unicodedata.bidirectional(character),
        "mirrored": bool(unicodedata.mirrored(character)),
        "numeric": unicodedata.numeric(character, None),
    }


def decompose(character: str) -> Record:
    """A record of the endpoint ``decompositions``."""
    words = unicodedata.decomposition(character).split()
    tag = words.pop(0).strip("<>") if words[0].startswith("<") else "canonical"
    return {
        "codepoint": codepoint(character),
        "kind": tag,
        "into": [f"U+{word}" for word in words],
    }


def characters_of(block: str) -> list[Record]:
    """All records of ``characters``, in order."""
    return [describe(character) for character in assigned(block)]


def decompositions_of(block: str) -> list[Record]:
    """All records of ``decompositions``: only some characters have one."""
    return [decompose(c) for c in assigned(block) if unicodedata.decomposition(c)]


def changes_of(block: str, now: datetime | None = None) -> list[Record]:
    """All records of ``changes``, by the time of the last change, as of now."""
    now = now or datetime.fromtimestamp(time.time(), UTC)
    records = [_changed(character, now) for character in assigned(block)]
    return sorted(
        (r for r in records if r is not None), key=lambda r: (r["updated_at"], r["codepoint"])
    )


def _changed(character: str, now: datetime) -> Record | None:
    """The last change of a character; None: it has had none yet."""
    of_day = timedelta(seconds=ord(character) * 7919 % CHANGED_EVERY.total_seconds())
    edition = (now - FIRST_CHANGE - of_day) // CHANGED_EVERY
    if edition < 0:
        return None
    updated_at = FIRST_CHANGE + of_day + edition * CHANGED_EVERY
    return {
        "codepoint": codepoint(character),
        "edition": edition,
        "updated_at": updated_at.isoformat().replace("+00:00", "Z"),
    }


ENDPOINTS: Mapping[str, Callable[[str], list[Record]]] = {
    "characters": characters_of,
    "decompositions": decompositions_of,
}
