"""The run's list of streams, in order, also of streams that are not opened yet."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs

from .._commit.group_commit import GroupCommitter
from .._journal.record import Record, RecordKind
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.text import plural
from .stream_table import StreamTable

log = get_logger(__name__)

MAX_SHOWN = 10  # names in one line of the log


@attrs.frozen
class Listed:
    """What `Run.add_streams` found.

    Attributes:
        new: Streams that were not on the list before.
        unlisted: Streams on the list that were not named this time.
    """

    new: tuple[StreamKey, ...]
    unlisted: tuple[StreamKey, ...]


async def add_to_list(
    stream_table: StreamTable, committer: GroupCommitter, wanted: Sequence[StreamKey]
) -> Listed:
    """Put streams on the list of a run; see `Run.add_streams`.

    Durability: when this returns the list is saved.
    """
    listed = {key: p.position for key, p in stream_table.progress.items() if p.position is not None}
    new = [key for key in wanted if key not in listed]
    first = max(listed.values(), default=-1) + 1
    now = time.time()
    await committer.save_all(
        (stream_table.stream_log(key), Record(kind=RecordKind.ADD, at=now, position=first + place))
        for place, key in enumerate(new)
    )
    named = set(wanted)
    unlisted = tuple(key for key in listed if key not in named)
    if unlisted:
        shown = ", ".join("/".join(key) for key in unlisted[:MAX_SHOWN])
        log.info(
            "not named any more, but still listed: %s (%s)",
            plural(len(unlisted), "stream"),
            shown,
            extra=at(committer.run_key.run_id),
        )
    return Listed(tuple(new), unlisted)
