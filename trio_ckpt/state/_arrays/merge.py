"""Buffers that were read back, on their way into a frame of their own: a chain merged into one.

No array is built, so what made them (torch, jax) need not be installed.
"""

from __future__ import annotations

from .buffers import Buffer, Collected, View
from .engine import ArrayCapture, ArrayEngine
from .restore import Assembly


def hold_assembled(engine: ArrayEngine, assembly: Assembly) -> ArrayCapture:
    """Copies of all buffers of an assembly that is filled.  For a thread.

    Raises:
        StoreDamagedError: what was saved of the arrays is not sound.
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
