"""What capturing arrays needs, once for all streams of a run.

Theory of operation
===================

A staging arena is a mapping, a dirty-page tracker two file descriptors; with some of each for
every stream, some hundreds of streams use up what a process may have.  So a run has one of
each, made when the first of its streams has an array, closed with the run.  What the arena
may hold is then for all streams together.

Arrays are copied into the arena one state at a time.  Who copies may wait for memory to come
back; those who have it are being packed and written, in other threads of trio's, and ask for
none.  Two that copy could wait for each other, and many could take all threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from .._util.extras import needs_extra
from .._util.threads import run_blocking
from ._tree.identity import ArrayLeaf

if TYPE_CHECKING:
    from ._arrays.engine import ArrayCapture, ArrayEngine, DigestTable


@attrs.define(eq=False)
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
        """The same each time; made at the first.

        Raises:
            MissingExtraError: what arrays need is not installed.
        """
        if self._engine is None:
            with needs_extra("arrays", "a state with arrays"):
                from ._arrays.engine import ArrayEngine  # NumPy is needed by those who have arrays
            self._engine = ArrayEngine()
        return self._engine

    async def hold(
        self, leaves: Sequence[ArrayLeaf], tables: Mapping[str, DigestTable]
    ) -> ArrayCapture:
        """Copy what may have changed since `tables`; see `ArrayEngine.hold`.

        Raises:
            NotEncodableError: with the path of an array that cannot be saved.

        Cancellation: the caller shields it, or a copy might be lost with its memory; that
            comes back in bounded time, as saves end in it.
        """
        engine = self.engine()
        async with self._copying:
            return await run_blocking(engine.hold, leaves, tables)

    def close(self) -> None:
        """Give everything back; nobody captures any more."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
