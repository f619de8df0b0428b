"""A text stream for people: what cannot be shown is dropped, and is never an error."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any, TextIO


class Screen(io.TextIOWrapper):
    """A text stream for people, such as standard error: it drops what it cannot show.

    A terminal that has gone, a pipe without a reader, a closed descriptor and a full disk are
    no reason to end the work.  ``sys.stderr = Screen(sys.stderr)`` says so for all that a program
    prints there, its logging included, if that is set up afterwards.

    What could not be written does not stay in a buffer: Python would try it once more at its
    end, fail, and turn a good exit code into 120.

    Args:
        file: Where to; None, as `sys.stderr` is where there is none: nowhere.
    """

    def __init__(self, file: TextIO | None) -> None:
        super().__init__(
            _ScreenSink(file),
            encoding=getattr(file, "encoding", None) or "utf-8",
            errors="backslashreplace",
            newline="\n",
            line_buffering=True,  # a line is one write, which no other process cuts in two
        )

    def close(self) -> None:
        """Leave the file open: it belongs to the process."""


class _ScreenSink(io.RawIOBase):
    """Where the bytes of a screen go."""

    name = "<screen>"

    def __init__(self, file: TextIO | None) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self._file is not None:
            # Exception, not OSError: the file may be any object that has these methods
            with suppress(Exception):
                _write(self._file, bytes(data))
        return len(data)

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
    """What bytes are written to; None where text goes through the file: a console of Windows."""
    if os.name != "posix":
        return None
    with suppress(OSError, AttributeError):
        return file.fileno()
    return None
