"""Checks of a store in a bucket: every object of every run, and what does not belong to it.

A run may be running: what is missing is looked for again, and what is new is not judged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..._buckets.clock import StoreClock
from ..._buckets.requests import Requests
from ..._journal.store import Durability, Finding, Severity
from ..._util.errors import StoreDamagedError, StoreError
from ..._util.text import plural
from .._local.check import RESTORE
from .blobs import blob_problem
from .entries import LogEntry
from .layout import RunKeys, StoreKeys, last_of, position_of, unseal, upload_of
from .load import EntryReader, LoadedRun, again_if_missing, load
from .merge import EVERY, keys_below
from .read import run_ids

LEFT = "the next start of the run removes it"
DOLLARS_FOR_1000_PUTS = 0.005  # AWS S3 Standard, US East: docs/how-to/object-stores.md


def puts_of(batches: int, loops: int) -> float:
    """How many PUTs so many batches cost, with so many loops side by side."""
    return batches / loops * (1 + 2 / EVERY)


def bucket_findings(clock: StoreClock, durability: Durability, trip_s: float) -> list[Finding]:
    """Return what a bucket is good for, and what it costs, as findings."""
    good, doubt, note = Severity.GOOD, Severity.DOUBT, Severity.NOTE
    found = [Finding("bucket", f"a request takes {trip_s * 1e3:,.0f} ms", severity=good)]
    if clock.is_measured:
        apart_s = abs(clock.now() - time.time())
        text = f"it creates an object once only; its clock and this one are {apart_s:,.0f} s apart"
        found.append(Finding("owning", text, severity=good))
    else:
        text = "this user may not write to it: runs can be read here, not run"
        found.append(Finding("owning", text, severity=note))
    if durability != "full":
        text = "objects in a folder are not synced: power loss may take the newest saves"
        found.append(Finding("durability", text, "use sqlite:FOLDER", severity=doubt))
    costs = ", ".join(
        f"{puts:,.0f} PUTs (${puts * DOLLARS_FOR_1000_PUTS / 1000:,.2f}) in {plural(loops, 'loop')}"
        for loops in (1, 8, 64)
        for puts in (puts_of(1_000_000, loops),)
    )
    advice = "prices are those of AWS S3 Standard; look at your provider's"
    return [*found, Finding("cost", f"a million batches are {costs}", advice, severity=note)]


def findings(requests: Requests, layout: StoreKeys) -> Iterator[Finding | None]:
    """Yield what is wrong in a store; None after a step without a finding.  Each step blocks."""
    for entry in requests.list_all(layout.probes):
        what = "a process that was opening the store left it"
        yield Finding(entry.key, what, "delete it", Severity.NOTE)
    for run_id in run_ids(requests, layout):
        yield from _of_run(requests, layout.run(run_id))


def _of_run(requests: Requests, keys: RunKeys) -> Iterator[Finding | None]:
    try:
        loaded = again_if_missing(lambda: _read_pages(requests, keys))
    except StoreError as error:
        yield Finding(keys.folder, str(error), RESTORE, run_id=keys.run_id)
        return
    yield None
    try:
        yield from _left_behind(requests, keys, loaded)
    except StoreDamagedError as error:
        yield Finding(keys.folder, str(error), RESTORE, run_id=keys.run_id)
    yield from _blobs_of(requests, keys, loaded)


def _left_behind(requests: Requests, keys: RunKeys, loaded: LoadedRun) -> Iterator[Finding]:
    """Yield what an owner could not remove, and that nothing reads: what is before the base."""
    what, advice = "nothing reads it: it was merged", "delete it while no process owns the run"
    for entry in requests.list_all(keys.logs):
        if position_of(entry.key) > loaded.base:
            break
        data = requests.get(entry.key)
        if data is not None and unseal(data, LogEntry, entry.key).holder is None:
            yield Finding(entry.key, what, advice, Severity.NOTE, run_id=keys.run_id)
    known = {
        key
        for level, pages in enumerate(loaded.state.pages)
        for page in pages
        for key in keys_below(requests, keys, page, level)
    }
    for folder in (keys.pages, keys.indexes):
        for entry in requests.list_all(folder):
            if entry.key not in known and last_of(entry.key) <= loaded.base:
                yield Finding(entry.key, what, advice, Severity.NOTE, run_id=keys.run_id)


def _read_pages(requests: Requests, keys: RunKeys) -> LoadedRun:
    """Read a run with each of its records."""
    loaded = load(requests, keys)
    groups = EntryReader(requests, loaded)
    for generation in loaded.state.generations.values():
        for stream, head in generation.heads.items():
            sequence, position = head.sequence, head.position
            while sequence:
                found = [r for r in groups.find(position).records if r.stream == stream]
                found = [record for record in found if record.sequence <= sequence]
                if not found or found[-1].sequence != sequence:
                    raise StoreError(f"checkpoint {sequence} of stream {stream} is missing")
                sequence, position = found[0].sequence - 1, found[0].prev
    return loaded


def _blobs_of(requests: Requests, keys: RunKeys, loaded: LoadedRun) -> Iterator[Finding | None]:
    named = loaded.state.uploads
    missing = {digest: upload.name for digest, upload in named.items()}
    for entry in requests.list_all(keys.blobs):
        digest, upload = upload_of(entry.key)
        if missing.get(digest) != upload:
            what = "no record names it"
            yield Finding(entry.key, what, LEFT, Severity.NOTE, run_id=keys.run_id, blob=digest)
            continue
        problem = blob_problem(requests, entry, digest)
        if problem is not None and requests.find(entry.key) is None:
            continue  # it was removed since it was listed, or it is missing
        del missing[digest]
        if problem is not None:
            yield Finding(entry.key, problem, RESTORE, run_id=keys.run_id, blob=digest)
        yield None
    if missing and load(requests, keys).state.position == loaded.state.position:
        for digest in sorted(missing):
            what = "it is missing, and a record names it"
            yield Finding(keys.blobs, what, RESTORE, run_id=keys.run_id, blob=digest)
