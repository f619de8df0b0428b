"""Compares the outputs of a run with its records: by content, to the last byte.

`find_drift` compares the files that batches confirmed.  This module compares what else belongs to
the outputs: the data after the confirmed end of an append file, and the manifest.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from functools import partial

import attrs

from .._journal.history import session_metadata_of
from .._journal.record import Status
from .._journal.store import Finding, FindingKind, RunView, Severity, Store
from .._runs.manifest import (
    MANIFEST,
    WRITTEN,
    RunContents,
    is_set_aside,
    manifest_owner,
    manifest_pieces,
    written_of,
)
from .._util.errors import OutputError, TrioCkptError
from .._util.plain import RUN_STREAM, encode_key
from .._util.text import plural
from .._util.threads import run_blocking
from ..outputs import AnyPath, Outputs, open_existing
from .drift import find_drift

LOST = "it was written, and is missing"
ASIDE = "it was written, and is in the archive: a change of the run was interrupted"
REWRITE = "--repair writes it from the records, and keeps the old file in the archive"


async def check_outputs_of(
    store: Store, view: RunView, output_dir: AnyPath | None, where: str, *, is_whole: bool
) -> AsyncGenerator[Finding]:
    """Check the outputs of a run.

    Args:
        store: The run's store.
        view: The run, added up.
        output_dir: The run's output folder; None: that of its last session.
        where: How findings name the run.
        is_whole: Whether `view` has all streams; otherwise the manifest cannot be checked.
    """
    folder = (
        session_metadata_of(view).get("output_dir") if output_dir is None else os.fspath(output_dir)
    )
    parts = {key: entry.progress for key, entry in view.streams.items() if key != RUN_STREAM}
    has_outputs = any(progress.outputs or progress.sinks for progress in parts.values())
    outputs = None if folder is None else await run_blocking(open_existing, folder)
    if outputs is None:
        if has_outputs:
            what = (
                "it does not say where its outputs are" if folder is None else f"{folder} is gone"
            )
            yield Finding(
                where,
                what,
                "give --output-dir if it was moved",
                kind=FindingKind.OUTPUT,
                run_id=view.run_id,
            )
        return
    with closing(outputs):
        drift = await find_drift(store, view, outputs, mode="sha256", keys=list(parts))
        for problem in drift.problems:
            yield attrs.evolve(problem, where=f"{where}, {problem.where}")
        for finding in await run_blocking(_tails, view, outputs, where):
            if finding.is_damage and await has_moved(store, view):
                finding = attrs.evolve(finding, severity=Severity.NOTE)
            yield finding
        if is_whole and not drift.problems and RunContents.of(view).is_complete:
            found = await _check_manifest(store, view, outputs, where)
            if found is not None and not await has_moved(store, view):
                yield found


async def has_moved(store: Store, view: RunView) -> bool:
    """Whether the run has another owner than when it was read, or has saved something since."""
    now = await store.read_run(view.run_id)
    if now is None or (now.generation, now.owner) != (view.generation, view.owner):
        return True
    sequences = {encode_key(key): entry.progress.sequence for key, entry in view.streams.items()}
    return {entry.stream: entry.sequence for entry in now.streams} != sequences


def _tails(view: RunView, outputs: Outputs, where: str) -> list[Finding]:
    """Report data after the confirmed ends of append files."""
    found: list[Finding] = []
    for key, entry in view.streams.items():
        for path, size in entry.progress.sinks.items():
            try:
                length = outputs.length(path)
            except OutputError:
                continue  # the check of its lines reports that it cannot be read
            extra = 0 if length is None else length - size
            if extra > 0:
                is_over = entry.progress.status is Status.COMPLETE  # no start will cut it off
                found.append(
                    Finding(
                        f"{where}, output {path}",
                        f"it goes on behind its confirmed end, by {plural(extra, 'byte')}",
                        "--repair cuts them off" if is_over else "the next start cuts them off",
                        Severity.BAD if is_over else Severity.NOTE,
                        kind=FindingKind.OUTPUT,
                        run_id=view.run_id,
                        stream=encode_key(key),
                        path=path,
                    )
                )
    return found


async def _check_manifest(
    store: Store, view: RunView, outputs: Outputs, where: str
) -> Finding | None:
    """Compare the manifest of a complete run with one that is built from the records."""
    contents = RunContents.of(view)
    where, run_id = f"{where}, {MANIFEST}", view.run_id
    finding = partial(Finding, where, kind=FindingKind.OUTPUT, run_id=run_id, path=MANIFEST)
    owner = await run_blocking(manifest_owner, outputs)
    if owner is None:  # a session that was killed, or could not write it, has left no manifest
        was_written = contents.session_metadata.get(WRITTEN) == contents.checkpoints
        is_aside = await run_blocking(is_set_aside, contents, outputs)
        what = ASIDE if was_written and is_aside else LOST if was_written else "it is not there yet"
        advice = "the next start writes it, and so does --repair"
        severity = Severity.BAD if what is LOST else Severity.NOTE
        return finding(what, advice, severity)
    wanted = hashlib.sha256()
    try:
        async with aclosing(manifest_pieces(store, contents, outputs)) as texts:
            async for text in texts:
                wanted.update(text.encode())
        is_same = await run_blocking(_digest_of_manifest, outputs) == wanted.digest()
    except TrioCkptError as error:
        return finding(f"it cannot be read: {error}", REWRITE)
    if is_same:
        return None
    found = await run_blocking(written_of, outputs)
    why = _why_another(contents, found)
    if why is not None:
        return Finding(where, why, severity=Severity.NOTE, kind=FindingKind.OUTPUT, run_id=run_id)
    return finding("it is not what was written", REWRITE)


def _digest_of_manifest(outputs: Outputs) -> bytes:
    hasher = hashlib.sha256()
    with closing(outputs.read_pieces(MANIFEST, sys.maxsize)) as pieces:
        for piece in pieces:
            hasher.update(piece)
    return hasher.digest()


def _why_another(contents: RunContents, found: tuple[str, int, int, str] | None) -> str | None:
    """Say why a manifest need not match the records; None: it must match."""
    written = contents.session_metadata.get(WRITTEN)
    run, generation, now, digest = tuple(contents.identity().values())[1:]
    outdated = "it was written before the newest checkpoints: the next start writes it again"
    if written is not None:  # a session records which manifest it has written
        is_that = found is not None and found[:3] == (run, generation, written)
        return outdated if is_that and written != now else None
    if found is None or found[0] != run:
        return "it is not this run's, which has written none"
    return outdated if found[1:] != (generation, now, digest) else None
