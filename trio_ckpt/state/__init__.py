"""The state from which a loop resumes: typed values, arrays, and lists that grow as it works."""

from __future__ import annotations

import importlib

from .._util.extras import needs_extra
from ._frontier import (
    Frontier as Frontier,
    FrontierItems as FrontierItems,
    keyed_items as keyed_items,
)
from ._plan import Plan as Plan, check_kind as check_kind, is_of_kind as is_of_kind
from ._tree.delta import diff_tree as diff_tree
from ._tree.format import Tree as Tree, decode_tree as decode_tree, encode_tree as encode_tree
from ._tree.frame import (
    NO_ARRAYS as NO_ARRAYS,
    NO_PARENT as NO_PARENT,
    Layout as Layout,
    StateFrame as StateFrame,
    decode_frame as decode_frame,
    encode_frame as encode_frame,
    frame_digest as frame_digest,
    new_lineage as new_lineage,
    tree_of as tree_of,
)
from ._tree.leaves import StateChangedError as StateChangedError

_OF_MEMORY = frozenset({"array", "empty", "full", "ones", "zeros"})


def __getattr__(name: str) -> object:
    """Import functions for arrays in whole pages lazily, since only they need NumPy."""
    if name in _OF_MEMORY:
        with needs_extra("arrays", f"trio_ckpt.state.{name}"):
            return getattr(importlib.import_module("._arrays.memory", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
