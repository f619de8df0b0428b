"""The end of a run: its streams end, and one exception leaves its block."""

from __future__ import annotations

import trio

from .._journal.summary import exit_code
from .._util.errors import EXIT_DRAINED, StreamsStillOpenError
from .._util.patience import give_up_after
from .brake import requeue_outage
from .open_run import OpenRun
from .opening import is_replaced
from .stream_operations import is_only_stopped


async def close_run(
    run: OpenRun, error: BaseException | None, grace_s: float
) -> BaseException | None:
    """End streams that are still open; returns the exception that leaves the run's block.

    Their tasks, and those that rewind a stream, have `grace_s` seconds to save what they do.

    Cancellation: none.
    """
    table, registry = run.stream_table, run.coordinator.registry
    table.is_closed = True
    error = error or run.calls.problem(f"run {run.run_id!r}")
    if table.opened:
        names = ", ".join(repr("/".join(key)) for key in table.opened)
        error = error or StreamsStillOpenError(
            f"run {run.run_id!r} was left while streams were open in other tasks: {names}; "
            "open the nursery inside open_run",
            run_id=run.run_id,
        )
        run.stop.cancel_streams(EXIT_DRAINED)
    if table.opened or run.rewinding:
        with give_up_after(grace_s):
            version = registry.version
            while table.opened or run.rewinding:
                version = await registry.wait_changed(version)
        for open_stream in tuple(table.opened.values()):
            open_stream.close()
    await requeue_outage(run)
    table.ended = trio.current_time()
    run.wake_waiters()
    return _stop_instead(run, error)


def _stop_instead(run: OpenRun, error: BaseException | None) -> BaseException | None:
    """The exception that leaves a run: RunStoppedError if it was stopped, else the body's."""
    poison = run.committer.poison
    if error is None:
        run.deferred.stop_for_left()
    if not run.stop.is_requested and poison is None:
        return error
    if error is None:
        if poison is None and exit_code(run.stream_table.progress, has_ended=False) != EXIT_DRAINED:
            return None  # a start would find nothing to do
    elif not is_only_stopped(error, poison):
        if error.__context__ is None and not isinstance(error, trio.Cancelled):
            error.__context__ = run.stopped()
        return error
    return poison if is_replaced(poison) else run.stopped()
