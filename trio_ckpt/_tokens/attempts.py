"""What monitors see of the attempts at a batch: one is under way, or the next one waits.

All attempts at a batch share its token, which stays pending while a batch that has failed waits for
its next attempt.  So a loop notes here when that wait begins and when it ends.
"""

# The moments are private fields of the token: its users have no say in them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from .token import AnyToken, touch


def hold_back(token: AnyToken, for_s: float) -> None:
    """Note that the batch waits for its next attempt, for so many seconds."""
    token._waits_until = token._portal.clock.current_time() + for_s
    touch(token._host.registry)


def begin_attempt(token: AnyToken) -> None:
    """Note that an attempt begins; the first one begins with the token."""
    if token._waits_until is not None:
        token._waits_until, token._begun = None, token._portal.clock.current_time()
        touch(token._host.registry)


def attempt_age_s(token: AnyToken) -> float:
    """Seconds since the newest attempt began, on trio's clock."""
    return token._portal.clock.current_time() - token._begun


def waits_s(token: AnyToken) -> float | None:
    """Seconds until the next attempt may begin, on trio's clock; None: one is under way.

    0: it may begin, and its loop has not come to it yet.
    """
    if token._waits_until is None:
        return None
    return max(0.0, token._waits_until - token._portal.clock.current_time())
