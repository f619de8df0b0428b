"""`open_run` from the lock of a run to its end; which exception leaves its block."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, get_args

import attrs
import msgspec
import trio

from .._commit.group_commit import DEFAULT_SAVE_TIMEOUT_S, GroupCommitter
from .._commit.lease import start_saving
from .._commit.limits import Limits, checked_limits
from .._commit.observers import Observers
from .._commit.ownership import Ownership
from .._commit.shutdown import (
    Stop,
    receive_signals,
    release_signals,
    take_signals,
)
from .._commit.stream_outputs import OWNER_AGE_S
from .._journal.changes import AGAIN, BeganFrom, again_of
from .._journal.history import session_metadata_of
from .._journal.observer import Observer
from .._journal.progress import Progress
from .._journal.store import RunKey, RunView, Store
from .._tokens.coordinator import CheckpointCoordinator
from .._util.arguments import (
    any_path,
    flag,
    instance,
    one_of,
    path_text,
    seconds,
    several,
    signals,
    text,
)
from .._util.errors import EXIT_DRAINED, RunStoppedError
from .._util.log import at, get_logger
from .._util.nursery import open_service_nursery
from .._util.opening import opening
from .._util.plain import StreamKey, check_run_id
from .._util.text import plural, printable
from .._util.threads import check_trio, run_blocking
from .._util.uninterrupted import uninterrupted
from ..outputs import ARCHIVE, Outputs, SystemPath, open_outputs
from ..state._shared_capture import ArrayTools
from ..stores import folder_of, open_store
from .act_server import serve_acts
from .again import begin_again, checked_again, end_again, load_base
from .announce import announce_start, announce_stop
from .closing import close_run
from .config import DEFAULT_WAIT_S, OnConfigChange, RunRequest, Settings, canonical_config
from .limited import begin_limits, watch_limits
from .live_publisher import publish_live
from .manifest import WRITTEN, is_current, leave_manifest
from .open_run import OpenRun
from .opening import begin_paused, code_facts_of, code_of, code_watch, stopping_if_poisoned
from .run import Run
from .run_lock import take_lock
from .session import (
    ARCHIVING,
    ROW_SINCE,
    ResumeReport,
    SessionRecorder,
    clear_outputs,
    compare_config,
    left_to_archive,
    replaced_by_next,
    report_of,
)
from .stream_table import StreamTable
from .verify import Verify

if TYPE_CHECKING:
    from .code import Code, OnCodeChange

log = get_logger(__name__)
T = TypeVar("T")

DEFAULT_GRACE_S = 30.0


@opening("run")
@uninterrupted
async def open_run(
    run_id: str,
    *,
    store: Store | str | os.PathLike[str],
    config: object = None,
    exclude: Collection[str] = (),
    tunable: Collection[str] = (),
    on_config_change: OnConfigChange = "refuse",
    output_dir: str | os.PathLike[str] | None = None,
    verify: Verify = "size",
    redo_missing: bool = False,
    fresh: bool = False,
    again: bool = False,
    retry_failed: bool = False,
    handle_signals: bool | None = None,
    stop_signals: Collection[str] = ("SIGINT", "SIGTERM"),
    limits: Limits | None = None,
    grace_s: float = DEFAULT_GRACE_S,
    save_timeout_s: float = DEFAULT_SAVE_TIMEOUT_S,
    wait_for_lock_s: float = 0.0,
    wait_for_deferred_s: float = DEFAULT_WAIT_S,
    resume_command: str | None = None,
    coordinator: CheckpointCoordinator | None = None,
    observe: Sequence[Observer] = (),
    code: OnCodeChange | Code | None = None,
) -> AsyncGenerator[Run]:
    """Own a run for a block: begin it, or resume it where it was left.

    Args:
        run_id: Its name, without path separators and control characters.
        store: A folder, a URL (``sqlite:path``, ``postgresql://host/database``, ``memory:``), or a
            store.
        config: What the run depends on: an attrs instance or JSON-like mapping.  A resume
            with another one is refused; the error names the fields.
        exclude: Fields of `config` that are ignored, nested ones dotted.
        tunable: Fields of `config` that may change, nested ones dotted; a change is logged.
        on_config_change: What to do when other fields changed: refuse, archive the run and
            restart it, or accept the change.
        output_dir: The folder of the outputs, which is created if it does not exist, or a bucket:
            ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///folder``.
        verify: How confirmed outputs are checked: not at all, by size and time (by hash
            where the time differs), or by hash.
        redo_missing: Whether to resume even if very many outputs are missing.
        fresh: Whether to archive the old run and start from the beginning; nothing is deleted.
            Outputs are moved when the new generation is saved; the next start finishes a move
            that was interrupted.
        again: Whether to begin a new generation from the last complete one: cursors go on, and
            `Batch.previous` has what is known of an item.  While a generation that began so is not
            complete, every start goes on with it.
        retry_failed: Whether to re-queue batches and streams that were skipped or have failed
            for good.
        handle_signals: Whether to stop in good order on signals.  Default: in the main thread,
            for the first run that is open.  False: the program stops the run itself, and reports
            itself how the run resumes: that is logged as INFO, not as WARNING.
        stop_signals: The names of these signals.
        limits: When the run stops in good order by itself: at a cost, a time, a number of
            batches, a full disk, or failures that are an outage.
        grace_s: How long a stop waits for open batches, in seconds.
        save_timeout_s: How long a save may take, in seconds, before its outcome is unknown.
            Where the store has a lease, 80 % of that is the most.
        wait_for_lock_s: How long to wait for another owner of the run to end, in seconds.
        wait_for_deferred_s: How long a run that has only deferred batches left waits for the next
            one that is due, in seconds; if that is later, it ends with exit code 75.
        resume_command: The command that the log shows for a resume; default: this command.
        coordinator: A coordinator that several runs share; default: a new one.
        code: Whether to note which code works on which batches, and whether to refuse code that
            has changed: "note", "refuse" or a `Code`.  None: nothing is noted.
        observe: Observers that are called with what the run does, such as `trace_batches`.

    Yields:
        The open run.

    Raises:
        RunLockedError: another live process owns it, still after `wait_for_lock_s`.
        CannotRunAgainError: `again`, and there is no generation, or it is not complete.
        ConfigChangedError: see `config`.
        RunStoppedError: it was stopped, or has reached a limit; how to resume is logged as a
            WARNING.  Its cause is
            the reason why nothing more is saved, if there is one, such as `LeaseLostError`.
        StreamsStillOpenError: it was left while streams were open.
        StoreError: the store cannot be used.

    Durability: confirmed batches survive kill -9 and power loss, as the store promises.
    Cancellation: completed batches are saved before it takes effect.
    """
    check_trio()
    if output_dir is not None:
        path_text("output_dir", output_dir)  # only checked: tests give other kinds of folders
    exclude = several("exclude", exclude, "names of fields")
    request = RunRequest(
        run_id=check_run_id(run_id),
        on_config_change=one_of("on_config_change", on_config_change, get_args(OnConfigChange)),
        settings=Settings(
            verify,
            redo_missing,
            retry_failed,
            wait_for_deferred_s=seconds(
                "wait_for_deferred_s", wait_for_deferred_s, is_endless_allowed=True
            ),
        ),
        is_fresh=flag("fresh", fresh),
        is_again=checked_again(again, is_fresh=fresh),
        handle_signals=_optional(flag, "handle_signals", handle_signals),
        stop_signals=signals("stop_signals", stop_signals),
        limits=checked_limits(limits),
        grace_s=seconds("grace_s", grace_s, is_endless_allowed=True),
        save_timeout_s=seconds("save_timeout_s", save_timeout_s, is_endless_allowed=True),
        wait_for_lock_s=seconds("wait_for_lock_s", wait_for_lock_s, is_endless_allowed=True),
        resume_command=_optional(text, "resume_command", resume_command),
        coordinator=CheckpointCoordinator()
        if coordinator is None
        else instance("coordinator", coordinator, CheckpointCoordinator, "a CheckpointCoordinator"),
        observers=Observers(
            instance("an observer", observer, Observer, "an Observer")
            for observer in several("observe", observe, "observers")
        ),
        code=None if code is None else code_of(code),
        output_dir=output_dir,
        exclude=exclude,
        tunable=several("tunable", tunable, "names of fields"),
        config=canonical_config(config, exclude),
        store=store if isinstance(store, Store) else any_path("store", store),
    )
    async with AsyncExitStack() as stack:
        resources = await _lock(request, stack)
        generation = await _choose_generation(request, resources)
        stop = Stop(request.grace_s)
        committer = _make_committer(request, resources, generation, stop)
        with stopping_if_poisoned(request, committer):
            found = await _announce(request, resources, generation, committer)
            session = await _make_session(request, resources, generation, committer)
        async with _background_tasks(committer, stop, request) as nursery:
            with stopping_if_poisoned(request, committer):
                await session.begin()
                await clear_outputs(resources.store, session, generation.parts, resources.outputs)
            own = _make_open_run(request, resources, generation, session, stop, nursery)
            with stopping_if_poisoned(request, committer):
                await begin_limits(own, generation.view, session)
            run = Run(own, found)
            begin_paused(own, session)
            nursery.start_soon(serve_acts, own, session)
            if resources.store.has_live:
                nursery.start_soon(publish_live, run)
            error: BaseException | None = None
            try:
                with stop.body:
                    yield run
            except BaseException as raised:
                error = raised
            error = await close_run(own, error, request.grace_s)
            await _end_session(own, session, error)
            if error is not None:
                raise error


def _optional(check: Callable[[str, T], T], name: str, value: T | None) -> T | None:
    return None if value is None else check(name, value)


# -- the phases, in their order -----------------------------------------------------------------


class _RunResources(msgspec.Struct, frozen=True):
    """What a locked run is kept in; the exit stack of `open_run` closes it.

    Attributes:
        store: The store.
        owner: The owner number of the lock.
        owned_at: When the store was asked for the lock, on trio's clock.
        outputs: The folder of its outputs; None: it has none.
        tools: What captures of arrays share.
    """

    store: Store
    owner: int
    owned_at: float
    outputs: Outputs | None
    tools: ArrayTools


async def _lock(request: RunRequest, stack: AsyncExitStack) -> _RunResources:
    """Open the store, take the lock of the run, open the folder of its outputs."""
    store = request.store
    if not isinstance(store, Store):
        store = await open_store(store)
        stack.push_async_callback(close_store, store)
    owner, owned_at = await take_lock(stack, store, request.run_id, request.wait_for_lock_s)
    outputs = None
    if request.output_dir is not None:
        outputs = await run_blocking(open_outputs, request.output_dir)
        stack.callback(outputs.close)
        is_shared = store.lease_s is not None
        outputs.belong_to(request.run_id, owner, is_shared=is_shared)
        if not isinstance(request.output_dir, SystemPath):
            await run_blocking(outputs.keep_out, folder_of(store.url) or store.url)
    tools = ArrayTools()
    stack.callback(tools.close)
    return _RunResources(store, owner, owned_at, outputs, tools)


class _Generation(msgspec.Struct, frozen=True):
    """The generation that a session works on.

    Attributes:
        number: Its number.
        saved: The number of the newest generation that the store has.
        view: What the store has of it; None: nothing yet.
        changes: The fields of the configuration that have changed.
        archiving: The generations whose outputs are still to be archived.
        again: The generation that it began from, and what has changed since; None: from none.
        base: That generation, unless it was pruned.
    """

    number: int
    saved: int
    view: RunView | None
    changes: tuple[tuple[str, str, str], ...]
    archiving: list[int]
    again: BeganFrom | None = None
    base: RunView | None = None

    @property
    def parts(self) -> dict[StreamKey, Progress]:
        """The progress of every stream."""
        streams = {} if self.view is None else self.view.streams
        return {key: entry.progress for key, entry in streams.items()}


async def _choose_generation(request: RunRequest, resources: _RunResources) -> _Generation:
    """Load the run, compare its configuration, and go on with it or begin the next generation."""
    store = resources.store
    view = await store.load_run(request.run_id)
    asked = begin_again(view, request.run_id) if request.is_again else None
    change = compare_config(None if request.is_fresh else view, request)
    if view is None:
        return _Generation(0, 0, None, change.fields, [])
    is_new = request.is_fresh or change.is_restart
    if is_new and view.streams:  # else nothing is saved in it, and it is begun again as it is
        left = await replaced_by_next(store, view)
        return _Generation(view.generation + 1, view.generation, None, change.fields, left)
    left = await left_to_archive(store, view)
    number, own = view.generation, None if is_new else view
    if asked is not None:  # it begins from this one, which is complete
        return _Generation(number + 1, number, None, change.fields, left, asked, view)
    again = None if own is None else again_of(session_metadata_of(own), number)
    base = await load_base(store, again, request.run_id)
    return _Generation(number, number, own, change.fields, left, again, base)


async def _announce(
    request: RunRequest,
    resources: _RunResources,
    generation: _Generation,
    committer: GroupCommitter,
) -> ResumeReport:
    """Log how the run begins or resumes, and remove what a killed session left half-written."""
    found = report_of(generation.view)
    announce_start(request.run_id, found, is_of_program=request.handle_signals is not False)
    is_begun_again = generation.number > 0 and found.sessions == 0
    if (found.may_have_left_files or is_begun_again) and resources.outputs is not None:
        if committer.lease_s is not None:  # else the files may be those of the next owner
            await committer.check_owner(OWNER_AGE_S)
        for path in await run_blocking(resources.outputs.remove_orphans):  # best effort
            log.info(
                "%s was left by the last session and is removed", path, extra=at(request.run_id)
            )
    return found


def _make_committer(
    request: RunRequest, resources: _RunResources, generation: _Generation, stop: Stop
) -> GroupCommitter:
    store, saved = resources.store, RunKey(request.run_id, generation.saved, resources.owner)
    return GroupCommitter(
        store,
        RunKey(request.run_id, generation.number, resources.owner),
        save_timeout_s=request.save_timeout_s,
        on_poison=lambda: stop.cancel_streams(EXIT_DRAINED),
        observers=request.observers,
        known=generation.parts,
        ownership=Ownership(store, saved, resources.owned_at),
    )


async def _make_session(
    request: RunRequest,
    resources: _RunResources,
    generation: _Generation,
    committer: GroupCommitter,
) -> SessionRecorder:
    """Make the session, with what its first record says of outputs and manifest."""
    outputs, view = resources.outputs, generation.view
    # A store in memory forgets every run: outputs of earlier runs may be replaced.
    is_memory = resources.store.url == "memory:"
    session = SessionRecorder(
        committer,
        view,
        config=request.config,
        changes=generation.changes,
        output_dir=None if outputs is None else outputs.root,
        outputs_at=None if outputs is None else outputs.now(),
        may_replace=request.is_fresh or generation.number > 0 or is_memory,
        limits=request.limits,
    )
    if request.code is not None:
        session.metadata["code"] = await code_facts_of(request.code)
    if generation.archiving:
        session.metadata[ARCHIVING] = generation.archiving
    if generation.again is not None:
        session.metadata[AGAIN] = generation.again.plain()
    if outputs is not None:
        if session.metadata["session"] == 1 and session.outputs_since:
            await _warn_of_strangers(request.run_id, outputs, resources.store)
        contents = session.contents(generation.parts)
        if await is_current(contents, outputs):
            session.metadata[WRITTEN] = contents.checkpoints
    return session


def _make_open_run(
    request: RunRequest,
    resources: _RunResources,
    generation: _Generation,
    session: SessionRecorder,
    stop: Stop,
    nursery: trio.Nursery,
) -> OpenRun:
    return OpenRun(
        resources.store,
        session.committer,
        stop,
        nursery,
        request.coordinator,
        resources.outputs,
        attrs.evolve(
            request.settings,
            outputs_since=session.outputs_since,
            base=generation.base,
            is_settled=generation.again is not None and generation.again.checkpoints is not None,
            code=None if request.code is None else code_watch(request.code, session),
        ),
        resources.tools,
        request.command,
        StreamTable(session.committer, session.runtime_s, generation.parts),
        watch_limits(request.run_id, request.limits, stop, request.grace_s, generation.parts),
    )


async def _end_session(run: OpenRun, session: SessionRecorder, error: BaseException | None) -> None:
    """Write the manifest, and save how the session ended.

    The end is saved last: the next start cleans up after a session without one.
    """
    if run.limits is not None and not run.limits.streaks:
        session.metadata.pop(ROW_SINCE, None)
    again = again_of(session.metadata, run.committer.run_key.generation)
    try:
        if again is not None and error is None:
            session.metadata[AGAIN] = await end_again(run, session.contents(run.parts()), again)
        if run.outputs is not None:
            # Copies: a record may still come while the manifest is being made.
            parts = {key: progress.copy() for key, progress in run.parts().items()}
            contents = session.contents(parts)
            session.metadata[WRITTEN] = await leave_manifest(
                run.store, run.committer, contents, run.outputs, is_wanted=error is None
            )
    finally:
        await session.end(error)
    if isinstance(error, RunStoppedError):
        announce_stop(run.run_id, error)


@asynccontextmanager
async def _background_tasks(
    committer: GroupCommitter, stop: Stop, request: RunRequest
) -> AsyncGenerator[trio.Nursery]:
    """Run the group committer and the signal handler while the block runs.

    A failure of a background task cancels the block; see `open_service_nursery`.
    """
    has_signals = take_signals(request.handle_signals)
    try:
        async with open_service_nursery() as nursery:
            try:
                start_saving(nursery, committer)
                nursery.start_soon(stop.carry_out)
                if has_signals:
                    await nursery.start(receive_signals, stop, request.stop_signals)
                yield nursery
            finally:
                committer.close()
    finally:
        if has_signals:
            release_signals()
        if not committer.appender.is_busy:  # else a thread may still be writing to them
            committer.close_sinks()


async def close_store(store: Store) -> None:
    """Close a store that was opened for a block.

    Cancellation: shielded.
    """
    with trio.CancelScope(shield=True):
        await store.aclose()


def _strangers(outputs: Outputs, store: str) -> list[str]:
    """The names in a folder that are neither the archive nor on the path of the store."""
    own = ""
    if store:
        own = os.path.relpath(os.path.abspath(store), outputs.root).partition(os.sep)[0]
    return [name for name in outputs.names() if name not in (ARCHIVE, own)]


async def _warn_of_strangers(run_id: str, outputs: Outputs, store: Store) -> None:
    """Warn that a new run finds files in its folder: its store may have been lost."""
    strangers = await run_blocking(_strangers, outputs, folder_of(store.url))
    if strangers:
        log.warning(
            "the run is new, but its output folder has %s already, such as %s: a batch "
            "whose output has one of these names is refused; if a store was lost, Stream.rescan "
            "adopts them",
            plural(len(strangers), "name"),
            printable(strangers[0]),
            extra=at(run_id),
        )
