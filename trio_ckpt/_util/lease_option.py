"""How long an owner keeps its run without a sign of life, as the URL of a store says it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import StoreError

MAX_LEASE_S = 86_400.0


def read_lease(options: Mapping[str, str], default_s: float, shown: str) -> float:
    """Read the option ``lease_s`` of a URL, in seconds.

    Args:
        options: The options that are given.
        default_s: What holds without it, in seconds.
        shown: The URL without its secrets.

    Raises:
        StoreError: it is no number of seconds, or too many.
    """
    text = options.get("lease_s")
    if text is None:
        return default_s
    try:
        lease_s = float(text)
    except ValueError:
        lease_s = math.nan
    if not 0 < lease_s <= MAX_LEASE_S:
        raise StoreError(
            f"{shown!r}: lease_s={text!r} is not a number of seconds, at most {MAX_LEASE_S:,.0f}"
        )
    return lease_s
