"""The exit codes of the command, and its documents for errors."""

from __future__ import annotations

import sqlite3
from typing import Any

import click

from .._util.errors import (
    RunLockedError,
    RunStoppedError,
    StoreError,
    TrioCkptError,
    UnknownRunError,
    UnknownStreamError,
)
from .._util.extras import MissingExtraError

EXIT_OK = 0
EXIT_PROBLEMS = 1  # of `verify` and `doctor`: problems were found
EXIT_USAGE = 2  # click's own, too
EXIT_NOT_FOUND = 4
EXIT_OWNED = 5
EXIT_STORE = 6
EXIT_REFUSED = 7
EXIT_NOT_INSTALLED = 8
EXIT_NO_READER = 141  # 128 + SIGPIPE: the reader of the output is gone


class CommandError(Exception):
    """An error that the command itself found.

    Attributes:
        exit_code: The exit code of the process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int | None:
    """The exit code for an error; None: the error is unexpected."""
    match error:
        case CommandError():
            return error.exit_code
        case MissingExtraError():
            return EXIT_NOT_INSTALLED
        case RunStoppedError():
            return error.exit_code
        case RunLockedError():
            return EXIT_OWNED
        case StoreError() | sqlite3.Error():
            return EXIT_STORE
        case UnknownRunError() | UnknownStreamError():
            return EXIT_NOT_FOUND
        case click.FileError() | FileNotFoundError() | NotADirectoryError():
            return EXIT_NOT_FOUND
        case click.ClickException() | ValueError() | LookupError() if not isinstance(
            error, TrioCkptError
        ):
            return EXIT_USAGE
        case TrioCkptError() | OSError():
            return EXIT_REFUSED
        case _:
            return None


def error_document(error: BaseException, message: str, exit_code: int) -> dict[str, Any]:
    """What ``--json`` says of an error."""
    document: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message,
        "exit_code": exit_code,
    }
    if isinstance(error, RunLockedError):
        document["owner"] = {"host": error.host, "pid": error.pid, "since": error.since}
        if error.lease_left_s is not None:
            document["lease_left_s"] = error.lease_left_s
    return {"error": document}
