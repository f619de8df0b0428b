"""Finding outputs that no record names: the store was lost, or is older than the files.

A file is accepted if it is not empty, is JSON if its name says so, and passes the stream's
validation.  What else its batch produced is unknown, so an adopted batch is marked as such, and
totals do not include it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping

import trio

from .._journal.record import Output, Record, RecordKind
from .._util.arguments import several
from .._util.errors import OutputError
from .._util.log import get_logger
from .._util.text import plural
from .open_stream import OpenStream
from .saves import save_records
from .stream_outputs import AnyPath

log = get_logger(__name__)

RECORDS_PER_SAVE = 1_000
MAX_SHOWN = 3  # refused outputs in one line of the log

PathOf = Callable[[int], AnyPath | Iterable[AnyPath]]
Found = dict[int, tuple[Output, ...]]


async def find_outputs(open_stream: OpenStream, left: Iterable[int], path_of: PathOf) -> Found:
    """Find the outputs of batches that are left, where all of a batch exist and are valid.

    Durability: the files that are returned survive power loss.
    Cancellation: a cancellation point for every batch.
    """
    found: Found = {}
    refused: dict[int, str] = {}
    for index in left:
        await trio.lowlevel.checkpoint()
        known: dict[str, Output] = {}
        try:
            await open_stream.files.adopt(_paths(path_of(index)), index, known)
            await open_stream.files.check_found(known)
        except OutputError as error:
            open_stream.files.release(index)
            if known or not isinstance(error.__cause__, FileNotFoundError):
                log.info("%s: %s", open_stream.where(index), error, extra=open_stream.place(index))
                refused[index] = str(error) if len(refused) < MAX_SHOWN else ""
        else:
            found[index] = tuple(known.values())
    count = plural(len(found), "batch")
    log.info(
        "%s: found outputs of %s that no record names",
        open_stream.where(),
        count,
        extra=open_stream.place(),
    )
    if refused:
        _warn_refused(open_stream, refused)
    return found


def _paths(given: AnyPath | Iterable[AnyPath]) -> tuple[AnyPath, ...]:
    if isinstance(given, (str, os.PathLike)):
        return (given,)
    paths: tuple[AnyPath, ...] = several("what path_of returns", given, "paths")
    if not paths:
        raise ValueError("path_of must return at least one path for each batch, not none")
    return paths


def _warn_refused(open_stream: OpenStream, refused: Mapping[int, str]) -> None:
    """Log which outputs exist but were refused: their batches run again."""
    shown = [f"batch {index}: {reason}" for index, reason in refused.items() if reason]
    if len(refused) > len(shown):
        shown.append(f"{len(refused) - len(shown):,} more (logged at level INFO)")
    log.warning(
        "%s: outputs of %s exist but are refused: %s",
        open_stream.where(),
        plural(len(refused), "batch"),
        "; ".join(shown),
        extra=open_stream.place(),
    )


def check_stands_alone(open_stream: OpenStream) -> None:
    """Raise TypeError where later batches build on earlier ones: a file alone confirms none."""
    if open_stream.state_manager is not None or open_stream.stream_log.progress.is_ordered:
        raise TypeError("rescan() is for streams whose batches stand alone: no state, no cursor")


async def rescan(
    open_stream: OpenStream, left: Iterable[int], path_of: PathOf, *, is_adopted: bool
) -> list[int]:
    """Find the outputs of batches that are left, and confirm the batches by them if asked.

    Durability: when this returns adopted batches are durable.
    """
    found = await find_outputs(open_stream, left, path_of)
    if is_adopted:
        open_stream.files.allow_replacing()
        if found:
            await adopt_outputs(open_stream, found)
    else:
        for index in found:
            open_stream.files.release(index)
    return list(found)


async def adopt_outputs(open_stream: OpenStream, found: Found) -> None:
    """Confirm batches by the outputs that were found.

    Durability: when this returns the batches are durable.
    """
    now = time.time()
    entries = [
        (
            open_stream.stream_log,
            Record(kind=RecordKind.BATCH, at=now, index=index, outputs=outputs, adopted=True),
        )
        for index, outputs in found.items()
    ]
    entries[0] = open_stream.stream_log, open_stream.introduce(entries[0][1])
    for start in range(0, len(entries), RECORDS_PER_SAVE):
        await save_records(open_stream.committer, entries[start : start + RECORDS_PER_SAVE])
    for index, outputs in found.items():
        open_stream.files.release(index, outputs)
        open_stream.settled(index)
    log.info(
        "%s: adopted %s by their outputs",
        open_stream.where(),
        plural(len(found), "batch"),
        extra=open_stream.place(),
    )
