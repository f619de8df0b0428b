"""An open run: its streams, its phases, and how it is left."""

# The live state of a run is in a private field.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import attrs
import msgspec
import trio

from .._commit.awaits import awaits_noted
from .._commit.redo import Redo
from .._commit.retry import NO_RETRIES, RetryTable
from .._journal.observer import Observer
from .._journal.record import Status
from .._journal.statistics import RunStatistics
from .._journal.store import RunView, StreamView
from .._journal.summary import Summary, current_phase, exit_code, phase_statuses, summarize_groups
from .._util.arguments import (
    MAX_INDEX,
    flag,
    instance,
    one_of,
    several,
    stream_key,
    text,
    whole_number,
)
from .._util.errors import StreamBusyError
from .._util.index_set import IndexSet
from .._util.opening import opening
from .._util.plain import PHASE, StreamKey, check_stream_key
from .._util.shown import Shown
from .._util.text import number
from .._util.uninterrupted import uninterrupted
from ..state._retention import Retention
from .lag import Lag, checked_lag
from .open_run import OpenRun
from .phase import Phase, open_phase
from .resume import Resume
from .session import ResumeReport
from .statistics import run_statistics
from .stream import AnyStream, Stream, loop_cursor_of
from .stream_operations import is_own_failure, leave_stream, validator_of
from .stream_table import Listed, add_to_list

if TYPE_CHECKING:
    from ..outputs._validate import Validate
    from ..sinks._sink import Sink

S = TypeVar("S")


