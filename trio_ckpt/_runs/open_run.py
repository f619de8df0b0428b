"""The live state of an open run, which its streams, its phases and its end share."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from .._commit.awaits import Calls
from .._commit.group_commit import GroupCommitter
from .._commit.limit_watch import LimitWatch
from .._commit.open_stream import OpenStream
from .._commit.path_owners import SINK, PathOwners
from .._commit.retry import LoopPolicy, RetryTable
from .._commit.shutdown import Stop
from .._commit.stream_outputs import StreamFiles
from .._journal.progress import Progress
from .._journal.store import RunView, Store, StreamView
from .._tokens.coordinator import CheckpointCoordinator
from .._tokens.token import touch
from .._util.arguments import path_text
from .._util.errors import (
    EXIT_DRAINED,
    RunStoppedError,
    StreamBusyError,
    StreamFailedError,
    describe_batch,
)
from .._util.plain import RUN_STREAM, StreamKey, encode_key
from ..outputs import Outputs
from ..state._shared_capture import ArrayTools
from .config import Settings
from .deferred import DeferredWatch
from .manifest import MANIFEST
from .stream import AnyStream
from .stream_table import StreamTable, Waits

if TYPE_CHECKING:
    from ..outputs._validate import Validator


@attrs.define(eq=False, repr=False)
class OpenRun:
    """The live state of an open run; made by `open_run`, which closes what it has opened.

    Attributes:
        store: Where the run is saved.
        committer: Saves its records.
        stop: Whether it is being stopped.
        nursery: For tasks that end with the run.
        coordinator: The coordinator of its tokens.
        outputs: The folder of its outputs; None: it has none.
        settings: How its streams resume.
        tools: What captures of arrays share.
        resume_command: The command that the log shows for a resume.
        stream_table: Its streams, and their progress.
        limits: Counts for its limits; None: it has none.
        deferred: Stops it when all that is left is deferred.
        waits: The waits for batches.
        path_owners: The batch, or the append file, that each output name belongs to.
        object_owners: The open stream that has a stateful object in its state, by its id.
        rewinding: The streams that are being rewound.
        streams: The streams that are open, as their owners hold them.
        list_lock: Held while streams are put on the list.
        calls: The calls of the async methods of the run.
    """

    store: Store
    committer: GroupCommitter
    stop: Stop
    nursery: trio.Nursery
    coordinator: CheckpointCoordinator
    outputs: Outputs | None
    settings: Settings
    tools: ArrayTools
    resume_command: str | None
    stream_table: StreamTable
    limits: LimitWatch | None = None
    waits: Waits = attrs.field(init=False)
    deferred: DeferredWatch = attrs.field(init=False)
    path_owners: PathOwners = attrs.field(factory=PathOwners, init=False)
    object_owners: dict[int, OpenStream] = attrs.field(factory=dict[int, OpenStream], init=False)
    rewinding: set[StreamKey] = attrs.field(factory=set[StreamKey], init=False)
    streams: dict[StreamKey, AnyStream] = attrs.field(
        factory=dict[StreamKey, AnyStream], init=False
    )
    list_lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    calls: Calls = attrs.field(factory=Calls, init=False)

    def __attrs_post_init__(self) -> None:
        self.waits = Waits(self.stream_table, self.stop, self.stopped)
        self.stop.changed = self.wake_waiters
        self.deferred = DeferredWatch(
            self.run_id,
            self.stop,
            self.nursery,
            self.stream_table,
            self.settings.wait_for_deferred_s,
        )
        for key, progress in self.stream_table.progress.items():
            for path in progress.sinks:
                self.path_owners.hold(path, (encode_key(key), SINK))
        if self.outputs is not None:
            self.path_owners.hold(MANIFEST, (encode_key(RUN_STREAM), SINK))

    @property
    def run_id(self) -> str:
        """The run."""
        return self.committer.run_key.run_id

    def check_open(self) -> None:
        """Raise ClosedResourceError after the block of the run has ended."""
        if self.stream_table.is_closed:
            raise trio.ClosedResourceError(f"run {self.run_id!r} is closed")

    def check_free(self, key: StreamKey) -> None:
        """Raise StreamBusyError if a stream is open, or is being rewound."""
        self.check_open()
        where = describe_batch(self.run_id, key, None)
        if key in self.stream_table.opened:
            raise StreamBusyError(f"{where} is open already", run_id=self.run_id, stream=key)
        if key in self.rewinding:
            raise StreamBusyError(f"{where} is being rewound", run_id=self.run_id, stream=key)

    # -- its streams ---------------------------------------------------------------------------

    def open_stream(
        self,
        key: StreamKey,
        first_index: int,
        retry: RetryTable,
        validator: Validator | None,
        output_dir: str | None,
    ) -> OpenStream:
        """Make the live state of a stream, and enter it into the table; see `Run.open_stream`.

        Raises:
            StreamBusyError: it is open already.
            ValueError: the run has no output folder, or the stream begins at another index.
        """
        table, folder = self.stream_table, self._folder(output_dir)
        self.check_free(key)
        self._check_first_index(key, first_index)
        stream_log = table.stream_log(key)
        files = StreamFiles(
            self.run_id,
            stream_log,
            self.path_owners,
            self.committer.check_owner,
            self.outputs,
            folder,
            validator,
            self.settings.outputs_since,
            self._replaced,
        )
        open_stream = table.opened[key] = OpenStream(
            self.run_id,
            stream_log,
            self.committer,
            self.coordinator.registry,
            self.stop,
            LoopPolicy(retry, files.validator),
            files,
            self.nursery,
            first_index=first_index,
            phase=table.phases[-1][1] if table.phases else None,
            failed=table.failures.setdefault(key, {}),
            settled=partial(self.waits.settled, key),
            waited=self.waits.of_batches,
            limits=self.limits,
        )
        self.deferred.follow(open_stream)
        self.waits.opened(key)
        return open_stream

    @property
    def _replaced(self) -> str | None:
        """The label of the archive of the generation that this one begins from."""
        base = None if self.settings.is_settled else self.settings.base
        return None if base is None else f"{self.run_id}-{base.generation}"

    def _folder(self, output_dir: str | None) -> str:
        """The folder of a stream's outputs, relative to that of the run."""
        if output_dir is None:
            return ""
        if self.outputs is None:
            raise ValueError(
                "output_dir= of a stream is below that of the run, which has none: give "
                "open_run(output_dir=...)"
            )
        name = os.path.normpath(path_text("output_dir", output_dir))
        return "" if name == "." else self.outputs.relative(name)

    def _check_first_index(self, key: StreamKey, first_index: int) -> None:
        progress = self.stream_table.progress.get(key, Progress())
        first = progress.first_index
        if progress.opens and first != first_index and len(progress.done):
            raise ValueError(
                f"{describe_batch(self.run_id, key, None)} was begun with "
                f"first_index={first}, not {first_index}"
            )

    def check_left(self, open_stream: OpenStream, *, is_failure_raised: bool) -> None:
        """Raise where a stream that was left without an exception has failed, or was stopped."""
        progress = open_stream.stream_log.progress
        if open_stream.has_failed:
            if is_failure_raised and progress.error is not None:
                raise StreamFailedError(
                    progress.error.message,
                    run_id=self.run_id,
                    stream=open_stream.stream_log.key,
                    retryable=progress.error.retryable,
                )
        elif self.stop.is_requested and not open_stream.is_complete:
            raise self.stopped()

    def close_stream(self, open_stream: OpenStream) -> None:
        """Take a stream out of the table, and wake the waits for it."""
        open_stream.close()
        key = open_stream.stream_log.key
        del self.stream_table.opened[key]
        self.streams.pop(key, None)
        for number in [n for n, owner in self.object_owners.items() if owner is open_stream]:
            del self.object_owners[number]
        self.waits.left(key)
        self.deferred.consider()
        self.touch()

    # -- the run as a whole --------------------------------------------------------------------

    def parts(self) -> dict[StreamKey, Progress]:
        """The progress of every stream, also of the run's own."""
        logs = {log.key: log.progress for log in self.committer.stream_logs}
        return {**self.stream_table.progress, **logs}

    def view(self) -> RunView:
        """The progress of every stream at this moment, without copies."""
        key = self.committer.run_key
        streams = {name: StreamView(name, part) for name, part in self.parts().items()}
        return RunView(key.run_id, key.generation, key.owner, streams)

    def stopped(self) -> RunStoppedError:
        """The error of a run that was stopped, or whose store has failed."""
        error = RunStoppedError(
            self.run_id,
            exit_code=self.stop.exit_code or EXIT_DRAINED,
            resume_command=self.resume_command,
            poison=self.committer.poison,
            reason=self.stop.reason or None,
            next_due=self.deferred.next_due,
        )
        error.__cause__ = self.committer.poison
        return error

    def touch(self) -> None:
        """Wake the monitors."""
        touch(self.coordinator.registry)

    def wake_waiters(self) -> None:
        """Wake the monitors, and all tasks that wait for batches: the run stops, or is closed."""
        self.waits.wake_all()
        self.touch()
