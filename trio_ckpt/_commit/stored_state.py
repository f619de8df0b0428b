"""A state as a store has it, and what the next one is a difference to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..state import NO_ARRAYS, Layout, StateFrame, encode_tree, tree_of
from ..state._chain import layout_of

if TYPE_CHECKING:
    from ..state._arrays.engine import DigestTable, EncodedArrays

DELTA_FROM_BYTES = 2**16  # of the tree: a smaller one is saved whole each time
SHARE_OF_DEAD = 1.0  # of what is live: with more a chain begins anew


@attrs.frozen(eq=False)
class StoredState:
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
    chain: tuple[tuple[bytes, StateFrame], ...]
    tables: dict[str, DigestTable] = attrs.field(factory=dict[str, "DigestTable"])
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
class EncodedState:
    """A state that is being saved.

    Attributes:
        payload: The frame.
        kept: What the store has when it is durable.
    """

    payload: bytes
    kept: StoredState


def is_unchanged(head: StoredState, encoded: bytes, stored: EncodedArrays | None) -> bool:
    """Whether a state is the one that the store has: its tree, and what is new of its arrays."""
    if encoded != head.tree_bytes:
        return False
    return stored is None or (not stored.patches and stored.layout == head.layout)


def is_long(kept: StoredState, max_deltas: int) -> bool:
    """Whether a chain has so many frames, or so much in them is dead, that a new one begins."""
    sizes = [frame.data_bytes + len(frame.tree) for _, frame in kept.chain]
    live = sizes[-1]
    return (
        len(kept.chain) > max_deltas
        or sum(sizes[:-1]) > max(live, DELTA_FROM_BYTES) * SHARE_OF_DEAD
    )


def kept_of(chain: Sequence[tuple[bytes, StateFrame]]) -> StoredState:
    """The state that a chain of frames is restored to, the newest first."""
    frames = [frame for _, frame in chain]
    tree = tree_of(frames)
    return StoredState(tree, encode_tree(tree), tuple(chain), layout=layout_of(frames))
