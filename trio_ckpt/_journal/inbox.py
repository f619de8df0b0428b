"""The inbox of a run: how another process asks its owner for an act where there is no socket.

Theory of operation
===================

The inbox (`Store.write_inbox`) has room for one message: an act that is asked for, or the answer to
one.  Any process may replace it at any moment, so each side does its part again until it is done:

- Who asks writes its act while no act of another process waits there, and looks until the answer
  to it comes.  If its act was replaced by another message it writes it again, with the same id.
- The owner does an act that it finds, and writes the answer in its place.  An act that it has done
  before, as the id says, is answered again and not done again.

An act is for one owner, by its number.  So what a killed owner has left undone is never done by the
next one unasked: an act was done, and is on record with its id, or it never was.

Messages are sealed as records are.  With a MAC key a process that does not have it gets nothing;
without one who may write to the store may steer its runs.
"""

from __future__ import annotations

import msgspec

from .._util.errors import StoreDamagedError
from .._util.plain import RUN_STREAM
from .acts import Act, ActReply
from .store import MAX_INBOX_BYTES, Store

_NO_GENERATION = -1  # sealed for a place that no record has


class InboxMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An act that is asked for, or the answer to it.

    Attributes:
        owner: The number of the owner that it is for, or from.
        act: The act; None: it is an answer.
        act_id: The id of the act that is answered; empty: none is.
        reply: The answer.
    """

    owner: int
    act: Act | None = None
    act_id: str = ""
    reply: ActReply | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(InboxMessage)


async def write_message(store: Store, run_id: str, message: InboxMessage) -> None:
    """Put a message into the inbox of a run.

    Raises:
        StoreError: it cannot be written.

    Durability: none.
    Cancellation: not once it has begun.
    """
    seal = store.seal(run_id, _NO_GENERATION, RUN_STREAM)
    await store.write_inbox(run_id, seal.close(0, _encoder.encode(message)))


async def read_message(store: Store, run_id: str) -> InboxMessage | None:
    """Read the message in the inbox of a run; None: there is none, or none with this seal.

    Raises:
        StoreError: it cannot be read.

    Cancellation: a cancellation point; a read that has begun may be waited for.
    """
    sealed = await store.read_inbox(run_id)
    if not sealed or len(sealed) >= MAX_INBOX_BYTES:
        return None
    try:
        seal = store.seal(run_id, _NO_GENERATION, RUN_STREAM)
        return _decoder.decode(seal.open(0, sealed))
    except (StoreDamagedError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
