"""A state as the store has it: what the next one is compared with, and when a chain is long."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from trio_ckpt._commit.stored_state import (
    DELTA_FROM_BYTES,
    StoredState,
    is_long,
    is_unchanged,
    stored_state_of,
)
from trio_ckpt.state import NO_ARRAYS, Layout, StateFrame, encode_tree


def frame(number: int, *, tree: bytes = b"", data_bytes: int = 0, blob: str = "") -> StateFrame:
    return StateFrame(
        lineage=b"l",
        number=number,
        parent=b"p" if number else b"",
        tree=tree,
        layout=None if number else NO_ARRAYS,
        data_bytes=data_bytes,
        blob=blob,
    )


def stored(*frames: StateFrame, tree: Any = 0) -> StoredState:
    """A stored state with these frames, the newest first."""
    chain = tuple((hashlib.sha256(bytes([one.number])).digest(), one) for one in frames)
    return StoredState(tree, encode_tree(tree), chain)


def test_the_newest_frame_names_the_state() -> None:
    state = stored(frame(1, blob="b" * 64), frame(0, blob="a" * 64))
    assert state.digest == state.chain[0][0]
    assert state.blobs == ("b" * 64,)
    assert stored(frame(1), frame(0, blob="a" * 64)).blobs == ()


def test_a_state_without_arrays_is_unchanged_if_its_tree_is() -> None:
    head = stored(frame(0), tree={"a": 1})
    assert is_unchanged(head, encode_tree({"a": 1}), None)
    assert not is_unchanged(head, encode_tree({"a": 2}), None)


@pytest.mark.parametrize(
    ("has_patches", "layout", "is_same"),
    [
        (False, NO_ARRAYS, True),
        (True, NO_ARRAYS, False),
        (False, Layout(("a",), (8,)), False),
    ],
)
def test_a_state_with_arrays_is_unchanged_if_none_has_moved(
    has_patches: bool, layout: Layout, is_same: bool
) -> None:
    class Arrays:
        patches = ("a block",) if has_patches else ()

    arrays: Any = Arrays()
    arrays.layout = layout
    head = stored(frame(0))
    assert is_unchanged(head, head.tree_bytes, arrays) is is_same
    assert not is_unchanged(head, b"another tree", arrays)


def test_a_chain_is_long_by_its_number_of_frames() -> None:
    state = stored(frame(2), frame(1), frame(0))
    assert not is_long(state, max_deltas=3)
    assert is_long(state, max_deltas=2)


def test_a_chain_is_long_by_its_dead_bytes() -> None:
    live = 2 * DELTA_FROM_BYTES
    at_limit = stored(frame(1, data_bytes=live), frame(0, data_bytes=live))
    assert not is_long(at_limit, max_deltas=100)
    assert is_long(stored(frame(1, data_bytes=live + 1), frame(0, data_bytes=live)), 100)
    small = stored(frame(1, tree=bytes(DELTA_FROM_BYTES)), frame(0, data_bytes=1))
    assert not is_long(small, 100)  # a chain of small frames costs less than a new one


def test_a_chain_is_kept_with_the_tree_it_restores_to() -> None:
    full = frame(0, tree=encode_tree({"a": [1, 2]}))
    kept = stored_state_of([(b"newest", frame(1)), (b"first", full)])
    assert kept.tree == {"a": [1, 2]}
    assert kept.tree_bytes == full.tree
    assert kept.digest == b"newest"
    assert kept.layout == NO_ARRAYS
