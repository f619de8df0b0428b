"""Until when a batch is deferred, as its record and progress have it."""

from __future__ import annotations

import msgspec


class Deferral(msgspec.Struct, frozen=True, array_like=True):
    """Until when a batch is not handed out.

    Attributes:
        at: When it was deferred; Unix time, s.
        due: From when on it is handed out again; Unix time, s.
    """

    at: float
    due: float

    def left_s(self, now: float) -> float:
        """For how many seconds it is not handed out yet, at a time; Unix time, s.

        It is never longer than was asked for: a clock that was ahead when the batch was deferred,
        and has been set right since, does not make it wait for years.
        """
        return max(0.0, min(self.due - now, self.due - self.at))
