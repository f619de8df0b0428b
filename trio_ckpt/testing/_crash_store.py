"""A store in memory in which every call is a point where the program may crash."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from .._journal.store import (
    BlobPayload,
    Checkpoint,
    Fold,
    RunKey,
)
from ..stores import MemoryStore
from ..stores._local.blobs import views_of
from ._crash_points import CrashTrigger
from ._faulty import WrappedStore

Saved = Callable[[RunKey, str, int, bytes], None]  # run, stream, sequence, payload


class CrashStore(WrappedStore):
    """A `MemoryStore` of one session.

    A verb that changes something has a point before it takes effect and one after it, before the
    answer; a save of several streams also has one where a store without a transaction for the
    whole group has saved a part of it, which the contract allows.  Reading has one point.
    """

    def __init__(self, store: MemoryStore, trigger: CrashTrigger, saved: Saved, seed: int) -> None:
        super().__init__(store)
        self._trigger = trigger
        self._saved = saved
        self._chance = random.Random(seed)  # noqa: S311  # repeatable random numbers
        self._blobs: dict[str, bytes] = {}  # put in this session: a record may be one of them

    @asynccontextmanager
    async def lock_run(self, run_id: str) -> AsyncGenerator[int, None]:
        """See `Store.lock_run`."""
        self._before(f"lock_run of {run_id}")
        async with self.handle.lock_run(run_id) as owner:
            await self._after(f"lock_run of {run_id}")
            try:
                yield owner
            finally:
                self._before(f"giving back {run_id}")

    async def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold] = (),
        *,
        summary: bytes | None = None,
    ) -> list[Exception | None]:
        """See `Store.save`."""
        what = f"save of {_describe(group, folds, summary)}"
        self._before(what)
        if len(group) > 1:
            if self._trigger.is_next("store"):
                part = self._part(group)
                outcomes = await self.handle.save(run, part)
                self._note(run, part, outcomes)
            self._trigger.reach("store", "after a part of", what)
        outcomes = await self.handle.save(run, group, folds, summary=summary)
        self._note(run, group, outcomes)
        await self._after(what)
        return outcomes

    def _part(self, group: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Choose a part of a group: of each stream none, or the first ones."""
        keeps: dict[str, bool] = {}
        part: list[Checkpoint] = []
        for checkpoint in group:
            if keeps.get(checkpoint.stream, True):
                keeps[checkpoint.stream] = self._chance.random() < 0.5
                if keeps[checkpoint.stream]:
                    part.append(checkpoint)
        return part

    def _note(
        self, run: RunKey, group: Sequence[Checkpoint], outcomes: Sequence[Exception | None]
    ) -> None:
        self._trigger.check_alive()  # the host may have died during the call
        for checkpoint, outcome in zip(group, outcomes, strict=True):
            if outcome is None:
                blob = checkpoint.blob
                payload = checkpoint.payload if blob is None else self._blobs[blob]
                self._saved(run, checkpoint.stream, checkpoint.sequence, payload)

    async def put_blob(self, run: RunKey, payload: BlobPayload) -> str:
        """See `Store.put_blob`."""
        self._before("put_blob")
        content = b"".join(views_of(payload))
        digest = await self.handle.put_blob(run, content)
        self._blobs[digest] = content
        await self._after("put_blob")
        return digest

    async def aclose(self) -> None:
        """See `Store.aclose`; the world closes the store itself."""
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _before(self, what: str) -> None:
        """Pass the point before a verb takes effect."""
        self._trigger.reach("store", "before", what)

    async def _after(self, what: str) -> None:
        """Pass the point after a verb; other tasks run before a living program gets the answer."""
        self._trigger.reach("store", "after", what)
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._trigger.check_alive()


def _describe(group: Sequence[Checkpoint], folds: Sequence[Fold], summary: bytes | None) -> str:
    """Describe what is saved."""
    if not group:
        return "folds" if folds or summary else "nothing: a look at who owns the run"
    return ", ".join(f"{checkpoint.stream} {checkpoint.sequence}" for checkpoint in group)
