"""Texts as PostgreSQL takes them: it has no zero byte in a text.

A zero byte becomes two characters, and so does the character that these begin with.  This keeps the
order of texts, and which of them begin with which.
"""

from __future__ import annotations

import re

_ZERO, _ESCAPE = "\0", "\1"
_ESCAPED = re.compile(f"{_ESCAPE}([{_ESCAPE}\2])")


def to_text(text: str) -> str:
    """Return a text as it is stored."""
    if _ZERO not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, f"{_ESCAPE}\2").replace(_ZERO, _ESCAPE * 2)


def from_text(stored: str) -> str:
    """Return the text that is stored as another one."""
    if _ESCAPE not in stored:
        return stored
    return _ESCAPED.sub(lambda match: _ZERO if match[1] == _ESCAPE else _ESCAPE, stored)
