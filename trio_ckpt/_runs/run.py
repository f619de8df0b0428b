"""An open run: its streams, its phases, and how it is left."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
)
from functools import partial
from typing import Any, Literal, TypeVar, overload

import attrs
import trio

from .._commit.awaits import Calls, awaits_noted
from .._commit.group_commit import GroupCommitter
from .._commit.open_stream import LoopPolicy, OpenStream
from .._commit.redo import Redo
from .._commit.retry import NO_RETRIES, RetryTable
from .._commit.shutdown import Stop
from .._commit.stream_outputs import SINK, PathOwners, StreamFiles
from .._journal.progress import Progress
from .._journal.record import Status
from .._journal.statistics import RunStatistics
from .._journal.store import Observer, RunView, Store, StreamView
from .._journal.summary import Summary, current_phase
from .._tokens.coordinator import CheckpointCoordinator
from .._tokens.registry import touch
from .._util.arguments import (
    MAX_INDEX,
    flag,
    instance,
    one_of,
    path_text,
    several,
    stream_key,
    text,
    whole_number,
)
from .._util.errors import (
    EXIT_DRAINED,
    RunStoppedError,
    StoreConflictError,
    StreamBusyError,
    StreamFailedError,
    StreamsStillOpenError,
    describe_batch,
)
from .._util.index_set import IndexSet
from .._util.patience import give_up_after
from .._util.plain import PHASE, RUN_STREAM, StreamKey, check_stream_key, encode_key
from .._util.uninterrupted import uninterrupted
from ..outputs import OutputDir, Validate, Validator
from ..state._retention import Retention
from ..state._shared_capture import ArrayTools
from .leaving import is_only_stopped, is_own_failure
from .manifest import MANIFEST
from .phase import Phase, open_phase
from .resume import Resume, Settings
from .session import ResumeReport
from .stream import Stream
from .stream_list import Listed, add_to_list
from .stream_table import StreamTable
from .waits import Waits

S = TypeVar("S")


@uninterrupted
@awaits_noted
class Run:
    """An open run; made by `open_run`.

    Attributes:
        run_id: Its name.
        found: What the store had when the run was opened.
        coordinator: The coordinator of its tokens; ``run.coordinator.registry`` is for monitors.
    """

    def __init__(
        self,
        *,
        view: RunView | None,
        store: Store,
        committer: GroupCommitter,
        stop: Stop,
        nursery: trio.Nursery,
        coordinator: CheckpointCoordinator,
        outputs: OutputDir | None,
        settings: Settings,
        tools: ArrayTools,
        found: ResumeReport,
        runtime_s: float,
        resume_command: str | None,
    ) -> None:
        self.run_id = committer.run_key.run_id
        self.found = found
        self.coordinator = coordinator
        self._stream_table = StreamTable.of(committer, view, runtime_s)
        self._progress = self._stream_table.progress
        self._store = store
        self._committer = committer
        self._stop = stop
        self._nursery = nursery
        self._outputs = outputs
        self._settings = settings
        self._tools = tools
        self._resume_command = resume_command
        self._opened = self._stream_table.opened
        self._rewinding: set[StreamKey] = set()
        self._list_lock = trio.Lock()
        self._calls = Calls()
        self._waits = Waits(self._stream_table, stop, self._stopped)
        stop.changed = self._wake_waiters
        self._path_owners: PathOwners = {
            path: (encode_key(key), SINK) for key, p in self._progress.items() for path in p.sinks
        }
        if outputs is not None:
            self._path_owners[MANIFEST] = (encode_key(RUN_STREAM), SINK)

    @property
    def exit_code(self) -> int:
        """The exit code for a command that ends now.

        It is 75 while a start would resume any stream or phase, else 69 if a stream failed for
        good, else 3 if any batch was skipped, else 0.
        """
        return self._stream_table.exit_code(has_ended=True)

    @property
    def is_stopping(self) -> bool:
        """Whether a signal or `request_stop` has requested a stop."""
        return self._stop.is_requested

    def request_stop(self) -> None:
        """Stop in good order: hand out nothing more, save what is open, cancel the streams.

        It may be called from any task, any thread and any signal handler, more than once; on a
        run that has ended it has no effect.
        """
        self._stop.ask()  # a second signal forces; a second call changes nothing

    # -- streams ----------------------------------------------------------------------------

    @overload
    def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: None = None,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
        validate: Validate | None = None,
        output_dir: str | None = None,
        retry_failed: bool | None = None,
        retention: Retention | None = None,
        recover: bool = False,
    ) -> AbstractAsyncContextManager[Stream[None]]: ...

    @overload
    def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: S,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
        validate: Validate | None = None,
        output_dir: str | None = None,
        retry_failed: bool | None = None,
        retention: Retention | None = None,
        recover: bool = False,
    ) -> AbstractAsyncContextManager[Stream[S]]: ...

    @asynccontextmanager
    async def open_stream(
        self,
        *parts: str,
        first_index: int = 0,
        state: S | None = None,
        retry: RetryTable | None = None,
        on_fail: Literal["raise", "record"] = "raise",
        validate: Validate | None = None,
        output_dir: str | None = None,
        retry_failed: bool | None = None,
        retention: Retention | None = None,
        recover: bool = False,
    ) -> AsyncGenerator[Stream[S]]:
        """Own a stream for a block.

        Args:
            parts: Its key: any printable texts.
            first_index: The index of its first batch.
            state: The initial state, which the loop needs to resume: of any type, or a
                `Frontier`.  The stream begins with a copy.  On resume ``stream.state`` is the
                last saved one.  A failed attempt is undone by another object in its place: take
                the state from the stream in each batch, and keep no reference to it.
            retry: What to do with failed attempts; default: they fail for good.
            on_fail: "raise": a stream that has failed raises when it is left.  "record": where
                `Stream.fail` or the retry table (`Then.FAIL_STREAM`) failed it, it is left without
                an exception, so that the next stream can run.
            validate: What every output must pass before its batch is confirmed, and again
                on resume: JSON, or others by a `RawCheck`; see `trio_ckpt.outputs.Validator.of`.
            output_dir: A folder below that of the run; outputs of the stream are named
                relative to it.
            retry_failed: Whether to re-queue its batches that were skipped or have failed for
                good; default: as for the run.
            retention: Which saved states keep their large arrays; default: the newest two.
            recover: Whether a damaged state is replaced by the newest one that is whole; the
                batches after that one are re-queued.

        Raises:
            StreamBusyError: it is open already.
            TypeError: it has a saved state, and `state` is None.
            StreamFailedError: it failed for good in an earlier session; or `Stream.fail` was
                called.
            RunStoppedError: the run was stopped before the stream was complete.
            StateChangedError: the saved state does not fit `state`.
            OutputsMissingError, CannotRedoError, OutputError: confirmed outputs are damaged.
            ValueError: a bad key, or another `first_index` than before.

        Durability: when the block has ended, completed batches are durable.
        Cancellation: entering and leaving are schedule points; completed batches are saved.
        """
        key = check_stream_key(parts)
        one_of("on_fail", on_fail, ("raise", "record"))
        first_index = whole_number("first_index", first_index)
        if retry is not None:
            instance("retry", retry, RetryTable, "a RetryTable")
        settings = attrs.evolve(
            self._settings,
            recover=recover,
            retry_failed=self._settings.retry_failed if retry_failed is None else retry_failed,
            retention=self._settings.retention if retention is None else retention,
        )
        checked = self._files_for(validate, output_dir)
        self._check_free(key)
        self._check_first_index(key, first_index)
        open_stream = self._make_open_stream(key, first_index, retry, checked)
        resume = Resume(self._store, open_stream, settings, self._tools)
        scope = trio.CancelScope()
        self._stop.scopes.add(scope)
        try:
            if self._stop.exit_code:
                scope.cancel()
            with scope:
                await trio.lowlevel.checkpoint()
                stream: Stream[S] = await resume.open(state, self._nursery)
                try:
                    yield stream
                except BaseException as error:
                    await resume.close()
                    await stream.leave(error)
                    if not (on_fail == "record" and is_own_failure(error, key)):
                        raise
                else:
                    await stream.leave(None)  # it may wait for the verification
                    self._check_left(stream, on_fail)
            if scope.cancelled_caught:
                raise self._stopped()
        finally:
            self._stop.scopes.discard(scope)
            await resume.close()
            open_stream.close()
            del self._opened[key]
            self._waits.left(key)
            touch(self.coordinator.registry)

    def _files_for(
        self, validate: Validate | None, folder: str | None
    ) -> tuple[str, Validator | None]:
        validator = None if validate is None else Validator.of(validate)
        if folder is None:
            return "", validator
        if self._outputs is None:
            raise ValueError(
                "output_dir= of a stream is below that of the run, which has none: give "
                "open_run(output_dir=...)"
            )
        name = os.path.normpath(path_text("output_dir", folder))
        return "" if name == "." else self._outputs.relative(name), validator

    def _make_open_stream(
        self,
        key: StreamKey,
        first_index: int,
        retry: RetryTable | None,
        checked: tuple[str, Validator | None],
    ) -> OpenStream:
        stream_log = self._stream_table.stream_log(key)
        files = StreamFiles(
            self.run_id,
            stream_log,
            self._path_owners,
            self._committer.check_owner,
            self._outputs,
            *checked,
            self._settings.outputs_since,
        )
        self._opened[key] = open_stream = OpenStream(
            self.run_id,
            stream_log,
            self._committer,
            self.coordinator,
            self._stop,
            LoopPolicy(retry or NO_RETRIES, files.validator),
            files,
            self._nursery,
            first_index=first_index,
            phase=self._stream_table.phases[-1][1] if self._stream_table.phases else None,
            failed=self._stream_table.failures.setdefault(key, {}),
            settled=partial(self._waits.settled, key),
        )
        self._waits.opened(key)
        return open_stream

    def _check_left(self, stream: Stream[Any], on_fail: str) -> None:
        if stream.open_stream.has_failed:
            if on_fail == "raise" and stream.error is not None:
                raise StreamFailedError(
                    stream.error.message,
                    run_id=self.run_id,
                    stream=stream.key,
                    retryable=stream.error.retryable,
                )
        elif self._stop.is_requested and stream.status is not Status.COMPLETE:
            raise self._stopped()

    def _stopped(self) -> RunStoppedError:
        error = RunStoppedError(
            self.run_id,
            exit_code=self._stop.exit_code or EXIT_DRAINED,
            resume_command=self._resume_command,
            poison=self._committer.poison,
        )
        error.__cause__ = self._committer.poison
        return error

    # -- the list of streams ------------------------------------------------------------------

    async def add_streams(self, keys: Iterable[StreamKey]) -> Listed:
        """Put streams on the run's list, in order, before they are opened.

        A repeated call only adds new ones; streams that are not named any more are reported and
        stay on the list.

        Args:
            keys: The key of each stream, as a tuple of its parts.

        Returns:
            Which streams are new on the list, and which were not named.

        Raises:
            ValueError: a bad key.

        Durability: when this returns the list is durable.
        Cancellation: none once it is being saved.
        """
        self._check_open()
        given = several("keys", keys, "stream keys")
        wanted = list(dict.fromkeys(check_stream_key(stream_key("a key", key)) for key in given))
        async with self._list_lock:
            listed = await add_to_list(self._stream_table, self._committer, wanted)
        touch(self.coordinator.registry)
        return listed

    def streams_to_process(
        self, *, retry_failed: bool = False, start_from: StreamKey | None = None
    ) -> list[StreamKey]:
        """The listed streams with work left, in order; of all streams if none is listed.

        Args:
            retry_failed: Whether to include streams that failed for good or skipped batches; open
                these with ``retry_failed=True``.
            start_from: Only this stream and those after it; its first parts are enough.

        Raises:
            UnknownStreamError: the run has no stream `start_from`.
        """
        flag("retry_failed", retry_failed)
        start = None if start_from is None else stream_key("start_from", start_from)
        return self._stream_table.to_process(retry_failed=retry_failed, start_from=start)

    async def rewind(self, key: StreamKey, *, to: int, reason: str) -> IndexSet:
        """Rewind a stream to when batch `to` was the last one that was confirmed.

        All later batches are re-queued; state and cursor are restored to their values then.
        Outputs, and lines of append files, are moved into the archive of the output folder.
        Pinned states (`Stream.pin`) are in `Progress.pins`, each with the batch to rewind to.
        Where batches build on each other, those that were saved after the first of the re-queued
        ones are re-queued, too.

        Args:
            key: The key of a stream that is not open.
            to: Batch index; less than the first one: the stream starts from the beginning, where
                it may be given another list or state.  What was spent stays counted.
            reason: Why; saved in the history.

        Returns:
            The batches that were re-queued.

        Raises:
            StreamBusyError: the stream is open.
            UnknownStreamError: the run has no such stream.
            CannotRedoError: the state before them is not kept any more.

        Durability: when this returns the rewind is durable.
        Cancellation: a cancellation point until the record is being saved; none after that.
        """
        key = stream_key("key", key)
        to = whole_number("to", to, least=-MAX_INDEX)
        text("reason", reason)
        self._check_free(key)
        self._stream_table.check_known(key)
        redo = Redo(
            self._store,
            self._committer,
            self._stream_table.stream_log(key),
            self._outputs,
            self._path_owners,
        )
        self._rewinding.add(key)
        try:
            return await redo.rewind(to, reason)
        finally:
            self._rewinding.discard(key)

    def _check_first_index(self, key: StreamKey, first_index: int) -> None:
        progress = self._progress.get(key, Progress())
        if progress.opens and progress.first_index != first_index and len(progress.done):
            raise ValueError(
                f"{describe_batch(self.run_id, key, None)} was begun with "
                f"first_index={progress.first_index}, not {first_index}"
            )

    def _check_open(self) -> None:
        if self._stream_table.is_closed:
            raise trio.ClosedResourceError(f"run {self.run_id!r} is closed")

    def _check_free(self, key: StreamKey) -> None:
        self._check_open()
        where = describe_batch(self.run_id, key, None)
        if key in self._opened:
            raise StreamBusyError(f"{where} is open already", run_id=self.run_id, stream=key)
        if key in self._rewinding:
            raise StreamBusyError(f"{where} is being rewound", run_id=self.run_id, stream=key)

    # -- phases -------------------------------------------------------------------------------

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncGenerator[Phase]:
        """Open a phase, which is done once: ``async with run.phase("discovery") as phase:``.

        It is complete when the block ends without an exception and the streams that were
        opened in it are done, or failed for good.  ``phase.complete`` is then True in every
        later session, whose block has nothing to do.  It is False again when a batch of such a
        stream is re-queued, and with ``retry_failed=True`` if a stream failed or skipped batches.

        Args:
            name: The name of the phase; any printable text.

        Raises:
            StreamBusyError: it is open already.
            ValueError: a bad name.

        Durability: when the block has ended, how it ended is durable.
        Cancellation: entering and leaving are schedule points.
        """
        self._check_open()
        check_stream_key((name,))
        key = (PHASE, name)
        if key in self._stream_table.phases:
            raise StreamBusyError(f"phase {name!r} is open already", run_id=self.run_id, stream=key)
        self._stream_table.phases.append(key)
        retries, stream_log = self._settings.retry_failed, self._stream_table.stream_log(key)
        opened = open_phase(self._committer, stream_log, self._progress, retry_failed=retries)
        try:
            async with opened as phase:
                yield phase
        finally:
            self._stream_table.phases.remove(key)
            touch(self.coordinator.registry)

    @property
    def current_phase(self) -> str | None:
        """The newest phase that is not complete."""
        return current_phase(self._progress)

    @property
    def phases(self) -> dict[str, Status]:
        """The status of each phase, by name."""
        return self._stream_table.phase_statuses()

    # -- sums ---------------------------------------------------------------------------------

    def group(self, *parts: str) -> Summary:
        """The sums of all streams whose keys begin with `parts`; without parts of all streams.

        Raises:
            UnknownStreamError: no key of a stream begins with them.
            TypeError: a part is not a str.
        """
        return self._stream_table.group(stream_key("parts", parts))

    def groups(self) -> dict[StreamKey, Summary]:
        """The sums of every group; a group is all streams whose keys have the same first part."""
        return self._stream_table.groups()

    def statistics(self) -> RunStatistics:
        """Counts, sums, rate and ETA of the run at this moment."""
        statistics = self._stream_table.statistics()
        stopping = None if self._stream_table.ended is not None else self._stop.stopping()
        if stopping is None:
            return statistics
        return attrs.evolve(statistics, stopping=stopping, eta_s=None)

    # -- for monitors -------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store that the run is saved in."""
        return self._store

    @property
    def open_streams(self) -> frozenset[StreamKey]:
        """The streams that are open now, and have not failed since they were opened."""
        return self._stream_table.open_streams

    def view(self) -> RunView:
        """The progress of every stream at this moment, as copies that are made for each call."""
        live = self.peek()
        copies = {k: StreamView(k, seen.progress.copy()) for k, seen in live.streams.items()}
        return attrs.evolve(live, streams=copies)

    def peek(self) -> RunView:
        """The progress of every stream without copies, for the library's own readers."""
        key = self._committer.run_key
        progress = {
            **self._progress,
            **{stream_log.key: stream_log.progress for stream_log in self._committer.stream_logs},
        }
        streams = {name: StreamView(name, part) for name, part in progress.items()}
        return RunView(key.run_id, key.generation, key.owner, streams)

    def observing(self, observer: Observer) -> AbstractContextManager[None]:
        """Call an observer with what the run does while the block runs."""
        instance("observer", observer, Observer, "an Observer")
        return self._committer.observers.adding(observer)

    # -- waiting ------------------------------------------------------------------------------

    async def wait_confirmed(self, stream: Stream[Any] | StreamKey, indexes: Iterable[int]) -> None:
        """Wait until batches are durable, also batches that are not begun yet.

        Args:
            stream: An open stream; or the key of one that is open, has records, or is on the
                list of `add_streams`, so that it may be opened later.
            indexes: The batches.

        Raises:
            UnknownStreamError: the run has no such stream.
            CheckpointFailedError: one of them failed, or was skipped.
            StreamEndedError: the stream ended without them.
            TypeError: the key is not a tuple.
            RunStoppedError: the run was stopped before that.

        Cancellation: always a cancellation and a schedule point.
        """
        key = stream.key if isinstance(stream, Stream) else stream_key("stream", stream)
        await self._waits.wait_confirmed(key, indexes)

    # -- leaving -----------------------------------------------------------------------------

    async def close(self, error: BaseException | None, grace_s: float) -> BaseException | None:
        """End streams that are still open; returns the exception that leaves the run's block.

        Their tasks have `grace_s` seconds to pass the gate.

        Cancellation: none.
        """
        self._stream_table.is_closed = True
        error = error or self._calls.problem(f"run {self.run_id!r}")
        registry = self.coordinator.registry
        if self._opened:
            names = ", ".join(repr("/".join(key)) for key in self._opened)
            error = error or StreamsStillOpenError(
                f"run {self.run_id!r} was left while streams were open in other tasks: {names}; "
                "open the nursery inside open_run",
                run_id=self.run_id,
            )
            self._stop.cancel_streams(EXIT_DRAINED)
            with give_up_after(grace_s):
                version = registry.version
                while self._opened:
                    version = await registry.wait_changed(version)
            for open_stream in tuple(self._opened.values()):
                open_stream.close()
        self._stream_table.ended = trio.current_time()
        self._wake_waiters()
        return self._stop_instead(error)

    def _wake_waiters(self) -> None:
        """Wake the monitors, and all tasks that wait for batches: the run stops, or is closed."""
        self._waits.wake_all()
        touch(self.coordinator.registry)

    def _stop_instead(self, error: BaseException | None) -> BaseException | None:
        """The exception that leaves a run: RunStoppedError if it was stopped, else the body's."""
        poison = self._committer.poison
        if not self._stop.is_requested and poison is None:
            return error
        if error is None:
            if poison is None and self._stream_table.exit_code(has_ended=False) != EXIT_DRAINED:
                return None  # a start would find nothing to do
        elif not is_only_stopped(error, poison):
            if error.__context__ is None and not isinstance(error, trio.Cancelled):
                error.__context__ = self._stopped()
            return error
        return poison if isinstance(poison, StoreConflictError) else self._stopped()
