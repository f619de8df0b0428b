"""Merges a chain of frames into one: buffers that were read back are captured again.

No array is built, so the libraries of the arrays (torch, jax) need not be installed.
"""

from __future__ import annotations

from .buffers import Buffer, Collected, View
from .engine import ArrayCapture, ArrayEngine
from .restore import Assembly


def hold_assembled(engine: ArrayEngine, assembly: Assembly) -> ArrayCapture:
    """Return copies of all buffers of a filled assembly.  It blocks.

    Raises:
        StoreDamagedError: the saved arrays are inconsistent.
    """
    layout = assembly.layout
    views = [View.from_plain(view, layout.sizes) for view in layout.views]
    itemsizes: dict[int, int] = {}
    for view in views:
        if view.buffer is not None:
            itemsizes.setdefault(view.buffer, view.itemsize)
    buffers = [
        Buffer(data, None, None, is_copy=True, itemsize=itemsizes.get(number, 1))
        for number, data in enumerate(assembly.buffers)
    ]
    held = ArrayCapture(Collected(buffers, views), layout.names, engine)
    try:
        for number in range(len(buffers)):
            held.add(number, None)
    except BaseException:
        held.release()
        raise
    return held
