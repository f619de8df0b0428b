"""How fast requests may go: a rate, and what a server has said to it.

This is the pure part of `trio_ckpt._commit.rate_limit`, which waits.

Theory of operation.  There is a bucket for each unit, requests and tokens.  It fills by the rate,
and holds what one second brings.  A request waits until every bucket holds what it takes, or is
full; then it takes that, so a large request leaves a bucket in debt, and those after it wait
longer.  So over any time no more is sent than the rate allows, and what one second brings, or one
request that is larger than that.

A server that refuses has the last word.  What it asks for, all requests wait.  The rate is cut in
half, once for all requests that were on their way then, and grows back by a constant part a second
(additive increase, multiplicative decrease, as in TCP: RFC 5681, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs

from .http_retries import MAX_LIMITED_S

CUT = 0.5  # what remains of a rate when the server refuses
LEAST_SHARE = 1 / 64  # of the rate: six cuts with no growth between them
GROWTH_PER_S = 0.01  # from nothing to the whole rate in 100 s
EARLY_S = 1e-6  # how early a request may go: clocks and sums are not exact
LONGEST_GAP_S = 10.0  # a longer time without a request teaches nothing more


@attrs.define(eq=False, repr=False)
class TokenBucket:
    """What may be sent of one unit.

    Attributes:
        per_min: The rate, in units a minute.
        level: What may be sent; below zero: what was sent too early.
    """

    per_min: float
    level: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        """The most that it holds: what one second brings, at least one unit."""
        return max(1.0, self.per_min / 60)

    def fill(self, elapsed_s: float, share: float) -> None:
        """Fill it by a share of its rate."""
        self.level = min(self.capacity, self.level + elapsed_s * share * self.per_min / 60)

    def wait_s(self, units: float, share: float) -> float:
        """How long until so many units may be sent, in seconds, as far as is known now."""
        lacking = min(units, self.capacity) - self.level
        if lacking <= self.capacity * EARLY_S:
            return 0.0
        return lacking / (share * self.per_min / 60)


@attrs.define(eq=False, repr=False)
class Pace:
    """How fast requests may go.  All times are those of one clock that never goes back, in seconds.

    Attributes:
        buckets: One for each unit that has a rate.
        is_adaptive: Whether the rate is cut when the server refuses.
        share: The part of the rate that is used now.
        changed: Called when a wait may be shorter than it was said to be.
    """

    buckets: Mapping[str, TokenBucket]
    is_adaptive: bool
    share: float = attrs.field(default=1.0, init=False)
    changed: Callable[[], None] = attrs.field(default=lambda: None, init=False)
    _filled_at: float = attrs.field(default=0.0, init=False)
    _asked_until: float = attrs.field(default=-math.inf, init=False)
    _cut_at: float = attrs.field(default=-math.inf, init=False)
    _learned_at: float = attrs.field(default=-math.inf, init=False)

    def wait_s(self, units: Mapping[str, float], now: float) -> float:
        """How long a request has to wait, in seconds, as far as is known now; 0.0: it may go."""
        self._fill(now)
        waits = (bucket.wait_s(units[unit], self.share) for unit, bucket in self.buckets.items())
        return max(0.0, self._asked_until - now, *waits)

    def take(self, units: Mapping[str, float]) -> None:
        """Take what a request sends; less than zero gives back."""
        for unit, bucket in self.buckets.items():
            bucket.level -= units.get(unit, 0)
        self.changed()

    def refused(self, began: float, now: float, asked_s: float | None) -> None:
        """The server has refused a request.

        Args:
            began: When it was sent.
            now: The time.
            asked_s: How long the server asks to wait, in seconds; None: it does not say.
        """
        if asked_s is not None:
            self._asked_until = max(self._asked_until, now + min(asked_s, MAX_LIMITED_S))
        if self.is_adaptive and began >= self._cut_at:  # what began earlier knew nothing of the cut
            self._fill(now)
            self.share = max(LEAST_SHARE, self.share * CUT)
            self._cut_at = self._learned_at = now

    def succeeded(self, now: float) -> None:
        """The server has answered a request."""
        if self.share == 1.0:
            return
        self._fill(now)
        gap_s = min(now - self._learned_at, LONGEST_GAP_S)
        self.share = min(1.0, self.share + GROWTH_PER_S * gap_s)
        self._learned_at = now
        self.changed()

    def _fill(self, now: float) -> None:
        """Fill the buckets by the share that held until now."""
        for bucket in self.buckets.values():
            bucket.fill(max(0.0, now - self._filled_at), self.share)
        self._filled_at = now
