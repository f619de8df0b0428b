"""The state of one stream: captured with its checkpoints, and what it is restored from.

Theory of operation
===================

`StateKeeper.hold` takes the state apart while nobody changes it, and copies what may have
changed in its arrays.  `Hold.pack` makes a frame of that; when the checkpoint with it is
durable, `StateKeeper.landed` makes it what the next one is a difference to.

A failed attempt has changed the state in memory: it is *tainted* until it is restored from
the last confirmed frame.  A state without arrays is restored at once, since its tree is
still in memory; arrays are read back from the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import trio

from ._errors import StoreDamagedError
from ._records import Record
from ._threads import run_blocking
from .abc import Store
from .state import (
    NO_ARRAYS,
    NO_PARENT,
    Frame,
    Layout,
    Plan,
    decode_frame,
    decode_tree,
    diff_tree,
    encode_frame,
    encode_tree,
    frame_digest,
    new_lineage,
    tree_of,
)

if TYPE_CHECKING:
    from .state._arrays import ArrayEngine, Held, Stored
    from .state._tables import Table

S = TypeVar("S")

INLINE_BYTES = 2**18  # of array data: more goes into a blob of its own
DELTA_FROM_BYTES = 2**16  # of the tree: a smaller one is saved whole each time
MAX_DELTAS = 50
SHARE_OF_DEAD = 1.0  # of what is live: with more a chain begins anew


@attrs.frozen(eq=False)
class Kept:
    """A state as the store has it.

    Attributes:
        tree: Without its arrays.
        chain: The frames that it is restored from, the newest first; each with its payload's
            digest.
        tables: What is held of its buffers.
        layout: How its arrays lie in them.
    """

    tree: Any
    tree_bytes: bytes
    chain: tuple[tuple[bytes, Frame], ...]
    tables: dict[str, Table] = attrs.field(factory=dict[str, "Table"])
    layout: Layout = NO_ARRAYS

    @property
    def digest(self) -> bytes:
        """Of its newest frame."""
        return self.chain[0][0]

    @property
    def blobs(self) -> tuple[str, ...]:
        """That its newest frame names."""
        blob = self.chain[0][1].blob
        return (blob,) if blob else ()


@attrs.frozen(eq=False)
class Saved:
    """A state that is being saved.

    Attributes:
        payload: The frame.
        kept: What the store has when it is durable.
    """

    payload: bytes
    kept: Kept


@attrs.define(eq=False)
class StateKeeper(Generic[S]):
    """Keeps the state of one stream.

    Attributes:
        plan: How the state is taken apart.
        state: As the user's loop has it.
        is_tainted: A failed attempt has changed it.
        head: The newest state that the store has, also one of inside a batch.
        confirmed: The newest that a checkpoint of a batch, or between two, has.
        reports: How the arrays were captured the last time, by name.
    """

    store: Store
    plan: Plan[S]
    state: S
    initial: Hold | None = None
    is_tainted: bool = False
    head: Kept | None = None
    confirmed: Kept | None = None
    reports: dict[str, Any] = attrs.field(factory=dict[str, Any])
    _engine: ArrayEngine | None = None

    # -- saving -------------------------------------------------------------------------------

    async def hold(self) -> Hold:
        """Take the state apart; when this returns it may change again.

        Raises:
            NotEncodableError: with the path of the leaf that cannot be saved.

        Cancellation: none.
        """
        flat = self.plan.flatten(self.state)
        if not flat.arrays:
            return Hold(self, flat.tree, None)
        tables = {} if self.head is None else self.head.tables
        with trio.CancelScope(shield=True):
            held = await run_blocking(self._open_engine().hold, flat.arrays, tables)
        return Hold(self, flat.tree, held)

    def _open_engine(self) -> ArrayEngine:
        if self._engine is None:
            from .state._arrays import ArrayEngine  # NumPy is needed by those who have arrays

            self._engine = ArrayEngine()
        return self._engine

    def landed(self, saved: Saved | None, *, is_confirmed: bool) -> None:
        """Take note that a frame is durable; None: that of a state that had not changed."""
        if saved is not None:
            self.head = saved.kept
        if is_confirmed:
            self.confirmed = self.head

    def close(self) -> None:
        """Give the memory for copies back."""
        if self._engine is not None:
            self._engine.close()

    # -- restoring ----------------------------------------------------------------------------

    def taint(self) -> None:
        """Take note that a failed attempt may have changed the state."""
        self.is_tainted = True
        kept = self.confirmed
        if kept is not None and not kept.layout.views:
            self.state = self.plan.build(kept.tree, [])
            self.head, self.is_tainted = kept, False

    async def restore(self) -> None:
        """Make the state again what the last confirmed checkpoint says.

        Cancellation: a state is whole or tainted.
        """
        if self.is_tainted and self.confirmed is not None:
            self.state, tables = await self._build(self.confirmed)
            self.confirmed = self.head = attrs.evolve(self.confirmed, tables=tables)
            self.is_tainted = False

    async def load(self, pages: AsyncIterator[list[tuple[int, Record]]]) -> None:
        """Restore the state that the records of a stream end with.

        Raises:
            StoreDamagedError: a frame is missing or is not what was saved.
        """
        chain = await read_chain(pages)
        if not chain:
            return
        frames = [frame for _, frame in chain]
        tree = tree_of(frames)
        layout = next((frame.layout for frame in frames if frame.layout is not None), NO_ARRAYS)
        kept = Kept(tree, encode_tree(tree), tuple(chain), layout=layout)
        self.state, tables = await self._build(kept)
        self.head = self.confirmed = attrs.evolve(kept, tables=tables)

    async def _build(self, kept: Kept) -> tuple[S, dict[str, Table]]:
        if not kept.layout.views:
            return self.plan.build(kept.tree, []), {}
        from .state._assemble import Assembly  # as above

        frames = [frame for _, frame in kept.chain]
        assembly = Assembly(frames)
        compressor = self._open_engine().compressor
        for read in assembly.reads:
            data = await self._read(frames[read.frame], read.offset, read.size)
            await run_blocking(assembly.fill, read, data, compressor)
        arrays, tables = await run_blocking(assembly.arrays)
        return self.plan.build(kept.tree, arrays), tables

    async def _read(self, frame: Frame, offset: int, size: int) -> bytes:
        if frame.blob:
            return await self.store.read_blob(frame.blob, offset, size)
        return frame.data[offset : offset + size]


@attrs.define(eq=False)
class Hold:
    """A state as it was at one moment."""

    keeper: StateKeeper[Any]
    tree: Any
    held: Held | None

    async def pack(self, *, is_full: bool = False) -> Saved | None:
        """Make a frame of it, its blob durable; None: nothing has changed.

        Raises:
            StoreError: the blob cannot be put.

        Cancellation: none.
        """
        keeper = self.keeper
        head = None if is_full or keeper.head is None or _is_long(keeper.head) else keeper.head
        stored = None
        if self.held is not None:
            with trio.CancelScope(shield=True):
                stored = await run_blocking(self.held.finish)
            keeper.reports = dict(stored.reports)
        encoded = encode_tree(self.tree)
        if head is not None and _is_same(head, encoded, stored):
            return None
        if head is not None and stored is None and len(encoded) < DELTA_FROM_BYTES:
            head = None  # so small that a chain would cost more than it saves
        tree = encoded
        if head is not None:
            delta = diff_tree(head.tree, self.tree)
            tree = b"" if delta is None else encode_tree(delta)
        layout = NO_ARRAYS if stored is None else stored.layout
        pieces = [] if stored is None else stored.pieces
        size = sum(map(len, pieces))
        blob = ""
        if size > INLINE_BYTES:
            with trio.CancelScope(shield=True):
                blob = await run_blocking(_sha256, pieces)
                await keeper.store.put_blob(blob, pieces)
        frame = Frame(
            lineage=new_lineage() if head is None else head.chain[0][1].lineage,
            number=0 if head is None else head.chain[0][1].number + 1,
            parent=NO_PARENT if head is None else head.digest,
            tree=tree,
            layout=None if head is not None and layout == head.layout else layout,
            patches=() if stored is None else stored.patches,
            data=b"" if blob else b"".join(pieces),
            blob=blob,
            data_bytes=size,
        )
        payload = encode_frame(frame)
        link = (frame_digest(payload), frame)
        return Saved(
            payload,
            Kept(
                self.tree,
                encoded,
                (link, *(() if head is None else head.chain)),
                {} if stored is None else stored.tables,
                layout,
            ),
        )

    def release(self) -> None:
        """Give the copies back: it is not to be saved."""
        if self.held is not None:
            self.held.release()


def _is_same(head: Kept, encoded: bytes, stored: Stored | None) -> bool:
    if encoded != head.tree_bytes:
        return False
    return stored is None or (not stored.patches and stored.layout == head.layout)


def _is_long(kept: Kept) -> bool:
    """Whether a chain has so many frames, or so much in them is dead, that it begins anew."""
    sizes = [frame.data_bytes + len(frame.tree) for _, frame in kept.chain]
    live = sizes[-1]
    return (
        len(kept.chain) > MAX_DELTAS
        or sum(sizes[:-1]) > max(live, DELTA_FROM_BYTES) * SHARE_OF_DEAD
    )


def _sha256(pieces: Sequence[bytes]) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


async def read_chain(
    pages: AsyncIterator[list[tuple[int, Record]]],
) -> list[tuple[bytes, Frame]]:
    """The frames that a stream's state is restored from, the newest first.

    Args:
        pages: Its records, newest first.

    Raises:
        StoreDamagedError: one is missing.
    """
    chain: list[tuple[bytes, Frame]] = []
    wanted: bytes | None = None  # the digest of the next; None: whatever is newest
    number = 0
    async for records in pages:
        for _, record in records:
            if chain and chain[-1][1].is_full:
                return chain
            if record.taken is not None and record.taken.resets_state and not chain:
                return []
            if not record.state:
                continue
            digest = frame_digest(record.state)
            if wanted is not None and digest != wanted:
                continue
            frame = decode_frame(record.state)
            if chain and (frame.number, frame.lineage) != (number - 1, chain[0][1].lineage):
                raise StoreDamagedError("a saved state follows one that it does not belong to")
            chain.append((digest, frame))
            wanted, number = frame.parent, frame.number
    if chain and not chain[-1][1].is_full:
        raise StoreDamagedError(
            f"the state that {len(chain)} saved ones build on is missing: number {number - 1}"
        )
    return chain
