"""The live view of a run, as other processes read it; its owner publishes it."""

from __future__ import annotations

import msgspec
import trio

from .._util.log import get_logger
from .._util.plain import StreamKey
from .statistics import LeftOut
from .store import Store

log = get_logger(__name__)

MAX_TOKENS = 1_000  # the oldest ones, which may be stuck
PUBLISHED_AFTER_S = 0.5  # an owner that has seen that it is watched
LOOK_EVERY_S = 0.1


class LiveToken(msgspec.Struct, frozen=True, array_like=True):
    """A pending token.

    Attributes:
        stream: The key of its stream.
        batch_index: The batch.
        state: ``pending`` or ``completed``.
        created_at: Unix time, s.
        begun_at: When the newest attempt began; Unix time, s.
        waits_until: When the next attempt may begin; Unix time, s.  None: one is under way.
    """

    stream: StreamKey
    batch_index: int
    state: str
    created_at: float
    begun_at: float = 0.0
    waits_until: float | None = None

    def is_older(self, after_s: float, now: float) -> bool:
        """Whether an attempt has been under way for longer than is usual.

        Args:
            after_s: What is usual, in seconds.
            now: Unix time, s.
        """
        return self.waits_until is None and now - self.attempt_at >= after_s

    @property
    def attempt_at(self) -> float:
        """When the newest attempt began, by the clock that published it; Unix time, s.

        `created_at` is by the clock of that moment, which may have been set since.
        """
        return self.begun_at or self.created_at  # 0: an older version published it


class LiveWaiting(msgspec.Struct, frozen=True, array_like=True):
    """A stream that waits: its key, the reason, and until when (Unix time, s)."""

    stream: StreamKey
    reason: str
    until: float


class LiveStopping(msgspec.Struct, frozen=True, array_like=True):
    """A stop: how many batches it waits for, the first of them, and until when (Unix time, s)."""

    open: int
    batches: tuple[tuple[StreamKey, int], ...]
    until: float


class LiveView(msgspec.Struct, frozen=True):
    """An open run at one moment.

    Attributes:
        at: The moment; Unix time, s.
        owner: The owner's number: if the store has a greater one, another process owns the run.
        tokens: The pending tokens, oldest first, at most `MAX_TOKENS`.
        pending: How many pending tokens there were in all.
        session_confirmed: Batches confirmed by this session.
        session_s: How long the session has lasted, in seconds.
        rate_per_s: Batches per second; None until enough batches are done.
        eta_s: As `SessionStatistics.eta_s`.
        waiting: Streams that wait, and why.
        left_out: Streams of which snapshots could not be saved in this session.
        stopping: The stop that is under way, if there is one.
    """

    at: float
    owner: int
    tokens: tuple[LiveToken, ...]
    pending: int
    session_confirmed: int
    session_s: float
    rate_per_s: float | None
    eta_s: float | None
    waiting: tuple[LiveWaiting, ...]
    left_out: tuple[LeftOut, ...] = ()
    stopping: LiveStopping | None = None


_decoder = msgspec.msgpack.Decoder(LiveView)


async def read_live(store: Store, run_id: str, owner: int) -> LiveView | None:
    """The live view that the owner with this number published; None: none can be read.

    Raises:
        StoreError: the store cannot be used.
    """
    view = decode_live(await store.read_live(run_id))
    return view if view is not None and view.owner == owner else None


async def await_live(store: Store, run_id: str, owner: int) -> LiveView | None:
    """The live view of a run that a process owns, also if no process has read it for a minute.

    An owner publishes only while its view is read, so it has `first_look_s` to notice and do so.

    Args, Raises: as for `read_live`.

    Cancellation: a cancellation point.
    """
    view = await read_live(store, run_id, owner)
    with trio.move_on_after(first_look_s(store)):
        while view is None and store.has_live:
            await trio.sleep(LOOK_EVERY_S)
            view = await read_live(store, run_id, owner)
    return view


def first_look_s(store: Store) -> float:
    """How long an owner may take to publish the first view after a read, in seconds."""
    return store.publish_every_s + PUBLISHED_AFTER_S


def decode_live(payload: bytes) -> LiveView | None:
    """Decode a live view; None: it is empty or cannot be read."""
    if not payload:
        return None
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeError) as error:  # a newer library, or power was lost
        log.debug("the live view of a run cannot be read: %s", error)
        return None
