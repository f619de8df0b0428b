"""Acts on a run from the page and over REST: those of ``trio-ckpt ctl``, on record as these are."""

from __future__ import annotations

from typing import Any

import attrs

from .._journal.acts import ActRefusedError, new_act
from .._maintenance.steer import steer
from .._util.index_set import IndexSet
from .._util.plain import StreamKey
from ._answers import Done
from ._jobs import NotPossibleError
from ._sources import CoordinatorSource, RunSource, WatchedSource

ACTOR = "the monitor"  # on record as the user: it does not know who has its secret for actions


@attrs.frozen
class RunActs:
    """The acts on the runs of one source.

    Attributes:
        source: Where the monitor looks.
    """

    source: WatchedSource

    async def pause(self, run_id: str, *, why: str) -> Done:
        """Hand out nothing more until `resume`."""
        return await self._do(run_id, "pause", why=why)

    async def resume(self, run_id: str, *, why: str) -> Done:
        """Lift a pause."""
        return await self._do(run_id, "resume", why=why)

    async def stop(self, run_id: str, *, why: str) -> Done:
        """Stop a run in good order: open batches are saved, and the next start goes on."""
        source = self.source
        if not isinstance(source, RunSource):
            return await self._do(run_id, "stop", why=why)
        await source.snapshot(run_id)  # in its own process the run is stopped in any store
        source.run.request_stop()
        return Done(done="the run stops when its open batches are saved", count=1)

    async def snapshot(self, run_id: str, *, why: str) -> Done:
        """Have open batches save a snapshot at their next point."""
        return await self._do(run_id, "snapshot", why=why)

    async def requeue(
        self, run_id: str, *, stream: StreamKey, first: int, last: int | None, why: str
    ) -> Done:
        """Re-queue batches that are skipped or confirmed."""
        return await self._change(run_id, "requeue", stream, first, last, why)

    async def skip(
        self, run_id: str, *, stream: StreamKey, first: int, last: int | None, why: str
    ) -> Done:
        """Give batches up that are left."""
        return await self._change(run_id, "skip", stream, first, last, why)

    async def concurrency(self, run_id: str, *, count: int, why: str) -> Done:
        """Change how many workers `run_batches` has."""
        return await self._do(run_id, "concurrency", why=why, count=count)

    async def limit(self, run_id: str, *, name: str, most: str, why: str) -> Done:
        """Change what the run may spend."""
        amount = float(most) if "." in most else int(most)
        return await self._do(run_id, "limit", why=why, amounts={name: amount})

    async def _change(
        self, run_id: str, do: Any, stream: StreamKey, first: int, last: int | None, why: str
    ) -> Done:
        stop = 1 + (first if last is None else last)
        if stop <= first:
            raise NotPossibleError(f"there is no batch from {first} to {last}")
        indexes = IndexSet.from_steps((first, stop - first))
        done = await self._do(run_id, do, why=why, stream=stream, indexes=indexes)
        return Done(done=done.done, count=len(indexes))

    async def _do(self, run_id: str, do: Any, **about: Any) -> Done:
        """Do an act.

        Raises:
            NotPossibleError: it was not done; the message says why.
        """
        if isinstance(self.source, CoordinatorSource):
            raise NotPossibleError("these are tokens of a coordinator: they have no records")
        await self.source.snapshot(run_id)
        try:
            reply = await steer(self.source.store, run_id, new_act(do, ACTOR, **about))
        except (ActRefusedError, ValueError) as error:
            raise NotPossibleError(str(error)) from error
        return Done(done=reply.text, count=1)
