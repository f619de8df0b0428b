"""An open run: its streams, and how it is left."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, TypeVar, cast, overload

import trio

from ._coordinator import CheckpointCoordinator
from ._errors import (
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_SKIPPED,
    RunStoppedError,
    StoreConflictError,
    StreamBusyError,
    StreamEndedError,
    StreamFailedError,
    StreamsStillOpenError,
    describe_batch,
)
from ._gate import Desk
from ._progress import Progress
from ._records import Status
from ._resume import Resume, Settings
from ._retry import NO_RETRIES, RetryTable
from ._saver import Lane, Saver
from ._session import Found
from ._stop import Stop
from ._stream import Stream
from ._token import Failure
from ._values import RUN_STREAM, StreamKey, check_stream_key, encode_key
from .abc import RunView, Store
from .outputs import OutputDir

log = logging.getLogger("trio_ckpt.run")

S = TypeVar("S")


class Run:
    """An open run; made by `open_run`.

    Attributes:
        run_id: Its name.
        found: What was there when it was opened.
        coordinator: Its tokens; ``run.coordinator.registry`` is for monitors.
    """

    def __init__(
        self,
        *,
        view: RunView | None,
        store: Store,
        saver: Saver,
        stop: Stop,
        nursery: trio.Nursery,
        coordinator: CheckpointCoordinator,
        outputs: OutputDir | None,
        settings: Settings,
        found: Found,
        resume_command: str | None,
    ) -> None:
        self.run_id = saver.run_key.run_id
        self.found = found
        self.coordinator = coordinator
        self._progress: dict[StreamKey, Progress] = {}
        if view is not None:
            self._progress = {key: entry.progress for key, entry in view.streams.items()}
        self._store = store
        self._saver = saver
        self._stop = stop
        self._nursery = nursery
        self._outputs = outputs
        self._settings = settings
        self._resume_command = resume_command
        self._lanes: dict[StreamKey, Lane] = {}
        self._desks: dict[StreamKey, Desk] = {}
        self._failures: dict[StreamKey, dict[int, Failure]] = {}
        self._claims: dict[str, tuple[str, int]] = {
            path: (encode_key(key), -1) for key, p in self._progress.items() for path in p.sinks
        }
        self._is_closed = False

    @property
    def exit_code(self) -> int:
        """What a command should exit with now.

        75 while any stream that has records is not COMPLETE, else 3 if any batch was skipped,
        else 0.
        """
        parts = [p for key, p in self._progress.items() if key != RUN_STREAM and p.sequence > 0]
        if any(progress.status is not Status.COMPLETE for progress in parts):
            return EXIT_DRAINED
        return EXIT_SKIPPED if any(progress.skipped for progress in parts) else EXIT_COMPLETE

    @property
    def is_stopping(self) -> bool:
        """Whether a signal or `request_stop` has asked it to stop."""
        return self._stop.is_requested

    def request_stop(self) -> None:
        """Stop in good order: hand out nothing more, save what is open, cancel the streams."""
        if not self._stop.is_requested:  # a second signal forces; a second call changes nothing
            self._stop.request()

    # -- streams ----------------------------------------------------------------------------

    @overload
    def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: None = None,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
    ) -> AbstractAsyncContextManager[Stream[None]]: ...

    @overload
    def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: S,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
    ) -> AbstractAsyncContextManager[Stream[S]]: ...

    @asynccontextmanager
    async def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: S | None = None,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
    ) -> AsyncGenerator[Stream[S]]:
        """Own a stream for a block.

        Args:
            parts: Its key: any printable texts.
            first_index: The index of its first batch.
            state: What the loop needs to go on, as it is at the very beginning: JSON-like,
                or a `Frontier`.  On resume ``stream.state`` is what was saved last.
            retry: What to do with failed attempts; default: they fail for good.
            on_fail: "record": a stream that `Stream.fail` was called on is left quietly.

        Raises:
            StreamBusyError: it is open already.
            StreamFailedError: it failed for good in an earlier session; or `Stream.fail` was
                called.
            RunStoppedError: the run was stopped before the stream was complete.
            OutputsMissingError, CannotRedoError, OutputError: confirmed outputs are damaged.
            ValueError: a bad key.

        Cancellation: entering and leaving are schedule points; what was completed is saved.
        """
        key = check_stream_key(parts)
        if self._is_closed:
            raise trio.ClosedResourceError(f"run {self.run_id!r} is closed")
        if key in self._desks:
            where = describe_batch(self.run_id, key, None)
            raise StreamBusyError(f"{where} is open already", run_id=self.run_id, stream=key)
        desk = self._open_desk(key, first_index, retry)
        resume = Resume(self._store, desk, self._settings)
        scope = trio.CancelScope()
        self._stop.scopes.add(scope)
        try:
            if self._stop.exit_code:
                scope.cancel()
            with scope:
                await trio.lowlevel.checkpoint()
                stream: Stream[S] = await resume.open(first_index, state, self._nursery)
                try:
                    yield stream
                except BaseException as error:
                    await resume.close()
                    await stream.leave(error)
                    raise
                await resume.close()
                await stream.leave(None)
                self._check_left(stream, on_fail)
            if scope.cancelled_caught:
                raise self._stopped()
        finally:
            self._stop.scopes.discard(scope)
            await resume.close()
            desk.close()
            del self._desks[key]
            self.coordinator.registry.touch()

    def _open_desk(self, key: StreamKey, first_index: int, retry: RetryTable | None) -> Desk:
        lane = self._lanes.get(key)
        if lane is None:
            progress = self._progress.setdefault(key, Progress())
            lane = self._lanes[key] = self._saver.add_lane(key, progress)
        self._desks[key] = desk = Desk(
            self.run_id,
            lane,
            self._saver,
            self.coordinator,
            self._stop,
            retry or NO_RETRIES,
            self._claims,
            self._outputs,
            first_index=first_index,
            failed=self._failures.setdefault(key, {}),
        )
        return desk

    def _check_left(self, stream: Stream[Any], on_fail: str) -> None:
        if stream.status is Status.FAILED:
            if on_fail == "raise" and stream.error is not None:
                where = describe_batch(self.run_id, stream.key, None)
                raise StreamFailedError(
                    f"{where} failed: {stream.error.message}",
                    run_id=self.run_id,
                    stream=stream.key,
                )
        elif self._stop.is_requested and stream.status is not Status.COMPLETE:
            raise self._stopped()

    def _stopped(self) -> RunStoppedError:
        error = RunStoppedError(
            self.run_id,
            exit_code=self._stop.exit_code or EXIT_DRAINED,
            resume_command=self._resume_command,
            poison=self._saver.poison,
        )
        error.__cause__ = self._saver.poison
        return error

    async def wait_confirmed(self, stream: Stream[Any] | StreamKey, indexes: Iterable[int]) -> None:
        """Wait until batches are durable, also such as are not begun yet.

        Raises:
            CheckpointFailedError: one of them failed, or was skipped.
            StreamEndedError: the stream ended without them.

        Cancellation: always a cancellation and a schedule point.
        """
        key = stream.key if isinstance(stream, Stream) else tuple(stream)
        registry = self.coordinator.registry
        wanted, was_open = set(indexes), key in self._desks
        await trio.lowlevel.checkpoint()
        while True:
            version = registry.version
            progress = self._progress.get(key, Progress())
            wanted = {index for index in wanted if index not in progress.confirmed}
            if not wanted:
                return
            self._raise_failure(key, progress, wanted)
            is_open = key in self._desks
            was_open = was_open or is_open
            is_over = was_open or self._is_closed or progress.status is Status.COMPLETE
            if is_over and not is_open:
                raise StreamEndedError(
                    f"{describe_batch(self.run_id, key, None)} ended without batches "
                    f"{sorted(wanted)[:10]}",
                    run_id=self.run_id,
                    stream=key,
                )
            await registry.wait_changed(version)

    def _raise_failure(self, key: StreamKey, progress: Progress, wanted: set[int]) -> None:
        failed = self._failures.get(key, {})
        skipped = {index for index in wanted if index in progress.skipped}
        for index in sorted(skipped | (wanted & failed.keys())):
            failure = failed.get(index, SKIPPED)
            raise failure.error(
                failure.reason, run_id=self.run_id, stream=key, batch_index=index
            ) from failure.cause

    # -- leaving -----------------------------------------------------------------------------

    async def close(self, error: BaseException | None, grace_s: float) -> BaseException | None:
        """End streams that are still open; returns what is to leave the run's block.

        They pass the gate in their own tasks, which have `grace_s` for it.
        """
        self._is_closed = True
        registry = self.coordinator.registry
        if self._desks:
            names = ", ".join(repr("/".join(key)) for key in self._desks)
            error = error or StreamsStillOpenError(
                f"run {self.run_id!r} was left while streams were open in other tasks: {names}; "
                "open the nursery inside open_run",
                run_id=self.run_id,
            )
            self._stop.cancel_streams(EXIT_DRAINED)
            with trio.move_on_after(grace_s, shield=True):
                version = registry.version
                while self._desks:
                    version = await registry.wait_changed(version)
            for desk in tuple(self._desks.values()):
                desk.close()
        registry.touch()
        return self._stop_instead(error)

    def _stop_instead(self, error: BaseException | None) -> BaseException | None:
        """What leaves a run that was stopped: one RunStoppedError, or the body's own error."""
        poison = self._saver.poison
        if not self._stop.is_requested and poison is None:
            return error
        if error is None:
            parts = [p for key, p in self._progress.items() if key != RUN_STREAM]
            is_done = bool(parts) and all(p.status is Status.COMPLETE for p in parts)
            if poison is None and is_done:
                return None
        elif not is_only_stopped(error, poison):
            if error.__context__ is None and not isinstance(error, trio.Cancelled):
                error.__context__ = self._stopped()
            return error
        return poison if isinstance(poison, StoreConflictError) else self._stopped()


SKIPPED = Failure("it was skipped")


def is_only_stopped(error: BaseException, poison: Exception | None) -> bool:
    """Whether an exception, or a group of them, says nothing but that the run was stopped."""
    if isinstance(error, BaseExceptionGroup):
        parts = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return all(is_only_stopped(part, poison) for part in parts)
    return error is poison or isinstance(error, RunStoppedError)
