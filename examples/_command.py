"""What the command lines of the examples share: checked arguments, and errors in a line each."""

from __future__ import annotations

import argparse
import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import trio_ckpt
from trio_ckpt.outputs import is_url
from trio_ckpt.progress import Screen

DAY_S = 86_400.0
EXIT_CANNOT = 1

EXPECTED = (trio_ckpt.TrioCkptError, OSError, ValueError, ExceptionGroup)
"""The errors that `explain` takes: any other one is a bug, and leaves with its traceback."""


def output_folder(text: str) -> Path:
    """A folder; an empty text, of a variable that is not set say, names none."""
    if not text:
        raise argparse.ArgumentTypeError("a folder, not nothing")
    return Path(text)


def output_place(text: str) -> Path | str:
    """A folder, or the URL of a bucket, such as ``s3://bucket/prefix``."""
    try:
        return text if is_url(text) else output_folder(text)
    except trio_ckpt.OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A whole number within bounds."""

    def read(text: str) -> int:
        is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
        if not is_number or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return read


def seconds(*, is_zero_allowed: bool = True) -> Callable[[str], float]:
    """A time span of at most a day."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= DAY_S or (value == 0 and not is_zero_allowed):
            raise argparse.ArgumentTypeError(f"seconds, at most {DAY_S:.0f}, not {text!r}")
        return value

    return read


def amount(text: str) -> float:
    """An amount of money, more than nothing."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"an amount above 0, not {text!r}")
    return value


def add_limits(parser: argparse.ArgumentParser, *, has_cost: bool = False) -> None:
    """Add the options that say when a run stops by itself; see `limits_of`."""
    count = whole_number(1, 10**9)
    parser.add_argument(
        "--max-runtime",
        type=seconds(is_zero_allowed=False),
        metavar="S",
        help="end after so many s",
    )
    parser.add_argument(
        "--max-batches", type=count, metavar="N", help="do so many batches at a time"
    )
    parser.add_argument(
        "--max-failures", type=count, metavar="N", help="stop after so many failures in a row"
    )
    if has_cost:
        parser.add_argument(
            "--max-cost", type=amount, metavar="USD", help="spend no more, in all starts together"
        )


def limits_of(options: argparse.Namespace) -> trio_ckpt.Limits:
    """When the run stops by itself, as the options say."""
    cost: float | None = getattr(options, "max_cost", None)
    return trio_ckpt.Limits(
        spent={} if cost is None else {"cost_usd": cost},
        runtime_s=options.max_runtime,
        batches=options.max_batches,
        consecutive_failures=options.max_failures,
    )


def command_of(program: str) -> str:
    """How an example is called, from a checkout and from an installed package."""
    return f"python -m {__package__}.{program}"


ONCE = frozenset({"--again", "--fresh", "--retry-failed"})


def resume_command() -> str:
    """The command that resumes: this one, without options that must act only once."""
    return shlex.join(word for word in sys.orig_argv if word not in ONCE)


def open_stderr() -> None:
    """Log to stderr, which may be broken: a display that is gone must not end the work."""
    sys.stderr = Screen(sys.stderr)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)


def say(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)


def explain(error: Exception) -> int:
    """Print an error in a line, or a group's in a line each; returns the exit code."""
    if isinstance(error, trio_ckpt.RunStoppedError):
        return error.exit_code  # the log says how to resume
    for line in lines_of(error):
        say(line)
    return EXIT_CANNOT


def lines_of(error: BaseException) -> list[str]:
    """A line for an error, or for each of a group, also in nested ones."""
    if isinstance(error, BaseExceptionGroup):
        return [line for part in error.exceptions for line in lines_of(part)]
    return [f"{type(error).__name__}: {error}"]
