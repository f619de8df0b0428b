"""Closing what was opened, and could not be prepared."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Closable(Protocol):
    """A connection, say."""

    def close(self) -> None:
        """Close it."""
        ...


@contextmanager
def closed_on_error(resource: Closable) -> Generator[None]:
    """Close a resource that its block prepares, if the block raises: no other code has it yet."""
    try:
        yield
    except BaseException:
        resource.close()
        raise
