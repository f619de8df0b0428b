"""The stream table of an open run: its streams in order, their progress, and their sums."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs
import trio

from .._commit.group_commit import GroupCommitter
from .._commit.open_stream import OpenStream
from .._commit.stream_log import StreamLog
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind, Status
from .._journal.summary import (
    Summary,
    exit_code,
    in_order,
    is_to_process,
    phase_statuses,
    summarize,
    summarize_groups,
)
from .._tokens.token import Failure
from .._util.errors import UnknownStreamError
from .._util.log import at, get_logger
from .._util.plain import RUN_STREAM, StreamKey
from .._util.text import plural

log = get_logger(__name__)

MAX_SHOWN = 10  # names in one line of the log


@attrs.define(eq=False)
class StreamTable:
    """The streams of an open run.

    Attributes:
        progress: What is durable of each stream.
        stream_logs: The logs of the streams that this session has touched.
        opened: The streams that are open.
        phases: The phases that are open, in the order of opening.
        failures: Batches that failed for good in this session, by stream.
        is_closed: The block of the run has ended.
        began, ended: When the run was opened, and closed, on trio's clock.
        runtime_before_s: For how long earlier sessions had the run open, in seconds.
    """

    _committer: GroupCommitter
    runtime_before_s: float
    progress: dict[StreamKey, Progress]
    stream_logs: dict[StreamKey, StreamLog] = attrs.field(
        factory=dict[StreamKey, StreamLog], init=False
    )
    opened: dict[StreamKey, OpenStream] = attrs.field(
        factory=dict[StreamKey, OpenStream], init=False
    )
    phases: list[StreamKey] = attrs.field(factory=list[StreamKey], init=False)
    failures: dict[StreamKey, dict[int, Failure]] = attrs.field(
        factory=dict[StreamKey, dict[int, Failure]], init=False
    )
    is_closed: bool = attrs.field(default=False, init=False)
    began: float = attrs.field(factory=trio.current_time, init=False)
    ended: float | None = attrs.field(default=None, init=False)

    def stream_log(self, key: StreamKey) -> StreamLog:
        """The log of a stream, made on first use."""
        stream_log = self.stream_logs.get(key)
        if stream_log is None:
            progress = self.progress.setdefault(key, Progress())
            stream_log = self.stream_logs[key] = self._committer.add_stream_log(key, progress)
        return stream_log

    def check_known(self, key: StreamKey) -> None:
        """Raise UnknownStreamError unless the run has such a stream."""
        if not self.has(key):
            raise self._unknown(key)

    def has(self, key: StreamKey) -> bool:
        """Whether the run has such a stream: it is open, has records, or is on the list."""
        return key in self.progress and key != RUN_STREAM

    @property
    def run_id(self) -> str:
        """The run."""
        return self._committer.run_key.run_id

    def _unknown(self, key: StreamKey) -> UnknownStreamError:
        return UnknownStreamError(
            f"run {self.run_id!r} has no stream {'/'.join(key)!r}: none with that key is open, "
            "saved, or on the list of add_streams()",
            run_id=self.run_id,
            stream=key,
        )

    @property
    def open_streams(self) -> frozenset[StreamKey]:
        """The streams that are open, and have not failed since they were opened."""
        return frozenset(
            key for key, open_stream in self.opened.items() if not open_stream.has_failed
        )

    def exit_code(self, *, has_ended: bool) -> int:
        """The exit code for a command; see `trio_ckpt._journal.summary.exit_code`."""
        parts = (progress for key, progress in self.progress.items() if key != RUN_STREAM)
        return exit_code(parts, has_ended=has_ended)

    def to_process(self, *, retry_failed: bool, start_from: StreamKey | None) -> list[StreamKey]:
        """The streams with work left, in order; see `Run.streams_to_process`."""
        order = in_order(self.progress)
        if any(self.progress[key].position is not None for key in order):
            order = [key for key in order if self.progress[key].position is not None]
        if start_from is not None:
            n = len(start_from)
            place = next((i for i, key in enumerate(order) if key[:n] == start_from), None)
            if place is None:
                raise self._unknown(start_from)
            order = order[place:]
        parts = self.progress
        return [key for key in order if is_to_process(parts[key], retry_failed=retry_failed)]

    def phase_statuses(self) -> dict[str, Status]:
        """The status of each phase, by name."""
        return phase_statuses(self.progress, open_phases=self.phases)

    # -- sums ---------------------------------------------------------------------------------

    def of_users(self) -> dict[StreamKey, Progress]:
        """The progress of the users' streams, in order."""
        return {key: self.progress[key] for key in in_order(self.progress)}

    def group(self, parts: StreamKey) -> Summary:
        """The sums of all streams whose keys begin with `parts`.

        Raises:
            UnknownStreamError: there are parts, and no key begins with them.
        """
        found = {key: p for key, p in self.of_users().items() if key[: len(parts)] == parts}
        if parts and not found:
            raise self._unknown(parts)
        return summarize(parts, found, open_streams=self.open_streams)

    def groups(self) -> dict[StreamKey, Summary]:
        """The sums of all streams with the same first part, for each first part."""
        return summarize_groups(self.progress, open_streams=self.open_streams)

    @property
    def now(self) -> float:
        """The time on trio's clock; after the run was closed, the time when it was closed."""
        return trio.current_time() if self.ended is None else self.ended


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
