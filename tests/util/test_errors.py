"""Errors: the table of who is to blame is complete, and as the classes are."""

from __future__ import annotations

import inspect
import re

import pytest

from trio_ckpt._util import errors
from trio_ckpt._util.errors import (
    BatchFailedError,
    OutputError,
    StreamFailedError,
    TrioCkptError,
)

BUILTINS = (RuntimeError, ValueError, LookupError, SystemExit)


def rows() -> list[str]:
    """The rows of the table in the docstring of the module, each as one line."""
    table = inspect.cleandoc(errors.__doc__ or "").partition("----\n")[2]
    lines = [line.removeprefix("    ") for line in table.splitlines()]
    return re.split(r"\n(?=\S)", "\n".join(lines).strip())


def test_every_error_is_in_one_row_of_the_table() -> None:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    own = {kind.__name__ for kind in kinds if issubclass(kind, TrioCkptError)}
    named = [name for row in rows() for name in re.findall(r"(?<!`)\b\w+Error\b(?!`)", row)]
    assert sorted(named) == sorted(own - {"TrioCkptError"})


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[:17])
def test_a_row_names_the_builtins_of_its_errors(row: str) -> None:
    names = re.findall(r"(?<!`)\b\w+Error\b(?!`)", row)
    bases = {base for name in names for base in BUILTINS if issubclass(vars(errors)[name], base)}
    assert {f"`{base.__name__}`" for base in bases} == set(re.findall(r"`\w+`", row))


def test_an_error_knows_its_run_stream_and_batch() -> None:
    error = StreamFailedError("full", run_id="r", stream=("a", "b"), batch_index=3)
    assert (error.run_id, error.stream, error.batch_index) == ("r", ("a", "b"), 3)
    assert str(error) == "batch 3 of run 'r', stream 'a/b' failed: full"
    assert str(StreamFailedError("full")) == "no run failed: full"


def test_a_batch_that_failed_is_the_subject_of_its_message() -> None:
    error = BatchFailedError("no page", run_id="r", stream=("s",), batch_index=3)
    assert str(error) == "batch 3 of run 'r', stream 's' failed: no page"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("is not a regular file", "output 'a.txt' is not a regular file"),
        ("has 9 bytes, over 8", "output 'a.txt' has 9 bytes, over 8"),
        ("No such file or directory", "output 'a.txt': No such file or directory"),
        ("it belongs to batch 0", "output 'a.txt': it belongs to batch 0"),
    ],
)
def test_a_problem_of_an_output_reads_as_a_sentence(problem: str, message: str) -> None:
    assert str(OutputError("a.txt", problem)) == message
