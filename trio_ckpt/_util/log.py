"""Log records of the library: each is one printable line.

Ids, names of files, and texts of peers and exceptions come from outside, and a line end or an
escape in them would forge a line of the log or move the cursor of a reader's terminal.  One place
prevents that: `get_logger`, whose filter runs before any handler.

The same filter gives each record the fields `FIELDS`, so that a formatter can use them.  They come
to the filter under one private key: with a field that the program's own record factory has set
already, `logging` would raise and end the run.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TypeAlias

from .errors import TrioCkptError
from .exceptions import class_name, text_of
from .plain import StreamKey
from .text import one_line, printable, stream_name

FIELDS = ("run_id", "stream", "batch")
"""The fields of each record; None where the record is not about a run, a stream or a batch."""

_PLACE = "trio_ckpt_place"  # the key under which the filter gets the fields

_formatter = logging.Formatter()

SysExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


Place: TypeAlias = dict[str, object]
NOWHERE = (None, None, None)


def at(run_id: str | None, stream: StreamKey = (), batch: int | None = None) -> Place:
    """The run, stream and batch of a log record, for the argument ``extra=`` of a logger."""
    return {_PLACE: (run_id, stream_name(stream) if stream else None, batch)}


def at_error(error: BaseException) -> Place:
    """The run, stream and batch of an error of the library, for the argument ``extra=``."""
    if not isinstance(error, TrioCkptError):
        return {}
    return at(error.run_id, error.stream, error.batch_index)


class _OneLine(logging.Filter):
    """Escapes unprintable text, and indents tracebacks so that no line looks like a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        fields = vars(record)
        for name, value in zip(FIELDS, fields.pop(_PLACE, NOWHERE), strict=True):
            if value is not None or name not in fields:
                fields[name] = value
        message = _message_of(record)
        if message is None or not message.isprintable():
            record.msg, record.args = one_line(message or str(record.msg)), None
        if record.exc_info and not record.exc_text:
            lines = _traceback_of(record.exc_info).splitlines()
            record.exc_text = "\n".join(f"  {printable(line)}" for line in lines)
        return True


def _message_of(record: logging.LogRecord) -> str | None:
    """The message; None: one of its arguments, a user's object, cannot be converted to text."""
    try:
        return record.getMessage()
    except BaseException:
        return None


def _traceback_of(info: SysExcInfo) -> str:
    """The traceback; the text of the exception where the traceback cannot be made."""
    try:
        return _formatter.formatException(info)
    except BaseException:
        return "" if info[1] is None else f"{class_name(info[1])}: {text_of(info[1])}"


_one_line = _OneLine()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, with the filter that keeps its records to one line each.

    Args:
        name: The name of the module, ``__name__``.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_one_line)
    return logger
