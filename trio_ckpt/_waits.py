"""Waiting for batches to be durable, also for such as are not begun yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from ._errors import RunStoppedError, StreamEndedError, describe_batch
from ._progress import Progress
from ._records import Status
from ._registry import TokenRegistry
from ._roster import Roster
from ._stop import Stop
from ._token import Failure
from ._values import StreamKey

SKIPPED = Failure("it was skipped")


async def wait_confirmed(
    roster: Roster,
    registry: TokenRegistry,
    stop: Stop,
    key: StreamKey,
    indexes: Iterable[int],
    stopped: Callable[[], RunStoppedError],
) -> None:
    """Wait until batches of a stream are durable; see `Run.wait_confirmed`."""
    wanted, was_open = set(indexes), key in roster.desks
    await trio.lowlevel.checkpoint()  # tasks that began with this one have opened their streams
    if not roster.has(key) and stop.is_parking:
        raise stopped()
    roster.check_known(key)
    while True:
        version = registry.version
        progress = roster.progress[key]
        wanted = {index for index in wanted if index not in progress.confirmed}
        if not wanted:
            return
        _raise_failure(roster, key, wanted)
        is_open = key in roster.desks
        was_open = was_open or is_open
        if stop.exit_code and not is_open:
            raise stopped()
        is_over = was_open or roster.is_closed or progress.status is Status.COMPLETE
        if is_over and not is_open:
            where = describe_batch(roster.run_id, key, None)
            raise StreamEndedError(
                f"{where} ended without batches {sorted(wanted)[:10]}",
                run_id=roster.run_id,
                stream=key,
            )
        await registry.wait_changed(version)


def _raise_failure(roster: Roster, key: StreamKey, wanted: set[int]) -> None:
    failed, progress = roster.failures.get(key, {}), roster.progress.get(key, Progress())
    skipped = {index for index in wanted if index in progress.skipped}
    for index in sorted(skipped | (wanted & failed.keys())):
        failure = failed.get(index) or _skip_failure(progress, index)
        raise failure.error(
            failure.reason, run_id=roster.run_id, stream=key, batch_index=index
        ) from failure.cause


def _skip_failure(progress: Progress, index: int) -> Failure:
    skip = progress.skips.get(index)
    if skip is None or skip.error is None:
        return SKIPPED
    return Failure(f"{SKIPPED.reason}: {skip.error.message}")
