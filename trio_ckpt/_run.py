"""A run: its store and lock, its streams, its stop, and what it finds on resume."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar, cast

import attrs
import trio

from ._config import canonical_config, config_digest, diff_config
from ._coordinator import CheckpointCoordinator
from ._errors import (
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_SKIPPED,
    ConfigChangedError,
    RunStoppedError,
    StoreConflictError,
    StreamBusyError,
    StreamEndedError,
    StreamFailedError,
    StreamsStillOpenError,
    describe_batch,
)
from ._gate import Desk, Way
from ._progress import Progress
from ._records import Kind, Record, Status, encode_record
from ._resume import Resume, Settings, archive_outputs
from ._retry import NO_RETRIES, RetryTable
from ._saver import DEFAULT_SAVE_TIMEOUT_S, Lane, Saver, Submission
from ._stop import Stop
from ._stream import Stream, way_of
from ._threads import run_blocking
from ._token import Failure
from ._values import RUN_STREAM, StreamKey, check_run_id, check_stream_key, encode_key
from .abc import RunKey, RunView, Store
from .outputs import OutputDir
from .stores import open_store

log = logging.getLogger("trio_ckpt.run")

S = TypeVar("S")

DEFAULT_GRACE_S = 30.0

_signals_taken: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trio_ckpt signals", False)


@attrs.frozen
class Found:
    """What `open_run` found in the store.

    Attributes:
        sessions: How many there were before this one; 0: the run is new.
        streams: How many streams have records.
        confirmed: Batches that are durable.
        skipped: Batches given up.
        to_retry: Batches that failed and may run again.
        records: Records produced.
        last_end: How the last session ended, in words; None: there was none.
    """

    sessions: int
    streams: int
    confirmed: int
    skipped: int
    to_retry: int
    records: int
    last_end: str | None

    def __str__(self) -> str:
        if self.last_end is None:
            return "nothing saved yet"
        return (
            f"{self.confirmed:,} batches done, {self.skipped:,} skipped, {self.to_retry:,} to "
            f"retry, {self.records:,} records in {self.streams:,} streams; last session "
            f"({self.sessions}) {self.last_end}"
        )


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
        """What a command should exit with now: 0, or 3 if any batch was skipped."""
        skipped = any(progress.skipped for progress in self._progress.values())
        return EXIT_SKIPPED if skipped else EXIT_COMPLETE

    def request_stop(self) -> None:
        """Stop in good order: hand out nothing more, save what is open, cancel the streams."""
        self._stop.request()

    # -- streams ----------------------------------------------------------------------------

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
                    await stream.leave(error)
                    raise
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
            if poison is None and all(p.status is Status.COMPLETE for p in parts):
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


@asynccontextmanager
async def open_run(
    run_id: str,
    *,
    store: Store | str | os.PathLike[str],
    config: Any = None,
    exclude: Collection[str] = (),
    tunable: Collection[str] = (),
    on_config_change: Literal["refuse", "restart", "accept"] = "refuse",
    output_dir: str | os.PathLike[str] | None = None,
    verify: Literal["off", "size", "sha256"] = "size",
    redo_missing: bool = False,
    fresh: bool = False,
    retry_failed: bool = False,
    handle_signals: bool | None = None,
    grace_s: float = DEFAULT_GRACE_S,
    save_timeout_s: float = DEFAULT_SAVE_TIMEOUT_S,
    resume_command: str | None = None,
    coordinator: CheckpointCoordinator | None = None,
) -> AsyncGenerator[Run]:
    """Own a run for a block: begin it, or go on where it was left.

    Args:
        run_id: Its name, without path separators and control characters.
        store: A folder, a URL (``sqlite:path``, ``memory:``), or a store.
        config: What the run depends on: an attrs instance or JSON-like mapping.  A resume
            with another one is refused, field by field.
        exclude: Fields of `config` that do not count.
        tunable: Fields of `config` that may change; a change is logged.
        on_config_change: What to do when others changed: refuse, archive the run and start
            over, or go on.
        output_dir: The folder of the outputs; it is made if it is not there.
        verify: How confirmed outputs are looked at: not at all, by size and time (by hash
            where the time differs), or by hash.
        redo_missing: Go on even if very many outputs are gone.
        fresh: Archive what was there and begin again; nothing is deleted.
        retry_failed: Put back to work what was skipped or has failed for good.
        handle_signals: Stop in good order on SIGINT and SIGTERM.  Default: in the main
            thread, for the first run that is open.
        grace_s: How long a stop waits for open batches, in seconds.
        save_timeout_s: How long a save may take before its outcome is called unknown.
        resume_command: What to tell people to type after a stop; default: this command.
        coordinator: To share one registry between runs.

    Yields:
        The open run.

    Raises:
        RunLockedError: another live process owns it.
        ConfigChangedError: see `config`.
        RunStoppedError: it was stopped.
        StreamsStillOpenError: it was left while streams were open.
        StoreError: the store cannot be used.

    Durability: what was confirmed survives kill -9 and power loss, as the store says.
    Cancellation: completed batches are saved before it takes effect.
    """
    check_run_id(run_id)
    plain = canonical_config(config, exclude)
    async with AsyncExitStack() as stack:
        if not isinstance(store, Store):
            store = await open_store(store)
            stack.push_async_callback(_close_store, store)
        owner = await stack.enter_async_context(store.lock_run(run_id))
        view = await store.load_run(run_id)
        is_fresh = fresh or _is_restart(view, plain, tunable, on_config_change, run_id)
        outputs = None
        if output_dir is not None:
            outputs = await run_blocking(OutputDir.open, output_dir)
            stack.callback(outputs.close)
        generation = view.generation if view is not None else 0
        if is_fresh and view is not None:
            if outputs is not None:
                await archive_outputs(store, view, outputs)
            view, generation = None, generation + 1
        run_key = RunKey(run_id, generation, owner)
        stop = Stop()
        saver = Saver(
            store,
            run_key,
            save_timeout_s=save_timeout_s,
            on_poison=lambda: stop.cancel_streams(EXIT_DRAINED),
        )
        found = _look(view)
        log.log(logging.INFO, "run %r: %s", run_id, found)
        facts = {
            "session": found.sessions + 1,
            "config": plain,
            "config_digest": config_digest(plain),
            "output_dir": outputs.root if outputs is not None else None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": time.time(),
        }
        own = view.streams[RUN_STREAM].progress if view and RUN_STREAM in view.streams else None
        lane = saver.add_lane(RUN_STREAM, own or Progress())
        if resume_command is None and sys.orig_argv:
            resume_command = shlex.join(sys.orig_argv)
        body_error: BaseException | None = None
        background: BaseException | None = None
        has_signals = _wants_signals(handle_signals, run_id)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(saver.run)
                nursery.start_soon(stop.see_through, grace_s)
                if has_signals:
                    await nursery.start(_receive_signals, stop)
                try:
                    await _save_fact(saver, lane, Kind.SESSION, facts)
                    run = Run(
                        view=view,
                        store=store,
                        saver=saver,
                        stop=stop,
                        nursery=nursery,
                        coordinator=coordinator or CheckpointCoordinator(),
                        outputs=outputs,
                        settings=Settings(verify, redo_missing, retry_failed),
                        found=found,
                        resume_command=resume_command,
                    )
                    try:
                        yield run
                    except BaseException as error:
                        body_error = error
                    body_error = await run.close(body_error, grace_s)
                    with trio.CancelScope(shield=True):
                        await _say_goodbye(saver, lane, facts, body_error)
                finally:
                    saver.close()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            background = _background_error(group, body_error)
        finally:
            if has_signals:
                _signals_taken.set(False)
            if saver.poison is None:  # else a thread may still be writing to them
                saver.close_sinks()
        if background is not None:
            if background is not body_error and not isinstance(body_error, trio.Cancelled):
                background.__context__ = body_error
            raise background
        if body_error is not None:
            raise body_error


def _background_error(
    group: BaseExceptionGroup[BaseException], body_error: BaseException | None
) -> BaseException:
    """What leaves: a background failure alone, else the body's error as it is."""
    others = [error for error in group.exceptions if error is not body_error]
    failures = [error for error in others if not isinstance(error, trio.Cancelled)]
    if not failures:
        return body_error if body_error is not None else group
    return failures[0] if len(failures) == 1 else BaseExceptionGroup("the run failed", failures)


