"""Owning a stream for a block: it is made, resumed, used, and left."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeVar

import attrs
import trio

from .._commit.open_stream import OpenStream
from .._commit.retry import LoopPolicy, RetryTable
from .._commit.stream_outputs import StreamFiles
from .._journal.progress import Progress
from .._journal.record import Status
from .._util.arguments import path_text
from .._util.errors import StreamFailedError, describe_batch
from .._util.plain import StreamKey
from .._util.uninterrupted import uninterrupted
from ..outputs import Validator
from .config import Settings
from .open_run import OpenRun
from .resume import Resume
from .stream import Stream, leave
from .stream_operations import is_own_failure

S = TypeVar("S")


@attrs.frozen
class StreamRequest:
    """What `Run.open_stream` is asked for; see its arguments."""

    key: StreamKey
    first_index: int
    retry: RetryTable
    on_fail: Literal["raise", "record"]
    validator: Validator | None
    output_dir: str | None
    settings: Settings


@asynccontextmanager
@uninterrupted
async def own_stream(
    run: OpenRun, request: StreamRequest, state: S | None
) -> AsyncGenerator[Stream[S]]:
    """Own a stream for a block; see `Run.open_stream`."""
    key, table = request.key, run.stream_table
    folder = _folder_of(run, request)
    run.check_free(key)
    _check_first_index(run, request)
    open_stream = table.opened[key] = _make_open_stream(run, request, folder)
    run.waits.opened(key)
    resume = Resume(run.store, open_stream, request.settings, run.tools)
    scope = trio.CancelScope()
    run.stop.scopes.add(scope)
    try:
        if run.stop.exit_code:
            scope.cancel()
        with scope:
            await trio.lowlevel.checkpoint()
            stream: Stream[S] = await resume.open(state, run.nursery)
            try:
                yield stream
            except BaseException as error:
                await resume.close()
                await leave(stream, error)
                if not (request.on_fail == "record" and is_own_failure(error, key)):
                    raise
            else:
                await leave(stream, None)  # it may wait for the verification
                _check_left(run, request, open_stream, stream)
        if scope.cancelled_caught:
            raise run.stopped()
    finally:
        run.stop.scopes.discard(scope)
        await resume.close()
        open_stream.close()
        del table.opened[key]
        run.waits.left(key)
        run.touch()


def _folder_of(run: OpenRun, request: StreamRequest) -> str:
    """The folder of a stream's outputs, relative to that of the run."""
    if request.output_dir is None:
        return ""
    if run.outputs is None:
        raise ValueError(
            "output_dir= of a stream is below that of the run, which has none: give "
            "open_run(output_dir=...)"
        )
    name = os.path.normpath(path_text("output_dir", request.output_dir))
    return "" if name == "." else run.outputs.relative(name)


def _check_first_index(run: OpenRun, request: StreamRequest) -> None:
    progress = run.stream_table.progress.get(request.key, Progress())
    first = progress.first_index
    if progress.opens and first != request.first_index and len(progress.done):
        raise ValueError(
            f"{describe_batch(run.run_id, request.key, None)} was begun with "
            f"first_index={first}, not {request.first_index}"
        )


def _make_open_stream(run: OpenRun, request: StreamRequest, folder: str) -> OpenStream:
    table = run.stream_table
    stream_log = table.stream_log(request.key)
    files = StreamFiles(
        run.run_id,
        stream_log,
        run.path_owners,
        run.committer.check_owner,
        run.outputs,
        folder,
        request.validator,
        run.settings.outputs_since,
    )
    return OpenStream(
        run.run_id,
        stream_log,
        run.committer,
        run.coordinator.registry,
        run.stop,
        LoopPolicy(request.retry, files.validator),
        files,
        run.nursery,
        first_index=request.first_index,
        phase=table.phases[-1][1] if table.phases else None,
        failed=table.failures.setdefault(request.key, {}),
        settled=partial(run.waits.settled, request.key),
        waited=run.waits.of_batches,
    )


def _check_left(
    run: OpenRun, request: StreamRequest, open_stream: OpenStream, stream: Stream[S]
) -> None:
    """Raise where a stream that was left without an exception has failed, or was stopped."""
    if open_stream.has_failed:
        if request.on_fail == "raise" and stream.error is not None:
            raise StreamFailedError(
                stream.error.message,
                run_id=run.run_id,
                stream=stream.key,
                retryable=stream.error.retryable,
            )
    elif run.stop.is_requested and stream.status is not Status.COMPLETE:
        raise run.stopped()
