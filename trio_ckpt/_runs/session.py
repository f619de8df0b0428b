"""A session: the time from opening to closing a run, what it found, and how it ended.

Sessions are records of the run's own stream.  A session without an END record was killed.

Theory of operation of a new generation
=======================================

A run that starts again from the beginning deletes nothing.  The new generation is saved first.
Its first record names the generations whose outputs are still to be archived; then they are moved;
then a note says that it is done.  No output of the new generation is written before that note.
This ensures that a save that fails leaves the old run unchanged, and that the next start finishes
a move that a crash interrupted: until the note exists, the record of every session names again
what is left.

The outputs of a generation that was pruned in between, or cannot be read, stay in place.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from types import MappingProxyType

import attrs
import msgspec
import trio
from msgspec.structs import asdict

from .._commit.exits import Exit, exit_of
from .._commit.group_commit import GroupCommitter
from .._commit.limits import Limits, plain_limits
from .._commit.saves import save_aside, save_record
from .._commit.stream_log import StreamLog
from .._journal.changes import again_of
from .._journal.history import (
    ENDED,
    KILLED,
    STOPPED,
    ended_at,
    how_ended,
    iter_records,
    run_runtime_s,
    session_metadata_of,
)
from .._journal.progress import Progress
from .._journal.record import PAUSED, Record, RecordKind
from .._journal.store import RunView, Store
from .._journal.summary import in_order, summarize
from .._util.errors import ConfigChangedError, RunStoppedError, StoreDamagedError
from .._util.exact_sum import Number
from .._util.exceptions import class_name
from .._util.log import at, get_logger
from .._util.plain import PHASE, RUN_STREAM, Plain, StreamKey
from .._util.text import deferred_text, number, plural
from .._util.threads import run_blocking
from ..outputs import ARCHIVE, Outputs
from .config import (
    RunRequest,
    config_digest,
    diff_config,
    has_field,
    refused_changes,
    without_fields,
)
from .manifest import MANIFEST, RunContents, manifest_owner, set_outdated_aside
from .statistics import count_session

log = get_logger(__name__)

MAX_SHOWN = 10  # names in one line of the log
ARCHIVING = "archiving"  # in a record of the run's own stream: the generations still to archive
ARCHIVED = "archived"  # in a later record: no generation is left
ROW_SINCE = "row_since"  # in its records: a row of failures may have begun then; Unix time, s
CLOCK_STEP_S = 2.0  # FAT rounds times down to 2 s; kernels stamp files by a coarser clock


@attrs.frozen
class ResumeReport:
    """What `open_run` found in the store.

    Attributes:
        sessions: How many sessions there were before this one; 0: the run is new.
        streams: How many streams have records.
        confirmed: How many batches are durable.
        skipped: How many batches were given up.
        to_retry: How many batches failed and may run again.
        records: How many records were produced.
        totals: What was produced, by name.
        spent: What all attempts cost, by name.
        last_end: How the last session ended, as text; None: there was none.
        ended_at: When it ended, Unix time, s; for a killed session, when it last saved.
        assumed: What attempts have reserved and not settled, by name; it counts as spent.
        deferred: How many batches were deferred and have not ended since.
        next_due: When the first of them is due; Unix time, s; None: none was deferred.
    """

    sessions: int
    streams: int
    confirmed: int
    skipped: int
    to_retry: int
    records: int
    totals: Mapping[str, Number] = attrs.field(converter=MappingProxyType[str, Number])
    spent: Mapping[str, Number] = attrs.field(converter=MappingProxyType[str, Number])
    last_end: str | None
    ended_at: float | None
    assumed: Mapping[str, Number] = attrs.field(default={}, converter=MappingProxyType[str, Number])
    deferred: int = 0
    next_due: float | None = None

    @property
    def was_killed(self) -> bool:
        """Whether the last session left no record of its end."""
        return self.last_end == KILLED

    @property
    def may_have_left_files(self) -> bool:
        """Whether the last session may have left temporary files: a kill or an error ended it."""
        return self.last_end not in (None, ENDED) and not str(self.last_end).startswith(STOPPED)

    def __str__(self) -> str:
        if self.last_end is None:
            return "nothing saved yet"
        sums = [f"{number(total)} {name}" for name, total in self.totals.items()]
        sums += [f"{number(total)} {name} spent" for name, total in self.spent.items()]
        sums += [f"{number(total)} {name} assumed spent" for name, total in self.assumed.items()]
        when = ""
        if self.ended_at is not None:
            at = datetime.fromtimestamp(self.ended_at, UTC)
            when = f" at {at:%Y-%m-%d %H:%M:%S} UTC"
        deferred = deferred_text(self.deferred, self.next_due)
        return (
            f"{plural(self.confirmed, 'batch')} done, {self.skipped:,} skipped, "
            f"{self.to_retry:,} to retry, {f'deferred: {deferred}; ' if deferred else ''}"
            f"{', '.join([plural(self.records, 'record'), *sums])} in all; "
            f"{plural(self.streams, 'stream')}; session {self.sessions} {self.last_end}{when}"
        )


def report_of(view: RunView | None) -> ResumeReport:
    """Sum up the records of a run."""
    if view is None:
        return ResumeReport(0, 0, 0, 0, 0, 0, {}, {}, None, None)
    every = {key: entry.progress for key, entry in view.streams.items()}
    parts = {key: every[key] for key in in_order(every)}
    whole = summarize((), parts)
    session_metadata = session_metadata_of(view)
    return ResumeReport(
        sessions=session_metadata.get("session", 0),
        streams=len(parts),
        confirmed=whole.confirmed,
        skipped=whole.skipped,
        to_retry=whole.failing,
        records=whole.records,
        totals=whole.totals,
        spent=whole.spent,
        last_end=how_ended(session_metadata) if session_metadata else None,
        ended_at=ended_at(view) if session_metadata else None,
        assumed=whole.assumed,
        deferred=whole.deferred,
        next_due=whole.next_due,
    )


class ConfigChange(msgspec.Struct, frozen=True):
    """How a configuration differs from that of the last session.

    Attributes:
        fields: ``(field, was, now)`` for each field that differs.
        is_restart: Whether the run starts from the beginning because of it.
    """

    fields: tuple[tuple[str, str, str], ...] = ()
    is_restart: bool = False


def compare_config(view: RunView | None, request: RunRequest) -> ConfigChange:
    """Compare the configuration of a request with that of the last session.

    Args:
        view: The run in the store; None: there is none, or it is not gone on with.
        request: What `open_run` is asked for.

    Raises:
        ConfigChangedError: a field has changed that may not, and the policy is to refuse.
        ValueError: neither configuration has a field that `tunable` names.
    """
    before, run_id = session_metadata_of(view) if view is not None else {}, request.run_id
    kept = without_fields(before.get("config", {}), request.exclude)
    for name in request.tunable:
        if not has_field(request.config, name) and not has_field(kept, name):
            raise ValueError(f"tunable names {name!r}, which is not a field of config")
    if "config" not in before:
        return ConfigChange()
    changes = diff_config(kept, request.config)
    refused = refused_changes(changes, request.tunable)
    for name, was, now in changes:
        log.info("config of run %r: %s: %s -> %s", run_id, name, was, now, extra=at(run_id))
    if refused and request.on_config_change == "refuse":
        raise ConfigChangedError(run_id, refused)
    return ConfigChange(changes, bool(refused) and request.on_config_change == "restart")


class SessionRecorder:
    """Saves that a session began, and how it ended.

    Attributes:
        runtime_s: For how long the run was open in earlier sessions, in seconds.
        outputs_since: Files that are older were not written by the run; Unix time, s.
        committer: Saves the records of the session.
        metadata: The metadata of its records.
        before: The metadata of the last session; empty: there was none.
    """

    def __init__(
        self,
        committer: GroupCommitter,
        view: RunView | None,
        *,
        config: dict[str, Plain],
        changes: tuple[tuple[str, str, str], ...],
        output_dir: str | None,
        outputs_at: float | None = None,
        may_replace: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Make one for a new session.

        Args:
            committer: Saves the records of the session.
            view: The run in the store; None: it is new, or starts from the beginning.
            config: The canonical configuration, which the next start compares with its own.
            changes: The fields of the configuration that have changed.
            output_dir: The folder of the outputs.
            outputs_at: The time now by the clock of its files, see `Outputs.now`; None: by that
                of this machine.
            may_replace: Whether files that no record names may be archived when outputs get
                their names.
            limits: When the session stops by itself.
        """
        own = view.streams.get(RUN_STREAM) if view is not None else None
        self.committer = committer
        self._stream_log: StreamLog = committer.add_stream_log(
            RUN_STREAM, own.progress if own else Progress()
        )
        self.runtime_s = run_runtime_s(view) if view is not None else 0.0
        before, began = session_metadata_of(view) if view is not None else {}, time.time()
        self.before: Mapping[str, Plain] = before
        # A new run has no files yet; later sessions allow for the coarser clock of files.
        first = began if outputs_at is None else outputs_at
        since = before.get("outputs_since", 0.0) if before else first - CLOCK_STEP_S
        self.outputs_since: float = 0.0 if may_replace else since if before else first
        self.metadata: dict[str, Plain] = {
            "session": before.get("session", 0) + 1,
            "runtime_s": self.runtime_s,
            "changes": changes,
            "config": config,
            "config_digest": config_digest(config),
            "output_dir": output_dir,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": began,
            "outputs_since": 0.0 if may_replace else since,
        }
        if PAUSED in before:
            self.metadata[PAUSED] = before[PAUSED]
        if limits is not None:
            self.metadata["limits"] = plain_limits(limits)
            if limits.consecutive_failures is not None:
                self.metadata[ROW_SINCE] = before.get(ROW_SINCE, began)

    async def begin(self) -> None:
        """Save that the session began, which also creates a new generation.

        Durability: as for `save_aside`.
        """
        began = Record(kind=RecordKind.SESSION, at=time.time(), metadata=self.metadata)
        await save_aside(self.committer, self._stream_log, began)

    async def save(self, record: Record) -> None:
        """Save another record of the run's own stream.

        Durability: when this returns the record is durable.
        """
        await save_record(self.committer, self._stream_log, record)

    def beside(self, record: Record) -> tuple[StreamLog, Record]:
        """A record of the run's own stream, to be saved in one group with others."""
        return self._stream_log, record

    def contents(self, parts: Mapping[StreamKey, Progress]) -> RunContents:
        """What a manifest of the run is made from now.

        Args:
            parts: The progress of every stream.
        """
        return RunContents(self.committer.run_key, parts, self.metadata)

    async def end(self, error: BaseException | None) -> None:
        """Save how the session ended, best effort.

        Cancellation: none.
        """
        if self.committer.poison is not None:
            return
        now = time.time()
        end = {"ended": _how_ended(error), "at": now, "counts": _counts(self.committer)}
        if isinstance(error, RunStoppedError) and error.reason is not None:
            end["reason"] = error.reason
            if error.next_due is not None:
                end["next_due"] = error.next_due.timestamp()
        with trio.CancelScope(shield=True):
            try:
                await self.save(Record(kind=RecordKind.END, at=now, metadata=self.metadata | end))
            except Exception as problem:
                log.warning(
                    "how the session ended could not be saved: %s",
                    problem,
                    extra=at(self.committer.run_key.run_id),
                )


