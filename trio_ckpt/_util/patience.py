"""Time limits that count only while this process runs.

A laptop that sleeps, a container that is paused and a process that gets SIGSTOP wake with all
deadlines passed, and what they waited for was stopped with them, or is there and not read yet.  So
a limit is in two parts: a wait that is not over after the first is looked at once more,
`LOOK_AGAIN_S` later, and given up only then.  Whatever stopped the process took one of the two
parts, and left the other.  A second part that ends much later than it should have says nothing
either, and begins again, at most `MAX_LATE` times: a program that is always late is not stopped.

One task in each trio run sees to all limits, and sleeps until the next one is over.  So a limit
costs no timer of its own, and a wait that ends in time wakes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType

import attrs
import trio

LOOK_AGAIN_S = 5.0  # a disk that was stopped within a write ends it in this time
LATE_S = 0.5  # so much too late: the process was stopped, or the machine is very busy
MAX_LATE = 20


def give_up_after(
    limit_s: float, *, again_s: float | None = None, is_shielded: bool = True
) -> Limit:
    """A block that is cancelled when it takes longer than a limit, and only then.

    Args:
        limit_s: In seconds of trio's clock.
        again_s: How much of it begins only when this process runs, in seconds; default:
            `LOOK_AGAIN_S`, of a short limit the second half.  Where it is the limit, a stop that
            lasts longer than that does not count at all.
        is_shielded: Whether the block is shielded from cancellation from outside.
    """
    again_s = min(LOOK_AGAIN_S, limit_s / 2) if again_s is None else min(again_s, limit_s)
    return Limit(_the_watch(), limit_s, again_s, trio.CancelScope(shield=is_shielded))


async def wait_awake(event: trio.Event, seconds: float) -> bool:
    """Wait for an event; False: it was not set in so many seconds in which this process ran.

    Cancellation: a cancellation point.
    """
    with give_up_after(seconds, again_s=seconds, is_shielded=False):
        await event.wait()
    return event.is_set()


async def sleep_awake(seconds: float) -> None:
    """Sleep for so many seconds in which this process runs.

    Cancellation: a cancellation point.
    """
    await wait_awake(trio.Event(), seconds)


async def end_awake(func: Callable[[], Awaitable[None]], seconds: float) -> bool:
    """Run something, for so many seconds in which this process runs at most.

    Args:
        func: It is cancelled after that; it raises nothing.
        seconds: How long it may take.

    Returns:
        Whether it has ended by itself.

    Cancellation: shielded; it ends in bounded time.
    """
    with give_up_after(seconds, again_s=seconds):
        await func()
        return True
    return False


@attrs.define(eq=False)
class Limit:
    """What `give_up_after` gives; entered, it is a `trio.CancelScope`.

    Attributes:
        again_s: How long its second part is, in seconds.
        scope: That.
        deadline: When the part that is under way is over.
        is_second: Whether that is the second.
    """

    _watch: _Watch
    _limit_s: float
    again_s: float
    scope: trio.CancelScope
    deadline: float = attrs.field(default=math.inf, init=False)
    is_second: bool = attrs.field(default=False, init=False)
    _late: int = attrs.field(default=0, init=False)

    def __enter__(self) -> trio.CancelScope:
        first_s = self._limit_s - self.again_s
        self.is_second = not first_s > 0
        self.deadline = trio.current_time() + (self.again_s if self.is_second else first_s)
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

    def is_over(self, now: float) -> bool:
        """Whether the time is up, now that a part is; else the second part begins."""
        is_late = now - self.deadline >= LATE_S and self._late < MAX_LATE
        self._late += is_late
        if self.is_second and not is_late:
            return True
        self.is_second, self.deadline = True, now + self.again_s
        return False


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
                if limit.is_over(now):
                    self.out.discard(limit)
                    limit.scope.cancel()


_watch: trio.lowlevel.RunVar[_Watch] = trio.lowlevel.RunVar("trio_ckpt limits")


def _the_watch() -> _Watch:
    try:
        return _watch.get()
    except LookupError:
        watch = _Watch()
        _watch.set(watch)
        trio.lowlevel.spawn_system_task(watch.run)
        return watch
