"""Asks the owner of a run for an act by the inbox of the run, see `trio_ckpt._journal.inbox`."""

from __future__ import annotations

from contextlib import suppress

import attrs
import trio

from .._journal.acts import Act, ActRefusedError, ActReply, read_acts
from .._journal.history import find_run
from .._journal.inbox import InboxMessage, read_message, write_message
from .._journal.store import Store
from .._util.errors import StoreError

LOOK_EVERY_S = 0.25
OWNER_EVERY = 8  # looks: who owns the run is asked less often, which costs more
LEAVE_ANSWERS_S = 2.0  # another process that asks may not have read its answer yet
CLEAN_UP_S = 5.0


async def ask_inbox(store: Store, run_id: str, act: Act, ask_s: float) -> ActReply | None:
    """Ask the owner of a run for an act, and wait for its answer.

    Args:
        store: The store of the run.
        run_id: The run.
        act: The act.
        ask_s: How long to wait for the answer, in seconds, beside the time between two looks.

    Returns:
        The answer; None: the owner has ended, and the act was not done.

    Raises:
        ActRefusedError: there was no answer in time.
        StoreError: the store cannot be used.

    Cancellation: a cancellation point; whether the act was done is in the history of the run.
    """
    asking = _Asking(store, run_id, act, await _owner_number(store, run_id))
    try:
        with trio.move_on_after(ask_s + (store.inbox_every_s or 0)):
            return await asking.wait()
    finally:
        await asking.clean_up()
    if await _is_on_record(store, run_id, act):
        return _on_record()
    if asking.has_met_others:
        raise ActRefusedError(
            f"run {run_id!r}: other processes ask its owner at the same time, and it has not come "
            "to this act, which was not done: try again",
            run_id=run_id,
        )
    raise ActRefusedError(
        f"run {run_id!r}: its owner has not looked into its inbox, so the act was not done; it is "
        "of a version that does not look, or it is a command such as trio-ckpt compact, or its "
        "process was stopped: if it goes on, trio-ckpt history shows whether it did it after all",
        run_id=run_id,
    )


@attrs.define(eq=False)
class _Asking:
    """One act that is asked for.

    Attributes:
        store: The store of the run.
        run_id: The run.
        act: The act.
        owner: The number of the owner that is asked; None: there is none.
        has_met_others: Whether acts of other processes were in the inbox.
    """

    store: Store
    run_id: str
    act: Act
    owner: int | None
    has_met_others: bool = attrs.field(default=False, init=False)
    _answer_of: str = attrs.field(default="", init=False)  # another act that was answered
    _answered_at: float = attrs.field(default=0.0, init=False)

    async def wait(self) -> ActReply | None:
        """Ask until the answer comes; None: the owner has ended, and has not done it."""
        looks = 0
        while self.owner is not None:
            message = await read_message(self.store, self.run_id)
            if message is not None and message.act_id == self.act.id:
                return message.reply
            if self._is_free(message):
                await write_message(self.store, self.run_id, InboxMessage(self.owner, self.act))
            await trio.sleep(LOOK_EVERY_S)
            looks += 1
            if (
                looks % OWNER_EVERY == 0
                and await _owner_number(self.store, self.run_id) != self.owner
            ):
                break
        return _on_record() if await _is_on_record(self.store, self.run_id, self.act) else None

    def _is_free(self, message: InboxMessage | None) -> bool:
        """Whether the inbox has no act that waits, and no answer that may still be read."""
        if message is None or message.owner != self.owner:
            return True
        if message.act is not None:
            if message.act.id != self.act.id:
                self.has_met_others = True
            return False
        now = trio.current_time()
        if message.act_id != self._answer_of:
            self._answer_of, self._answered_at = message.act_id, now
        return now >= self._answered_at + LEAVE_ANSWERS_S

    async def clean_up(self) -> None:
        """Remove the act or its answer, if it is still there; best effort."""
        with trio.CancelScope(shield=True), trio.move_on_after(CLEAN_UP_S), suppress(StoreError):
            message = await read_message(self.store, self.run_id)
            if message is not None and self.act.id == _id_of(message):
                await self.store.write_inbox(self.run_id, b"")


def _id_of(message: InboxMessage) -> str:
    """The id of the act that a message asks for or answers."""
    return message.act_id if message.act is None else message.act.id


async def _owner_number(store: Store, run_id: str) -> int | None:
    """The number of the owner of a run; None: no process owns it."""
    found = await find_run(store, run_id)
    return found.owner if found is not None and found.is_owned else None


async def _is_on_record(store: Store, run_id: str, act: Act) -> bool:
    return any(one.id == act.id for one in await read_acts(store, run_id))


def _on_record() -> ActReply:
    return ActReply(True, "done, as the history of the run says; the answer was lost")