def _counts(committer: GroupCommitter) -> dict[str, Plain]:
    """What the session did, in numbers."""
    logs = [one for one in committer.stream_logs if one.key[:1] not in ((), (PHASE,))]
    counts = count_session(logs)
    # The streams together may have more records than can be saved.
    return asdict(counts) | {"records": min(counts.records, 2**63 - 1)}


def _how_ended(error: BaseException | None) -> str:
    if error is None:
        return ENDED
    if isinstance(error, RunStoppedError):
        return STOPPED
    if exit_of(error) is Exit.CANCEL:
        return "was cancelled"
    return f"ended by {class_name(error)}"


# -- a new generation: old outputs are archived ---------------------------------------------------


def is_archiving(record: Record) -> bool | None:
    """Whether a record of the run's own stream says that outputs are left; None: neither."""
    if ARCHIVED in record.metadata:
        return False
    if ARCHIVING in record.metadata:
        return True
    return False if record.kind in (RecordKind.SESSION, RecordKind.END) else None


def archived_note(at: float) -> Record:
    """The record that says that no outputs are left."""
    return Record(kind=RecordKind.NOTE, at=at, metadata={ARCHIVED: True})


async def left_to_archive(store: Store, view: RunView) -> list[int]:
    """The generations whose outputs a start, or a reset, has still to archive."""
    if view.generation and RUN_STREAM in view.streams:
        newest = iter_records(store, view.run_id, view.generation, RUN_STREAM, limit=MAX_SHOWN)
        async with aclosing(newest) as records:
            async for _, record in records:
                word = is_archiving(record)
                if word is not None:
                    return list(record.metadata[ARCHIVING]) if word else []
    return []


