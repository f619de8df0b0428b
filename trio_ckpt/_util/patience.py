"""Time limits that count only while this process runs.

A laptop that sleeps, a container that is paused and a process that gets SIGSTOP wake with all
deadlines passed, while the events that they wait for were stopped with them, or have not been
read yet.  So a limit has two parts: a wait that is not over after the first is checked again
`LOOK_AGAIN_S` later, and cancelled only then.  This ensures that a stop of the process can use up
only one of the two parts.  A second part that ends much too late does not count either, and starts
again, at most `MAX_LATE` times: a program that is always late was not stopped.

One task in each trio run handles all limits, and sleeps until the next one is over.  So a limit
costs no timer of its own, and a wait that ends in time wakes no task.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeAlias

import attrs
import trio

LOOK_AGAIN_S = 5.0  # enough for a disk to end a write that was stopped halfway
LATE_S = 0.5  # if a wait ends later than this, the process was stopped or the machine is very busy
MAX_LATE = 20

_ExcInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def give_up_after(
    limit_s: float, *, again_s: float | None = None, is_shielded: bool = True
) -> Limit:
    """A block that is cancelled when it takes longer than a limit, and only then.

    Args:
        limit_s: The limit, in seconds on trio's clock.
        again_s: The length of its second part, in seconds; default: `LOOK_AGAIN_S`, but for a
            short limit at most half of it.  Where it equals the limit, the time of a stopped
            process does not count at all.
        is_shielded: Whether the block is shielded from cancellation from outside.
    """
    again_s = min(LOOK_AGAIN_S, limit_s / 2) if again_s is None else min(again_s, limit_s)
    return Limit(
        _watch.get() or _begin_watch(), limit_s, again_s, trio.CancelScope(shield=is_shielded)
    )


async def wait_awake(event: trio.Event, seconds: float) -> bool:
    """Wait for an event; False: it was not set while this process ran for so many seconds.

    Cancellation: a cancellation point.
    """
    with give_up_after(seconds, again_s=seconds, is_shielded=False):
        await event.wait()
    return event.is_set()


async def sleep_awake(seconds: float) -> None:
    """Sleep until this process has run for so many seconds.

    Cancellation: a cancellation point.
    """
    await wait_awake(trio.Event(), seconds)


async def end_awake(func: Callable[[], Awaitable[None]], seconds: float) -> bool:
    """Run a function with a limit that counts only while this process runs.

    Args:
        func: The function, which is cancelled after that and must not raise.
        seconds: How long it may take, in seconds.

    Returns:
        Whether it has ended by itself.

    Cancellation: none; it ends in bounded time.
    """
    with give_up_after(seconds, again_s=seconds):
        await func()
        return True
    return False


@attrs.define(eq=False, repr=False)
class Limit:
    """A limit made by `give_up_after`; entering it gives a `trio.CancelScope`.

    Attributes:
        again_s: The length of its second part, in seconds.
        scope: The cancel scope of the block.
        deadline: When the current part is over, on trio's clock.
        is_second: Whether the current part is the second.
    """

    _watch: _Watch
    _limit_s: float
    again_s: float
    scope: trio.CancelScope
    deadline: float = attrs.field(default=math.inf, init=False)
    is_second: bool = attrs.field(default=False, init=False)
    _late: int = attrs.field(default=0, init=False)

    def __enter__(self) -> trio.CancelScope:
        self.restart()
        self._watch.out.add(self)
        self._watch.nap.deadline = min(self._watch.nap.deadline, self.deadline)
        return self.scope.__enter__()

    def restart(self) -> None:
        """Count from now on, also inside the block: for one block around many waits."""
        first_s = self._limit_s - self.again_s
        self.is_second, self._late = not first_s > 0, 0
        self.deadline = trio.current_time() + (self.again_s if self.is_second else first_s)

    def __exit__(self, *error: *_ExcInfo) -> bool:
        self._watch.out.discard(self)
        return self.scope.__exit__(*error)

    def is_over(self, now: float) -> bool:
        """Whether the limit is over at the end of a part; else the second part begins."""
        is_late = now - self.deadline >= LATE_S and self._late < MAX_LATE
        self._late += is_late
        if self.is_second and not is_late:
            return True
        self.is_second, self.deadline = True, now + self.again_s
        return False


@attrs.define(eq=False, repr=False)
class _Watch:
    """The limits of one trio run.

    Attributes:
        out: The limits that are entered.
        nap: Its task sleeps until the deadline of this scope, the next of all limits.
    """

    out: set[Limit] = attrs.field(factory=set[Limit])
    nap: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        """Cancel the blocks whose limits are over, until trio ends.

        Cancellation: ends it.
        """
        while True:
            deadlines = (limit.deadline for limit in self.out)
            self.nap = trio.CancelScope(deadline=min(deadlines, default=math.inf))
            with self.nap:
                await trio.sleep_forever()
            now = trio.current_time()
            for limit in [limit for limit in self.out if limit.deadline <= now]:
                if limit.is_over(now):
                    self.out.discard(limit)
                    limit.scope.cancel()


_watch: trio.lowlevel.RunVar[_Watch | None] = trio.lowlevel.RunVar("trio_ckpt limits", None)


def _begin_watch() -> _Watch:
    watch = _Watch()
    _watch.set(watch)
    trio.lowlevel.spawn_system_task(watch.run)
    return watch
