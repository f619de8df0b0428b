"""What the library writes to its loggers: one line each, printable, whatever is in it.

Ids, names of files, what peers say and what exceptions say comes from outside, and a line end or
an escape in it would forge a line of the log or move the cursor of whoever reads it.  So it is
seen to in one place: a filter on each of the library's loggers, before any handler has the record.

The same filter gives each record the fields `FIELDS`, so that a formatter may name them.  What a
record is about travels to it under a key of its own: a field that a program's own factory of
records has set already makes `logging` raise, and would end the run.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, TypeAlias

from .errors import TrioCkptError, class_name, text_of
from .plain import StreamKey
from .text import one_line, printable, stream_name

NAMES = (
    *("trio_ckpt.engines", "trio_ckpt.gate", "trio_ckpt.live", "trio_ckpt.monitor"),
    *("trio_ckpt.monitor.http", "trio_ckpt.observe", "trio_ckpt.outputs"),
    *(
        "trio_ckpt.outputs._dir",
        "trio_ckpt.progress",
        "trio_ckpt.redo",
        "trio_ckpt.remote",
        "trio_ckpt.remote.client",
    ),
    *("trio_ckpt.remote.foreman", "trio_ckpt.remote.session", "trio_ckpt.remote.sockets"),
    *(
        "trio_ckpt.remote.worker",
        "trio_ckpt.repair",
        "trio_ckpt.rescan",
        "trio_ckpt.resume",
        "trio_ckpt.run",
    ),
    *(
        "trio_ckpt.saver",
        "trio_ckpt.session",
        "trio_ckpt.snapshots",
        "trio_ckpt.start",
        "trio_ckpt.stop",
    ),
    *("trio_ckpt.stores", "trio_ckpt.stores.json", "trio_ckpt.stores.sqlite", "trio_ckpt.stream"),
    *("trio_ckpt", "trio_ckpt.verify"),
)
"""Every logger of the library; a test looks for others."""

FIELDS = ("run_id", "stream", "batch")
"""What each record has, None where it is about none."""

_PLACE = "trio_ckpt_place"  # of a record, until the filter has made fields of it

_formatter = logging.Formatter()

SysExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


Place: TypeAlias = dict[str, Any]
NOWHERE = (None, None, None)


def at(run_id: str | None, stream: StreamKey = (), batch: int | None = None) -> Place:
    """What a record is about, as ``extra=`` of a call of a logger."""
    return {_PLACE: (run_id, stream_name(stream) if stream else None, batch)}


def at_error(error: BaseException) -> Place:
    """The same, of what an error of the library happened to."""
    if not isinstance(error, TrioCkptError):
        return {}
    return at(error.run_id, error.stream, error.batch_index)


class _OneLine(logging.Filter):
    """Writes out what is not printed; of a traceback, no line begins where a record does."""

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
    """The message; None: an argument of it, which is a user's object, cannot be shown."""
    try:
        return record.getMessage()
    except BaseException:
        return None


def _traceback_of(info: SysExcInfo) -> str:
    """The traceback; what the exception says where a traceback cannot be made of it."""
    try:
        return _formatter.formatException(info)
    except BaseException:
        return "" if info[1] is None else f"{class_name(info[1])}: {text_of(info[1])}"


_one_line = _OneLine()


def guard_loggers() -> None:
    """See that no record of the library is more than one line; twice is once."""
    for logger in map(logging.getLogger, NAMES):
        logger.addFilter(_one_line)
