"""A state as the store has it: the base that the next state is encoded against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..state import NO_ARRAYS, Layout, StateFrame, encode_tree, tree_of
from ..state._chain import layout_of

if TYPE_CHECKING:
    from ..state._arrays.engine import DigestTable, EncodedArrays

DELTA_FROM_BYTES = 2**16  # size of the tree: a smaller one is saved whole each time
SHARE_OF_DEAD = 1.0  # dead bytes per live byte: with more a new chain begins


@attrs.frozen(eq=False, repr=False)
class StoredState:
    """A state as the store has it.

    Attributes:
        tree: The state without its arrays.
        tree_bytes: The encoded tree.
        chain: The frames that it is restored from, the newest first; each with its payload's
            digest.
        tables: Digest tables of its buffers, by name.
        layout: How its arrays lie in the buffers.
    """

    tree: Any
    tree_bytes: bytes
    chain: tuple[tuple[bytes, StateFrame], ...]
    tables: dict[str, DigestTable] = attrs.field(factory=dict[str, "DigestTable"])
    layout: Layout = NO_ARRAYS

    @property
    def digest(self) -> bytes:
        """The digest of its newest frame."""
        return self.chain[0][0]

    @property
    def blobs(self) -> tuple[str, ...]:
        """The blobs that its newest frame names."""
        blob = self.chain[0][1].blob
        return (blob,) if blob else ()


@attrs.frozen(eq=False, repr=False)
class EncodedState:
    """A state that is being saved.

    Attributes:
        payload: The encoded frame.
        stored: The stored state when the frame is durable.
    """

    payload: bytes
    stored: StoredState


def is_unchanged(head: StoredState, encoded: bytes, stored: EncodedArrays | None) -> bool:
    """Whether a state equals the stored one: the same tree, and no array has changed."""
    if encoded != head.tree_bytes:
        return False
    return stored is None or (not stored.patches and stored.layout == head.layout)


def is_long(kept: StoredState, max_deltas: int) -> bool:
    """Whether a chain has too many frames, or too many dead bytes, so that a new one begins."""
    sizes = [frame.data_bytes + len(frame.tree) for _, frame in kept.chain]
    live = sizes[-1]
    return (
        len(kept.chain) > max_deltas
        or sum(sizes[:-1]) > max(live, DELTA_FROM_BYTES) * SHARE_OF_DEAD
    )


def stored_state_of(chain: Sequence[tuple[bytes, StateFrame]]) -> StoredState:
    """The stored state that a chain of frames, newest first, restores to."""
    frames = [frame for _, frame in chain]
    tree = tree_of(frames)
    return StoredState(tree, encode_tree(tree), tuple(chain), layout=layout_of(frames))
