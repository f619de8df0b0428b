"""The reading side of a store in a bucket; it needs no lock, and disturbs no owner.

Theory of operation.  A stream's records are found along `LogRecord.prev` from its head.  Each step
compares the stream and the sequence, so a damaged chain is noticed where it breaks.  The cursor of
a page of history has the position of the next record, its sequence, and a mark of the stream; it
comes from outside, and is accepted only if that record belongs to the stream.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import attrs

from ..._buckets.bucket import StoredObject
from ..._buckets.clock import StoreClock
from ..._buckets.requests import Requests
from ..._journal.store import (
    Fold,
    HistoryPage,
    Owner,
    RunSummary,
    StoredRecord,
    StoredRun,
    StoredStream,
)
from ..._util.errors import StoreDamagedError, StoreError
from .blobs import read_whole
from .entries import Generation, LogRecord
from .layout import MAX_NAME_CHARS, RunKeys, StoreKeys
from .load import EntryReader, LoadedRun, MissingObjectError, again_if_missing, load
from .owning import lease_left_s, owner_of

MAX_PAGE_BYTES = 64 * 2**20  # a page of history ends here, even if more records were requested

_CURSOR = re.compile(r"([1-9][0-9]{0,17})\.([1-9][0-9]{0,17})\.([0-9a-f]{8})", re.ASCII)


@attrs.define
class _GenerationReader:
    """A generation of a run as it was read."""

    requests: Requests
    loaded: LoadedRun
    number: int
    generation: Generation
    groups: EntryReader

    def walk(self, stream: str, sequence: int, position: int, least: int) -> Iterator[LogRecord]:
        """The records of a stream, newest first, from one at a position down to one.

        Raises:
            StoreDamagedError: one is missing.
        """
        while sequence >= least:
            group = self.groups.find(position)
            found = [r for r in group.records if r.stream == stream and r.sequence <= sequence]
            if group.generation != self.number or not found or found[-1].sequence != sequence:
                raise StoreDamagedError(
                    f"checkpoint {sequence} of stream {stream} of run "
                    f"{self.loaded.keys.run_id!r} is missing"
                )
            for record in reversed(found):
                if record.sequence != sequence or sequence < least:
                    break
                yield record
                sequence, position = sequence - 1, record.prev

    def resolve(self, record: LogRecord) -> StoredRecord:
        """A record as a store returns it."""
        payload = record.payload
        if record.blob is not None:
            upload = self.loaded.state.uploads.get(record.blob)
            name = "" if upload is None else upload.name
            payload = read_whole(self.requests, self.loaded.keys, record.blob, name)
        attached = self.generation.attached.get(record.stream, {})
        return StoredRecord(record.sequence, payload, attached.get(record.sequence, ()))


def _open_reader(
    requests: Requests, keys: RunKeys, generation: int | None
) -> _GenerationReader | None:
    """Read a run; None: there is no such generation of it."""
    loaded = load(requests, keys)
    state = loaded.state
    number = state.generation if generation is None else generation
    found = state.generations.get(number)
    if found is None:
        return None
    return _GenerationReader(requests, loaded, number, found, EntryReader(requests, loaded))


def read_run(requests: Requests, keys: RunKeys, generation: int | None) -> StoredRun | None:
    """See `Store.read_run`."""

    def read() -> StoredRun | None:
        reader = _open_reader(requests, keys, generation)
        if reader is None:
            return None
        heads = reader.generation.heads.items()
        streams = tuple([_stream_of(reader, key) for key, _ in heads])
        return StoredRun(keys.run_id, reader.number, reader.loaded.state.owner, streams)

    return again_if_missing(read)


def _stream_of(reader: _GenerationReader, key: str) -> StoredStream:
    head = reader.generation.heads[key]
    fold = None if head.fold is None else Fold(key, head.through, head.fold)
    walked = reader.walk(key, head.sequence, head.position, head.through + 1)
    tail = [reader.resolve(record) for record in walked]
    return StoredStream(key, head.sequence, fold, tuple(reversed(tail)))


def read_history(
    requests: Requests,
    keys: RunKeys,
    stream: str,
    generation: int | None,
    cursor: str | None,
    limit: int,
) -> HistoryPage:
    """See `Store.history`."""

    def read() -> HistoryPage:
        reader = _open_reader(requests, keys, generation)
        start = _find_start(reader, stream, cursor)
        if reader is None or start is None:
            return HistoryPage((), None)
        return _read_page(reader, stream, start, limit)

    return again_if_missing(read)


def _find_start(
    reader: _GenerationReader | None, stream: str, cursor: str | None
) -> tuple[int, int] | None:
    """The sequence and the position that a page begins with; None: the stream has no records.

    Raises:
        StoreError: the cursor was not given for this stream.
    """
    head = None if reader is None else reader.generation.heads.get(stream)
    if cursor is None:
        return None if head is None else (head.sequence, head.position)
    match = _CURSOR.fullmatch(cursor)
    if match is not None and reader is not None and head is not None:
        position, sequence = int(match[1]), int(match[2])
        if match[3] == _mark(stream) and sequence <= head.sequence and position <= head.position:
            try:
                records = reader.groups.find(position).records
            except MissingObjectError:
                records = ()
            if any((r.stream, r.sequence) == (stream, sequence) for r in records):
                return sequence, position
    raise StoreError(f"{cursor!r} is not a cursor of this stream's history")


def _read_page(
    reader: _GenerationReader, stream: str, start: tuple[int, int], limit: int
) -> HistoryPage:
    records, size = list[StoredRecord](), 0
    for record in reader.walk(stream, *start, 1):
        records.append(reader.resolve(record))
        size += len(records[-1].payload)
        if len(records) >= limit or size >= MAX_PAGE_BYTES:
            if record.sequence == 1:
                break
            following = f"{record.prev}.{record.sequence - 1}.{_mark(stream)}"
            return HistoryPage(tuple(records), following)
    return HistoryPage(tuple(records), None)


def _mark(stream: str) -> str:
    return hashlib.sha256(stream.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def list_runs(
    requests: Requests,
    layout: StoreKeys,
    clock: StoreClock,
    prefix: str,
    after: str | None,
    limit: int,
) -> tuple[RunSummary, ...]:
    """See `Store.list_runs`.  Each run is read, but for its older records."""
    found = list[RunSummary]()
    for run_id in run_ids(requests, layout, prefix, after):
        loaded = load(requests, layout.run(run_id))
        state, newest = loaded.state, loaded.state.newest
        if newest is None:
            continue
        found.append(
            RunSummary(
                run_id,
                state.generation,
                state.owner,
                len(newest.heads),
                newest.records,
                lease_left_s(loaded, clock) is not None,
                newest.updated_at,
                newest.summary,
            )
        )
        if len(found) == limit:
            break
    return tuple(found)


def run_ids(
    requests: Requests, layout: StoreKeys, prefix: str = "", after: str | None = None
) -> Iterator[str]:
    """The ids of the runs with a prefix, after an id, in their order; removed ones, too.

    Ids that are long and begin alike are not in order in the bucket: they are sorted here.
    """
    alike, beginning = list[str](), ""
    entries = requests.iterate(layout.names, layout.before_name(max(prefix, after or "")))
    for entry in entries:
        run_id = _id_of(requests, entry)
        this = run_id.encode("utf-8", "surrogatepass").hex()[:MAX_NAME_CHARS]
        if this != beginning:
            yield from sorted(alike)
            alike, beginning = [], this
        if run_id.startswith(prefix):
            if after is None or run_id > after:
                alike.append(run_id)
        elif run_id > prefix:
            break
    yield from sorted(alike)


def _id_of(requests: Requests, entry: StoredObject) -> str:
    name = entry.key.rpartition("/")[2]
    try:
        if "." not in name:
            return bytes.fromhex(name).decode("utf-8", "surrogatepass")
        return (requests.get(entry.key) or b"").decode("utf-8", "surrogatepass")
    except ValueError as error:
        raise StoreDamagedError(f"{entry.key} is not the name of a run") from error


def read_owner(requests: Requests, keys: RunKeys, clock: StoreClock) -> Owner | None:
    """See `Store.read_owner`."""
    return owner_of(load(requests, keys), clock)
