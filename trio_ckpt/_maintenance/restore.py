"""Copies the outputs of a generation into another place, as they were when it was the newest one.

An output is in place as long as no later generation has written its name, else in the archive.
Which one it is says its hash, which its record has; an append file has only grown since, so its
confirmed bytes are the first of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing

import attrs

from .._journal.history import LiveRecords, read_pages
from .._journal.record import Output
from .._journal.store import RunView, Store
from .._journal.summary import in_order
from .._util.plain import StreamKey
from .._util.text import plural
from .._util.threads import run_blocking
from ..outputs import Outputs

MAX_RESTORED_BYTES = 2**30  # of one file: a copy in the archive is read whole


@attrs.frozen
class Restored:
    """What was copied.

    Attributes:
        files: How many files.
        bytes: Their size together, in bytes.
        problems: What could not be copied: the path, and why.
    """

    files: int
    bytes: int
    problems: tuple[tuple[str, str], ...]


async def restore_outputs(
    store: Store, view: RunView, newest: int, outputs: Outputs, target: Outputs
) -> Restored:
    """Copy the outputs of a generation into another place; those that are there stay.

    Args:
        store: The store of the run.
        view: The generation.
        newest: The number of the newest one.
        outputs: The outputs of the run, with their archive.
        target: Where they go.

    Raises:
        StoreDamagedError: a record is not what was saved.
        OutputError: a file cannot be written.

    Durability: when this returns the copies survive power loss.
    Cancellation: a cancellation point for each file; copies that were made stay.
    """
    labels = [f"{view.run_id}-{number}" for number in range(view.generation, newest + 1)]
    labels.append(f"{view.run_id}-unconfirmed")
    problems: list[tuple[str, str]] = []
    files = size = 0
    parts = {key: entry.progress for key, entry in view.streams.items()}
    for key in in_order(parts):
        async with aclosing(_files_of(store, view, key)) as wanted:
            async for file in wanted:
                copy = _copy if file.sha256 else _copy_begin
                problem = await run_blocking(copy, outputs, target, file, labels)
                if problem is None:
                    files, size = files + 1, size + file.size
                else:
                    problems.append((file.path, problem))
    return Restored(files, size, tuple(problems))


async def _files_of(store: Store, view: RunView, key: StreamKey) -> AsyncGenerator[Output]:
    """The outputs of a stream, then its append files, whose confirmed bytes have no hash."""
    progress = view.streams[key].progress
    if progress.outputs:
        live = LiveRecords(progress)
        async with aclosing(read_pages(store, view.run_id, view.generation, key)) as pages:
            async for page in pages:
                for entry in live.of(page):
                    for output in entry.record.outputs:
                        yield output
    for path, size in sorted(progress.sinks.items()):
        yield Output(path, size, 0, "")


def _copy(outputs: Outputs, target: Outputs, output: Output, labels: list[str]) -> str | None:
    """Copy an output; returns why it was not, or None.  Blocks."""
    if target.status(output.path) is not None:
        found = target.check(output, "sha256")
        return None if found is None else f"the target has another file: {found}"
    for data in _contents(outputs, output, labels):
        if len(data) == output.size and hashlib.sha256(data).hexdigest() == output.sha256:
            target.write(output.path, data, is_new=True)
            return None
    return "neither the file nor a copy in the archive is what was confirmed"


def _copy_begin(outputs: Outputs, target: Outputs, file: Output, labels: list[str]) -> str | None:
    """Copy the confirmed bytes of an append file; returns why they were not, or None.  Blocks."""
    if target.status(file.path) is not None:
        is_there = target.length(file.path) == file.size
        return None if is_there else "the target has another file"
    for data in _beginnings(outputs, file, labels[:-1]):
        if len(data) == file.size:
            target.write(file.path, data, is_new=True)
            return None
    return f"neither the file nor a copy in the archive has its {plural(file.size, 'byte')}"


def _contents(outputs: Outputs, output: Output, labels: list[str]) -> Generator[bytes]:
    """What a file may have been: as it is, and its copies in the archive."""
    yield from _in_place(outputs, output)
    for label in labels:
        yield from _archived(outputs, output, label)


def _beginnings(outputs: Outputs, file: Output, labels: list[str]) -> Generator[bytes]:
    """What an append file may have been: a later file of its name began after it was archived."""
    for label in labels:
        yield from _archived(outputs, file, label)
    yield from _in_place(outputs, file)


def _in_place(outputs: Outputs, file: Output) -> Generator[bytes]:
    if outputs.length(file.path) is not None and file.size <= MAX_RESTORED_BYTES:
        with closing(outputs.read_pieces(file.path, file.size)) as pieces:
            yield b"".join(pieces)


def _archived(outputs: Outputs, file: Output, label: str) -> Generator[bytes]:
    if file.size <= MAX_RESTORED_BYTES:
        data = outputs.archived_head(file.path, label, file.size)
        if data is not None:
            yield data
