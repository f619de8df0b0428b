"""Until when a batch is deferred, as its record and progress have it."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec


class Deferral(msgspec.Struct, frozen=True, array_like=True):
    """Until when a batch is not handed out.

    Attributes:
        at: When it was deferred; Unix time, s.
        due: From when on it is handed out again; Unix time, s.
    """

    at: float
    due: float

    def due_by(self, now: float) -> float:
        """From when on it is handed out again by a clock that says `now`; Unix time, s.

        It never waits longer than was asked for: a clock that was ahead when the batch was
        deferred, and has been set right since, does not make it wait for years.
        """
        return self.due if self.at <= now else now + (self.due - self.at)

    def left_s(self, now: float) -> float:
        """For how many seconds it is not handed out yet, at a time; Unix time, s."""
        return max(0.0, self.due_by(now) - now)


def first_due(deferrals: Iterable[Deferral]) -> float | None:
    """When the first of several is handed out again, by the clock of now; None: there are none."""
    now = time.time()
    return min((one.due_by(now) for one in deferrals), default=None)
