"""A state as it was at one moment, and the frame that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

import attrs
import trio

from .._journal.store import Store
from .._util.threads import run_blocking
from ..state import (
    NO_ARRAYS,
    NO_PARENT,
    StateFrame,
    Tree,
    diff_tree,
    encode_frame,
    encode_tree,
    frame_digest,
    new_lineage,
)
from .group_commit import GroupCommitter
from .stored_state import DELTA_FROM_BYTES, EncodedState, StoredState, is_unchanged

if TYPE_CHECKING:
    from ..state._arrays.engine import ArrayCapture, EncodedArrays, Piece

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

INLINE_BYTES = 2**18  # of array data, or the store's limit: more goes into a blob of its own


class CaptureHost(Protocol):
    """What a captured state asks of its state manager."""

    store: Store
    committer: GroupCommitter
    reports: dict[str, Any]

    async def beside(self, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function on a tree, in a thread if the last tree was large."""
        ...


@attrs.define(eq=False, repr=False)
class StateCapture:
    """A state as it was at one moment.

    Attributes:
        state_manager: The state manager that captured it.
        base: The state that it is encoded against; None: it begins a chain.
        tree: The state without its arrays.
        held: Copies of what may have changed in the arrays.
    """

    state_manager: CaptureHost
    base: StoredState | None
    tree: Any
    held: ArrayCapture | None

    async def encode(self, *, is_forced: bool = False) -> EncodedState | None:
        """Make a frame of it, with its blob durable; None: the state has not changed.

        Args:
            is_forced: Whether to make a frame also of an unchanged state.

        Raises:
            StoreError: the blob cannot be written.

        Durability: when this returns the blob of the frame is durable.
        Cancellation: none.
        """
        held = self.held
        if held is None:
            return await self._frame(None, b"", "", is_forced=is_forced)
        try:
            data, blob, stored = b"", "", None
            with trio.CancelScope(shield=True):
                data, blob = await self._put(held)
                stored = await run_blocking(held.stored)
                self.state_manager.reports = stored.reports
            return await self._frame(stored, data, blob, is_forced=is_forced)
        finally:
            held.release()

    async def _put(self, held: ArrayCapture) -> tuple[bytes, str]:
        """What changed in arrays: the bytes if they are few, else the name of a blob with them."""
        pieces = held.pieces()
        limit = min(INLINE_BYTES, self.state_manager.store.inline_limit_bytes)
        first = await run_blocking(_take_first, pieces, limit)
        if sum(map(len, first)) > limit:
            return b"", await self.state_manager.committer.put_blob(chain(first, pieces))
        return b"".join(first), ""

    async def _frame(
        self, stored: EncodedArrays | None, data: bytes, blob: str, *, is_forced: bool
    ) -> EncodedState | None:
        """Make the frame, of a tree and of arrays whose data is encoded already."""
        state_manager, head = self.state_manager, self.base
        encoded = await state_manager.beside(encode_tree, self.tree)
        if head is not None and not is_forced and is_unchanged(head, encoded, stored):
            return None
        if stored is None and len(encoded) < DELTA_FROM_BYTES:
            head = None  # so small that a chain would cost more than it saves
        tree = encoded
        if head is not None:
            is_same = encoded == head.tree_bytes
            tree = (
                b"" if is_same else await state_manager.beside(_encode_delta, head.tree, self.tree)
            )
        layout = NO_ARRAYS if stored is None else stored.layout
        frame = StateFrame(
            lineage=new_lineage() if head is None else head.chain[0][1].lineage,
            number=0 if head is None else head.chain[0][1].number + 1,
            parent=NO_PARENT if head is None else head.digest,
            tree=tree,
            layout=None if head is not None and layout == head.layout else layout,
            patches=() if stored is None else stored.patches,
            data=data,
            blob=blob,
            data_bytes=0 if stored is None else stored.nbytes,
        )
        payload = encode_frame(frame)
        link = (frame_digest(payload), frame)
        return EncodedState(
            payload,
            StoredState(
                self.tree,
                encoded,
                (link, *(() if head is None else head.chain)),
                {} if stored is None else stored.tables,
                layout,
            ),
        )


def _take_first(pieces: Iterator[Piece], limit: int) -> list[Piece]:
    """Take pieces until their size is over `limit`, or none is left."""
    first: list[Piece] = []
    size = 0
    while size <= limit and (piece := next(pieces, None)) is not None:
        first.append(piece)
        size += len(piece)
    return first


def _encode_delta(old: Tree, new: Tree) -> bytes:
    delta = diff_tree(old, new)
    return b"" if delta is None else encode_tree(delta)