async def _close_store(store: Store) -> None:
    with trio.CancelScope(shield=True):
        await store.aclose()


async def _save_fact(saver: Saver, lane: Lane, kind: Kind, facts: dict[str, Any]) -> None:
    record = Record(kind=kind, at=time.time(), metadata=facts)
    checkpoint = await saver.encode(lane, encode_record(record))
    submission = Submission(lane, record, checkpoint, (), lambda _error: None)
    saver.submit(submission)
    await submission.wait()


async def _say_goodbye(
    saver: Saver, lane: Lane, facts: dict[str, Any], error: BaseException | None
) -> None:
    """Save how the session ended, best effort: a session without this was killed."""
    if saver.poison is not None:
        return
    ended = "ended" if error is None else f"ended by {type(error).__qualname__}"
    if isinstance(error, RunStoppedError):
        ended = "was stopped"
    elif error is not None and way_of(error) is Way.CANCEL:
        ended = "was cancelled"
    try:
        await _save_fact(saver, lane, Kind.END, {**facts, "ended": ended, "at": time.time()})
    except Exception as problem:
        log.warning("how the session ended could not be saved: %s", problem)


def _is_to_retry(progress: Progress, index: int) -> bool:
    last = progress.last_index
    return index not in progress.skipped and (last is None or index <= last)


