"""Numbers, times and names as users read them: pure functions, used wherever text is shown.

Text in a store may come from any process: a stream's name or an error's message must not
move the cursor of a terminal or reverse its text.  `printable` is the one place that prevents
it.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import unquote

from .exact_sum import Number
from .index_set import IndexSet
from .plain import StreamKey

MAX_MESSAGE_CHARS = 200  # of an error, in a line for users; the JSON has all of it

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_TENTHS_BELOW_S = 9.95  # from here on it would be shown as 10.0
_TINY = 1e-3  # below it four decimals would show hardly any digits
_HUGE = 1e15  # above it a float has no decimals
_SURROGATES, _AFTER_SURROGATES = 0xD800, 0xE000  # between them no code point is text

# A number is a port only where no @ follows but in parameters behind a path: else it may be the
# beginning of a password.
_PORT = r"[0-9]+(?:[,?#][^@/]*)?(?:/[^@?#]*(?:[?#]|$)|$)"
_PASSWORD = re.compile(rf"(\w[\w+.-]*://[^:@/?#]*):(?!{_PORT}).*@", re.DOTALL)
_PARAMETER = re.compile(r"([?&]([^=&#]*)=)[^&#]*")
_SECRET_NAME = re.compile("pass|secret|token|key|signature|^sig$", re.IGNORECASE)


def redacted_url(address: str) -> str:
    """The URL without its secrets, as it may be shown: ``postgresql://me:***@host/db``.

    A secret is the password before the host, which may itself have ``@`` and ``/`` in it, and the
    value of a parameter that is named like one (``?sslpassword=``).  The path of a folder stays.
    """
    if "://" not in address:
        return address
    return _PARAMETER.sub(_hide_value, _PASSWORD.sub(r"\1:***@", address))


def _hide_value(parameter: re.Match[str]) -> str:
    is_secret = _SECRET_NAME.search(unquote(parameter[2]))
    return f"{parameter[1]}***" if is_secret else parameter[0]


def text_after(prefix: str) -> str | None:
    """The first text after all that begin with a prefix, by code points; None: there is none.

    That is the order of the bytes in UTF-8, by which databases compare texts.
    """
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(_AFTER_SURROGATES if following == _SURROGATES else following)


def printable(text: str) -> str:
    r"""The text with every character that is not printable escaped, as ``\x1b``.

    Those are control characters, line ends, marks that change the direction of text, and others,
    see `str.isprintable`.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """A text of several lines as one printable line, with semicolons between them."""
    if text.isprintable():
        return text
    lines = (line.strip().rstrip(";") for line in text.splitlines())
    return printable("; ".join(filter(None, lines)).replace(":; ", ": "))


def message_of(text: str) -> str:
    """A message of other code in a line of ours: its first line, printable, and cut if it is long.

    Where more lines follow, an ellipsis says so: httpx adds one with a link, and so do others.
    """
    first, *others = text.strip().splitlines() or [""]
    shown = printable(first.rstrip()) + (" …" if others else "")
    return shown if len(shown) <= MAX_MESSAGE_CHARS else f"{shown[: MAX_MESSAGE_CHARS - 1]}…"


def stream_name(key: StreamKey) -> str:
    """A stream as every message names it: its parts with ``/`` between them."""
    return printable("/".join(key))


def stream_names(keys: Iterable[StreamKey]) -> dict[StreamKey, str]:
    """The names of streams in a list, each of them unique.

    A stream whose name is blank, or equals that of another, is named by the JSON array of its
    parts, which ``--stream`` accepts, too.
    """
    names = {key: stream_name(key) for key in keys}
    counts = Counter(names.values())
    return {
        key: name if name.strip() and counts[name] == 1 else json.dumps(key)
        for key, name in names.items()
    }


def quoted_name(name: str) -> str:
    """A name of `stream_names` in a sentence; the JSON array is quoted already."""
    return name if name.startswith("[") else repr(name)


def display_width(text: str) -> int:
    """How many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(_width_of(char) for char in text)


def _width_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def truncate(text: str, limit: int) -> str:
    """The text in at most `limit` columns of a terminal, with an ellipsis if it is longer."""
    if display_width(text) <= limit:
        return text
    shown, left = "", limit - 1
    for char in text:
        left -= _width_of(char)
        if left < 0:
            break
        shown += char
    return f"{shown}…"


def plural(count: int, noun: str) -> str:
    """``1 batch``, ``84,200 batches``."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count:,} {noun}{ending}"


def batches_text(confirmed: int, skipped: int, failing: int, left: int | None) -> str:
    """``42 confirmed, 1 skipped, 18 left``: batches by what became of them."""
    texts = [f"{confirmed:,} confirmed"]
    texts += [f"{skipped:,} skipped"] if skipped else []
    texts += [f"{failing:,} failing"] if failing else []
    return ", ".join([*texts, "unknown left" if left is None else f"{left:,} left"])


def are(count: int) -> str:
    """The verb for a count."""
    return "is" if count == 1 else "are"


def batches_are(indexes: IndexSet) -> str:
    """``batch 3 is``, ``batches 1, 3-5 are``: which ones, and the verb."""
    count = len(indexes)
    return f"{'batch' if count == 1 else 'batches'} {indexes} {are(count)}"


def batch_names(count: int, first: Sequence[tuple[StreamKey, int]]) -> str:
    """``2 batches (s batch 5, s batch 6)``: how many there are, and the first of them."""
    names = [f"{stream_name(key)} batch {index:,}" for key, index in first]
    if more := count - len(first):
        names.append(f"{more:,} more")
    return plural(count, "batch") + (f" ({', '.join(names)})" if names else "")


def stopping_text(count: int, first: Sequence[tuple[StreamKey, int]], left_s: float) -> str:
    """What a stop waits for, and for how long it still waits at most."""
    if not count:
        return "every open batch is saved"
    if left_s == 0:
        return f"is over, and cancels {batch_names(count, first)}"
    limit = "" if math.isinf(left_s) else f"at most {duration(left_s)} more "
    return f"waits {limit}for {batch_names(count, first)}"


def number(value: Number) -> str:
    """A number as users read it, rounded to four decimals."""
    if isinstance(value, int):
        return f"{value:,}"
    if value and not _TINY <= abs(value) < _HUGE:
        return f"{value:.4g}"
    text = f"{value:,.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def amounts(values: Mapping[str, Number]) -> str:
    """Sums by name: ``cost_usd 12.5, tokens 1,200``; empty where there are none."""
    return ", ".join(f"{printable(name)} {number(value)}" for name, value in sorted(values.items()))


def duration(seconds: float) -> str:
    """A time span: ``0.4 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < _TENTHS_BELOW_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def moment(at: float) -> str:
    """A point in time: ``2025-11-20 21:30:00 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def deferred_text(count: int, due: float | None) -> str:
    """``2 batches, the first due at 2025-11-20 21:30:00 UTC``; empty: none is deferred."""
    if due is None:
        return ""
    which = "1 batch," if count == 1 else f"{count:,} batches, the first"
    return f"{which} due at {moment(due)}"


def iso_moment(at: float | None) -> str | None:
    """A point in time for programs: ISO 8601, UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
