"""`open_run`: the lock, the store, the background tasks, and the shape of errors."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, get_args

import attrs
import trio

from .._commit.group_commit import DEFAULT_SAVE_TIMEOUT_S, GroupCommitter
from .._commit.observers import Observers
from .._commit.shutdown import Stop, receive_signals, release_signals, take_signals
from .._journal.store import Observer, RunKey, Store
from .._tokens.coordinator import CheckpointCoordinator
from .._util.arguments import any_path, flag, instance, one_of, path_text, seconds, several, text
from .._util.errors import EXIT_DRAINED, RunStoppedError
from .._util.log import at, get_logger
from .._util.nursery import open_service_nursery
from .._util.plain import check_run_id
from .._util.portal import check_trio
from .._util.text import plural, printable
from .._util.threads import run_blocking
from .._util.uninterrupted import uninterrupted
from ..outputs import ARCHIVE, OutputDir, SystemPath
from ..state._shared_capture import ArrayTools
from ..stores import open_store
from .announce import announce_start, announce_stop
from .closing import close_run
from .config import canonical_config
from .generations import ARCHIVING, clear_outputs, left_to_archive, replaced_by_next
from .live_view import publish_live
from .manifest import WRITTEN, count_checkpoints, is_current, leave_manifest
from .open_run import OpenRun
from .resume import Settings
from .run import Run
from .session import OnConfigChange, SessionRecorder, compare_config, report_of
from .stream_table import StreamTable
from .verify import Verify

log = get_logger(__name__)

DEFAULT_GRACE_S = 30.0


@asynccontextmanager
@uninterrupted
async def open_run(
    run_id: str,
    *,
    store: Store | str | os.PathLike[str],
    config: Any = None,
    exclude: Collection[str] = (),
    tunable: Collection[str] = (),
    on_config_change: OnConfigChange = "refuse",
    output_dir: str | os.PathLike[str] | None = None,
    verify: Verify = "size",
    redo_missing: bool = False,
    fresh: bool = False,
    retry_failed: bool = False,
    handle_signals: bool | None = None,
    grace_s: float = DEFAULT_GRACE_S,
    save_timeout_s: float = DEFAULT_SAVE_TIMEOUT_S,
    resume_command: str | None = None,
    coordinator: CheckpointCoordinator | None = None,
    observe: Sequence[Observer] = (),
) -> AsyncGenerator[Run]:
    """Own a run for a block: begin it, or resume it where it was left.

    Args:
        run_id: Its name, without path separators and control characters.
        store: A folder, a URL (``sqlite:path``, ``memory:``), or a store.
        config: What the run depends on: an attrs instance or JSON-like mapping.  A resume
            with another one is refused; the error names the fields.
        exclude: Fields of `config` that are ignored, nested ones dotted.
        tunable: Fields of `config` that may change, nested ones dotted; a change is logged.
        on_config_change: What to do when other fields changed: refuse, archive the run and
            restart it, or accept the change.
        output_dir: The folder of the outputs; it is created if it does not exist.
        verify: How confirmed outputs are checked: not at all, by size and time (by hash
            where the time differs), or by hash.
        redo_missing: Whether to resume even if very many outputs are missing.
        fresh: Whether to archive the old run and start from the beginning; nothing is deleted.
            Outputs are moved when the new generation is saved; the next start finishes a move
            that was interrupted.
        retry_failed: Whether to re-queue batches and streams that were skipped or have failed
            for good.
        handle_signals: Whether to stop in good order on SIGINT and SIGTERM.  Default: in the main
            thread, for the first run that is open.  False: the program stops the run itself,
            and reports itself how the run resumes: that is logged as INFO, not as WARNING.
        grace_s: How long a stop waits for open batches, in seconds.
        save_timeout_s: How long a save may take, in seconds, before its outcome is unknown.
        resume_command: The command that the log shows for a resume; default: this command.
        coordinator: A coordinator that several runs share; default: a new one.
        observe: Observers that are called with what the run does, such as `trace_batches`.

    Yields:
        The open run.

    Raises:
        RunLockedError: another live process owns it.
        ConfigChangedError: see `config`.
        RunStoppedError: it was stopped; how to resume is logged as a WARNING.
        StreamsStillOpenError: it was left while streams were open.
        StoreError: the store cannot be used.

    Durability: confirmed batches survive kill -9 and power loss, as the store promises.
    Cancellation: completed batches are saved before it takes effect.
    """
    check_trio()
    check_run_id(run_id)
    one_of("on_config_change", on_config_change, get_args(OnConfigChange))
    settings = Settings(verify, redo_missing, retry_failed)
    flag("fresh", fresh)
    if handle_signals is not None:
        flag("handle_signals", handle_signals)
    grace_s = seconds("grace_s", grace_s, is_endless_allowed=True)
    save_timeout_s = seconds("save_timeout_s", save_timeout_s, is_endless_allowed=True)
    if resume_command is not None:
        text("resume_command", resume_command)
    if coordinator is not None:
        instance("coordinator", coordinator, CheckpointCoordinator, "a CheckpointCoordinator")
    observers = Observers(
        instance("an observer", observer, Observer, "an Observer")
        for observer in several("observe", observe, "observers")
    )
    if output_dir is not None:
        path_text("output_dir", output_dir)  # only checked: tests give other kinds of folders
    exclude = several("exclude", exclude, "names of fields")
    tunable = several("tunable", tunable, "names of fields")
    plain = canonical_config(config, exclude)
    async with AsyncExitStack() as stack:
        if not isinstance(store, Store):
            store = await open_store(any_path("store", store))
            stack.push_async_callback(_close_store, store)
        owner = await stack.enter_async_context(store.lock_run(run_id))
        outputs = None
        if output_dir is not None:
            outputs = await run_blocking(OutputDir.open, output_dir)
            stack.callback(outputs.close)
            if not isinstance(output_dir, SystemPath) and (place := store.url.partition(":")[2]):
                await run_blocking(outputs.keep_out_of, place)
        tools = ArrayTools()
        stack.callback(tools.close)
        view = await store.load_run(run_id)
        generation = view.generation if view is not None else 0
        change = compare_config(
            None if fresh else view, plain, exclude, tunable, on_config_change, run_id
        )
        archiving = [] if view is None else await left_to_archive(store, view)
        if fresh or change.is_restart:
            if view is not None and view.streams:
                archiving = await replaced_by_next(store, view)
                generation += 1
            view = None
        stop = Stop(grace_s)
        committer = GroupCommitter(
            store,
            RunKey(run_id, generation, owner),
            save_timeout_s=save_timeout_s,
            on_poison=lambda: stop.cancel_streams(EXIT_DRAINED),
            observers=observers,
        )
        found = report_of(view)
        announce_start(run_id, found, is_of_program=handle_signals is not False)
        is_begun_again = generation > 0 and found.sessions == 0
        if (found.may_have_left_files or is_begun_again) and outputs is not None:
            await _remove_orphans(run_id, outputs)
        session = SessionRecorder(
            committer,
            view,
            config=plain,
            changes=change.fields,
            output_dir=outputs.root if outputs is not None else None,
            # A store in memory forgets every run: outputs of earlier runs may be replaced.
            may_replace=fresh or generation > 0 or store.url == "memory:",
        )
        if found.sessions == 0 and session.outputs_since and outputs is not None:
            await _warn_of_strangers(run_id, outputs, store)
        if archiving:
            session.facts[ARCHIVING] = archiving
        parts = {} if view is None else {key: entry.progress for key, entry in view.streams.items()}
        if outputs is not None and await is_current(
            committer.run_key, parts, outputs, session.facts
        ):
            session.facts[WRITTEN] = count_checkpoints(parts)
        async with _background_tasks(committer, stop, handle_signals) as nursery:
            await session.begin()
            if outputs is not None:
                await clear_outputs(store, committer.run_key, session, view, outputs)
            open_run = OpenRun(
                store,
                committer,
                stop,
                nursery,
                coordinator or CheckpointCoordinator(),
                outputs,
                attrs.evolve(settings, outputs_since=session.outputs_since),
                tools,
                resume_command or shlex.join(sys.orig_argv) or None,
                StreamTable.of(committer, view, session.runtime_s),
            )
            run = Run(open_run, found)
            if store.has_live:
                nursery.start_soon(publish_live, run)
            body_error: BaseException | None = None
            try:
                with stop.body:
                    yield run
            except BaseException as error:
                body_error = error
            body_error = await close_run(open_run, body_error, grace_s)
            # The end is saved last: the next start cleans up after a session without one.
            try:
                if outputs is not None:
                    session.facts[WRITTEN] = await leave_manifest(
                        store,
                        committer,
                        open_run.view(),
                        outputs,
                        session.facts,
                        is_wanted=body_error is None,
                    )
            finally:
                await session.end(body_error)
            if isinstance(body_error, RunStoppedError):
                announce_stop(run_id, body_error)
            if body_error is not None:
                raise body_error


@asynccontextmanager
async def _background_tasks(
    committer: GroupCommitter, stop: Stop, handle_signals: bool | None
) -> AsyncGenerator[trio.Nursery]:
    """Run the group committer and the signal handler while the block runs.

    A failure of a background task cancels the block; see `open_service_nursery`.
    """
    has_signals = take_signals(handle_signals)
    try:
        async with open_service_nursery() as nursery:
            try:
                nursery.start_soon(committer.run)
                nursery.start_soon(stop.see_through)
                if has_signals:
                    await nursery.start(receive_signals, stop)
                yield nursery
            finally:
                committer.close()
    finally:
        if has_signals:
            release_signals()
        if not committer.is_appending:  # else a thread may still be writing to them
            committer.close_sinks()


async def _close_store(store: Store) -> None:
    with trio.CancelScope(shield=True):
        await store.aclose()


def _strangers(outputs: OutputDir, store: str) -> list[str]:
    """The names in a folder that are neither the archive nor on the path of the store."""
    own = ""
    if store:
        own = os.path.relpath(os.path.abspath(store), outputs.root).partition(os.sep)[0]
    return [name for name in outputs.names() if name not in (ARCHIVE, own)]


async def _warn_of_strangers(run_id: str, outputs: OutputDir, store: Store) -> None:
    """Warn that a new run finds files in its folder: its store may have been lost."""
    strangers = await run_blocking(_strangers, outputs, store.url.partition(":")[2])
    if strangers:
        log.warning(
            "the run is new, but its output folder has %s already, such as %s: a batch "
            "whose output has one of these names is refused; if a store was lost, Stream.rescan "
            "adopts them",
            plural(len(strangers), "name"),
            printable(strangers[0]),
            extra=at(run_id),
        )


async def _remove_orphans(run_id: str, outputs: OutputDir) -> None:
    """Remove half-written files that the last session left, best effort."""
    for path in await run_blocking(outputs.remove_orphans):
        log.info("%s was left by the last session and is removed", path, extra=at(run_id))