def _look(view: RunView | None) -> Found:
    if view is None:
        return Found(0, 0, 0, 0, 0, 0, None)
    parts = [entry.progress for key, entry in view.streams.items() if key != RUN_STREAM]
    own = view.streams.get(RUN_STREAM)
    facts = own.progress.metadata if own is not None else {}
    return Found(
        sessions=int(facts.get("session", 0)),
        streams=len(parts),
        confirmed=sum(len(progress.confirmed) for progress in parts),
        skipped=sum(len(progress.skipped) for progress in parts),
        to_retry=sum(_is_to_retry(p, index) for p in parts for index in p.failures),
        records=sum(progress.records for progress in parts),
        last_end=facts.get("ended", "was killed") if facts else None,
    )


def _is_restart(
    view: RunView | None,
    plain: dict[str, Any],
    tunable: Collection[str],
    policy: str,
    run_id: str,
) -> bool:
    """Compare the configuration with that of the last session; whether to start over."""
    own = view.streams.get(RUN_STREAM) if view is not None else None
    if own is None or "config" not in own.progress.metadata:
        return False
    changes = diff_config(own.progress.metadata["config"], plain)
    refused = tuple(c for c in changes if c[0].split(".")[0] not in tunable)
    for name, was, now in changes:
        log.info("config of run %r: %s: %s -> %s", run_id, name, was, now)
    if refused and policy == "refuse":
        raise ConfigChangedError(run_id, refused)
    return bool(refused) and policy == "restart"


def _wants_signals(handle_signals: bool | None, run_id: str) -> bool:
    if handle_signals is None:
        is_main = threading.current_thread() is threading.main_thread()
        handle_signals = is_main and not _signals_taken.get()
        if not handle_signals:
            log.info("run %r leaves signals alone: another run or thread has them", run_id)
    if handle_signals:
        _signals_taken.set(True)
    return handle_signals


async def _receive_signals(
    stop: Stop, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: stopping in good order", signal.Signals(number).name)
            stop.request(128 + number)
