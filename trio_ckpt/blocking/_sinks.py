"""Transactions of a synchronous program: rows in a database, with the record of their batch."""

# What is held is in a private field, out of reach of users.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from .._util.arguments import instance
from ..sinks._connection import SinkConnection
from ..sinks._sink import Sink
from ._methods import Held, waits
from ._objects import BlockingBatch
from ._program import Block


class BlockingConnection(Held[SinkConnection]):
    """The `SinkConnection` of a synchronous program: its methods, without ``await``."""

    execute = waits(SinkConnection.execute)
    executemany = waits(SinkConnection.executemany)
    run = waits(SinkConnection.run)


def transaction(
    sink: Sink, batch: BlockingBatch[Any]
) -> AbstractContextManager[BlockingConnection]:
    """Open a transaction for the rows of a batch; see `Sink.transaction`.

    Args:
        sink: The sink that the stream of the batch was opened with.
        batch: An open batch.
    """
    instance("sink", sink, Sink, "a Sink")
    program = instance("batch", batch, BlockingBatch, "a batch of trio_ckpt.blocking")._program
    make = partial(sink.transaction, batch._held)
    return Block(program, make, partial(BlockingConnection, program))
