"""Captures the arrays of a state for a frame.

`ArrayEngine.hold` copies what may have changed, while the program is held.  `ArrayCapture.pieces`
compares and packs the copies while the program runs again: each piece when it is to be written.
All of it blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import attrs

from .._tree.frame import Layout, Patch
from .._tree.identity import ArrayLeaf
from .arena import SLAB_BYTES, Arena
from .block_digests import DigestTable as DigestTable
from .buffers import Collected, collect, copies_of
from .capture import Capture, Report
from .compress import Compressor as Compressor, open_compressor as open_compressor
from .dirty_pages import Tracker, Untracked, open_tracker
from .packing import ChunkPacker, Piece as Piece
from .parts import DirtyChunk
from .restore import Assembly as Assembly, Read as Read

KEPT_SLABS = 8  # with fewer free slabs, parts are finished while the program is held


@attrs.frozen(eq=False)
class EncodedArrays:
    """Arrays as they are stored in a frame.

    Attributes:
        layout: Their layout in buffers.
        patches: The new blocks.
        nbytes: The total size of the pieces.
        tables: The table of each buffer, for the next capture once this save is durable.
        reports: How each buffer was captured.
    """

    layout: Layout
    patches: tuple[Patch, ...]
    nbytes: int
    tables: dict[str, DigestTable] = attrs.field(repr=False)
    reports: dict[str, Report]


class ArrayEngine:
    """Captures arrays: one per run, made when its first stream with an array is opened."""

    def __init__(self) -> None:
        self.arena = Arena()
        self.compressor: Compressor = open_compressor()
        self.tracker: Tracker | Untracked = open_tracker()

    def close(self) -> None:
        """Release all resources."""
        self.arena.close()
        if isinstance(self.tracker, Tracker):
            self.tracker.close()

    def check(self, leaves: Sequence[ArrayLeaf]) -> None:
        """Check that all arrays can be saved; see `hold`."""
        collect([leaf.value for leaf in leaves], [leaf.path for leaf in leaves])

    def copies(self, leaves: Sequence[ArrayLeaf]) -> list[object]:
        """Return the arrays in memory of their own; see `hold`."""
        return copies_of([leaf.value for leaf in leaves], [leaf.path for leaf in leaves])

    def hold(self, leaves: Sequence[ArrayLeaf], tables: Mapping[str, DigestTable]) -> ArrayCapture:
        """Copy what may have changed since `tables`.

        Args:
            leaves: The arrays of the state.
            tables: The table of the last save by buffer; a buffer without one is copied whole.

        Raises:
            NotEncodableError: an array cannot be saved; the message has its path.
        """
        collected = collect([leaf.value for leaf in leaves], [leaf.path for leaf in leaves])
        held = ArrayCapture(collected, _names(collected, leaves), self)
        try:
            for number, name in enumerate(held.names):
                held.add(number, tables.get(name))
        except BaseException:
            held.release()
            raise
        return held


@attrs.define(eq=False)
class ArrayCapture:
    """Copies of what may have changed; the caller releases it when the save has ended."""

    collected: Collected
    names: tuple[str, ...]
    engine: ArrayEngine
    _captures: list[Capture] = attrs.field(factory=list[Capture], init=False)
    _parts: deque[tuple[int, DirtyChunk]] = attrs.field(
        factory=deque[tuple[int, DirtyChunk]], init=False
    )
    _copied: list[bytes] = attrs.field(factory=list[bytes], init=False)
    _packing: ChunkPacker = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._packing = ChunkPacker(self.engine.compressor)

    def add(self, number: int, table: DigestTable | None) -> None:
        """Copy a buffer; if the arena is nearly full, copies are packed at once."""
        buffer, engine = self.collected.buffers[number], self.engine
        capture = Capture(
            buffer.data,
            table,
            engine.arena,
            None if buffer.is_copy else engine.tracker,
            owner=buffer.owner,
            root=buffer.root,
        )
        self._captures.append(capture)
        for part in capture:
            self._parts.append((number, part))
            if engine.arena.free_bytes < KEPT_SLABS * SLAB_BYTES:
                self._copied += map(bytes, self._packed())
                self._packing.release()

    def pieces(self) -> Iterator[Piece]:
        """Yield the packed changes; each piece is made on demand, and valid until `release`."""
        yield from self._copied
        yield from self._packed()

    def stored(self) -> EncodedArrays:
        """Return the description of the pieces; valid when all were taken."""
        buffers = self.collected.buffers
        return EncodedArrays(
            Layout(
                self.names,
                tuple(buffer.data.nbytes for buffer in buffers),
                tuple(view.to_plain() for view in self.collected.views),
            ),
            tuple(self._packing.patches),
            self._packing.nbytes,
            {name: c.table() for name, c in zip(self.names, self._captures, strict=True)},
            {name: c.report for name, c in zip(self.names, self._captures, strict=True)},
        )

    def release(self) -> None:
        """Release the memory of the arena.  A second call does nothing."""
        while self._parts:
            self._parts.popleft()[1].release()
        self._packing.release()

    def _packed(self) -> Iterator[Piece]:
        """Drop what did not change, and pack the rest."""
        while self._parts:
            number, part = self._parts[0]
            changes = part.finish()
            self._parts.popleft()
            if changes.nbytes:
                itemsize = self.collected.buffers[number].itemsize
                yield from self._packing.add(number, changes, itemsize)
            else:
                changes.release()


def _names(collected: Collected, leaves: Sequence[ArrayLeaf]) -> tuple[str, ...]:
    """Return the path of the first array in each buffer."""
    names: dict[int, str] = {}
    for view, leaf in zip(collected.views, leaves, strict=True):
        if view.buffer is not None:
            names.setdefault(view.buffer, leaf.path)
    counts: dict[str, int] = {}
    unique: list[str] = []
    for number in range(len(collected.buffers)):
        name = names[number]
        counts[name] = counts.get(name, 0) + 1  # different keys may have one text
        unique.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return tuple(unique)
