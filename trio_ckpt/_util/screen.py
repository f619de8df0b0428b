"""A text stream for people that drops what it cannot show instead of raising."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from .text import printable

if TYPE_CHECKING:  # rich is an extra, and imported where it is needed
    from _typeshed import ReadableBuffer
    from rich.console import Console
    from rich.table import Table

GAP_CELLS = 2  # between columns

CUT_SHORT = {"…": "~"}
"""What stands for a character of ours, in as many columns, where the encoding does not have it."""

WRITTEN_OUT = "trio_ckpt.written_out"
"""How an output for people takes what its encoding does not have, as ``errors=``: no name of a
stream may fail it."""


def _write_out(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    error.end = error.start + 1
    stand_in = CUT_SHORT.get(error.object[error.start])
    return codecs.backslashreplace_errors(error) if stand_in is None else (stand_in, error.end)


codecs.register_error(WRITTEN_OUT, _write_out)


def console_for(file: TextIO) -> Console:
    """A console of rich that takes text as it is: no markup in it is read."""
    from rich.console import Console

    return Console(file=file, markup=False, highlight=False, emoji=False, soft_wrap=False)


def grid_of(rows: Iterable[tuple[str, str]]) -> Table:
    """Lines of a name and a text, as rich prints them."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, GAP_CELLS))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(name), Text(printable(text)))
    return grid


class Screen(io.TextIOWrapper):
    """A text stream for people, such as standard error: it drops what it cannot show.

    A terminal that was closed, a pipe without a reader, a closed descriptor and a full disk must
    not end the program.  ``sys.stderr = Screen(sys.stderr)`` ensures that for all that the program
    prints there, its logging included, if that is set up afterwards.

    Text that could not be written does not stay in a buffer: Python would write it again when it
    ends, fail, and turn a good exit code into 120.

    Args:
        file: The stream to write to; None, as `sys.stderr` may be: all text is dropped.
    """

    def __init__(self, file: TextIO | None) -> None:
        super().__init__(
            _ScreenSink(file),
            encoding=getattr(file, "encoding", None) or "utf-8",
            errors=WRITTEN_OUT,
            newline="\n",
            line_buffering=True,  # a line is one write, which other processes cannot split
        )

    def close(self) -> None:
        """Leave the file open: it belongs to the process."""


class _ScreenSink(io.RawIOBase):
    """The raw stream below a screen."""

    name = "<screen>"

    def __init__(self, file: TextIO | None) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        content = bytes(data)
        if self._file is not None:
            # Exception, not OSError: the file may be any object with these methods
            with suppress(Exception):
                _write(self._file, content)
        return len(content)

    def isatty(self) -> bool:
        with suppress(Exception):
            return self._file is not None and self._file.isatty()
        return False

    def fileno(self) -> int:
        if self._file is None:
            raise io.UnsupportedOperation("a screen without a file has no descriptor")
        return self._file.fileno()


def _write(file: TextIO, data: bytes) -> None:
    fd = _descriptor(file)
    if fd is None:
        file.write(data.decode(file.encoding or "utf-8"))
        file.flush()
        return
    with suppress(OSError):  # what was written before there was a screen
        file.flush()
    while data:
        data = data[os.write(fd, data) :]


def _descriptor(file: TextIO) -> int | None:
    """The descriptor for bytes; None where text goes through the file, as on Windows.

    A notebook replaces standard error by an object of its own, which shows text below the cell;
    its descriptor leads to the terminal of the server.
    """
    if os.name != "posix" or not isinstance(file, io.TextIOWrapper):
        return None
    with suppress(OSError, AttributeError):
        return file.fileno()
    return None
