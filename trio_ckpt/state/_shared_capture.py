"""The tools for capturing arrays, shared by all streams of a run.

Theory of operation
===================

A staging arena is a mapping, a dirty-page tracker two file descriptors; with one of each for
every stream, some hundreds of streams would reach the limits of a process.  So a run has one of
each, made when the first of its streams has an array, and closed with the run.  The limit of the
arena is for all streams together.

Arrays are copied into the arena one state at a time.  A copying thread may wait for memory to be
released; the states that hold it are being packed and written, in other threads, and need no
more.  Two copying threads could wait for each other, and many could take all threads of
`run_blocking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from .._util.extras import needs_extra
from .._util.threads import run_blocking

if TYPE_CHECKING:
    from ._arrays.engine import ArrayCapture, ArrayEngine, DigestTable
    from ._tree.flatten import Flat
    from ._tree.identity import ArrayLeaf


@attrs.define(eq=False, repr=False)
class ArrayTools:
    """The arena, the tracker and the compressor of a run.

    Attributes:
        archiving: Held by the stream whose old states are being archived.
    """

    archiving: trio.Lock = attrs.field(factory=trio.Lock)

    _engine: ArrayEngine | None = None
    _copying: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def is_open(self) -> bool:
        """Whether any stream has had an array."""
        return self._engine is not None

    def engine(self) -> ArrayEngine:
        """Return the engine, made at the first call.

        Raises:
            MissingExtraError: the extra that arrays need is not installed.
        """
        if self._engine is None:
            with needs_extra("arrays", "a state with arrays"):
                from ._arrays.engine import ArrayEngine  # only programs with arrays need NumPy
            self._engine = ArrayEngine()
        return self._engine

    async def hold(
        self, leaves: Sequence[ArrayLeaf], tables: Mapping[str, DigestTable]
    ) -> ArrayCapture:
        """Copy what may have changed since `tables`; see `ArrayEngine.hold`.

        Raises:
            NotEncodableError: an array cannot be saved; the message has its path.

        Cancellation: the caller shields it, since a cancelled copy would lose its memory; it
            waits a bounded time, because saves end within their timeout.
        """
        engine = self.engine()
        async with self._copying:
            return await run_blocking(engine.hold, leaves, tables)

    async def copies(self, flat: Flat) -> list[object]:
        """Return the arrays of a state in memory of their own, but those of stateful objects.

        Raises:
            NotEncodableError: an array cannot be saved; the message has its path.

        Cancellation: nothing is kept of a cancelled copy.
        """
        arrays: list[object] = [leaf.value for leaf in flat.arrays]
        own = [number for number in range(len(arrays)) if number not in flat.given]
        if own:
            leaves = [flat.arrays[number] for number in own]
            copies = await run_blocking(self.engine().copies, leaves)
            for number, copy in zip(own, copies, strict=True):
                arrays[number] = copy
        return arrays

    def close(self) -> None:
        """Release all resources; the caller captures nothing any more."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
