"""Which store, run and streams a command means; nothing here writes or needs a lock."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager

import click

from .._journal.history import list_all_runs
from .._journal.store import Store
from .._journal.summary import RunStatus, read_run_status
from .._util.errors import StoreDamagedError
from .._util.plain import StreamKey, decode_key
from .._util.text import number, plural, stream_name
from ..stores import open_store, read_mac_key
from ._exits import EXIT_NOT_FOUND, EXIT_USAGE, CommandError

MAX_NAMED = 5  # runs and streams that a message names
MAC_KEY_PLACE = "trio_ckpt.mac_key_file"  # in the meta data of click's context


def mac_key() -> bytes | None:
    """The key that the user named for the running command; None: no key was named.

    Raises:
        StoreError: the file holds none, or others may read it.
        OSError: it cannot be read.
    """
    context = click.get_current_context(silent=True)
    path: str | None = context.meta.get(MAC_KEY_PLACE) if context is not None else None
    return None if path is None else read_mac_key(path)


@asynccontextmanager
async def reading(url: str, *, create: bool = False) -> AsyncGenerator[Store]:
    """Open a store; one that is not there is made only if asked for.

    Raises:
        CommandError: the store is in the memory of a process.
        StoreError: the store is not there, or cannot be read.
    """
    if url.startswith("memory:"):
        raise CommandError("a store in memory is seen by its own process only", EXIT_USAGE)
    async with aclosing(await open_store(url, mac_key=mac_key(), create=create)) as store:
        yield store


async def read_status(store: Store, run_id: str | None) -> RunStatus:
    """Read the status of a run; it may be left out where the store has only one.

    Raises:
        CommandError: there is no such run, or the store has several.
    """
    if run_id is None:
        run_id = await _only_run(store)
    status = await read_run_status(store, run_id)
    if status is None:
        raise CommandError(await no_such_run(store, run_id), EXIT_NOT_FOUND)
    return status


async def _only_run(store: Store) -> str:
    runs = [run.run_id for run in await list_all_runs(store)]
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise CommandError(f"{store.url} has no runs yet", EXIT_NOT_FOUND)
    raise CommandError(f"{store.url} has several runs, name one: {_some(runs)}", EXIT_USAGE)


async def no_such_run(store: Store, run_id: str) -> str:
    """The message that the store has no such run, and which runs it has."""
    runs = [run.run_id for run in await list_all_runs(store)]
    if not runs:
        return f"{store.url} has no run {run_id!r}: it has no runs yet"
    close = difflib.get_close_matches(run_id, runs, MAX_NAMED)
    return f"{store.url} has no run {run_id!r}; it has {_some(close or runs)}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:MAX_NAMED])
    more = len(names) - MAX_NAMED
    return f"{shown} and {number(more)} more" if more > 0 else shown


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
        f"{plural(len(found), 'stream')} are meant, name one with --stream: {names}", EXIT_USAGE
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
