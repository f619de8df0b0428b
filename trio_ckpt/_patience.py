"""Time limits that count only while this process runs.

A laptop that sleeps, a container that is paused and a process that gets SIGSTOP wake with all
deadlines passed, and what they waited for was stopped with them.  So a limit is in two parts: a
wait that is not over after the first is looked at once more, `LOOK_AGAIN_S` later, and given up
only then.  Whatever stopped the process took one of the two parts, and left the other.

One task in each trio run sees to all limits, and sleeps until the next one is over.  So a limit
costs no timer of its own, and a wait that ends in time wakes nothing.
"""

from __future__ import annotations

import math
from types import TracebackType

import attrs
import trio

LOOK_AGAIN_S = 5.0  # a disk that was stopped within a write ends it in this time


def give_up_after(limit_s: float) -> Limit:
    """A block that is cancelled when it takes longer than a limit, and only then.

    Args:
        limit_s: In seconds of trio's clock, of which the last `LOOK_AGAIN_S` (of a short limit
            the second half) begin only when this process runs.
    """
    return Limit(_the_watch(), limit_s, min(LOOK_AGAIN_S, limit_s / 2))


@attrs.define(eq=False)
class Limit:
    """What `give_up_after` gives; entered, it is a shielded `trio.CancelScope`.

    Attributes:
        scope: That.
        again_s: How long its second part is, in seconds.
        deadline: When the part that is under way is over.
        is_second: Whether that is the second.
    """

    _watch: _Watch
    _limit_s: float
    again_s: float
    scope: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True), init=False)
    deadline: float = attrs.field(default=math.inf, init=False)
    is_second: bool = attrs.field(default=False, init=False)

    def __enter__(self) -> trio.CancelScope:
        self.deadline = trio.current_time() + self._limit_s - self.again_s
        self._watch.add(self)
        return self.scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._watch.out.discard(self)
        return self.scope.__exit__(kind, error, traceback)


@attrs.define(eq=False)
class _Watch:
    """The limits of one trio run.

    Attributes:
        out: Those that are under way.
    """

    out: set[Limit] = attrs.field(factory=set[Limit])
    _nap: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def add(self, limit: Limit) -> None:
        self.out.add(limit)
        self._nap.deadline = min(self._nap.deadline, limit.deadline)

    async def run(self) -> None:
        """See to the limits until trio ends.

        Cancellation: ends it.
        """
        while True:
            deadlines = (limit.deadline for limit in self.out)
            self._nap = trio.CancelScope(deadline=min(deadlines, default=math.inf))
            with self._nap:
                await trio.sleep_forever()
            now = trio.current_time()
            for limit in [limit for limit in self.out if limit.deadline <= now]:
                if limit.is_second:
                    self.out.discard(limit)
                    limit.scope.cancel()
                limit.is_second, limit.deadline = True, now + limit.again_s


_watch: trio.lowlevel.RunVar[_Watch] = trio.lowlevel.RunVar("trio_ckpt limits")


def _the_watch() -> _Watch:
    try:
        return _watch.get()
    except LookupError:
        watch = _Watch()
        _watch.set(watch)
        trio.lowlevel.spawn_system_task(watch.run)
        return watch
