"""Rows in a database of the user, each exactly once, with the checkpoint of their batch.

A sink knows open streams and their batches: it commits rows together with the record of a batch,
and saves the record of rows that a crash has left without it.  It may not know runs and loops.
"""

import typing

from .._util.lazy import lazy_names as _lazy_names

if typing.TYPE_CHECKING:
    from ._connection import SinkConnection as SinkConnection
    from ._marker import SinkMarker as SinkMarker
    from ._postgres import PostgresSink as PostgresSink
    from ._sink import Sink as Sink
    from ._sqlite import SqliteSink as SqliteSink
else:  # a process uses one kind of database
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_connection": "SinkConnection",
            "_marker": "SinkMarker",
            "_postgres": "PostgresSink",
            "_sink": "Sink",
            "_sqlite": "SqliteSink",
        },
    )
