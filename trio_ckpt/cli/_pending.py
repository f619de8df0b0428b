"""What the owner of a run is at now, as it publishes it: pending tokens, a stop, what it lacks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from .._journal.live_view import LiveToken, LiveView, await_live
from .._journal.summary import RunStatus
from .._util.plain import StreamKey
from .._util.text import duration, iso_moment, moment, number, plural, stopping_text, stream_name
from ._render import Block, Document, capped

COLUMNS = ("pending in", ">batch", "state", ">age")


async def live_of(run: RunStatus) -> LiveView | None:
    """What the live owner of a run publishes; None: there is no owner, or no such thing.

    It may take a second: an owner publishes only while its view is read.

    Raises:
        StoreError: the store cannot be read.
    """
    if run.owner is None:
        return None
    return await await_live(run.store, run.run_id, run.view.owner)


def pending_document(live: LiveView | None, now: float) -> Document | None:
    """The pending tokens, for programs; null: they cannot be seen."""
    if live is None:
        return None
    return {
        "total": live.pending,
        "at": iso_moment(live.at),
        "tokens": [
            {
                "stream": list(token.stream),
                "batch_index": token.batch_index,
                "state": token.state,
                "created_at": iso_moment(token.created_at),
                "age_s": round(_age_s(token, now), 3),
                "waits_until": iso_moment(token.waits_until),
            }
            for token in live.tokens
        ],
    }


def pending_text(live: LiveView, now: float) -> str:
    """How many tokens are pending, and the age of the oldest."""
    if not live.tokens:
        return "no token is pending"
    oldest = live.tokens[0]
    where = f"{stream_name(oldest.stream)} batch {number(oldest.batch_index)}"
    age = duration(_age_s(oldest, now))
    count = plural(live.pending, "token")
    if waiting := sum(token.waits_until is not None for token in live.tokens):
        count = f"{count}, {number(waiting)} of them until a next attempt"
    return f"{count}, the oldest ({where}) for {age}"


def pending_blocks(
    live: LiveView | None,
    names: Mapping[StreamKey, str],
    only: Collection[StreamKey] | None,
    now: float,
    limit: int | None,
) -> list[Block]:
    """The pending tokens, oldest first, as a table if there are any.

    Args:
        live: What the owner is at.
        names: How streams are named that have records.
        only: The streams that were asked for; None: all.
        now: Unix time, s.
        limit: How many rows at most.
    """
    tokens = [] if live is None else list(live.tokens)
    if only is not None:
        tokens = [token for token in tokens if token.stream in only]
    if not tokens:
        return []

    def row(token: LiveToken) -> tuple[str, ...]:
        return (
            names.get(token.stream, stream_name(token.stream)),
            number(token.batch_index),
            _state_text(token, now),
            duration(_age_s(token, now)),
        )

    return [capped(COLUMNS, tokens, row, limit, "tokens")]


def left_out_pairs(live: LiveView | None, names: Mapping[StreamKey, str]) -> list[tuple[str, str]]:
    """The streams of which snapshots could not be saved, and why."""
    pairs = list[tuple[str, str]]()
    for one in () if live is None else live.left_out:
        name = names.get(one.stream, stream_name(one.stream))
        text = f"{plural(one.count, 'snapshot')} of {name} left out: {one.problem}"
        pairs.append(("snapshots", text))
    return pairs


def stopping_document(live: LiveView | None) -> Document | None:
    """A stop that is under way, for programs; null: there is none, or it cannot be seen."""
    if live is None or live.stopping is None:
        return None
    stopping = live.stopping
    return {
        "open": stopping.open,
        "batches": [
            {"stream": list(stream), "batch_index": index} for stream, index in stopping.batches
        ],
        "until": None if math.isinf(stopping.until) else iso_moment(stopping.until),
    }


def stopping_texts(live: LiveView | None, now: float) -> list[str]:
    """What a stop waits for, and for how long still; nothing where there is none."""
    if live is None or live.stopping is None:
        return []
    stopping = live.stopping
    return [stopping_text(stopping.open, stopping.batches, max(0.0, stopping.until - now))]


def _age_s(token: LiveToken, now: float) -> float:
    return max(0.0, now - token.created_at)


def _state_text(token: LiveToken, now: float) -> str:
    """The state of a token: until when it waits, where its batch has failed and runs again."""
    if token.waits_until is None:
        return token.state
    if token.waits_until <= now:
        return "waits for its turn"
    return f"waits until {moment(token.waits_until)}"
