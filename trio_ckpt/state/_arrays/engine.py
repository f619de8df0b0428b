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
from .block_digests import DigestTable as DigestTable, let_others_run
from .buffers import Buffer, Collected, collect, copies_of, itemsize_of
from .capture import Capture, Report, unchanged
from .compress import Compressor as Compressor, open_compressor as open_compressor
from .dirty_chunks import ChunkPacker, Piece as Piece
from .dirty_pages import Tracker, Untracked, open_tracker
from .restore import Assembly as Assembly, Read as Read

UNCHANGED_AT_ONCE = 64  # small buffers, in 100 us


@attrs.frozen(eq=False, repr=False)
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
        layout, views = assembly.layout, assembly.views()
        # Of the first view of each buffer.
        itemsizes = {view.buffer: itemsize_of(view) for view in reversed(views)}
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
        self._tables: dict[str, DigestTable] = {}
        self._reports: dict[str, Report] = {}
        self._captures: dict[str, Capture] = {}
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
                if not number % UNCHANGED_AT_ONCE:
                    let_others_run()
                table = tables.get(name)
                report = None if table is None else unchanged(buffer, table, engine.tracker)
                if report is None:
                    capture = held._captures[name] = Capture(buffer, table, engine.tracker)
                    held._packer.add(number, capture)
                elif table is not None:
                    held._tables[name], held._reports[name] = table, report
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
        return EncodedArrays(
            Layout(
                self._names,
                tuple(buffer.data.nbytes for buffer in buffers),
                tuple(self._collected.views),
            ),
            tuple(self._packer.patches),
            self._packer.nbytes,
            {**self._tables, **{name: one.table() for name, one in self._captures.items()}},
            {**self._reports, **{name: one.report for name, one in self._captures.items()}},
        )

    def release(self) -> None:
        """Release the memory of the arena.  A second call does nothing."""
        self._packer.release()


def _names(collected: Collected, leaves: Sequence[ArrayLeaf]) -> tuple[str, ...]:
    """Return the path of the first array in each buffer."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for view, leaf in zip(collected.views, leaves, strict=True):
        if view.buffer == len(names):  # buffers are numbered in the order of their first arrays
            path = leaf.path
            count = counts[path] = counts.get(path, 0) + 1  # different keys may have one text
            names.append(path if count == 1 else f"{path}#{count}")
    return tuple(names)
