"""Restores buffers from a chain of frames: every block once, from the newest frame that has it.

First the reads are planned; blocks that a newer frame replaces are not read.
So restoring costs as much as the state is large, however many frames the chain has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs
import numpy as np
import xxhash

from ..._util.errors import StoreDamagedError
from .._tree.frame import DIGEST_BYTES, Layout, Patch, StateFrame, View, layouts_of
from .block_digests import (
    BLOCK_BYTES,
    DigestTable,
    Indexes,
    Mask,
    count_of,
    empty_table,
    make_table,
)
from .block_ranges import Ranges, decode_ranges
from .buffers import check_view, rebuild
from .compress import HEAD, MAX_BLOCK_BYTES, Compressor, is_raw
from .dirty_pages import Tracker, Untracked
from .memory import Bytes, address_of, allocate
from .userfaultfd import spread

READ_BYTES = 2**22  # per read, if pieces are adjacent: what is checked next is in the caches
IN_PLACE_BYTES = 2**16  # a smaller piece costs less to copy than to read by itself


@attrs.frozen(eq=False, repr=False)
class PackedBlocks:
    """Some blocks of a buffer, packed as one piece.

    Attributes:
        offset: The offset of the piece in the data of its frame.
        stored: Its stored size in bytes.
        digest: The digest of the stored bytes.
        buffer: The number of its buffer.
        blocks: The blocks that it holds, in order.
        wanted: The blocks of it that are needed.
        size: Its unpacked size in bytes.
    """

    offset: int
    stored: int
    digest: bytes
    buffer: int
    blocks: Indexes
    wanted: Indexes
    size: int


@attrs.frozen(eq=False, repr=False)
class Read:
    """Adjacent pieces, to be read at once.

    Attributes:
        frame: The index of the frame in the chain, the newest is 0.
        offset: Where to begin in its data.
        size: How many bytes to read.
        pieces: The pieces in them.
    """

    frame: int
    offset: int
    size: int
    pieces: tuple[PackedBlocks, ...]


@attrs.frozen(eq=False, repr=False)
class Landing:
    """Where a read goes: each raw piece right into its buffer, all others into memory of the read.

    Attributes:
        read: The read.
        targets: The memory, in the order of the bytes that are read.
        parts: The memory of each piece; two parts, its head and its body, of one in its buffer.
    """

    read: Read
    targets: list[memoryview]
    parts: list[tuple[memoryview, ...]]


class Assembly:
    """The buffers of a state that is being restored.

    Args:
        frames: The newest first, the last one full.
        names: The names of the buffers to restore; default: all.

    Raises:
        StoreDamagedError: the frames do not fit together.
    """

    def __init__(self, frames: Sequence[StateFrame], names: Collection[str] | None = None) -> None:
        layouts = layouts_of(frames)
        self.layout = layouts[0]
        pieces = sum(len(patch.stored) for frame in frames for patch in frame.patches)
        if sum(self.layout.sizes) > pieces * MAX_BLOCK_BYTES:  # before memory is allocated for it
            raise StoreDamagedError("a saved state has larger buffers than it can fill")
        self.reads: list[Read] = []
        self._full = len(frames) - 1
        self.buffers: list[Bytes] = []
        places = {name: number for number, name in enumerate(self.layout.names)}
        wanted = places.keys() if names is None else places.keys() & set(names)
        self._needed = {
            name: np.ones(count_of(self.layout.sizes[places[name]], BLOCK_BYTES), np.bool_)
            for name in wanted
        }
        self._places = places
        for number, (frame, layout) in enumerate(zip(frames, layouts, strict=True)):
            self._plan(number, frame, layout)
        self.reads.sort(key=lambda read: -read.frame)  # the full frame first, see `fill`
        if missing := [name for name, needed in self._needed.items() if needed.any()]:
            raise StoreDamagedError(f"the saved state has no whole {missing[0]}")
        for name, size in zip(self.layout.names, self.layout.sizes, strict=True):
            self.buffers.append(allocate(size if name in self._needed else 0))

    def _plan(self, number: int, frame: StateFrame, layout: Layout) -> None:
        pieces: list[PackedBlocks] = []
        newer: list[tuple[Mask, Indexes]] = []  # blocks that are not needed from older frames
        for patch in frame.patches:
            if patch.buffer >= len(layout.names):
                raise StoreDamagedError("a saved state names a buffer that it does not have")
            name = layout.names[patch.buffer]
            needed = self._needed.get(name)
            if needed is None or not needed.any():
                continue
            size = layout.sizes[patch.buffer]
            if size != self.layout.sizes[self._places[name]]:
                raise StoreDamagedError(f"the size of {name} changed, and it was not saved whole")
            ranges = decode_ranges(patch.ranges, size)
            if sum(patch.sizes) != int(ranges[:, 1].sum()):
                raise StoreDamagedError("a saved state has more or fewer bytes than changes")
            blocks = _blocks_in(ranges)
            pieces += self._pieces(patch, name, blocks, needed)
            newer.append((needed, blocks))
        for needed, blocks in newer:
            needed[blocks] = False
        self.reads += _side_by_side(number, pieces)

    def _pieces(self, patch: Patch, name: str, blocks: Indexes, needed: Mask) -> list[PackedBlocks]:
        found: list[PackedBlocks] = []
        at, offset = 0, patch.offset
        for place, (stored, length) in enumerate(zip(patch.stored, patch.sizes, strict=True)):
            inside = blocks[at : at + count_of(length, BLOCK_BYTES)]
            at += len(inside)
            wanted = np.flatnonzero(needed[inside])
            if len(wanted):
                digest = patch.digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
                number = self._places[name]
                found.append(PackedBlocks(offset, stored, digest, number, inside, wanted, length))
            offset += stored
        return found

    @property
    def rounds(self) -> tuple[list[Read], list[Read]]:
        """Return the reads: those that may be filled concurrently, then those after them."""
        first = [read for read in self.reads if read.frame == self._full]
        return first, self.reads[len(first) :]

    def land(self, read: Read) -> Landing:
        """Return the memory for a read; `fill` comes next."""
        is_full = read.frame == self._full
        bodies = [self._body_of(piece, is_full=is_full) for piece in read.pieces]
        sizes = [
            piece.stored if body is None else HEAD.size
            for piece, body in zip(read.pieces, bodies, strict=True)
        ]
        rest = np.empty(sum(sizes), np.uint8).data
        landing = Landing(read, [], [])
        begin = at = 0  # what is not a target yet
        for body, size in zip(bodies, sizes, strict=True):
            head = rest[at : at + size]
            at += size
            if body is None:
                landing.parts.append((head,))
            else:
                landing.parts.append((head, body))
                landing.targets.extend((rest[begin:at], body))
                begin = at
        if begin < at:
            landing.targets.append(rest[begin:at])
        return landing

    def _body_of(self, piece: PackedBlocks, *, is_full: bool) -> memoryview | None:
        """Return the part of a buffer that is a raw piece without its head; None: it is none."""
        if piece.size < IN_PLACE_BYTES or piece.stored != piece.size + HEAD.size:
            return None
        target = self._target(piece, is_full=is_full)
        return None if target is None or target.nbytes != piece.size else target.data

    def fill(self, landing: Landing, compressor: Compressor) -> None:
        """Check what was read and unpack it, the reads of the full frame first.  It blocks.

        A piece of the full frame is unpacked whole, blocks that newer frames replace included:
        leaving them out takes five times as long as writing over them.

        Raises:
            StoreDamagedError: the data is not what was saved.
        """
        read = landing.read
        for piece, parts in zip(read.pieces, landing.parts, strict=True):
            digest = xxhash.xxh3_128(parts[0])
            for part in parts[1:]:
                digest.update(part)
            if digest.digest() != piece.digest:
                raise StoreDamagedError(
                    f"{self.layout.names[piece.buffer]} is not what was saved: "
                    f"{piece.stored} bytes at {piece.offset} are damaged"
                )
            if len(parts) == 1 or not is_raw(*parts):
                stored = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
                self._put(piece, stored, compressor, is_full=read.frame == self._full)

    def arrays(
        self, tracker: Tracker | Untracked | None = None
    ) -> tuple[list[object], dict[str, DigestTable]]:
        """Return the arrays over the buffers, and the tables of these.  It blocks.

        Args:
            tracker: Watches the buffers from now on; those that it watches are not hashed.
        """
        tables = {
            name: _watched(buffer, tracker) or make_table(buffer)
            for name, buffer in zip(self.layout.names, self.buffers, strict=True)
        }
        return rebuild(self.views(), self.buffers), tables

    def views(self) -> list[View]:
        """Return the views of the arrays, checked.

        Raises:
            StoreDamagedError: one does not fit its buffer.
        """
        for view in self.layout.views:
            check_view(view, self.layout.sizes)
        return list(self.layout.views)

    def named(self) -> dict[str, object]:
        """Return the first array of each restored buffer, by the buffer's name."""
        found: dict[str, object] = {}
        for view in self.views():
            name = "" if view.buffer is None else self.layout.names[view.buffer]
            if name in self._needed and name not in found:
                found[name] = rebuild([view], self.buffers)[0]
        return found

    def _target(self, piece: PackedBlocks, *, is_full: bool) -> Bytes | None:
        """Return the part of a buffer that a piece fills whole; None: it fills blocks of it."""
        blocks = piece.blocks
        is_run = int(blocks[-1]) - int(blocks[0]) + 1 == len(blocks)
        if not is_run or not (is_full or len(piece.wanted) == len(blocks)):
            return None
        start = int(blocks[0]) * BLOCK_BYTES
        return self.buffers[piece.buffer][start : start + piece.size]

    def _put(
        self, piece: PackedBlocks, stored: memoryview, compressor: Compressor, *, is_full: bool
    ) -> None:
        whole = self._target(piece, is_full=is_full)
        if whole is not None:
            compressor.unpack(stored, whole)
            return
        target, blocks, wanted = self.buffers[piece.buffer], piece.blocks, piece.wanted
        unpacked = compressor.unpacked(stored, piece.size)
        if piece.size % BLOCK_BYTES and int(wanted[-1]) == len(blocks) - 1:  # the short last one
            rest = unpacked[(len(blocks) - 1) * BLOCK_BYTES :]
            at = int(blocks[-1]) * BLOCK_BYTES
            target[at : at + rest.nbytes] = rest
            wanted = wanted[:-1]
        rows = _rows(unpacked)
        _rows(target)[blocks[wanted]] = rows if len(wanted) == len(rows) else rows[wanted]


