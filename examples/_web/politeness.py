"""Limits on requests to one host: how many at once, how far apart, and pauses on request.

Theory of operation
===================

A semaphore counts the requests under way. A request that holds it queues for the *turn*, a fair
lock. Only the holder of the turn sleeps until the earliest next start; it checks the start again
when it wakes, because a pause may have moved it. So there is one
sleeper, no polling, and requests start in the order of their arrival. All times are trio's clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define(eq=False)
class HostGate:
    """The gate in front of one host.

    Args:
        per_host: How many requests may be under way at once.
        delay_s: The least time from the start of one request to the start of the next.
    """

    per_host: int = attrs.field(validator=attrs.validators.ge(1))
    delay_s: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    _slots: trio.Semaphore = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: trio.Semaphore(self.per_host), takes_self=True),
    )
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _spaced_until: float = attrs.field(init=False, default=float("-inf"))
    _paused_until: float = attrs.field(init=False, default=float("-inf"))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold a slot during the block: one request.

        Cancellation: safe at any time; the next request moves up.
        """
        async with self._slots:
            async with self._turn:
                await self._wait_for_start()
                self._spaced_until = trio.current_time() + self.delay_s
            yield

    async def _wait_for_start(self) -> None:
        while (start := max(self._spaced_until, self._paused_until)) > trio.current_time():  # noqa: ASYNC110
            await trio.sleep_until(start)  # one sleep for each time the start moves

    def pause(self, seconds: float) -> None:
        """Start no request for so long from now (Retry-After).

        Requests under way are not touched. A pause that ends later stays as it is.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a pause takes 0 seconds or more, and ends: not {seconds}")
        self._paused_until = max(self._paused_until, trio.current_time() + seconds)

    @property
    def paused_for_s(self) -> float:
        """The seconds that the pause still lasts; 0 without one."""
        return max(0.0, self._paused_until - trio.current_time())
