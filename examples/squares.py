"""The smallest function that workers can run."""

from __future__ import annotations

from trio_ckpt.remote import Work


def square(item: int, _work: Work[object]) -> int:
    """The square of an item."""
    return item * item
