"""Acts on an open run whose store has no folder: they come by the inbox of the run.

See `trio_ckpt._journal.inbox` for what is in it.  No failure here ends the run.
"""

from __future__ import annotations

import attrs
import trio

from .._journal.acts import Act, ActReply
from .._journal.inbox import InboxMessage, read_message, write_message
from .._util.errors import StoreError
from .._util.exceptions import text_of
from .._util.log import at, get_logger
from .steering import Steering

log = get_logger(__name__)

MAX_REMEMBERED = 1_000  # acts of a session: a user types them


async def look_for_acts(steering: Steering, every_s: float) -> None:
    """Do the acts that come into the inbox of a run, until cancelled.

    The first look comes after a while, so that a short run pays nothing.

    Args:
        steering: Does the acts.
        every_s: How often to look, in seconds.

    Cancellation: ends it; an act that has begun is done or not.
    """
    inbox, run_id, has_failed = _Inbox(steering), steering.run.run_id, False
    while True:
        await trio.sleep(every_s)
        try:
            await inbox.look()
            has_failed = False
        except StoreError as error:  # it is asked again: a server may be starting
            if not has_failed:
                log.info(
                    "run %r cannot look for acts of trio-ckpt ctl now: %s",
                    run_id,
                    text_of(error),
                    extra=at(run_id),
                )
            has_failed = True
        except Exception as error:  # a bug: no error here may end the run
            log.warning("run %r: a look failed: %s", run_id, text_of(error), extra=at(run_id))


@attrs.define(eq=False)
class _Inbox:
    """Looks into the inbox of a run, and answers.

    Attributes:
        steering: Does the acts.
    """

    steering: Steering
    _answers: dict[str, ActReply] = attrs.field(factory=dict[str, ActReply], init=False)

    async def look(self) -> None:
        """Do the act in the inbox, if there is one for this owner, and answer it.

        Raises:
            StoreError: the inbox cannot be read or written.
        """
        run = self.steering.run
        owner = run.committer.run_key.owner
        message = await read_message(run.store, run.run_id)
        if message is None or message.act is None or message.owner != owner:
            return
        reply = await self._answer(message.act)
        answer = InboxMessage(owner, act_id=message.act.id, reply=reply)
        await write_message(run.store, run.run_id, answer)

    async def _answer(self, act: Act) -> ActReply:
        """The answer to an act, which is done unless it was done before.

        One that fails by a bug is answered, too: else it would fail again at each look.
        """
        known = self._answers.get(act.id)
        if known is not None:
            return known
        try:
            reply = await self.steering.do(act)
        except Exception as error:
            run_id, why = self.steering.run.run_id, text_of(error)
            log.warning("run %r: an act failed: %s", run_id, why, extra=at(run_id))
            reply = ActReply(
                False, f"it failed ({why}); trio-ckpt history shows whether it was done"
            )
        if act.do != "status":  # it changes nothing, and may be asked for again
            self._answers[act.id] = reply
            while len(self._answers) > MAX_REMEMBERED:
                del self._answers[next(iter(self._answers))]
        return reply
