"""The pause of an open stream: until when it hands out nothing, as a server has asked."""

from __future__ import annotations

import attrs
import trio

from .._util.errors import describe_batch
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.text import one_line
from .shutdown import Stop

log = get_logger(__name__)


@attrs.define(eq=False, repr=False)
class Pauses:
    """Until when an open stream hands out nothing.

    Attributes:
        run_id, key: The run and the stream, for the log.
        newest: Until when, on trio's clock, and why; None: it does not pause.
    """

    run_id: str
    key: StreamKey
    newest: tuple[float, str] | None = attrs.field(default=None, init=False)

    def pause_for(self, for_s: float, reason: str) -> None:
        """Hand out nothing for so many seconds; a pause that is longer stays as it is."""
        until = trio.current_time() + for_s
        if self.newest is None or until > self.newest[0]:
            self.newest = until, reason
            where = describe_batch(self.run_id, self.key, None)
            why, place = one_line(reason), at(self.run_id, self.key)
            log.info("%s waits %.3g s: %s", where, for_s, why, extra=place)

    async def wait_over(self, stop: Stop) -> None:
        """Wait until the pause is over; a stop ends the wait.

        Cancellation: a cancellation point if it waits.
        """
        while (pause := self.newest) is not None:
            with stop.at_gate():
                await trio.sleep_until(pause[0])
            if self.newest == pause:  # else it was made longer during the sleep
                self.newest = None
