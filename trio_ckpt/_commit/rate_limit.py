"""A rate that the tasks of a process share, and that follows what the server allows.

How fast requests may go: `trio_ckpt._commit.pace`.  Here they wait for it, one behind another.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import attrs
import trio

from .._util.arguments import flag, ratio, seconds, whole_number
from .._util.exceptions import leaves_of
from .._util.shown import Shown
from .._util.text import number
from .batch import Batch
from .http_errors import is_limited, retry_after_of
from .pace import Pace, TokenBucket


@attrs.define(eq=False, repr=False)
class RequestTurn(Shown):
    """A request that may be sent; made by `RateLimit.request`.

    Attributes:
        tokens: What it has taken of the tokens.
        is_refused: Whether the server has refused it because of its rate.
    """

    tokens: int
    _pace: Pace
    _began: float = attrs.field(factory=trio.current_time, init=False)
    is_refused: bool = attrs.field(default=False, init=False)

    def _shown(self) -> Iterable[tuple[str, str]]:
        return [("", ""), ("tokens", number(self.tokens)), ("refused", "yes" * self.is_refused)]

    def settle(self, *, tokens: int) -> None:
        """Say how many tokens the request has used, in place of what it has reserved.

        Raises:
            TypeError, ValueError: it is no number of tokens.
        """
        used = whole_number("tokens", tokens)
        self._pace.take({"tokens": used - self.tokens})
        self.tokens = used

    def refused(self, retry_after_s: float | None = None) -> None:
        """Say that the server has refused the request because of its rate.

        It is for clients that return such a response.  An exception is recognized by itself.

        Args:
            retry_after_s: How long the server asks to wait, in seconds; None: it does not say.

        Raises:
            TypeError, ValueError: it is no number of seconds.
        """
        asked_s = None if retry_after_s is None else seconds("retry_after_s", retry_after_s)
        self.is_refused = True
        self._pace.refused(self._began, trio.current_time(), asked_s)


class RateLimit(Shown):
    """A rate that the tasks of a process share; for the tasks of the first `trio.run` that asks.

    Several processes divide a rate among them: each has its own.
    """

    __slots__ = ("_changed", "_pace", "_trio_run", "_turns")

    def __init__(
        self,
        *,
        requests_per_min: float | None = None,
        tokens_per_min: float | None = None,
        adaptive: bool = True,
    ) -> None:
        """Make one of which nothing is used yet.

        Args:
            requests_per_min: The most requests a minute; None: any number.
            tokens_per_min: The most tokens a minute, or other units of which requests have
                different numbers; None: any number.
            adaptive: Whether the rate is cut in half when the server refuses a request, and grows
                back by a hundredth a second.

        Raises:
            TypeError, ValueError: a rate is no number above zero, or none is given.
        """
        rates = {"requests": requests_per_min, "tokens": tokens_per_min}
        buckets = {
            unit: TokenBucket(_rate(f"{unit}_per_min", rate))
            for unit, rate in rates.items()
            if rate is not None
        }
        if not buckets:
            raise ValueError("a RateLimit needs requests_per_min= or tokens_per_min=, or both")
        self._pace = Pace(buckets, flag("adaptive", adaptive))
        self._turns = trio.Lock()  # its waiters have their turn in the order in which they came
        self._changed = trio.Event()
        self._pace.changed = self._wake
        self._trio_run: trio.lowlevel.TrioToken | None = None  # no request has asked yet

    @property
    def share(self) -> float:
        """The part of the rate that is used now: 1.0 is all of it."""
        return self._pace.share

    @asynccontextmanager
    async def request(
        self, batch: Batch[Any] | None = None, *, tokens: int = 0
    ) -> AsyncGenerator[RequestTurn]:
        """Wait for the turn of a request, which is sent in the block.

        When an exception leaves the block that says that the rate was too high, as `http_retries`
        recognizes it, all requests wait as long as the server asks, at most 65 minutes.

        Args:
            batch: The batch that sends it: a stop does not wait for its turn.
            tokens: How many tokens it reserves, such as those of the prompt and the most that
                the answer may have.

        Yields:
            The turn, which is told how many tokens were used.

        Raises:
            TypeError, ValueError: it is no number of tokens.
            RuntimeError: the batch is settled, or it waits already; or this is another `trio.run`
                than that of the first request, as each item of an engine has.

        Cancellation: a cancellation point; a request that is cancelled before its turn has taken
            nothing of the rate.
        """
        reserved = whole_number("tokens", tokens)
        self._check_trio_run()
        async with nullcontext() if batch is None else batch.waiting():
            await self._take({"requests": 1, "tokens": reserved})
        turn = RequestTurn(reserved, self._pace)
        try:
            yield turn
        except BaseException as error:
            for leaf in leaves_of(error):
                if is_limited(leaf):
                    turn.refused(retry_after_of(leaf))
            raise
        if not turn.is_refused:
            self._pace.succeeded(trio.current_time())

    def _check_trio_run(self) -> None:
        """Check that times are of the clock of the first request, and waiters in its `trio.run`."""
        here = trio.lowlevel.current_trio_token()
        self._trio_run = self._trio_run or here
        if self._trio_run is not here:
            raise RuntimeError(
                "this RateLimit belongs to the trio.run that used it first: make it inside of the "
                "function that trio.run calls; items of an engine have a trio.run each, so send "
                "their requests in a loop of the program before, under one RateLimit"
            )

    async def _take(self, units: dict[str, float]) -> None:
        async with self._turns:
            while (wait_s := self._pace.wait_s(units, trio.current_time())) > 0:
                self._changed = trio.Event()
                with trio.move_on_after(wait_s):
                    await self._changed.wait()
            self._pace.take(units)

    def _wake(self) -> None:
        self._changed.set()

    def _shown(self) -> Iterable[tuple[str, str]]:
        yield "", ""
        for unit, bucket in self._pace.buckets.items():
            yield f"{unit} a minute", number(bucket.per_min)
        if self.share < 1.0:
            yield "share", f"{self.share:.0%}"
        waiting = self._turns.statistics().tasks_waiting
        if waiting:
            yield "waiting", number(waiting)


def _rate(name: str, value: float) -> float:
    if ratio(name, value) == 0:
        raise ValueError(f"{name} must be above zero")
    return float(value)