@uninterrupted
@awaits_noted
class Run(Shown):
    """An open run; made by `open_run`.

    Attributes:
        run_id: Its name.
        found: What the store had when the run was opened.
        coordinator: The coordinator of its tokens; ``run.coordinator.registry`` is for monitors.
    """

    def __init__(self, open_run: OpenRun, found: ResumeReport) -> None:
        self.run_id = open_run.run_id
        self.found = found
        self.coordinator = open_run.coordinator
        self._open_run = open_run
        self._stream_table = open_run.stream_table
        self._calls = open_run.calls

    def _shown(self) -> Iterable[tuple[str, str]]:
        table = self._stream_table
        state = "open" if table.ended is None else "closed"
        return [
            ("run", self.run_id),
            ("state", "stopping" if table.ended is None and self.is_stopping else state),
            ("streams", f"{number(len(table.opened))} open"),
        ]

    @property
    def exit_code(self) -> int:
        """The exit code for a command that ends now.

        It is 75 while a start would resume any stream or phase, else 69 if a stream failed for
        good, else 3 if any batch was skipped, else 0.
        """
        return exit_code(self._stream_table.progress, has_ended=True)

    @property
    def is_stopping(self) -> bool:
        """Whether a signal or `request_stop` has requested a stop."""
        return self._open_run.stop.is_requested

    def request_stop(self) -> None:
        """Stop in good order: hand out nothing more, save what is open, cancel the streams.

        It may be called from any task, any thread and any signal handler, more than once; on a
        run that has ended it has no effect.
        """
        self._open_run.stop.request()

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
        sink: Sink | None = None,
        lag: Lag | None = None,
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
        sink: Sink | None = None,
        lag: Lag | None = None,
    ) -> AbstractAsyncContextManager[Stream[S]]: ...

    @opening("stream")
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
        sink: Sink | None = None,
        lag: Lag | None = None,
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
                `Stream.fail` or the retry table (`Then.FAIL_STREAM`) failed it, or where all that
                it has left is deferred, it is left without an exception, so that the next stream
                can run.
            validate: What every output must pass before its batch is confirmed, and again
                on resume: JSON, or others by a `RawCheck`; see `trio_ckpt.outputs.Validator.of`.
            output_dir: A folder below that of the run; outputs of the stream are named
                relative to it.
            retry_failed: Whether to re-queue its batches that were skipped or have failed for
                good; default: as for the run.
            retention: Which saved states keep their large arrays; default: the newest two.
            recover: Whether a damaged state is replaced by the newest one that is whole; the
                batches after that one are re-queued.
            sink: A database that gets the rows of its batches; see `trio_ckpt.sinks`.  Batches
                whose rows are there and whose checkpoint is not are confirmed first.
            lag: Where a generation of ``again=True`` begins: so far before the last cursor, in its
                unit; a timedelta for ISO 8601 text; or a function of the last cursor.

        Raises:
            StreamBusyError: it is open already.
            TypeError: it has a saved state, and `state` is None.
            StreamFailedError: it failed for good in an earlier session; or `Stream.fail` was
                called.
            RunStoppedError: the run was stopped before the stream was complete.
            StateChangedError: the saved state does not fit `state`.
            OutputsMissingError, CannotRedoError, OutputError: confirmed outputs are damaged.
            ValueError: a bad key, another `first_index` than before, or a stateful object that
                another open stream has in its state.
            SinkError: the database cannot be used, or its markers are not those of the stream.

        Durability: when the block has ended, completed batches are durable.
        Cancellation: entering and leaving are schedule points; completed batches are saved.
        """
        run, key = self._open_run, check_stream_key(parts)
        first_index = whole_number("first_index", first_index)
        retries = (
            NO_RETRIES if retry is None else instance("retry", retry, RetryTable, "a RetryTable")
        )
        one_of("on_fail", on_fail, ("raise", "record"))
        if sink is not None:
            from ..sinks._sink import Sink  # few streams have one

            instance("sink", sink, Sink, "a Sink")
        validator = validator_of(validate)
        settings = attrs.evolve(
            run.settings,
            recover=recover,
            retry_failed=run.settings.retry_failed if retry_failed is None else retry_failed,
            retention=run.settings.retention if retention is None else retention,
            lag=checked_lag(lag),
        )
        open_stream = run.open_stream(key, first_index, retries, validator, output_dir)
        resume = Resume(run.store, open_stream, settings, run.tools, run.object_owners, sink)
        scope = trio.CancelScope()
        run.stop.scopes.add(scope)
        if on_fail == "record":
            open_stream.deferrals.set_leave(scope.cancel)
        try:
            if run.stop.exit_code:
                scope.cancel()
            with scope:
                await trio.lowlevel.checkpoint()
                stream: Stream[S] = await resume.open(state, run.nursery)
                run.streams[key] = stream
                try:
                    yield stream
                except BaseException as error:
                    await resume.close()
                    await leave_stream(loop_cursor_of(stream), error)
                    if not (on_fail == "record" and is_own_failure(error, key)):
                        raise
                else:
                    await leave_stream(
                        loop_cursor_of(stream), None
                    )  # it may wait for the verification
                    run.check_left(open_stream, is_failure_raised=on_fail == "raise")
            if scope.cancelled_caught and (run.stop.exit_code or not run.deferred.has_left(key)):
                raise run.stopped()
        finally:
            run.stop.scopes.discard(scope)
            await resume.close()
            resume.release()
            run.close_stream(open_stream)

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
        self._open_run.check_open()
        given = several("keys", keys, "stream keys")
        wanted = list(dict.fromkeys(check_stream_key(stream_key("a key", key)) for key in given))
        async with self._open_run.list_lock:
            listed = await add_to_list(self._stream_table, self._open_run.committer, wanted)
        self._open_run.touch()
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
        run = self._open_run
        run.check_free(key)
        self._stream_table.check_known(key)
        stream_log = self._stream_table.stream_log(key)
        redo = Redo(run.store, run.committer, stream_log, run.outputs, run.path_owners)
        run.rewinding.add(key)
        try:
            return await redo.rewind(to, reason)
        finally:
            run.rewinding.discard(key)
            run.touch()

    # -- phases -------------------------------------------------------------------------------

    @opening("phase")
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
        run, table = self._open_run, self._stream_table
        run.check_open()
        key = (PHASE, *check_stream_key((name,)))
        if key in table.phases:
            raise StreamBusyError(f"phase {name!r} is open already", run_id=self.run_id, stream=key)
        table.phases.append(key)
        opened = open_phase(
            run.committer,
            table.stream_log(key),
            table.progress,
            retry_failed=run.settings.retry_failed,
        )
        try:
            async with opened as phase:
                yield phase
        finally:
            table.phases.remove(key)
            run.touch()

    @property
    def current_phase(self) -> str | None:
        """The newest phase that is not complete."""
        return current_phase(self._stream_table.progress)

    @property
    def phases(self) -> dict[str, Status]:
        """The status of each phase, by name."""
        table = self._stream_table
        return phase_statuses(table.progress, open_phases=table.phases)

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
        table = self._stream_table
        return summarize_groups(table.progress, open_streams=table.open_streams)

    def statistics(self) -> RunStatistics:
        """Counts, sums, rate and ETA of the run at this moment."""
        has_ended = self._stream_table.ended is not None
        stopping = None if has_ended else self._open_run.stop.stopping()
        return run_statistics(self._stream_table, stopping)

    # -- for monitors -------------------------------------------------------------------------

    @property
    def open_streams(self) -> frozenset[StreamKey]:
        """The streams that are open now, and have not failed since they were opened."""
        return self._stream_table.open_streams

    def view(self) -> RunView:
        """The progress of every stream at this moment, as copies that are made for each call."""
        live = self._open_run.view()
        copies = {k: StreamView(k, seen.progress.copy()) for k, seen in live.streams.items()}
        return msgspec.structs.replace(live, streams=copies)

    def observing(self, observer: Observer) -> AbstractContextManager[None]:
        """Call an observer with what the run does while the block runs."""
        instance("observer", observer, Observer, "an Observer")
        return self._open_run.committer.observers.adding(observer)

    # -- waiting ------------------------------------------------------------------------------

    async def wait_confirmed(self, stream: AnyStream | StreamKey, indexes: Iterable[int]) -> None:
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
        await self._open_run.waits.wait_confirmed(key, indexes)


def open_run_of(run: Run) -> OpenRun:
    """The live state of an open run: for the library's own readers, out of reach of users."""
    return run._open_run
