"""Log records of the library: each is one printable line.

Ids, names of files, and texts of peers and exceptions come from outside, and a line end or an
escape in them would forge a line of the log or move the cursor of a reader's terminal.  One place
prevents that: a filter on each of the library's loggers, which runs before any handler.

The same filter gives each record the fields `FIELDS`, so that a formatter can use them.  They come
to the filter under one private key: with a field that the program's own record factory has set
already, `logging` would raise and end the run.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, TypeAlias

from .errors import TrioCkptError, class_name, text_of
from .plain import StreamKey
from .text import one_line, printable, stream_name

NAMES = (
    "trio_ckpt",
    "trio_ckpt.engines",
    "trio_ckpt.gate",
    "trio_ckpt.live",
    "trio_ckpt.monitor",
    "trio_ckpt.monitor.http",
    "trio_ckpt.observe",
    "trio_ckpt.outputs",
    "trio_ckpt.outputs._dir",
    "trio_ckpt.progress",
    "trio_ckpt.redo",
    "trio_ckpt.remote",
    "trio_ckpt.remote.client",
    "trio_ckpt.remote.foreman",
    "trio_ckpt.remote.session",
    "trio_ckpt.remote.sockets",
    "trio_ckpt.remote.worker",
    "trio_ckpt.repair",
    "trio_ckpt.rescan",
    "trio_ckpt.resume",
    "trio_ckpt.run",
    "trio_ckpt.saver",
    "trio_ckpt.session",
    "trio_ckpt.snapshots",
    "trio_ckpt.start",
    "trio_ckpt.stop",
    "trio_ckpt.stores",
    "trio_ckpt.stores.json",
    "trio_ckpt.stores.sqlite",
    "trio_ckpt.stream",
    "trio_ckpt.verify",
)
"""Every logger of the library; a test finds loggers that are missing here."""

FIELDS = ("run_id", "stream", "batch")
"""The fields of each record; None where the record is not about a run, a stream or a batch."""

_PLACE = "trio_ckpt_place"  # the key under which the filter gets the fields

_formatter = logging.Formatter()

SysExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


Place: TypeAlias = dict[str, Any]
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


def guard_loggers() -> None:
    """Add the filter to every logger of the library; a second call has no effect."""
    for logger in map(logging.getLogger, NAMES):
        logger.addFilter(_one_line)