def _blocks_in(ranges: Ranges) -> Indexes:
    first = ranges[:, 0] // BLOCK_BYTES
    end = first - (-ranges[:, 1] // BLOCK_BYTES)
    return spread(np.stack((first, end), axis=1).astype(np.intp))


def _rows(data: Bytes) -> Bytes:
    """Return the whole blocks."""
    whole = data.nbytes // BLOCK_BYTES
    return data[: whole * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)


def _watched(buffer: Bytes, tracker: Tracker | Untracked | None) -> DigestTable | None:
    """Return the table of a buffer whose later writes the tracker detects; None: it cannot."""
    if not isinstance(tracker, Tracker):
        return None
    answer = tracker.written(buffer)
    if isinstance(answer, Untracked):
        return None
    return attrs.evolve(
        empty_table(buffer.nbytes),
        region=answer.region,
        scan=answer.scan,
        address=address_of(buffer),
    )


def _side_by_side(frame: int, pieces: list[PackedBlocks]) -> list[Read]:
    reads: list[Read] = []
    run: list[PackedBlocks] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if run:
            end = run[-1].offset + run[-1].stored
            if piece.offset != end or end + piece.stored - run[0].offset > READ_BYTES:
                reads.append(_read(frame, run))
                run = []
        run.append(piece)
    if run:
        reads.append(_read(frame, run))
    return reads


def _read(frame: int, run: list[PackedBlocks]) -> Read:
    start = run[0].offset
    return Read(frame, start, run[-1].offset + run[-1].stored - start, tuple(run))
