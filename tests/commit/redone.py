"""What the tests of redo and rewind share: loops, and what they leave."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import trio
import trio.testing

from trio_ckpt import (
    Run,
    Stream,
)
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import Record
from trio_ckpt.abc import HistoryPage
from trio_ckpt.stores import MemoryStore


async def read_records(store: MemoryStore) -> list[Record]:
    """The records of the stream, the oldest first."""
    found = [r async for page in read_pages(store, "r", 0, ("s",)) for _, r in page]
    return found[::-1]


async def write_pages(
    run: Run, count: int = 4, worked: list[int] | None = None, text: str = "first"
) -> Stream[None]:
    """One file for every batch that is left."""
    async with run.open_stream("s") as stream:
        async for batch in stream.batches(range(count)):
            if worked is not None:
                worked.append(batch.index)
            await batch.write_text(f"{batch.index}.txt", f"{text} {batch.index}")
            batch.spend(cost=0.1)
            batch.complete(records=2, totals={"words": 0.3})
    return stream


def archived(folder: Path) -> list[str]:
    """What is in the archive of an output folder, but for manifests that are outdated."""
    files = (folder / ".archive").rglob("*")
    names = [path for path in files if path.is_file() and "manifest" not in path.name]
    return sorted(path.read_text() for path in names)


def exact(*amounts: float) -> Fraction:
    return sum(map(Fraction, amounts), Fraction())


def sums(stream: Stream[Any]) -> tuple[int, Fraction, Fraction, Fraction]:
    """Records, and one total, spent and saved each, exactly."""
    progress = stream.progress
    found = [
        Fraction(total.numerator, 2**total.shift)
        for total in (progress.totals["words"], progress.spent["cost"])
    ]
    saved = progress.spent_confirmed["cost"]
    return progress.records, *found, Fraction(saved.numerator, 2**saved.shift)


class Gated(MemoryStore):
    """Holds back a read of the history until the gate opens, after some others."""

    gate: trio.Event | None = None
    passes = 0

    async def history(self, run_id: str, stream: str, **options: Any) -> HistoryPage:
        if self.gate is not None and self.passes == 0:
            gate, self.gate = self.gate, None
            await gate.wait()
        elif self.gate is not None:
            self.passes -= 1
        return await super().history(run_id, stream, **options)


async def write_some(stream: Stream[Any], count: int, some: Iterable[int], text: str) -> list[int]:
    """Many batches, few of them with a file."""
    worked, files = [], set(some)
    async for batch in stream.batches(range(count)):
        worked.append(batch.index)
        if batch.index in files:
            await batch.write_text(f"{batch.index}", text)
        batch.complete(records=1)
    return worked


# ---------------------------------------------------------------------------------------
# Rewind
# ---------------------------------------------------------------------------------------


async def follow(
    run: Run,
    count: int,
    *,
    state: dict[str, Any] | None = None,
    skip: Iterable[int] = (),
    start: int = 0,
) -> Stream[Any]:
    """Batches that build on each other: a state, a cursor and an append file."""
    async with run.open_stream("s", state=state) as stream:
        async for batch in stream.batches(range(count), start=start):
            if batch.index in skip:
                batch.skip("not today")
                continue
            before = (stream.cursor or "") if state is None else stream.state["trail"]
            trail = f"{before}{batch.index}."
            if state is None:
                batch.complete(records=1, cursor=trail)
            else:
                stream.state["trail"] = trail
                batch.append_json("lines.jsonl", trail)
                batch.complete(records=1)
    return stream
