"""Errors of a store on their way to a worker and back."""

from __future__ import annotations

from ..._util.errors import (
    SaveOutcomeUnknownError,
    StoreConflictError,
    StoreDamagedError,
    StoreError,
    StoreVersionError,
    class_name,
    text_of,
)
from .messages import MAX_TEXT_CHARS, Fault

FAULTS: dict[str, type[Exception]] = {
    "conflict": StoreConflictError,
    "unknown": SaveOutcomeUnknownError,
    "damaged": StoreDamagedError,
    "version": StoreVersionError,
    "store": StoreError,
    "type": TypeError,
    "value": ValueError,
}
"""Code -> the error; the first that fits names one, so leaves come before their root."""


def fault_of(error: Exception, *, chars: int = MAX_TEXT_CHARS) -> Fault:
    """What to say of an error; of one that is not foreseen only its class.

    Args:
        error: The error.
        chars: How long its text may be.
    """
    for code, kind in FAULTS.items():
        if isinstance(error, kind):
            return Fault(code, text_of(error)[:chars])
    return Fault("store", f"the foreman's store raised {class_name(error)}")


def error_of(fault: Fault) -> Exception:
    """The error that a fault is about."""
    return FAULTS.get(fault.code, StoreError)(fault.message)
