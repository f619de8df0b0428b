"""Runs for synchronous programs: ``with`` and ``for`` in place of ``async with`` and ``async for``.

Objects, methods and promises are those of the trio API; trio runs in a thread beside the program.
"""

from ._objects import (
    BlockingBatch as BlockingBatch,
    BlockingBatches as BlockingBatches,
    BlockingRun as BlockingRun,
    BlockingSnapshots as BlockingSnapshots,
    BlockingStream as BlockingStream,
    run_batches as run_batches,
)
from ._open import open_run as open_run
from ._sinks import BlockingConnection as BlockingConnection, transaction as transaction

__all__ = [
    "BlockingBatch",
    "BlockingBatches",
    "BlockingConnection",
    "BlockingRun",
    "BlockingSnapshots",
    "BlockingStream",
    "open_run",
    "run_batches",
    "transaction",
]
