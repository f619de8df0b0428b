"""The state from which a loop resumes: typed values, arrays, and lists that grow as it works.

It makes frames and restores them; it may not know when a state is saved, nor where it is kept.
"""

import typing

from .._util.lazy import lazy_names as _lazy_names

if typing.TYPE_CHECKING:
    from ._arrays.memory import (
        array as array,
        empty as empty,
        full as full,
        ones as ones,
        zeros as zeros,
    )
    from ._frontier import (
        Frontier as Frontier,
        FrontierItems as FrontierItems,
        keyed_items as keyed_items,
    )
    from ._order import Order as Order
    from ._plan import Plan as Plan, check_kind as check_kind, is_of_kind as is_of_kind
    from ._tree.delta import diff_tree as diff_tree
    from ._tree.errors import StateChangedError as StateChangedError
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
else:  # only a loop with a state needs to encode one, and only arrays need NumPy
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_arrays.memory": "array empty full ones zeros",
            "_frontier": "Frontier FrontierItems keyed_items",
            "_order": "Order",
            "_plan": "Plan check_kind is_of_kind",
            "_tree.delta": "diff_tree",
            "_tree.errors": "StateChangedError",
            "_tree.format": "Tree decode_tree encode_tree",
            "_tree.frame": "NO_ARRAYS NO_PARENT Layout StateFrame decode_frame encode_frame "
            "frame_digest new_lineage tree_of",
        },
        extras={"_arrays.memory": "arrays"},
    )
