"""Reads the saved states of one stream back from the store.

`read_chain` finds the frames of a chain among the records, newest first; `fill` reads the blocks
that their arrays need, each once, and `read_named` reads only some arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Collection, Generator, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import trio

from .._journal.record import Record, RecordKind
from .._journal.store import BlobPart, Store, scatter
from .._util.errors import StoreDamagedError
from .._util.extras import needs_extra
from .._util.threads import run_blocking
from . import NO_ARRAYS, Layout, StateFrame, decode_frame, frame_digest
from ._retention import Version

if TYPE_CHECKING:
    from ._arrays.engine import Assembly, Compressor, Read

# Parts of a state that are read and unpacked concurrently; more would slow each other down.
READERS = 2

GROUP_BYTES = 2**25  # that are read in one call of the store, some 10 ms

CHECK_BYTES = 8 * 2**20  # the part of a blob that is hashed at a time


async def read_chain(
    pages: AsyncGenerator[list[tuple[int, Record]]],
    *,
    with_snapshots: bool = True,
    versions: list[Version] | None = None,
) -> tuple[list[tuple[bytes, StateFrame]], Record | None]:
    """Return the frames that a stream's state is restored from, the newest first.

    Snapshots of an attempt that failed later are skipped, except those that a later
    frame builds on.

    Args:
        pages: The records of the stream, newest first.
        with_snapshots: Whether the state may be a snapshot from inside a batch.
        versions: Receives the versions that the search reads, the oldest first.

    Returns:
        The frames, and the record of the newest; none if there is no saved state.

    Raises:
        StoreDamagedError: a frame is missing.
    """
    chain = _ChainSearch(with_snapshots)
    async with aclosing(pages):
        async for records in pages:
            if versions is not None:
                versions[:0] = [
                    version_of(sequence, record)
                    for sequence, record in reversed(records)
                    if record.state
                ]
            for _, record in records:
                if chain.add(record):
                    return chain.links, chain.record
    if chain.links:
        raise StoreDamagedError(
            f"the state that {len(chain.links)} saved ones build on is missing: number "
            f"{chain.links[-1][1].number - 1}"
        )
    return [], None


class _ChainSearch:
    """Finds the frames of a chain among records, newest first."""

    def __init__(self, with_snapshots: bool) -> None:
        self.links: list[tuple[bytes, StateFrame]] = []
        self.record: Record | None = None
        self._with_snapshots = with_snapshots
        self._is_failed = False  # whether the attempt of the current snapshots failed

    def add(self, record: Record) -> bool:
        """Add a record; return whether the chain is complete."""
        if not self.links and not self._may_begin(record):
            return record.taken is not None and record.taken.resets_state
        if not record.state:
            return False
        digest = frame_digest(record.state)
        if not self.links:
            self.record = record
        elif digest != self.links[-1][1].parent:
            return False
        frame = decode_frame(record.state)
        if self.links:
            before = self.links[-1][1]
            if (frame.number, frame.lineage) != (before.number - 1, before.lineage):
                raise StoreDamagedError("a saved state follows one that it does not belong to")
        self.links.append((digest, frame))
        return frame.is_full

    def _may_begin(self, record: Record) -> bool:
        if record.kind is RecordKind.SNAPSHOT:
            return self._with_snapshots and not self._is_failed
        if record.kind is RecordKind.BATCH or record.state:
            self._is_failed = False
        elif record.kind in (RecordKind.ATTEMPT, RecordKind.SKIP):
            self._is_failed = True
        return bool(record.state)


def version_of(sequence: int, record: Record) -> Version:
    """Return the version of a record with a state."""
    frame = decode_frame(record.state)
    return Version(sequence, record.at, frame.lineage, frame.data_bytes if frame.blob else 0)


def blobs_of(payload: bytes) -> tuple[str, ...]:
    """Return the blobs that a saved state names."""
    frame = decode_frame(payload) if payload else None
    return (frame.blob,) if frame is not None and frame.blob else ()


def layout_of(frames: Sequence[StateFrame]) -> Layout:
    """Return the array layout of the newest frame, which is the first."""
    return next((frame.layout for frame in frames if frame.layout is not None), NO_ARRAYS)


async def fill(
    store: Store,
    run_id: str,
    assembly: Assembly,
    frames: Sequence[StateFrame],
    compressor: Compressor,
) -> None:
    """Read what an assembly needs and unpack it, several parts at a time.

    Raises:
        StoreDamagedError: a part is not what was saved.
    """
    if store.mac_key is not None:
        used = {read.frame for reads in assembly.rounds for read in reads}
        for frame in [frames[number] for number in used]:
            await _check_blob(store, run_id, frame)
    for reads in assembly.rounds:
        left = _groups(reads)
        failures: list[Exception] = []

        async def work(
            left: Iterator[list[Read]] = left, failures: list[Exception] = failures
        ) -> None:
            try:
                for group in left:
                    await store.read_blob_parts(run_id, _parts(group, frames, assembly, compressor))
            except Exception as error:  # the first of them is raised, not a group
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(work)
        if failures:
            raise failures[0]


async def _check_blob(store: Store, run_id: str, frame: StateFrame) -> None:
    """Check that the blob of a frame is the one that the sealed record names.

    The digests of its pieces detect damage, but an attacker can compute matching ones.
    So with a MAC key the whole blob is hashed before any part is used.

    Raises:
        StoreDamagedError: it is another blob.
    """
    hasher = hashlib.sha256()
    for offset in range(0, frame.data_bytes if frame.blob else 0, CHECK_BYTES):
        size = min(CHECK_BYTES, frame.data_bytes - offset)
        part = await store.read_blob(run_id, frame.blob, offset, size)
        await run_blocking(hasher.update, part)
    if frame.blob and hasher.hexdigest() != frame.blob:
        raise StoreDamagedError(f"blob {frame.blob} of a saved state was altered: restore a copy")


def _groups(reads: Sequence[Read]) -> Generator[list[Read]]:
    """Group reads, so that few calls of a store are made, and each can soon be cancelled."""
    group: list[Read] = []
    size = 0
    for read in reads:
        group.append(read)
        size += read.size
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _parts(
    reads: Sequence[Read],
    frames: Sequence[StateFrame],
    assembly: Assembly,
    compressor: Compressor,
) -> Generator[BlobPart]:
    """Yield what is to be read of blobs; each part is unpacked when the next one is asked for."""
    for read in reads:
        landing, frame = assembly.land(read), frames[read.frame]
        if frame.blob:
            yield BlobPart(frame.blob, read.offset, landing.targets)
        else:
            scatter(frame.data[read.offset : read.offset + read.size], landing.targets)
        assembly.fill(landing, compressor)


async def read_named(
    store: Store, run_id: str, frames: Sequence[StateFrame], names: Collection[str] | None
) -> dict[str, object]:
    """Return the first arrays of some buffers, by the buffers' names."""
    with needs_extra("arrays", "a state with arrays"):
        from ._arrays.engine import Assembly, open_compressor  # NumPy is an extra

    assembly = Assembly(frames, names)
    await fill(store, run_id, assembly, frames, await run_blocking(open_compressor))
    return await run_blocking(assembly.named)
