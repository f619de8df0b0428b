"""The stream table of an open run: its streams in order, their sums, and the waits for batches.

A wait for batches wakes only when a batch that it waits for is settled, its stream is left, or the
run stops.  So the cost of a thousand waits does not depend on the other batches of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import attrs
import msgspec
import trio

from .._commit.group_commit import GroupCommitter
from .._commit.open_stream import OpenStream
from .._commit.saves import save_records
from .._commit.shutdown import Stop
from .._commit.stream_log import StreamLog
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind, Status
from .._journal.summary import (
    Summary,
    in_order,
    is_to_process,
    summarize,
)
from .._tokens.token import Failure
from .._util.arguments import whole_numbers
from .._util.errors import RunStoppedError, StreamEndedError, UnknownStreamError, describe_batch
from .._util.log import at, get_logger
from .._util.plain import RUN_STREAM, StreamKey
from .._util.text import plural

log = get_logger(__name__)

MAX_SHOWN = 10  # names in one line of the log


@attrs.define(eq=False, repr=False)
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

    @property
    def now(self) -> float:
        """The time on trio's clock; after the run was closed, the time when it was closed."""
        return trio.current_time() if self.ended is None else self.ended


class Listed(msgspec.Struct, frozen=True):
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
    places = ((key, first + place) for place, key in enumerate(new))
    await save_records(
        committer,
        [
            (stream_table.stream_log(key), Record(kind=RecordKind.ADD, at=now, position=place))
            for key, place in places
        ],
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


SKIPPED = Failure("it was skipped")

# Schedule points until a key is called unknown.  A task that was started just before takes its
# first step, which may open the stream, before or after the next step of the caller; a task in a
# nursery of that task takes it one step later.  The order of tasks must not decide what is known.
STEPS_TO_OPEN = 10

_K = TypeVar("_K")


@attrs.define(eq=False, repr=False)
class _ConfirmationWait:
    """One call of `Run.wait_confirmed`.

    Attributes:
        key: The key of the stream.
        wanted: The batches that are not durable yet.
        was_open: The stream was open since the wait began.
        woken: Set when the answer may have changed.
    """

    key: StreamKey
    wanted: set[int]
    was_open: bool
    woken: trio.Event = attrs.field(factory=trio.Event, init=False)


class Waits:
    """The waits for batches of a run.

    Attributes:
        of_batches: The waits by stream and batch.
    """

    def __init__(
        self, stream_table: StreamTable, stop: Stop, stopped: Callable[[], RunStoppedError]
    ) -> None:
        self._stream_table = stream_table
        self._stop = stop
        self._stopped = stopped
        self._of_streams: dict[StreamKey, list[_ConfirmationWait]] = {}
        self.of_batches: dict[tuple[StreamKey, int], list[_ConfirmationWait]] = {}

    async def wait_confirmed(self, key: StreamKey, indexes: Iterable[int]) -> None:
        """Wait until batches of a stream are durable; see `Run.wait_confirmed`."""
        wanted, was_open = set(whole_numbers("indexes", indexes)), key in self._stream_table.opened
        await trio.lowlevel.checkpoint()
        for _ in range(STEPS_TO_OPEN):
            if self._stream_table.has(key) or self._stop.is_parking:
                break
            await trio.lowlevel.checkpoint()
        if not self._stream_table.has(key) and self._stop.is_parking:
            raise self._stopped()
        self._stream_table.check_known(key)
        waiter = _ConfirmationWait(key, wanted, was_open)
        if self._is_answered(waiter):
            return
        batches = [(key, index) for index in waiter.wanted]
        self._of_streams.setdefault(key, []).append(waiter)
        for batch in batches:
            self.of_batches.setdefault(batch, []).append(waiter)
        try:
            while not self._is_answered(waiter):
                await waiter.woken.wait()
                waiter.woken = trio.Event()
        finally:
            _remove(self._of_streams, key, waiter)
            for batch in batches:
                _remove(self.of_batches, batch, waiter)

    def _is_answered(self, waiter: _ConfirmationWait) -> bool:
        """Whether all batches of a wait are durable.

        Raises:
            CheckpointFailedError, StreamEndedError, RunStoppedError: they will not be.
        """
        stream_table, key = self._stream_table, waiter.key
        progress = stream_table.progress[key]
        waiter.wanted = {index for index in waiter.wanted if index not in progress.confirmed}
        if not waiter.wanted:
            return True
        _raise_failure(stream_table, key, waiter.wanted)
        is_open = key in stream_table.opened
        waiter.was_open = waiter.was_open or is_open
        if self._stop.exit_code and not is_open:
            raise self._stopped()
        is_over = waiter.was_open or stream_table.is_closed or progress.status is Status.COMPLETE
        if is_over and not is_open:
            where = describe_batch(stream_table.run_id, key, None)
            raise StreamEndedError(
                f"{where} ended without batches {sorted(waiter.wanted)[:10]}",
                run_id=stream_table.run_id,
                stream=key,
            )
        return False

    # -- events --------------------------------------------------------------------------------

    def settled(self, key: StreamKey, index: int) -> None:
        """Wake the waits for a batch, which is durable or has failed."""
        is_durable = index in self._stream_table.progress[key].confirmed
        for waiter in self.of_batches.get((key, index), ()):
            if is_durable:
                waiter.wanted.discard(index)
            if not (is_durable and waiter.wanted):
                waiter.woken.set()

    def opened(self, key: StreamKey) -> None:
        """Mark in the waits for a stream that it was opened."""
        for waiter in self._of_streams.get(key, ()):
            waiter.was_open = True

    def left(self, key: StreamKey) -> None:
        """Wake the waits for a stream, which was left."""
        for waiter in self._of_streams.get(key, ()):
            waiter.woken.set()

    def wake_all(self) -> None:
        """Wake all waits, because the run stops or is closed."""
        for waiters in self._of_streams.values():
            for waiter in waiters:
                waiter.woken.set()


def _remove(waiters: dict[_K, list[_ConfirmationWait]], key: _K, waiter: _ConfirmationWait) -> None:
    waiters[key].remove(waiter)
    if not waiters[key]:
        del waiters[key]


def _raise_failure(stream_table: StreamTable, key: StreamKey, wanted: set[int]) -> None:
    failed = stream_table.failures.get(key, {})
    progress = stream_table.progress.get(key, Progress())
    skipped = {index for index in wanted if index in progress.skipped}
    for index in sorted(skipped | (wanted & failed.keys())):
        failure = failed.get(index) or _skip_failure(progress, index)
        raise failure.error(
            failure.reason, run_id=stream_table.run_id, stream=key, batch_index=index
        ) from failure.cause


def _skip_failure(progress: Progress, index: int) -> Failure:
    skip = progress.skips.get(index)
    if skip is None or skip.error is None:
        return SKIPPED
    return Failure(f"{SKIPPED.reason}: {skip.error.message}")
