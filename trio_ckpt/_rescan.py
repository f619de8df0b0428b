"""Finding outputs that no record names: the store was lost, or is older than the files.

A file is believed where it is whole and passes the stream's validation.  What its batch
produced beyond it is not known, so an adopted batch is marked: totals are without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import trio

from ._desk import Desk
from ._errors import OutputError, describe_batch
from ._records import Kind, Output, Record
from ._staging import AnyPath

log = logging.getLogger("trio_ckpt.rescan")

RECORDS_PER_SAVE = 1_000


async def find_outputs(
    desk: Desk, left: Iterable[int], path_of: Callable[[int], AnyPath]
) -> dict[int, Output]:
    """The outputs of batches that are left, where they are there and valid.

    Durability: the files that are returned survive power loss.
    Cancellation: a cancellation point for every file.
    """
    found: dict[int, Output] = {}
    for index in left:
        await trio.lowlevel.checkpoint()
        known: dict[str, Output] = {}
        path = path_of(index)
        try:
            await desk.files.adopt([path], index, known)
            await desk.files.check(known)
        except OutputError as error:
            desk.files.release(index)
            if not isinstance(error.__cause__, FileNotFoundError):
                log.info("%s: %s", desk.where(index), error)
        else:
            found[index] = known[desk.files.name(path)]
    return found


async def adopt_outputs(desk: Desk, found: dict[int, Output]) -> None:
    """Confirm batches by the outputs that were found.

    Durability: when this returns they are saved.
    """
    now = time.time()
    entries = [
        (desk.lane, Record(kind=Kind.BATCH, at=now, index=index, outputs=(output,), adopted=True))
        for index, output in found.items()
    ]
    entries[0] = desk.lane, desk.introduce(entries[0][1])
    for start in range(0, len(entries), RECORDS_PER_SAVE):
        await desk.saver.save_all(entries[start : start + RECORDS_PER_SAVE])
    for index in found:
        desk.settled(index)
    where = describe_batch(desk.run_id, desk.lane.key, None)
    log.info("%s: %d batches were adopted by their outputs", where, len(found))
