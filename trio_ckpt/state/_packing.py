"""What changed, packed on its way into a blob.

Theory of operation
===================

Three things are done to every chunk: it is packed, the packed bytes are hashed for its piece
(XXH3, to be looked at when it is read) and for the name of the blob (SHA-256, in the order of
the pieces).  The last takes the longest by far.  So for what is large one thread packs and one
names, while whoever calls `Packing.add` looks for the next changes.

What does not get smaller is not copied: it stays in the slabs of the arena until
`Packing.release`, after it is written.  Where the arena has no room for that, `settle` copies.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import attrs
import xxhash

from ._compress import Compressor
from ._frame import Patch
from ._memory import Bytes
from ._parts import Changes
from ._patches import encode_ranges

THREADS_FROM_BYTES = 2**23  # less is packed before threads have begun
PACKERS = 1  # naming takes longer than packing what stays raw; each thread asks for the GIL, too

Piece = bytes | memoryview


@attrs.frozen(eq=False)
class _Packed:
    """One chunk as it is stored."""

    head: bytes
    body: Piece
    digest: bytes

    @property
    def nbytes(self) -> int:
        return len(self.head) + len(self.body)


@attrs.define(eq=False)
class _Waiting:
    """The chunks of one part of a buffer that are being packed."""

    buffer: int
    changes: Changes
    packed: list[Future[_Packed]]


class Packing:
    """Packs the changes of one save, in the order in which they come.

    Args:
        compressor: What packs them.
        nbytes: How much may come, to know whether threads pay.

    Attributes:
        patches: What has come.
        pieces: The same, packed, one after the other; as long as it is not released.
    """

    def __init__(self, compressor: Compressor, nbytes: int) -> None:
        self.patches: list[Patch] = []
        self.pieces: list[Piece] = []
        self._compressor = compressor
        self._packers = self._namer = None
        if nbytes >= THREADS_FROM_BYTES:
            self._packers = ThreadPoolExecutor(PACKERS, "trio_ckpt packs")
            self._namer = ThreadPoolExecutor(1, "trio_ckpt names")
        self._name = hashlib.sha256()
        self._named: Future[None] | None = None  # when all that was taken is hashed
        self._waiting: deque[_Waiting] = deque()
        self._kept: list[Changes] = []  # whose slabs are out
        self._offset = 0

    def add(self, buffer: int, changes: Changes, itemsize: int) -> None:
        """Pack what changed in a part of a buffer."""
        self._kept.append(changes)  # first: they are given back also if packing fails
        packed = [self._submit(chunk, itemsize) for chunk in changes.chunks]
        self._waiting.append(_Waiting(buffer, changes, packed))
        while len(self._waiting) > 1:  # the newest is packed while the caller goes on
            self._take(self._waiting.popleft(), is_copied=False)

    def settle(self) -> None:
        """Wait for what was added, copy what is in the arena yet and give its memory back."""
        while self._waiting:
            self._take(self._waiting.popleft(), is_copied=True)
        if self._named is not None:
            self._named.result()  # it reads what is about to go
        self.pieces = [bytes(piece) for piece in self.pieces]
        self.release()

    def finish(self) -> str:
        """Wait for all; the name of the blob, its SHA-256 in hexadecimal."""
        while self._waiting:
            self._take(self._waiting.popleft(), is_copied=False)
        self.close()
        return self._name.hexdigest()

    def close(self) -> None:
        """Let the threads end, when they have done what was asked of them."""
        for pool in (self._packers, self._namer):
            if pool is not None:
                pool.shutdown()

    def release(self) -> None:
        """Give the arena its memory back: the pieces are not to be used any more."""
        for changes in self._kept:
            changes.release()
        self._kept = []

    def _submit(self, chunk: Bytes, itemsize: int) -> Future[_Packed]:
        if self._packers is not None:
            return self._packers.submit(self._pack, chunk, itemsize)
        done: Future[_Packed] = Future()
        done.set_result(self._pack(chunk, itemsize))
        return done

    def _pack(self, chunk: Bytes, itemsize: int) -> _Packed:
        head, body = self._compressor.pack_parts(chunk, itemsize)
        digest = xxhash.xxh3_128(head)
        digest.update(body)
        return _Packed(head, body, digest.digest())

    def _take(self, waiting: _Waiting, *, is_copied: bool) -> None:
        changes = waiting.changes
        packed = [future.result() for future in waiting.packed]
        stored = tuple(each.nbytes for each in packed)
        self.patches.append(
            Patch(
                buffer=waiting.buffer,
                ranges=encode_ranges(changes.ranges),
                offset=self._offset,
                stored=stored,
                sizes=tuple(chunk.nbytes for chunk in changes.chunks),
                digests=b"".join(each.digest for each in packed),
            )
        )
        self._offset += sum(stored)
        for each in packed:
            body = bytes(each.body) if is_copied else each.body
            self.pieces += (each.head, body)
            self._hash(each.head, body)

    def _hash(self, head: bytes, body: Piece) -> None:
        if self._namer is None:
            self._name.update(head)
            self._name.update(body)
        else:
            self._namer.submit(self._name.update, head)
            self._named = self._namer.submit(self._name.update, body)
