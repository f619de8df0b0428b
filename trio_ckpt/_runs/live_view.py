"""The live view: what an open run shows to other processes, such as pending tokens and rate.

The owner publishes it into the store when something has changed, at most once a second.  It is
not a record: nothing is resumed from it, and a reader has to check whether the owner still lives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import trio

from .._journal.statistics import Stopping
from .._journal.store import Store
from .._tokens.token import AnyToken
from .._util.errors import text_of
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.uninterrupted import uninterrupted
from .run import Run, open_run_of

log = get_logger(__name__)

PUBLISH_EVERY_S = 1.0
MAX_COST_FRACTION = 0.01  # of the program's time, where many streams make it expensive
MAX_TOKENS = 1_000  # the oldest ones, which may be stuck


class LiveToken(msgspec.Struct, frozen=True, array_like=True):
    """A pending token.

    Attributes:
        stream: The key of its stream.
        batch_index: The batch.
        state: ``pending`` or ``completed``.
        created_at: Unix time, s.
    """

    stream: StreamKey
    batch_index: int
    state: str
    created_at: float


class LiveWaiting(msgspec.Struct, frozen=True, array_like=True):
    """A stream that waits: its key, the reason, and until when (Unix time, s)."""

    stream: StreamKey
    reason: str
    until: float


class LiveLeftOut(msgspec.Struct, frozen=True, array_like=True):
    """A stream of which snapshots could not be saved: its key, how many, and why."""

    stream: StreamKey
    count: int
    problem: str


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
        eta_s: Seconds until nothing is left; None where that is not known.
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
    left_out: tuple[LiveLeftOut, ...] = ()
    stopping: LiveStopping | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LiveView)


def live_tokens(tokens: Sequence[AnyToken]) -> tuple[LiveToken, ...]:
    """The first `MAX_TOKENS` pending tokens, as the live view has them."""
    return tuple(
        LiveToken(t.stream, t.batch_index, t.state.value, t.created_at.timestamp())
        for t in tokens[:MAX_TOKENS]
    )


def live_view(run: Run) -> LiveView:
    """The live view of an open run at this moment."""
    now = time.time()
    tokens = run.coordinator.get_pending_checkpoints(run.run_id)
    statistics = run.statistics()
    return LiveView(
        at=now,
        owner=open_run_of(run).committer.run_key.owner,
        tokens=live_tokens(tokens),
        pending=len(tokens),
        session_confirmed=statistics.session_confirmed,
        session_s=statistics.session_s,
        rate_per_s=statistics.rate_per_s,
        eta_s=statistics.eta_s,
        waiting=tuple(LiveWaiting(w.stream, w.reason, now + w.for_s) for w in statistics.waiting),
        left_out=tuple(LiveLeftOut(o.stream, o.count, o.problem) for o in statistics.left_out),
        stopping=_stopping(statistics.stopping, now),
    )


def _stopping(stopping: Stopping | None, now: float) -> LiveStopping | None:
    if stopping is None:
        return None
    return LiveStopping(stopping.open, stopping.batches, now + stopping.for_s)


async def read_live(store: Store, run_id: str, owner: int) -> LiveView | None:
    """The live view that the owner with this number published; None: none can be read.

    Raises:
        StoreError: the store cannot be used.
    """
    view = decode_live(await store.read_live(run_id))
    return view if view is not None and view.owner == owner else None


def decode_live(payload: bytes) -> LiveView | None:
    """Decode a live view; None: it is empty or cannot be read."""
    if not payload:
        return None
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeError) as error:  # a newer library, or power was lost
        log.debug("the live view of a run cannot be read: %s", error)
        return None


@uninterrupted
async def publish_live(run: Run) -> None:
    """Publish the live view of a run until cancelled, then remove it.

    Where that fails it ends with a warning, so that it cannot break the run.

    Cancellation: ends it; the removal is shielded.
    """
    store, registry = open_run_of(run).store, run.coordinator.registry
    version, has_published = registry.version, False
    pause_s = PUBLISH_EVERY_S  # before the first one, too: a short run pays nothing
    try:
        while True:
            await trio.sleep(pause_s)
            version = await registry.wait_changed(version)
            began = trio.current_time()
            payload = _encoder.encode(live_view(run))
            took_s = trio.current_time() - began
            pause_s = max(PUBLISH_EVERY_S, took_s / MAX_COST_FRACTION)
            has_published = True
            await store.publish(run.run_id, payload)
    except Exception as error:  # no error of the live view may end the run
        log.warning(
            "the live view of run %r is not published any more: %s",
            run.run_id,
            text_of(error),
            extra=at(run.run_id),
        )
    finally:
        if has_published:
            with trio.CancelScope(shield=True):
                await _withdraw(store, run.run_id)


async def _withdraw(store: Store, run_id: str) -> None:
    try:
        await store.publish(run_id, b"")
    except Exception as error:
        log.debug(
            "the live view of run %r was not removed: %s", run_id, text_of(error), extra=at(run_id)
        )
