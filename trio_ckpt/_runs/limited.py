"""A run with limits begins: what was overridden, whether a limit is exceeded already, its watchers.

What is counted, and how a limit stops the run: `trio_ckpt._commit.limit_watch`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import trio

from .._commit.limit_watch import LimitWatch
from .._commit.limits import LimitReached, Limits, over_spent, plain_limits, too_little_free
from .._commit.shutdown import Stop
from .._journal.progress import Progress
from .._journal.store import RunView
from .._journal.summary import in_order
from .._util.exact_sum import ExactSum, add_sums
from .._util.exceptions import text_of
from .._util.log import at, get_logger
from .._util.plain import Plain, StreamKey
from .._util.text import printable
from .._util.threads import run_blocking
from .._util.uninterrupted import uninterrupted
from ..outputs import is_url
from ..stores import folder_of
from .brake import continue_outage
from .open_run import OpenRun
from .session import ROW_SINCE, SessionRecorder

log = get_logger(__name__)

FREE_EVERY_S = 5.0  # a disk that 100 MB/s are written to loses half a gigabyte in between


def watch_limits(
    run_id: str,
    limits: Limits | None,
    stop: Stop,
    grace_s: float,
    parts: Mapping[StreamKey, Progress],
) -> LimitWatch | None:
    """Make what counts for the limits of a run; None: it has none.

    Args:
        run_id: The run.
        limits: Its limits.
        stop: Its stop.
        grace_s: How long a stop waits for open batches, in seconds.
        parts: The progress of every stream.
    """
    if limits is None:
        return None
    spent, reserved = dict[str, ExactSum](), dict[str, ExactSum]()
    for key in in_order(parts):
        add_sums(spent, parts[key].spent)
        add_sums(spent, parts[key].assumed)  # of attempts that are over: nothing settles it
        if (notes := parts[key].notes) is not None:
            add_sums(reserved, notes.total)  # later attempts settle it
    return LimitWatch(run_id, limits, stop, grace_s, spent, reserved)


@uninterrupted
async def begin_limits(run: OpenRun, view: RunView | None, session: SessionRecorder) -> None:
    """Say what was overridden, stop a run whose limit is exceeded, and watch time and disks.

    Args:
        run: The run, before it hands anything out.
        view: The run as the last session left it; None: it is new.
        session: The session, which has begun; it ends if this fails.

    Raises:
        ValueError: `min_free_bytes` is given, and nothing is on a disk of this machine.
        StoreError: the records of the last session cannot be read.

    Cancellation: a cancellation point where records or disks are read.
    """
    _log_overrides(run.run_id, session.before, run.limits)
    if run.limits is None:
        return
    try:
        if view is not None:
            await continue_outage(run, view, session.before.get(ROW_SINCE))
        await _begin_watching(run, run.limits)
    except BaseException as error:
        await session.end(error)
        raise


async def _begin_watching(run: OpenRun, watch: LimitWatch) -> None:
    """Stop a run whose limit is exceeded already, and begin to watch time and disks."""
    watch.stop_at_start(over_spent(watch.limits, watch.spent))
    if watch.limits.min_free_bytes is not None:
        folders = _folders(run)
        if not folders:
            raise ValueError(
                "limits: min_free_bytes needs a store or an output_dir in a folder of this machine"
            )
        watch.stop_at_start(await run_blocking(_too_little, watch.limits, folders))
        run.nursery.start_soon(_watch_disks, watch, folders)
    if watch.is_late:
        watch.stop_at_start(watch.out_of_time())
    else:
        run.nursery.start_soon(watch.watch_time)


def _log_overrides(run_id: str, before: Mapping[str, Plain], watch: LimitWatch | None) -> None:
    """Log which limits are others than those of the last session.

    It is a WARNING where a limit has stopped that session: to go on was a decision.
    """
    was: Mapping[str, Plain] = before.get("limits", {})
    now = {} if watch is None else plain_limits(watch.limits)
    write = log.warning if before.get("reason") else log.info
    for name in sorted(was.keys() | now.keys()):
        if before and was.get(name) != now.get(name):
            write(
                "run %r: limit %s: %s -> %s",
                run_id,
                printable(name),
                was.get(name, "none"),
                now.get(name, "none"),
                extra=at(run_id),
            )


def _folders(run: OpenRun) -> list[str]:
    """The folders of this machine that the run writes to."""
    folders = [folder_of(run.store.url)]
    if run.outputs is not None and not is_url(run.outputs.root):
        folders.append(run.outputs.root)
    return [folder for folder in folders if folder]


def _too_little(limits: Limits, folders: list[str]) -> LimitReached | None:
    """The limit on free space, if it is reached in one of the folders."""
    for folder in folders:
        reached = too_little_free(limits, shutil.disk_usage(folder).free, folder)
        if reached is not None:
            return reached
    return None


@uninterrupted
async def _watch_disks(watch: LimitWatch, folders: list[str]) -> None:
    """Stop a run when there is too little space.

    Cancellation: a cancellation point.
    """
    while watch.reached is None:
        await trio.sleep(FREE_EVERY_S)
        try:
            reached = await run_blocking(_too_little, watch.limits, folders)
        except OSError as error:  # such as a network file system that is away for a while
            log.debug(
                "run %r: the free space is not known: %s",
                watch.run_id,
                text_of(error),
                extra=at(watch.run_id),
            )
        else:
            watch.stop_for(reached)
