"""Runs and collections for synchronous programs: ``with`` and ``for``, without ``async``.

Objects, methods and promises are those of the trio API; trio runs in a thread beside the program.
"""

from ._collections import (
    BlockingCollection as BlockingCollection,
    BlockingPartition as BlockingPartition,
)
from ._objects import (
    BlockingBatch as BlockingBatch,
    BlockingBatches as BlockingBatches,
    BlockingRun as BlockingRun,
    BlockingSnapshots as BlockingSnapshots,
    BlockingStream as BlockingStream,
    run_batches as run_batches,
)
from ._open import open_collection as open_collection, open_run as open_run
from ._sinks import BlockingConnection as BlockingConnection, transaction as transaction

__all__ = [
    "BlockingBatch",
    "BlockingBatches",
    "BlockingCollection",
    "BlockingConnection",
    "BlockingPartition",
    "BlockingRun",
    "BlockingSnapshots",
    "BlockingStream",
    "open_collection",
    "open_run",
    "run_batches",
    "transaction",
]
