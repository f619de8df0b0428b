"""Limits of what is stored, which settings have to keep to."""

MAX_CHAIN = 10_000  # frames; far more than any chain may grow to
