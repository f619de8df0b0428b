"""The clock of a store, as far as this process can tell it without asking again.

Theory of operation.  Who may take a run is decided by the times that the store itself wrote beside
its objects.  What the time is there now is learned once, from an object that was just written, and
counted on by the monotonic clock of this process.  So the clocks of two machines may differ by any
amount; only a machine that was suspended counts too little, and asks again before it believes that
a run is owned.  The estimate is never ahead of the store's clock, so no lease ends early.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import attrs
import trio

from .._util.errors import StoreError
from .requests import Requests

TRUSTED_FOR_S = 60.0  # the time is asked for again then, where it decides
WHOLE_SECONDS_S = 1.0  # what a store hides that writes times in whole seconds


class BlindStoreError(StoreError, is_internal=True):
    """The store creates objects that are there already: it can keep no run to one owner."""


@attrs.define(eq=False)
class StoreClock:
    """What the store's clock says.

    Attributes:
        local: The clock of this process; any thread may ask it.
        store_at: What the time was in the store; Unix time, s.
        local_at: What it was on the clock of this process at that moment, or later.
        slack_s: By how much the times of the store's objects may be too early.
        is_measured: Whether the store was asked; else this machine's own clock is believed.
    """

    local: trio.abc.Clock
    store_at: float = attrs.field(factory=time.time)
    local_at: float = 0.0
    slack_s: float = 0.0
    is_measured: bool = False

    def now(self) -> float:
        """The time in the store; Unix time, s."""
        return self.store_at + self.local.current_time() - self.local_at

    def age(self, moment: datetime) -> float:
        """How long ago the store wrote an object, in seconds, at most."""
        return self.now() - moment.timestamp() - self.slack_s

    @property
    def is_old(self) -> bool:
        """Whether the store should be asked again before a decision."""
        return self.is_measured and self.local.current_time() - self.local_at > TRUSTED_FOR_S

    def set(self, moment: datetime) -> None:
        """Take over a time that the store has just written."""
        self.store_at, self.local_at = moment.timestamp(), self.local.current_time()
        self.slack_s = 0.0 if moment.microsecond else WHOLE_SECONDS_S
        self.is_measured = True


def probe(requests: Requests, key: str, set_time: Callable[[datetime], None]) -> None:
    """Check that the store creates an object once only, and learn what the time is there.

    Args:
        requests: Asks the store.
        key: The key of the object, which no other process uses; it is removed.
        set_time: Is called with the time at which the store has just written it.

    Raises:
        BlindStoreError: it does not.
        RefusedError: this process may not write there, so it was not checked.
        StoreError: the store does not answer.
    """
    requests.create(key, b"first")
    try:
        written = requests.find(key)
        if written is None:
            raise BlindStoreError(
                f"{requests.bucket.shown}: an object that was just written is not found"
            )
        set_time(written.modified)
        if requests.create(key, b"second"):
            raise BlindStoreError(
                f"{requests.bucket.shown}: it creates an object that is there already: it does "
                "not honour If-None-Match, so two processes could own one run; use another store"
            )
    finally:
        requests.delete([key])


def utc(moment: float) -> datetime:
    """A time as text and records have it."""
    return datetime.fromtimestamp(moment, UTC)
