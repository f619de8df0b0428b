"""What the store and the outputs of `tests.crash.steady` say, as a reader finds them, compared."""

# ruff: noqa: ASYNC240  # nothing else is going on there

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import attrs
import trio

from tests.crash.steady import KINDS, LINES, RUN, STREAM, line, page, page_name
from trio_ckpt import Status, StoreDamagedError
from trio_ckpt._journal.history import read_pages
from trio_ckpt._journal.record import Record, RecordKind
from trio_ckpt.stores import open_store

JOURNAL = re.compile(rf"runs/{RUN}/journal\.\d+\.jsonl")
KNOWN = re.compile(
    rf"lock/.*|live/.*|state\.db.*|store\.json|runs/{RUN}/checkpoint\.json|blobs/\w{{32}}/\w{{64}}"
)
LEFT_BESIDE = {"manifest.json", LINES}  # of a whole run, beside the pages


@attrs.frozen
class Evidence:
    """What is known of a run.

    Attributes:
        confirmed: Batches that progress says are confirmed.
        records: The record that confirmed a batch, by the batch's index; the newest one.
        times: How often a batch was confirmed without having been re-queued.
        is_complete: Whether the stream is.
        redos: How often batches were re-queued.
        problems: What is not as it should be.
    """

    confirmed: frozenset[int] = frozenset()
    records: dict[int, Record] = attrs.Factory(dict[int, Record])
    times: Counter[int] = attrs.Factory(Counter[int])
    is_complete: bool = False
    redos: int = 0
    problems: tuple[str, ...] = ()


def look(url: str, out: Path) -> Evidence:
    """Read a run that no process is changing, and compare all that there is of it."""
    try:
        return trio.run(_look, url, out)
    except StoreDamagedError as error:
        return Evidence(problems=(f"the store is called damaged: {error}",))


async def _look(url: str, out: Path) -> Evidence:
    folder = Path(url.partition(":")[2])
    if not folder.exists():
        return Evidence()
    store = await open_store(url)
    try:
        view = await store.load_run(RUN)
        if view is None or STREAM not in view.streams:
            return Evidence()
        progress = view.streams[STREAM].progress
        found = [
            (sequence, record)
            async for shown in read_pages(store, RUN, view.generation, STREAM)
            for sequence, record in shown
        ]
    finally:
        await store.aclose()
    found.reverse()
    records: dict[int, Record] = {}
    times: Counter[int] = Counter()
    for _, record in found:
        if record.kind is RecordKind.BATCH and record.index is not None:
            records[record.index] = record
            times[record.index] += 1
        elif record.kind is RecordKind.REDO:
            times.clear()  # what is put back is confirmed again
    problems = [*_problems_of_records(found, times), *_problems_of_files(records, out)]
    if set(records) != set(progress.confirmed):
        problems.append(f"progress says {set(progress.confirmed)}, records say {set(records)}")
    return Evidence(
        frozenset(progress.confirmed),
        records,
        times,
        progress.status is Status.COMPLETE,
        sum(record.kind is RecordKind.REDO for _, record in found),
        tuple(problems),
    )


def _problems_of_records(found: list[tuple[int, Record]], times: Counter[int]) -> list[str]:
    problems = []
    sequences = [sequence for sequence, _ in found]
    if sequences != list(range(1, len(sequences) + 1)):
        problems.append(f"sequences are {sequences}")
    problems += [f"batch {index} is confirmed {n} times" for index, n in times.items() if n > 1]
    total = 0
    for _, record in found:
        if record.kind is RecordKind.REDO:
            return problems  # sums begin again somewhere: outputs are compared all the same
        if record.kind is RecordKind.BATCH:
            total += record.index or 0
            if record.metadata["sum"] != total:
                problems.append(f"the state of batch {record.index} is another one's")
    return problems


def _problems_of_files(records: dict[int, Record], out: Path) -> list[str]:
    """What is confirmed, and not there byte for byte."""
    problems = []
    path = out / LINES
    lines = path.read_bytes() if path.exists() else b""
    offset = 0
    for index, record in records.items():
        tag = record.metadata["tag"]
        (output,) = record.outputs
        wanted = page(index, tag)
        if output.sha256 != hashlib.sha256(wanted).hexdigest():
            problems.append(f"the record of batch {index} has another hash")
        if not (out / output.path).exists():
            problems.append(f"output {index} is missing")
        elif (out / output.path).read_bytes() != wanted:
            problems.append(f"output {index} is not what was confirmed")
        mine = line(index, tag) if record.lines else b""
        if lines[offset : offset + len(mine)] != mine:
            problems.append(f"line {index} is not what was confirmed")
        offset += len(mine)
    return problems


def problems_at_end(found: Evidence, out: Path, batches: int) -> list[str]:
    """What is wrong with a run that should be whole; without a tag its bytes are known."""
    problems = list(found.problems)
    if found.confirmed != frozenset(range(batches)) or not found.is_complete:
        problems.append(f"it is not complete: {sorted(found.confirmed)}")
        return problems
    if not any(record.lines for record in found.records.values()):
        return problems  # of a program that appends nothing
    tags = {index: record.metadata["tag"] for index, record in found.records.items()}
    if (out / LINES).read_bytes() != b"".join(line(n, tags[n]) for n in range(batches)):
        problems.append("the lines are not one for each batch, in order")
    return problems


def litter(url: str, out: Path, batches: int, *, is_archive_allowed: bool) -> list[str]:
    """Files that no reader needs, after a run that is whole."""
    wanted = {page_name(index) for index in range(batches)} | LEFT_BESIDE
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    extra = there - wanted
    if is_archive_allowed:  # lines that no record knew: they may have been the user's only copy
        extra = {name for name in extra if not name.startswith(f".archive/{RUN}-unconfirmed/")}
    return sorted(extra | trio.run(_litter_of_store, url))


async def _litter_of_store(url: str) -> set[str]:
    scheme, _, where = url.partition(":")
    folder = Path(where)
    store = await KINDS[scheme].open(folder)
    try:
        orphans, _ = await store.find_orphans()
    finally:
        await store.aclose()
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    journals = {name for name in files if JOURNAL.fullmatch(name)}
    known = {name for name in files if KNOWN.fullmatch(name)} | set(sorted(journals)[:1])
    return (files - known) | ({f"{orphans} blobs that no record names"} if orphans else set())