async def replaced_by_next(store: Store, view: RunView) -> list[int]:
    """The generations whose outputs the next one has to archive."""
    parts = [entry.progress for key, entry in view.streams.items() if key != RUN_STREAM]
    has_outputs = any(progress.outputs or progress.sinks for progress in parts)
    left = await left_to_archive(store, view)
    again = again_of(session_metadata_of(view), view.generation)
    if again is not None and again.checkpoints is None:  # outputs are still where it found them
        return [*left, view.generation, again.base]
    return [*left, view.generation] if has_outputs else left


async def clear_outputs(
    store: Store,
    session: SessionRecorder,
    parts: Mapping[StreamKey, Progress],
    outputs: Outputs | None,
) -> None:
    """Archive what a new session must not find: old outputs, and an outdated manifest.

    Durability: when this returns the moves and their record are durable.
    """
    if outputs is None:
        return
    try:
        generations: list[int] = session.metadata.get(ARCHIVING, [])
        await archive_generations(store, session.committer.run_key.run_id, generations, outputs)
        if generations:
            await session.save(archived_note(session.metadata["began"]))
            del session.metadata[ARCHIVING]
        await set_outdated_aside(session.contents(parts), outputs)
    except BaseException as error:
        await session.end(error)
        raise


async def archive_generations(
    store: Store, run_id: str, generations: Sequence[int], outputs: Outputs
) -> None:
    """Archive the recorded outputs of generations, as far as their records can be read."""
    for generation in generations:
        try:
            view = await store.load_run(run_id, generation)
            if view is not None:
                await archive_outputs(store, view, outputs)
        except StoreDamagedError as error:
            log.error(
                "the outputs of generation %d stay where they are: %s",
                generation,
                error,
                extra=at(run_id),
            )


