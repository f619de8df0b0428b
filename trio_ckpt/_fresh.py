"""Beginning a run again: what the old one left is moved out of the way, nothing is deleted."""

from __future__ import annotations

import logging
import os
from contextlib import aclosing

from ._history import read_pages
from ._manifest import MANIFEST, manifest_owner
from ._threads import run_blocking
from ._values import RUN_STREAM, StreamKey
from .abc import RunView, Store
from .outputs import ARCHIVE, OutputDir

log = logging.getLogger("trio_ckpt.resume")

MAX_SHOWN = 10  # names in one line of the log


async def archive_outputs(store: Store, view: RunView, outputs: OutputDir) -> None:
    """Move the recorded outputs of a run out of the way of a fresh one; delete nothing."""
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
        log.info("%d outputs of the old run were archived", len(archived.moved))
    strangers = sorted(set(await run_blocking(os.listdir, outputs.root)) - {ARCHIVE})
    if strangers:
        shown = ", ".join(strangers[:MAX_SHOWN])
        log.info("%d names that no record has are left: %s", len(strangers), shown)


async def _recorded_paths(store: Store, view: RunView, key: StreamKey) -> set[str]:
    paths: set[str] = set()
    async with aclosing(read_pages(store, view.run_id, view.generation, key)) as pages:
        async for records in pages:
            paths.update(output.path for _, record in records for output in record.outputs)
    return paths
