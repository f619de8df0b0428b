"""Captures the arrays of a state for a frame.

`ArrayEngine.hold` copies what may have changed, while the program is held.  `ArrayCapture.pieces`
compares and packs the copies while the program runs again: each piece when it is to be written.
All of it blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from .._tree.frame import Layout, Patch
from .._tree.identity import ArrayLeaf
from .arena import Arena
from .block_digests import DigestTable as DigestTable
from .buffers import Buffer, Collected, View, collect, copies_of
from .capture import Capture, Report
from .compress import Compressor as Compressor, open_compressor as open_compressor
from .dirty_chunks import ChunkPacker, Piece as Piece
from .dirty_pages import Tracker, Untracked, open_tracker
from .restore import Assembly as Assembly, Read as Read


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
        return ArrayCapture.of(collected, _names(collected, leaves), self, tables)

    def hold_assembled(self, assembly: Assembly) -> ArrayCapture:
        """Copy all buffers of a filled assembly: a chain of frames becomes one.

        No array is built, so the libraries of the arrays (torch, jax) need not be installed.

        Raises:
            StoreDamagedError: the saved arrays are inconsistent.
        """
        layout = assembly.layout
        views = [View.from_plain(view, layout.sizes) for view in layout.views]
        itemsizes = {view.buffer: view.itemsize for view in reversed(views)}  # of the first view
        buffers = [
            Buffer(data, None, None, "it was read back", itemsizes.get(number, 1))
            for number, data in enumerate(assembly.buffers)
        ]
        return ArrayCapture.of(Collected(buffers, views), layout.names, self, {})


class ArrayCapture:
    """Copies of what may have changed; the caller releases it when the save has ended."""

    def __init__(self, collected: Collected, names: tuple[str, ...], engine: ArrayEngine) -> None:
        self._collected = collected
        self._names = names
        self._captures: list[Capture] = []
        self._packer = ChunkPacker(engine.arena, engine.compressor)

    @classmethod
    def of(
        cls,
        collected: Collected,
        names: tuple[str, ...],
        engine: ArrayEngine,
        tables: Mapping[str, DigestTable],
    ) -> ArrayCapture:
        """Copy what may have changed since `tables`."""
        held = cls(collected, names, engine)
        try:
            for number, (buffer, name) in enumerate(zip(collected.buffers, names, strict=True)):
                capture = Capture(buffer, tables.get(name), engine.tracker)
                held._captures.append(capture)
                held._packer.add(number, capture)
        except BaseException:
            held.release()
            raise
        return held

    def pieces(self) -> Iterator[Piece]:
        """Yield the packed changes; each piece is made on demand, and valid until `release`."""
        return self._packer.pieces()

    def stored(self) -> EncodedArrays:
        """Return the description of the pieces, after the last one was taken.

        Raises:
            RuntimeError: some were not.
        """
        if not self._packer.is_packed:
            raise RuntimeError("a capture has no description before all its pieces are packed")
        buffers = self._collected.buffers
        captures = dict(zip(self._names, self._captures, strict=True))
        return EncodedArrays(
            Layout(
                self._names,
                tuple(buffer.data.nbytes for buffer in buffers),
                tuple(view.to_plain() for view in self._collected.views),
            ),
            tuple(self._packer.patches),
            self._packer.nbytes,
            {name: capture.table() for name, capture in captures.items()},
            {name: capture.report for name, capture in captures.items()},
        )

    def release(self) -> None:
        """Release the memory of the arena.  A second call does nothing."""
        self._packer.release()


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
