"""The status of a run, read from outside: nothing here writes, and no lock is needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from .._util.plain import JOB_STREAM, RUN_STREAM, StreamKey
from .history import session_metadata_of
from .progress import Progress
from .record import Status
from .session_record import ENDED
from .store import Owner, RunView, Store
from .summary import Summary, exit_code, in_order, is_over, status_of, summarize, summarize_groups

_BY_URGENCY = (
    Status.FAILED,
    Status.IN_PROGRESS,
    Status.INTERRUPTED,
    Status.PENDING,
    Status.COMPLETE,
)


@attrs.frozen
class RunStatus:
    """The status of a run, read from outside.

    Attributes:
        store: The store of the run.
        view: Its newest generation.
        owner: The live process that owns it; None: no process does.
        session_metadata: The newest in its own stream.
        parts: The progress of every stream of work: all but the run's own, and but the one with
            which a job is submitted.
        open_streams: The streams that the owner has opened and that have not ended.
    """

    store: Store
    view: RunView
    owner: Owner | None
    session_metadata: Mapping[str, Any]
    parts: Mapping[StreamKey, Progress]
    open_streams: frozenset[StreamKey]

    @property
    def run_id(self) -> str:
        """The name of the run."""
        return self.view.run_id

    @property
    def is_job(self) -> bool:
        """Whether it is a job, which a foreman begins and ends, not a program."""
        return JOB_STREAM in self.view.streams

    @property
    def is_over(self) -> bool:
        """Whether all its streams are complete or failed for good: no start would do more."""
        return bool(self.parts) and all(map(is_over, self.parts.values()))

    @property
    def keys(self) -> list[StreamKey]:
        """The users' streams, in order."""
        return in_order(self.parts)

    def summary(self, keys: Collection[StreamKey] | None = None, of: StreamKey = ()) -> Summary:
        """The sums of streams.

        Args:
            keys: The streams; default: all streams of users.
            of: The key of the summary.
        """
        chosen = self.keys if keys is None else keys
        parts = {key: self.parts[key] for key in chosen}
        return summarize(of, parts, open_streams=self.open_streams)

    def groups(self, keys: Collection[StreamKey] | None = None) -> dict[StreamKey, Summary]:
        """The sums of every group of streams, by default of all streams of users."""
        parts = {key: self.parts[key] for key in (self.keys if keys is None else keys)}
        return summarize_groups(parts, open_streams=self.open_streams)

    def by_urgency(self, keys: Collection[StreamKey]) -> list[StreamKey]:
        """Streams, those first that need attention; else in their order."""

        def urgency(key: StreamKey) -> int:
            status = status_of(self.parts[key], is_open=key in self.open_streams)
            return _BY_URGENCY.index(status)

        return sorted(keys, key=urgency)

    def status_of(self, summary: Summary) -> Status:
        """The status of the run, from its summary: IN_PROGRESS while a process owns it.

        A complete run is COMPLETE also while it is owned.  A job that failed for good is FAILED
        also while its foreman still owns it.
        """
        is_over = summary.status is Status.COMPLETE or (self.is_job and self.is_over)
        return Status.IN_PROGRESS if self.owner is not None and not is_over else summary.status

    def last_activity(self) -> float | None:
        """When something was last saved; Unix time, s; None: nothing was."""
        saved = [entry.progress.updated_at for entry in self.view.streams.values()]
        return max((at for at in saved if at is not None), default=None)

    def exit_code(self) -> int:
        """The exit code for the status of the run; see docs/reference/exit-codes.md."""
        has_ended = self.session_metadata.get("ended") == ENDED and not self.is_job
        return exit_code(self.parts.values(), has_ended=has_ended)


async def read_run_status(store: Store, run_id: str) -> RunStatus | None:
    """Read the status of a run; None: the store has no such run.

    Raises:
        StoreError: it cannot be read.
    """
    owner = await store.read_owner(run_id)
    view = await store.load_run(run_id)
    return None if view is None else run_status_from(store, view, owner)


def run_status_from(store: Store, view: RunView, owner: Owner | None) -> RunStatus:
    """The status of a run whose progress is known already."""
    metadata = session_metadata_of(view)
    own = (RUN_STREAM, JOB_STREAM)
    parts = {key: e.progress for key, e in view.streams.items() if key not in own}
    began = metadata.get("began", 0.0)
    opened = frozenset(
        key
        for key, progress in parts.items()
        if owner is not None
        and progress.opened_at is not None
        and progress.opened_at >= began
        and progress.status not in (Status.COMPLETE, Status.FAILED)
    )
    return RunStatus(store, view, owner, metadata, parts, opened)
