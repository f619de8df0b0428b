"""Pins: saved states that keep their arrays, whatever the retention says.

A pin is a record of its stream, so it is durable, in the history, and part of progress.  It names
the chain of the state that was the newest confirmed one; chains are kept or dropped as a whole.
A rewind to before the batch of a pin also removes the pin: the batch will have another state.
"""

from __future__ import annotations

import time

from .._journal.record import Record, RecordKind
from .._util.plain import check_label
from .archive_states import prune_states
from .open_stream import OpenStream

MAX_PINS = 1_000  # per stream: each fold of the stream contains all of them


async def pin_state(open_stream: OpenStream, label: str) -> None:
    """Pin the newest confirmed state; see `Stream.pin`.

    Durability: when this returns the pin is durable.
    """
    check_label(label)
    pins = open_stream.stream_log.progress.pins
    if open_stream.state_manager is None:
        raise TypeError("open the stream with state=... to have a state to pin")
    if label not in pins and len(pins) >= MAX_PINS:
        raise ValueError(f"{open_stream.where()} has {MAX_PINS} pins: unpin one first")
    kept, done = open_stream.state_manager.confirmed, open_stream.stream_log.progress.done
    lineage = kept.chain[0][1].lineage if kept is not None and kept.chain else b""
    record = Record(
        kind=RecordKind.PIN,
        at=time.time(),
        index=done.stop - 1 if done else None,
        metadata={"label": label, "lineage": lineage.hex()},
    )
    has_moved = label in pins
    await open_stream.save_plain(record)
    if has_moved:
        open_stream.state_manager.prune_soon()
        await prune_states(open_stream)


async def unpin_state(open_stream: OpenStream, label: str) -> None:
    """Remove a pin; see `Stream.unpin`.

    Durability: when this returns the pin is durably removed.
    """
    pins = open_stream.stream_log.progress.pins
    if label not in pins:
        has = ", ".join(map(repr, pins)) or "none"
        raise ValueError(f"{open_stream.where()} has no pin {label!r}; it has: {has}")
    await open_stream.save_plain(
        Record(kind=RecordKind.UNPIN, at=time.time(), metadata={"label": label})
    )
    if open_stream.state_manager is not None:
        open_stream.state_manager.prune_soon()
    await prune_states(open_stream)
