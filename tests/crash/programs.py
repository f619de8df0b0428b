"""What is crashed: a program that is right, and four that are wrong where only a crash shows it.

Each does `BATCHES` batches.  A batch changes a state that is large enough for blobs, writes an
output file, and appends lines to a file.  It tells what it begins, and what is acknowledged.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import trio_ckpt
from trio_ckpt import Batch, Run, Stream
from trio_ckpt.stores import JsonStore, SqliteStore

RUN = "run"
STREAM = ("pages",)
BATCHES = 4
OUT, STORE, LINES = "out", "run.ckpt", "lines.jsonl"
OUTPUT_BYTES = 2_500  # several sectors of a disk, the last one not full
TABLE_ROWS = 3_000  # 24 kB
TEXT_BYTES = 10_000
INLINE_LIMIT_BYTES = 8 * 2**10  # so that a small state is a blob

STORES: dict[str, Any] = {"sqlite": SqliteStore, "json": JsonStore}


@attrs.frozen
class Session:
    """One start of a program.

    Attributes:
        root: The folder of everything that it writes.
        store: The kind of its store.
        tell: Called with "begun" or "acked", and the number of a batch.
    """

    root: Path
    store: str
    tell: Callable[[str, int], None]


Program = Callable[[Session], Awaitable[int]]


class WrongStateError(Exception):
    """A session went on with another state than that of the last confirmed batch."""


# ---------------------------------------------------------------------------------------
# What a batch leaves behind: the same bytes in every session
# ---------------------------------------------------------------------------------------


def output_name(index: int) -> str:
    """The file of a batch, below the output folder."""
    return f"pages/{index % 2}/{index}.bin"


@cache
def output_of(index: int) -> bytes:
    """The content of that file."""
    return random.Random(f"output {index}").randbytes(OUTPUT_BYTES)


def records_of(index: int) -> list[dict[str, Any]]:
    """The lines of a batch; together they are longer than a sector of a disk."""
    text = random.Random(f"lines {index}").randbytes(200).hex()
    return [{"batch": index, "line": line, "text": text} for line in range(2)]


@cache
def lines_of(index: int) -> bytes:
    """The lines of a batch as they stand in the file."""
    return b"".join(
        json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        for record in records_of(index)
    )


def first_state() -> dict[str, Any]:
    """The state before the first batch."""
    return {"done": 0, "text": b"", "table": np.zeros(TABLE_ROWS)}


def change_state(state: dict[str, Any], index: int) -> None:
    """What a batch does to it; all of it is other bytes then."""
    state["done"] += 1
    state["text"] = random.Random(f"text {index}").randbytes(TEXT_BYTES)
    state["table"][:] = np.random.default_rng(index).random(TABLE_ROWS)


def check_state(state: dict[str, Any], index: int) -> None:
    """See that a batch begins with what the one before it left.

    Raises:
        WrongStateError: it does not.
    """
    wanted = first_state()
    for before in range(index):
        change_state(wanted, before)
    is_right = (
        state["done"] == wanted["done"]
        and state["text"] == wanted["text"]
        and state["table"].tobytes() == wanted["table"].tobytes()
    )
    if not is_right:
        raise WrongStateError(f"batch {index} begins with the state of {state['done']} batches")


# ---------------------------------------------------------------------------------------
# The programs
# ---------------------------------------------------------------------------------------


async def open_kind(kind: str, folder: Path, *, create: bool) -> Any:
    """Open the store of a session."""
    return await STORES[kind].open(folder, inline_limit_bytes=INLINE_LIMIT_BYTES, create=create)


@asynccontextmanager
async def opened(session: Session) -> AsyncGenerator[tuple[Run, Stream[Any]]]:
    """The run and the stream of a session."""
    store = await open_kind(session.store, session.root / STORE, create=True)
    try:
        async with (
            trio_ckpt.open_run(RUN, store=store, output_dir=session.root / OUT) as run,
            run.open_stream(*STREAM, state=first_state()) as stream,
        ):
            yield run, stream
    finally:
        await store.aclose()


async def work(session: Session, stream: Stream[Any], batch: Batch[int]) -> None:
    """All of a batch but its outputs."""
    session.tell("begun", batch.index)
    check_state(stream.state, batch.index)
    change_state(stream.state, batch.index)


async def good(session: Session) -> int:
    """Every second batch is confirmed by its body, the others by the loop."""
    confirmed_by_loop: int | None = None
    async with opened(session) as (run, stream):
        async for batch in stream.batches(range(BATCHES)):
            if confirmed_by_loop is not None:
                session.tell("acked", confirmed_by_loop)
                confirmed_by_loop = None
            await work(session, stream, batch)
            await batch.write_bytes(output_name(batch.index), output_of(batch.index))
            batch.append_json(LINES, *records_of(batch.index))
            batch.complete()
            if batch.index % 2:
                await batch.confirm()
                session.tell("acked", batch.index)
            else:
                confirmed_by_loop = batch.index
    return run.exit_code


async def tells_too_early(session: Session) -> int:
    """Broken: a batch is acknowledged when it is completed, and not yet saved."""
    async with opened(session) as (run, stream):
        async for batch in stream.batches(range(BATCHES)):
            await work(session, stream, batch)
            await batch.write_bytes(output_name(batch.index), output_of(batch.index))
            batch.append_json(LINES, *records_of(batch.index))
            batch.complete()
            session.tell("acked", batch.index)
    return run.exit_code


def write_plainly(session: Session, index: int) -> Path:
    """Write an output as programs do that know nothing of power cuts."""
    path = session.root / OUT / output_name(index)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(output_of(index))
    return path


async def saves_before_it_writes(session: Session) -> int:
    """Broken: progress goes ahead of the output."""
    async with opened(session) as (run, stream):
        async for batch in stream.batches(range(BATCHES)):
            await work(session, stream, batch)
            batch.append_json(LINES, *records_of(batch.index))
            batch.complete()
            await batch.confirm()
            session.tell("acked", batch.index)
            write_plainly(session, batch.index)
    return run.exit_code


async def forgets_to_sync(session: Session) -> int:
    """Broken: its output is written, and never synced; the library does not know of it."""
    async with opened(session) as (run, stream):
        async for batch in stream.batches(range(BATCHES)):
            await work(session, stream, batch)
            write_plainly(session, batch.index)
            batch.append_json(LINES, *records_of(batch.index))
            batch.complete()
            await batch.confirm()
            session.tell("acked", batch.index)
    return run.exit_code


async def forgives_a_failed_sync(session: Session) -> int:
    """Broken: where an fsync fails, it syncs once more, which says nothing."""
    async with opened(session) as (run, stream):
        async for batch in stream.batches(range(BATCHES)):
            await work(session, stream, batch)
            path = write_plainly(session, batch.index)
            for place in (path, *list(path.parents)[:3]):
                with suppress(OSError):
                    sync(place)
                sync(place)
            batch.append_json(LINES, *records_of(batch.index))
            batch.complete()
            await batch.confirm()
            session.tell("acked", batch.index)
    return run.exit_code


def sync(path: Path) -> None:
    """Sync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


PROGRAMS: dict[str, Program] = {
    "good": good,
    "tells_too_early": tells_too_early,
    "saves_before_it_writes": saves_before_it_writes,
    "forgets_to_sync": forgets_to_sync,
    "forgives_a_failed_sync": forgives_a_failed_sync,
}
