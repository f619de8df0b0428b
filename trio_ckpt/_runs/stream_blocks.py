"""The blocks of a stream: one batch without a loop, and snapshots inside the body of a batch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from .._commit.batch import Batch
from .._commit.exits import Exit, exit_of
from .._commit.snapshots import Snapshots, check_snapshots_awaited
from .._util.errors import StreamEndedError
from .._util.uninterrupted import uninterrupted
from .loop import LoopCursor


@asynccontextmanager
@uninterrupted
async def one_batch(loop_cursor: LoopCursor) -> AsyncGenerator[Batch[None]]:
    """Open the first batch that is left for a block; see `Stream.open_batch`."""
    open_stream = loop_cursor.open_stream
    loop_cursor.check_owner()
    loop_cursor.check_failed()
    loop_cursor.check_no_frontier()
    await trio.lowlevel.checkpoint()
    await loop_cursor.settle_open(Exit.NEXT)
    await loop_cursor.wait_verified()
    index = loop_cursor.progress.first_left(open_stream.first_index)
    await loop_cursor.wait_for_turn(index)
    if loop_cursor.is_past_end(index):
        raise StreamEndedError(
            f"{open_stream.where()} is complete: there is no batch {index}",
            run_id=open_stream.run_id,
            stream=open_stream.stream_log.key,
        )
    open_stream.extent.begin_source(None, is_open_ended=True)
    batch: Batch[None] = loop_cursor.gate.hand_out(index, None, b"")
    loop_cursor.hold(batch)  # so that finish(), save() and fail() pass the gate for it
    try:
        yield batch
    except BaseException as error:
        await loop_cursor.gate.pass_gate(batch, exit_of(error), error)
        raise
    finally:
        loop_cursor.batch = None
    await loop_cursor.gate.pass_gate(batch, Exit.EXIT)
    await loop_cursor.complete_if_last()


@asynccontextmanager
@uninterrupted
async def snapshots_in_batch(
    loop_cursor: LoopCursor, nursery: trio.Nursery, every_s: float
) -> AsyncGenerator[Snapshots]:
    """Save the state inside a batch whose body is long; see `Stream.snapshots`."""
    open_stream, batch = loop_cursor.open_stream, loop_cursor.batch_of_caller()
    state_manager = open_stream.state_manager
    if state_manager is None:
        raise TypeError("open the stream with state=... to have a state to take snapshots of")
    if batch is None or batch.index not in open_stream.open:
        raise RuntimeError("snapshots() is for the body of a batch, and none is open")
    snapshots = Snapshots(every_s, open_stream, state_manager, batch, nursery)
    try:
        yield snapshots
    finally:
        await snapshots.wait()
    check_snapshots_awaited(snapshots)
