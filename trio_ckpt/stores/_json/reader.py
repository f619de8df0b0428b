"""The reading side of the JSON store: functions that each see one moment, without a lock."""

from __future__ import annotations

import hashlib
import heapq
import os
import re
from itertools import islice
from pathlib import Path

from ..._journal.store import Fold, HistoryPage, RunSummary, StoredRecord, StoredRun, StoredStream
from ..._util.errors import StoreDamagedError, StoreError
from .._local.blobs import Blobs
from .._local.files import explain, need_folder
from .files import is_folder_name, load, run_folder, run_folders
from .format import RunState, StreamState
from .records import decode_entry, decode_fold, payload_of

MAX_PAGE_BYTES = 64 * 2**20  # a page of history ends here, even if more records were requested
_Signature = tuple[str, tuple[tuple[str, int, int, int], ...]]
_CURSOR = re.compile(r"([0-9a-f]{16})\.([1-9][0-9]{0,17})", re.ASCII)


class JsonReader:
    """Reads the files.  Every method blocks; any thread may call it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest: tuple[_Signature, RunState] | None = None

    def close(self) -> None:
        """Do nothing: no file is kept open for reading."""

    def read_run(self, run_id: str, generation: int | None) -> StoredRun | None:
        """See `Store.read_run`."""
        state = self._load(run_id)
        if state is None:
            return None
        wanted = state.generation if generation is None else generation
        if not state.first <= wanted <= state.generation:
            return None
        blobs = Blobs(self._folder, run_id)
        streams = tuple(
            [self._read_stream(blobs, key, stream) for key, stream in state.of(wanted).items()]
        )
        return StoredRun(run_id, wanted, state.owner, streams)

    def _load(self, run_id: str) -> RunState | None:
        """Return a run as its files say; they are parsed again only if they changed."""
        folder = run_folder(self._folder, run_id)
        newest, signature = self._newest, _signature(folder)
        if newest is not None and newest[0] == signature:  # never None
            state = newest[1]
        else:
            if is_folder_name(run_id):  # `list_runs` names an unreadable run by its folder
                load(self._folder / "runs" / run_id)
            loaded = load(folder, run_id)
            if loaded is None:
                return None
            state = loaded.state
            if signature is not None and _signature(folder) == signature:  # else a file has changed
                self._newest = signature, state
        return None if state.is_gone else state

    def _read_stream(self, blobs: Blobs, key: str, stream: StreamState) -> StoredStream:
        fold = None
        if stream.fold is not None:
            entry = decode_fold(stream.fold)
            fold = Fold(key, entry.through, entry.payload)
            if not 1 <= fold.through <= len(stream.entries):
                raise StoreDamagedError(f"the fold of {key} is ahead of its records")
        first = fold.through + 1 if fold is not None else 1
        numbers = range(first, len(stream.entries) + 1)
        tail = tuple([_resolve(blobs, stream, number) for number in numbers])
        return StoredStream(key, len(stream.entries), fold, tail)

    def history(
        self, run_id: str, stream: str, generation: int | None, place: str | None, limit: int
    ) -> HistoryPage:
        """See `Store.history`."""
        state = self._load(run_id)
        found = StreamState()
        wanted = generation
        if state is not None:
            wanted = state.generation if generation is None else generation
            found = state.streams.get((wanted, stream), found)
        tag = hashlib.sha256(f"{wanted}\n{stream}".encode()).hexdigest()[:16]
        newest = len(found.entries)
        blobs = Blobs(self._folder, run_id)
        if place is not None:
            newest = _check_place(tag, newest, place)
        records: list[StoredRecord] = []
        size = 0
        for number in range(newest, 0, -1):
            if len(records) >= limit or size >= MAX_PAGE_BYTES:
                return HistoryPage(tuple(records), f"{tag}.{number}")
            records.append(_resolve(blobs, found, number))
            size += len(records[-1].payload)
        return HistoryPage(tuple(records), None)

    def list_runs(self, prefix: str, after: str | None, limit: int) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`.  It reads the runs of the page, and those with hashed names.

        A run whose files cannot be read is named by its folder, so that it does not hide others:
        reading that run reports the problem.  A folder whose name no run has is left out, as its
        name need not even be text; `check` reports it.
        """

        def is_wanted(run_id: str) -> bool:
            return run_id.startswith(prefix) and (after is None or run_id > after)

        hashed: list[RunSummary] = []
        named: list[Path] = []  # by their ids
        for folder in run_folders(self._folder):
            if not is_folder_name(folder.name):
                if folder.name.isascii() and is_wanted(folder.name):
                    named.append(folder)
            elif (summary := _summary(folder)) is not None and is_wanted(summary.run_id):
                hashed.append(summary)
        found = filter(None, map(_summary, named))
        pages = heapq.merge(found, sorted(hashed, key=_id_of), key=_id_of)
        return tuple(islice(pages, limit))


def _resolve(blobs: Blobs, stream: StreamState, number: int) -> StoredRecord:
    entry = decode_entry(stream.entries[number - 1])
    if entry.sequence != number:
        raise StoreDamagedError(f"checkpoint {number} is missing: {entry.sequence} is there")
    payload = payload_of(entry) if entry.blob is None else blobs.get(entry.blob)
    return StoredRecord(number, payload, entry.blobs)


def _id_of(summary: RunSummary) -> str:
    return summary.run_id


def _summary(folder: Path) -> RunSummary | None:
    """Return the summary of the run in a folder; None: there is none, or it was pruned."""
    run_id = None if is_folder_name(folder.name) else folder.name
    try:
        loaded = load(folder, run_id)
    except StoreError:
        return RunSummary(folder.name, 0, 0, 0, 0)
    if loaded is None or loaded.state.is_gone:
        return None
    state = loaded.state
    streams = state.of(state.generation)
    records = sum(len(stream.entries) for stream in streams.values())
    return RunSummary(
        state.run_id,
        state.generation,
        state.owner,
        len(streams),
        records,
        updated_at=state.updated_at,
        summary=state.summary,
    )


def _signature(folder: Path) -> _Signature | None:
    """Return what differs between two states of a run's files: appends and rewrites change it.

    None: a file was removed meanwhile, or there is no folder.  That is equal to nothing: two
    rewrites that were met so have different files.
    """
    need_folder(folder)
    with explain(folder, "reading"):
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except FileNotFoundError:
            return None
    files = [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]
    return str(folder), tuple(sorted(files))


def _check_place(tag: str, newest: int, place: str) -> int:
    match = _CURSOR.fullmatch(place)
    if match is None or match[1] != tag or int(match[2]) > newest:
        raise StoreError(f"{place!r} is not a cursor of this stream's history")
    return int(match[2])
