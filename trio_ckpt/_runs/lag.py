"""How far before the last cursor of a generation the next one begins."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any, TypeAlias

from .._util.arguments import shown
from .._util.plain import Plain, as_plain, copy_plain

Lag: TypeAlias = timedelta | float | Callable[[Any], Any]


def checked_lag(lag: object) -> Lag | None:
    """Check the argument ``lag``.

    Raises:
        TypeError: it is not a timedelta, a number, or a function.
        ValueError: it is negative.
    """
    if lag is None or callable(lag):
        return lag
    if isinstance(lag, bool) or not isinstance(lag, timedelta | int | float):
        raise TypeError(
            f"lag must be a timedelta, a number, or a function of the old cursor, not {shown(lag)}"
        )
    if not (lag.total_seconds() if isinstance(lag, timedelta) else lag) >= 0:
        raise ValueError(f"lag must not be negative: it is {lag!r}")
    return lag


def start_cursor(cursor: Plain, lag: Lag | None) -> Plain:
    """The cursor that a stream begins with, from the last one of the generation before.

    Raises:
        TypeError: the cursor is not of a kind from which the lag can be subtracted.
        NotEncodableError: the function returned a value that cannot be stored.
    """
    if lag is None or cursor is None:
        return cursor
    if not isinstance(lag, timedelta | int | float):
        return as_plain(lag(copy_plain(cursor)), "the cursor from lag=")
    if isinstance(cursor, int | float) and not isinstance(lag, timedelta):
        return cursor - lag
    if isinstance(cursor, str) and isinstance(lag, timedelta):
        return _earlier(cursor, lag)
    raise TypeError(
        f"lag={lag!r} cannot be subtracted from the cursor {shown(cursor)}: a timedelta is for ISO "
        "8601 text, a number for a number; give a function of the old cursor"
    )


def _earlier(cursor: str, lag: timedelta) -> str:
    """Subtract from ISO 8601 text, and keep its form."""
    try:
        if len(cursor) <= len("2026-11-30"):
            return (date.fromisoformat(cursor) - lag).isoformat()
        moment = datetime.fromisoformat(cursor) - lag
    except (ValueError, OverflowError) as error:
        raise TypeError(
            f"lag={lag!r} cannot be subtracted from the cursor {shown(cursor)}: {error}; give a "
            "function of the old cursor"
        ) from error
    digits = "auto" if "." not in cursor else "milliseconds"
    if "." in cursor and len(cursor.partition(".")[2].rstrip("Z").partition("+")[0]) > len("123"):
        digits = "microseconds"
    text = moment.isoformat(sep=cursor[10], timespec=digits)
    return text.replace("+00:00", "Z") if cursor.endswith("Z") else text
