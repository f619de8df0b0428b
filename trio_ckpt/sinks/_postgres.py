"""Rows in a database of PostgreSQL."""

from __future__ import annotations

from .._util.arguments import text
from .._util.extras import needs_extra
from ._sink import Sink
from ._stream_rows import Undo


class PostgresSink(Sink):
    """Rows in a database of PostgreSQL; needs the extra `postgres`.

    Args:
        conninfo: The URL, or the connection string, of libpq.
        undo: Takes the rows of a batch back, as for `Sink`.

    Raises:
        MissingExtraError: psycopg is not installed.
        SinkError: libpq cannot read it.
    """

    def __init__(self, conninfo: str, *, undo: Undo | None = None) -> None:
        with needs_extra("postgres", "PostgresSink"):
            from ._postgres_driver import PostgresDriver

        super().__init__(PostgresDriver(text("conninfo", conninfo)), undo=undo)
