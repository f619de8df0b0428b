"""Reads arrays of a saved state, without the rest of it and without owning the run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any

from .._journal.history import read_known_run, read_pages
from .._journal.record import Record, RecordKind
from .._journal.store import Store
from .._util.arguments import several, stream_key, whole_number
from .._util.plain import StreamKey
from ..state._chain import layout_of, read_chain, read_named


async def read_arrays(
    store: Store,
    run_id: str,
    key: StreamKey,
    names: Collection[str] | None = None,
    *,
    batch: int | None = None,
) -> dict[str, Any]:
    """Read arrays of a confirmed state of a stream, by their paths.

    Only the blocks of these arrays are read, each once, from the newest saved state that has it.

    Args:
        store: The run's store.
        run_id: The run.
        key: The stream.
        names: Paths such as ``state.model.weights``; default: all.  Arrays that share memory
            have the path of the first of them.
        batch: The batch that the state was confirmed with; default: the newest.

    Returns:
        The arrays, in the kinds that were saved; empty if the state has none.

    Raises:
        UnknownRunError: there is no such run.
        ValueError: the state has no such array, or the batch was not confirmed.
        StoreDamagedError: the state is damaged, or its arrays were dropped.

    Cancellation: a cancellation point between parts.
    """
    key = stream_key("key", key)
    if names is not None:
        names = several("names", names, "names of arrays")
    if batch is not None:
        batch = whole_number("batch", batch)
    stored = await read_known_run(store, run_id)
    pages = read_pages(store, run_id, stored.generation, key)
    if batch is not None:
        pages = _up_to(pages, batch)
    async with aclosing(pages):
        chain, _ = await read_chain(pages, with_snapshots=False)
    frames = [frame for _, frame in chain]
    layout = layout_of(frames)
    if strangers := sorted(set(names or ()) - set(layout.names)):
        has = ", ".join(layout.names) or "none"
        raise ValueError(f"the state has no array {strangers[0]}; it has: {has}")
    if not layout.views:
        return {}
    return await read_named(store, run_id, frames, names)


async def _up_to(
    pages: AsyncGenerator[list[tuple[int, Record]]], batch: int
) -> AsyncGenerator[list[tuple[int, Record]]]:
    """The records as of the last confirmation of a batch.

    Raises:
        ValueError: the batch was never confirmed.
    """
    is_found = False
    async with aclosing(pages):
        async for records in pages:
            for place, (_, record) in enumerate(records):
                if not is_found and record.index == batch and record.kind in _SAY_STATE:
                    is_found, records = True, records[place:]
                    break
            if is_found:
                yield records
    if not is_found:
        raise ValueError(f"batch {batch} was never confirmed")


_SAY_STATE = (RecordKind.BATCH, RecordKind.NOTE)  # the latter in an archive
