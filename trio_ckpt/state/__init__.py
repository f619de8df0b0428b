"""What a loop needs to go on: typed state, arrays, and lists that grow while they are worked on."""

from __future__ import annotations

import importlib
from typing import Any

from .._extras import needs_extra
from ._frame import (
    NO_ARRAYS as NO_ARRAYS,
    NO_PARENT as NO_PARENT,
    Frame as Frame,
    Layout as Layout,
    decode_frame as decode_frame,
    encode_frame as encode_frame,
    frame_digest as frame_digest,
    new_lineage as new_lineage,
    tree_of as tree_of,
)
from ._frontier import (
    Frontier as Frontier,
    FrontierItems as FrontierItems,
    keyed_items as keyed_items,
)
from ._leaves import StateChangedError as StateChangedError
from ._plan import Plan as Plan, check_kind as check_kind, is_of_kind as is_of_kind
from ._tagged import Tree as Tree, decode_tree as decode_tree, encode_tree as encode_tree
from ._tree_delta import diff_tree as diff_tree

_OF_MEMORY = frozenset({"array", "empty", "full", "ones", "zeros"})


def __getattr__(name: str) -> Any:
    """Arrays in whole pages, see `trio_ckpt.state._memory`; NumPy is needed only for them."""
    if name in _OF_MEMORY:
        with needs_extra("arrays", f"trio_ckpt.state.{name}"):
            return getattr(importlib.import_module("._memory", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
