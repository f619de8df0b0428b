"""Starting a run again from the beginning: old outputs are archived, nothing is deleted.

Theory of operation
===================

The new generation is saved first.  Its first record names the generations whose outputs are
still to be archived; then they are moved; then a note says that it is done.  No output of
the new generation is written before that note.  This ensures that a save that fails leaves the
old run unchanged, and that the next start finishes a move that a crash interrupted: until the
note exists, the record of every session names again what is left.

The outputs of a generation that was pruned in between, or cannot be read, stay in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing

from .._journal.history import iter_records
from .._journal.progress import Progress
from .._journal.record import Record, RecordKind
from .._journal.store import RunView, Store
from .._util.errors import StoreDamagedError
from .._util.log import at, get_logger
from .._util.plain import RUN_STREAM, StreamKey
from .._util.text import plural
from .._util.threads import run_blocking
from ..outputs import ARCHIVE, OutputDir
from .manifest import MANIFEST, manifest_owner, set_outdated_aside
from .session import SessionRecorder

log = get_logger(__name__)

MAX_SHOWN = 10  # names in one line of the log
ARCHIVING = "archiving"  # in a record of the run's own stream: the generations still to archive
ARCHIVED = "archived"  # in a later record: no generation is left


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
    return [*left, view.generation] if has_outputs else left


async def clear_outputs(
    store: Store, session: SessionRecorder, parts: Mapping[StreamKey, Progress], outputs: OutputDir
) -> None:
    """Archive what a new session must not find: old outputs, and an outdated manifest.

    Durability: when this returns the moves and their record are durable.
    """
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
    store: Store, run_id: str, generations: Sequence[int], outputs: OutputDir
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


async def archive_outputs(store: Store, view: RunView, outputs: OutputDir) -> None:
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
