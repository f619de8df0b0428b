"""The live view: what an open run shows to other processes, such as pending tokens and rate.

The owner publishes it into the store while another process reads it (`Store.is_watched`), when
something has changed, at most every `Store.publish_every_s`.  It is not a record: nothing is
resumed from it, and a reader has to check whether the owner still lives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import trio

from .._journal.live_view import (
    MAX_TOKENS,
    LiveStopping,
    LiveToken,
    LiveView,
    LiveWaiting,
)
from .._journal.statistics import Stopping
from .._journal.store import Store
from .._tokens.attempts import attempt_age_s, waits_s
from .._tokens.token import AnyToken
from .._util.exceptions import text_of
from .._util.log import at, get_logger
from .._util.uninterrupted import uninterrupted
from .run import Run, open_run_of
from .stream_table import StreamTable

log = get_logger(__name__)

MAX_COST_FRACTION = 0.01  # of the program's time, where many streams make it expensive

_encoder = msgspec.msgpack.Encoder()


def live_tokens(tokens: Sequence[AnyToken]) -> tuple[LiveToken, ...]:
    """The first `MAX_TOKENS` pending tokens, as the live view has them."""
    now = time.time()
    return tuple(_live_token(token, now) for token in tokens[:MAX_TOKENS])


def _live_token(token: AnyToken, now: float) -> LiveToken:
    left_s = waits_s(token)
    return LiveToken(
        token.stream,
        token.batch_index,
        token.state.value,
        token.created_at.timestamp(),
        now - attempt_age_s(token),
        None if left_s is None else now + left_s,
    )


def live_view(run: Run) -> LiveView:
    """The live view of an open run at this moment."""
    now = time.time()
    table, pending = open_run_of(run).stream_table, run.coordinator.get_pending_checkpoints
    tokens = [token for token in pending(run.run_id) if not _is_deferred(table, token)]
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
        left_out=statistics.left_out,
        stopping=_stopping(statistics.stopping, now),
    )


def _is_deferred(table: StreamTable, token: AnyToken) -> bool:
    """Whether the batch of a token is not due: it is not stuck, however old the token is."""
    open_stream = table.opened.get(token.stream)
    return open_stream is not None and open_stream.deferrals.due_at(token.batch_index) is not None


def _stopping(stopping: Stopping | None, now: float) -> LiveStopping | None:
    if stopping is None:
        return None
    return LiveStopping(stopping.open, stopping.batches, now + stopping.for_s)


@uninterrupted
async def publish_live(run: Run) -> None:
    """Publish the live view of a run while it is read, until cancelled; then remove it.

    A view that is not read any more is removed: it would be out of date when it is read again.
    Where that fails it ends with a warning, so that it cannot break the run.

    Cancellation: ends it; the removal is shielded.
    """
    store, registry = open_run_of(run).store, run.coordinator.registry
    published: int | None = None  # the version of the registry that the store shows
    pause_s = store.publish_every_s  # before the first one, too: a short run pays nothing
    has_asked = False
    try:
        while True:
            await trio.sleep(pause_s)
            pause_s, has_asked = store.publish_every_s, True
            if not await store.is_watched(run.run_id):
                if published is not None:
                    published = None
                    await store.publish(run.run_id, b"")
                continue
            if published == registry.version:
                continue
            began, published = trio.current_time(), registry.version
            payload = _encoder.encode(live_view(run))
            took_s = trio.current_time() - began
            pause_s = max(pause_s, took_s / MAX_COST_FRACTION)
            await store.publish(run.run_id, payload)
    except Exception as error:  # no error of the live view may end the run
        log.warning(
            "the live view of run %r is not published any more: %s",
            run.run_id,
            text_of(error),
            extra=at(run.run_id),
        )
    finally:
        if has_asked:
            with trio.CancelScope(shield=True):
                await _withdraw(store, run.run_id)


async def _withdraw(store: Store, run_id: str) -> None:
    try:
        await store.publish(run_id, b"")
    except Exception as error:
        log.debug(
            "the live view of run %r was not removed: %s", run_id, text_of(error), extra=at(run_id)
        )
