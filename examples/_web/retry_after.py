"""Retry-After (RFC 9110, section 10.2.3): how long a server asks to be left alone."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import UTC

# A longer wait is as good as for ever; and a sum with this one is still a time.
MAX_RETRY_AFTER_S = 30 * 86_400.0


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds to wait from now, or None where the header is missing or makes no sense.

    Args:
        headers: Looked up as "retry-after".
        now: POSIX seconds of the wall clock, which dates are compared with.

    Returns:
        Between 0 (a date in the past) and MAX_RETRY_AFTER_S.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        # float, because it takes any number of digits.
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        date = email.utils.parsedate_to_datetime(value)
        # HTTP dates are GMT by definition, also where the zone is "-0000" or missing.
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(at - now, 0.0), MAX_RETRY_AFTER_S)
