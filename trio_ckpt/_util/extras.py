"""Imports of what only extras of the package need, and what is said where it is missing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from .errors import TrioCkptError


class MissingExtraError(TrioCkptError, ModuleNotFoundError):
    """A library is needed that an extra of this package brings, and it is not installed.

    Attributes:
        name: The module that is not there.
        extra: The extra that brings it.
    """

    def __init__(self, what: str, name: str, extra: str) -> None:
        super().__init__(f"{what} needs {name}: {pip_command(extra)}")
        self.name = name
        self.extra = extra


def pip_command(extra: str) -> str:
    """What installs an extra."""
    return f"pip install 'trio-ckpt[{extra}]'"


@contextmanager
def needs_extra(extra: str, what: str) -> Generator[None]:
    """Import in the block what an extra brings.

    Args:
        extra: Its name.
        what: What needs it, as the beginning of a sentence: ``the monitor``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        name = error.name or "a library that is not installed"
        if (
            isinstance(error, MissingExtraError)
            or name.partition(".")[0] == __name__.partition(".")[0]
        ):
            raise  # it is said already; or a fault of this package
        raise MissingExtraError(what, name.partition(".")[0], extra) from error
