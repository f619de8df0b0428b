"""Waiting for batches to be durable, also for batches that are not begun yet.

A waiter wakes only when a batch that it waits for is settled, its stream is left, or the run
stops.  So the cost of a thousand waiters does not depend on the other batches of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import attrs
import trio

from .._commit.shutdown import Stop
from .._journal.progress import Progress
from .._journal.record import Status
from .._tokens.token import Failure
from .._util.arguments import whole_numbers
from .._util.errors import RunStoppedError, StreamEndedError, describe_batch
from .._util.plain import StreamKey
from .stream_table import StreamTable

SKIPPED = Failure("it was skipped")

# Schedule points until a key is called unknown.  A task that was started just before takes its
# first step, which may open the stream, before or after the next step of the caller; a task in a
# nursery of that task takes it one step later.  The order of tasks must not decide what is known.
STEPS_TO_OPEN = 10

_K = TypeVar("_K")


@attrs.define(eq=False)
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
