"""Who owns a run: how the store is asked, with which generation, and when it last answered.

A save of nothing asks who owns the run, and renews the lease.  It names a generation, and one
that the store does not have yet would be begun by it, without the record that says which outputs
are still to be archived.  So the store is asked with the newest generation that is saved.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from .._journal.store import Checkpoint, Fold, RunKey, Store
from .._util.errors import StoreConflictError
from .._util.patience import give_up_after


@attrs.define(eq=False, repr=False)
class Ownership:
    """That this process owns a run, as far as the store has said so.

    The committers of two generations share it while the next one begins.

    Attributes:
        run_key: The newest generation that is saved, and the owner.
        owned_at: When the store was last asked who owns the run, and answered; trio's clock.
    """

    _store: Store
    run_key: RunKey
    owned_at: float = -math.inf
    _beginning: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _asking: set[trio.CancelScope] = attrs.field(factory=set[trio.CancelScope], init=False)

    def answered(self, asked_at: float) -> None:
        """Note that the store has answered a question, or a save, that was sent at a time."""
        self.owned_at = asked_at

    def saving(self, run_key: RunKey) -> Callable[..., Awaitable[list[Exception | None]]]:
        """Return what saves records of a generation: `Store.save`, or what begins the next one."""
        is_new = self.run_key.generation < run_key.generation
        return self._begin if is_new else self._store.save

    async def _begin(
        self,
        run_key: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        *,
        summary: bytes | None,
    ) -> list[Exception | None]:
        async with self._beginning:
            outcomes = await self._store.save(run_key, group, folds, summary=summary)
            self.run_key = run_key
            return outcomes

    async def ask(self, limit_s: float) -> bool:
        """Ask the store who owns the run, which renews the lease.

        Args:
            limit_s: How long to wait for the answer, in seconds.

        Returns:
            Whether it has answered that this process does.

        Raises:
            StoreConflictError: another process has taken it over.
            StoreError: the store cannot answer.

        Cancellation: only by `give_up` and `hurry`: a store may keep the lock of the run after
            a question that was abandoned.
        """
        with give_up_after(limit_s) as scope:
            self._asking.add(scope)
            try:
                await self._ask()
                return True
            finally:
                self._asking.discard(scope)
        return False

    async def _ask(self) -> None:
        while True:
            asked_at, run_key = trio.current_time(), self.run_key  # the answer is as old as that
            try:
                await self._store.save(run_key, [])
            except StoreConflictError:
                async with self._beginning:  # the first save of the next one may have overtaken it
                    if self.run_key is run_key:
                        raise
            else:
                self.answered(asked_at)
                return

    def hurry(self, limit_s: float) -> None:
        """Give the questions that are out so many seconds more at most."""
        for scope in self._asking:
            scope.deadline = trio.current_time() + limit_s

    def give_up(self) -> None:
        """Abandon the questions that are out."""
        for scope in self._asking:
            scope.cancel()
