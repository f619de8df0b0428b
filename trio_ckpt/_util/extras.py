"""Imports of libraries that extras of the package bring, and the error where one is missing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from .errors import TrioCkptError


class MissingExtraError(TrioCkptError, ModuleNotFoundError):
    """A library that an extra of this package brings is needed, and is not installed.

    Attributes:
        name: The module that is missing.
        extra: The extra that brings it.
    """

    def __init__(self, what: str, name: str, extra: str) -> None:
        super().__init__(f"{what} needs {name}: {pip_command(extra)}")
        self.name = name
        self.extra = extra


def pip_command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'trio-ckpt[{extra}]'"


@contextmanager
def needs_extra(extra: str, what: str) -> Generator[None]:
    """Open a block that imports the libraries of an extra.

    Args:
        extra: The name of the extra.
        what: The feature that needs it, as the beginning of a sentence: ``the monitor``.

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
            raise  # the error names the extra already, or is a bug of this package
        raise MissingExtraError(what, name.partition(".")[0], extra) from error