async def archive_outputs(store: Store, view: RunView, outputs: Outputs) -> None:
    """Archive the recorded outputs of a run before a fresh one; nothing is deleted."""
    paths: set[str] = set()
    for key, entry in view.streams.items():
        if key != RUN_STREAM:
            paths.update(entry.progress.sinks)
            if entry.progress.outputs:
                paths |= await _recorded_paths(store, view, key)
    if await run_blocking(manifest_owner, outputs) == view.run_id:
        paths.add(MANIFEST)
    if paths:
        label = f"{view.run_id}-{view.generation}"
        archived = await run_blocking(outputs.archive, sorted(paths), label)
        log.info(
            "archived %s of the old run",
            plural(len(archived.moved), "output"),
            extra=at(view.run_id),
        )
    strangers = [name for name in await run_blocking(outputs.names) if name != ARCHIVE]
    if strangers:
        shown = ", ".join(strangers[:MAX_SHOWN])
        log.info(
            "left in place, because no record has them: %s (%s)",
            plural(len(strangers), "name"),
            shown,
            extra=at(view.run_id),
        )


async def _recorded_paths(store: Store, view: RunView, key: StreamKey) -> set[str]:
    paths: set[str] = set()
    async with aclosing(iter_records(store, view.run_id, view.generation, key)) as records:
        async for _, record in records:
            paths.update(output.path for output in record.outputs)
    return paths
