"""Reads of a run from outside: nothing here writes or needs a lock."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from .._journal.record import ErrorInfo, Status
from .._journal.run_status import RunStatus as RunStatus, read_run_status
from .._journal.store import Owner, Store
from .._journal.summary import Summary
from .._util.errors import StoreDamagedError
from .._util.plain import StreamKey, decode_key
from .._util.text import iso_moment, stream_name
from ..stores import open_store
from ._exits import EXIT_NOT_FOUND, EXIT_USAGE, CommandError
from ._key import mac_key

MAX_NAMED = 5  # runs and streams that a message names


@asynccontextmanager
async def reading(url: str, *, create: bool = False) -> AsyncGenerator[Store]:
    """Open a store; one that is not there is made only if asked for.

    Raises:
        CommandError: the store is in the memory of a process.
        StoreError: the store is not there, or cannot be read.
    """
    if url.startswith("memory:"):
        raise CommandError("a store in memory is seen by its own process only", EXIT_USAGE)
    store = await open_store(url, mac_key=mac_key(), create=create)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


async def look_at(store: Store, run_id: str | None) -> RunStatus:
    """Read the status of a run; it may be left out where the store has only one.

    Raises:
        CommandError: there is no such run, or the store has several.
    """
    if run_id is None:
        run_id = await _only_run(store)
    look = await read_run_status(store, run_id)
    if look is None:
        raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
    return look


async def _only_run(store: Store) -> str:
    runs = [run.run_id for run in await store.list_runs()]
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise CommandError(f"{store.url} has no runs yet", EXIT_NOT_FOUND)
    raise CommandError(f"{store.url} has several runs, name one: {_some(runs)}", EXIT_USAGE)


async def no_such_run(store: Store, run_id: str) -> str:
    """The message that the store has no such run, and which runs it has."""
    runs = [run.run_id for run in await store.list_runs()]
    if not runs:
        return f"{store.url} has no run {run_id!r}: it has no runs yet"
    close = difflib.get_close_matches(run_id, runs, MAX_NAMED)
    return f"{store.url} has no run {run_id!r}; it has {_some(close or runs)}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:MAX_NAMED])
    more = len(names) - MAX_NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown


# ---------------------------------------------------------------------------------------
# Which streams are meant
# ---------------------------------------------------------------------------------------


def choose_streams(keys: Sequence[StreamKey], name: str | None) -> list[StreamKey]:
    """The streams that ``--stream`` means: one of that name, or the group of that name.

    A stream is named as messages name it, its parts with ``/`` between them.  Where two
    have one name, the JSON array of the parts tells them apart.

    Raises:
        CommandError: none or several are meant.
    """
    if name is None:
        return list(keys)
    parts = _json_parts(name)
    if parts is not None:
        found = [key for key in keys if key == parts] or [
            key for key in keys if key[: len(parts)] == parts
        ]
        if found:
            return found
    exact = [key for key in keys if name in ("/".join(key), stream_name(key))]
    if len(exact) == 1:
        return exact
    groups: dict[StreamKey, list[StreamKey]] = {}
    for key in keys:
        for depth in range(1, len(key)):
            if name in ("/".join(key[:depth]), stream_name(key[:depth])):
                groups.setdefault(key[:depth], []).append(key)
    if len(exact) > 1 or len(groups) > 1:
        ways = " or ".join(_quoted(key) for key in (exact or list(groups))[:MAX_NAMED])
        raise CommandError(
            f"{name!r} is the name of more than one: write --stream {ways}", EXIT_USAGE
        )
    for members in groups.values():
        return members
    names = [stream_name(key) for key in keys]
    close = difflib.get_close_matches(name, names, MAX_NAMED) or names
    what = f"; it has {_some(close)}" if names else "; it has none"
    raise CommandError(f"the run has no stream or group {name!r}{what}", EXIT_NOT_FOUND)


def choose_stream(keys: Sequence[StreamKey], name: str | None) -> StreamKey:
    """The one stream that ``--stream`` means; it may be left out where there is only one.

    Raises:
        CommandError: none or several are meant.
    """
    found = choose_streams(keys, name)
    if len(found) == 1:
        return found[0]
    if not found:
        raise CommandError("the run has no streams yet", EXIT_NOT_FOUND)
    names = _some([stream_name(key) for key in found])
    raise CommandError(
        f"{len(found):,} streams are meant, name one with --stream: {names}", EXIT_USAGE
    )


def _json_parts(name: str) -> StreamKey | None:
    if not name.startswith("["):
        return None
    try:
        return decode_key(name) or None
    except StoreDamagedError:
        return None


def _quoted(key: StreamKey) -> str:
    return "'" + json.dumps(key).replace("'", "\\u0027") + "'"


# ---------------------------------------------------------------------------------------
# Documents that more than one command needs
# ---------------------------------------------------------------------------------------


def left_of(summary: Summary) -> int | None:
    """How many batches are left; unknown for a run without streams."""
    return summary.left if any(summary.streams.values()) else None


def word_of(status: Status) -> str:
    """A status, for programs: one word."""
    return status.name.lower()


def owner_document(owner: Owner | None) -> dict[str, Any] | None:
    """The owner, for programs."""
    if owner is None:
        return None
    since = owner.since.isoformat(timespec="seconds")
    return {"host": owner.host, "pid": owner.pid, "since": since}


def error_part(error: ErrorInfo | None) -> dict[str, Any] | None:
    """A remembered error, for programs."""
    if error is None:
        return None
    return {
        "type": error.type,
        "message": error.message,
        "retryable": error.retryable,
        "batch_index": error.batch_index,
    }


def summary_document(summary: Summary) -> dict[str, Any]:
    """A summary, for programs."""
    known = summary.confirmed - summary.adopted
    return {
        "status": word_of(summary.status),
        "streams": {word_of(status): count for status, count in summary.streams.items()},
        "batches": {
            "confirmed": summary.confirmed,
            "skipped": summary.skipped,
            "failing": summary.failing,
            "left": left_of(summary),
            "adopted": summary.adopted,
        },
        "records": summary.records,
        "produced": dict(summary.totals),
        "spent": dict(summary.spent),
        "spent_on_confirmed": dict(summary.saved),
        "mean_spent_per_confirmed_batch": (
            {name: value / known for name, value in summary.saved.items()} if known else {}
        ),
        "started_at": iso_moment(summary.started_at),
        "updated_at": iso_moment(summary.updated_at),
        "completed_at": iso_moment(summary.completed_at),
        "failed_at": iso_moment(summary.failed_at),
        "error": error_part(summary.error),
    }
