"""What the examples that share their work among processes do with a collection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio_ckpt

from ._command import say


async def work_through(
    collection: trio_ckpt.Collection, work: Callable[[trio_ckpt.Partition], Awaitable[object]]
) -> int:
    """Work on partitions until none is left, beside any other process.

    Args:
        collection: The collection, open.
        work: Works on one partition.

    Returns:
        The exit code.
    """
    while True:
        async with collection.claim() as partition:
            if partition is None:
                break
            say(f"partition {partition.index} of {partition.partitions}")
            await work(partition)
    try:
        async with collection.finish() as run:
            if run is not None:
                say(f"all {collection.partitions} partitions are complete")
    except trio_ckpt.PartitionsLeftError as error:
        say(str(error))
    return collection.exit_code
