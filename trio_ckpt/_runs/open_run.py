"""The live state of an open run, which its streams, its phases and its end share."""

from __future__ import annotations

import attrs
import trio

from .._commit.awaits import Calls
from .._commit.group_commit import GroupCommitter
from .._commit.shutdown import Stop
from .._commit.stream_outputs import SINK, PathOwners
from .._journal.progress import Progress
from .._journal.store import RunView, Store, StreamView
from .._tokens.coordinator import CheckpointCoordinator
from .._tokens.token import touch
from .._util.errors import EXIT_DRAINED, RunStoppedError, StreamBusyError, describe_batch
from .._util.plain import RUN_STREAM, StreamKey, encode_key
from ..outputs import OutputDir
from ..state._shared_capture import ArrayTools
from .config import Settings
from .manifest import MANIFEST
from .stream_table import StreamTable
from .waits import Waits


@attrs.define(eq=False)
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
        waits: The waits for batches.
        path_owners: The batch, or the append file, that each output name belongs to.
        rewinding: The streams that are being rewound.
        list_lock: Held while streams are put on the list.
        calls: The calls of the async methods of the run.
    """

    store: Store
    committer: GroupCommitter
    stop: Stop
    nursery: trio.Nursery
    coordinator: CheckpointCoordinator
    outputs: OutputDir | None
    settings: Settings
    tools: ArrayTools
    resume_command: str | None
    stream_table: StreamTable
    waits: Waits = attrs.field(init=False)
    path_owners: PathOwners = attrs.field(factory=PathOwners, init=False)
    rewinding: set[StreamKey] = attrs.field(factory=set[StreamKey], init=False)
    list_lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    calls: Calls = attrs.field(factory=Calls, init=False)

    def __attrs_post_init__(self) -> None:
        self.waits = Waits(self.stream_table, self.stop, self.stopped)
        self.stop.changed = self.wake_waiters
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
