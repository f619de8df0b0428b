"""Store errors in transit to a worker and back."""

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
from .message import MAX_TEXT_CHARS
from .task_messages import Fault

FAULTS: dict[str, type[Exception]] = {
    "conflict": StoreConflictError,
    "unknown": SaveOutcomeUnknownError,
    "damaged": StoreDamagedError,
    "version": StoreVersionError,
    "store": StoreError,
    "type": TypeError,
    "value": ValueError,
}
"""Code -> error class; the first match names an error, so leaves come before their root."""


def fault_of(error: Exception, *, chars: int = MAX_TEXT_CHARS) -> Fault:
    """Describe an error for the other side; an unexpected error is described by its class only.

    Args:
        error: The error.
        chars: The limit on the length of the text.
    """
    for code, kind in FAULTS.items():
        if isinstance(error, kind):
            return Fault(code, text_of(error)[:chars])
    return Fault("store", f"the foreman's store raised {class_name(error)}")


def error_of(fault: Fault) -> Exception:
    """Return the error that a fault describes."""
    return FAULTS.get(fault.code, StoreError)(fault.message)
