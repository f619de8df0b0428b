"""The history of a run, which any process can read without owning the run.

A stream's history is its records, newest first.  The run's own stream has its sessions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Literal

import msgspec

from .._util.arguments import stream_key
from .._util.errors import UnknownRunError
from .._util.exact_sum import Number, numbers
from .._util.index_set import IndexSet
from .._util.plain import RUN_STREAM, Plain, StreamKey, encode_key
from .._util.shown import Shown
from .._util.text import moment, number
from .progress import Progress
from .record import TROUBLE, ErrorInfo, Output, Record, RecordKind, decode_record
from .session_record import check_session_metadata
from .store import RunView, Store
from .stored import RunSummary, StoredRecord, StoredRun

PAGE = 1_000  # records in memory at a time

KILLED = "was killed"
RUNNING = "is running"


async def list_all_runs(store: Store, prefix: str = "") -> list[RunSummary]:
    """All runs of a store whose ids begin with a prefix, sorted by id.

    Raises:
        StoreError: they cannot be read.

    Cancellation: a cancellation point between pages.
    """
    runs: list[RunSummary] = []
    while True:
        page = await store.list_runs(prefix, runs[-1].run_id if runs else None, PAGE)
        runs += page
        if len(page) < PAGE:
            return runs


async def find_run(store: Store, run_id: str) -> RunSummary | None:
    """The summary of one run, at a cost that does not depend on the others; None: no such run.

    Raises:
        StoreError: it cannot be read.

    Cancellation: a cancellation point.
    """
    page = await store.list_runs(run_id, limit=1)
    return page[0] if page and page[0].run_id == run_id else None


async def stored_pages(
    store: Store, run_id: str, generation: int, stream: str, *, limit: int = PAGE
) -> AsyncGenerator[tuple[StoredRecord, ...]]:
    """The records of a stream as a store has them, newest first, a page at a time.

    Args:
        store: The store of the run.
        run_id: The run.
        generation: Its generation.
        stream: The key of the stream as text.
        limit: How many records a page has at most.
    """
    cursor, is_last = None, False
    while not is_last:
        page = await store.history(
            run_id, stream, generation=generation, cursor=cursor, limit=limit
        )
        yield page.records
        cursor, is_last = page.cursor, page.cursor is None


async def read_pages(
    store: Store,
    run_id: str,
    generation: int,
    key: StreamKey,
    *,
    limit: int = PAGE,
    named: set[int] | None = None,
) -> AsyncGenerator[list[tuple[int, Record]]]:
    """The records of a stream with their sequence numbers, newest first, a page at a time.

    It is for work that takes many records at once; `iter_records` gives them one by one.

    Args:
        store: The store of the run.
        run_id: The run.
        generation: Its generation.
        key: The key of the stream.
        limit: How many records a page has at most.
        named: A set to which the sequence numbers of records that still name blobs are added.

    Raises:
        StoreDamagedError: a record is not what was saved.
    """
    seal, text = store.seal(run_id, generation, key), encode_key(key)
    async with aclosing(stored_pages(store, run_id, generation, text, limit=limit)) as pages:
        async for page in pages:
            if named is not None:
                named.update(stored.sequence for stored in page if stored.blobs)
            yield [(s.sequence, decode_record(seal.open(s.sequence, s.payload))) for s in page]


async def iter_records(
    store: Store,
    run_id: str,
    generation: int,
    key: StreamKey,
    *,
    limit: int = PAGE,
    named: set[int] | None = None,
) -> AsyncGenerator[tuple[int, Record]]:
    """The records of a stream with their sequence numbers, newest first; see `read_pages`."""
    pages = read_pages(store, run_id, generation, key, limit=limit, named=named)
    async with aclosing(pages):
        async for records in pages:
            for entry in records:
                yield entry


class SessionView(Shown, msgspec.Struct, frozen=True):
    """One session of a run.

    Attributes:
        number: Its number, from 1.
        host, pid: The host name and the id of its process.
        began: When it began; Unix time, s.
        ended: When it ended; Unix time, s; None: it left no record of its end.
        how: How it ended, as text.
        config: The configuration of the run.
        config_digest: The SHA-256 of the configuration, hexadecimal.
        changes: The fields that differ from the session before: ``[field, was, now]``.
        output_dir: The folder of its outputs.
        counts: What it did: batches, skipped, retries, records, totals, spent.
        runtime_s: How long the sessions before it took together, in seconds.
        reason: Why it stopped by itself, such as a limit; None: it did not.
        next_due: When a start has something to do, if all that was left was deferred; Unix time, s.
        code: The `commit` of the program, whether it `is_dirty`, and versions of `packages`, as far
            as they were noted.
    """

    number: int
    host: str
    pid: int
    began: float
    ended: float | None
    how: str
    config: Mapping[str, Plain]
    config_digest: str
    changes: tuple[tuple[str, str, str], ...]
    output_dir: str | None
    counts: Mapping[str, Plain]
    runtime_s: float
    reason: str | None = None
    next_due: float | None = None
    code: Mapping[str, Plain] = {}

    def _shown(self) -> Iterable[tuple[str, str]]:
        yield "session", number(self.number)
        yield "end", how_text(self.how, self.reason)
        yield "process", f"{self.pid} on {self.host}, begun at {moment(self.began)}"


def how_ended(metadata: Mapping[str, Plain]) -> str:
    """How a session ended, and why it stopped by itself if it did, as session metadata say."""
    return how_text(metadata.get("ended", KILLED), metadata.get("reason"))


def how_text(how: str, reason: str | None) -> str:
    """How a session ended, with the reason why it stopped by itself."""
    return how if reason is None else f"{how} by its {reason}"


def session_metadata_of(view: RunView) -> dict[str, Plain]:
    """The newest session metadata in the run's own stream; empty where there is none.

    Raises:
        StoreDamagedError: it does not have the shape of session metadata.
    """
    own = view.streams.get(RUN_STREAM)
    metadata = own.progress.metadata if own is not None else {}
    return check_session_metadata(metadata) if metadata else metadata


def run_runtime_s(view: RunView) -> float:
    """For how many seconds a run was open, in all sessions, as far as its records say."""
    metadata = session_metadata_of(view)
    if not metadata:
        return 0.0
    return float(metadata["runtime_s"] + max(0.0, (ended_at(view) or 0.0) - metadata["began"]))


def ended_at(view: RunView) -> float | None:
    """When the last session ended, or last saved if no end is recorded; Unix time, s."""
    metadata = session_metadata_of(view)
    if "at" in metadata:
        return float(metadata["at"])
    times = [entry.progress.worked_at for entry in view.streams.values()]
    return max((time for time in times if time is not None), default=None)


async def read_known_run(store: Store, run_id: str, generation: int | None = None) -> StoredRun:
    """A run as the store has it, by default its newest generation; see `Store.read_run`.

    Raises:
        UnknownRunError: the store has no such run.
    """
    stored = await store.read_run(run_id, generation)
    if stored is None:
        raise UnknownRunError(f"there is no run {run_id!r} in {store.url}", run_id=run_id)
    return stored


async def read_sessions(
    store: Store, run_id: str, *, generation: int | None = None, is_running: bool = False
) -> list[SessionView]:
    """The sessions of a run, oldest first.

    Args:
        store: The store of the run.
        run_id: The run.
        generation: Its generation; default: the newest.
        is_running: Whether a process owns it now, so that the last session is still running.

    Raises:
        UnknownRunError: the store has no such run.
        StoreDamagedError: a record is not what was saved.

    Cancellation: a cancellation point.
    """
    stored = await read_known_run(store, run_id, generation)
    sessions: list[SessionView] = []
    ends: dict[int, dict[str, Plain]] = {}
    async with aclosing(iter_records(store, run_id, stored.generation, RUN_STREAM)) as records:
        async for _, record in records:
            if record.kind is RecordKind.END:
                metadata = check_session_metadata(record.metadata, is_end=True)
                ends[metadata["session"]] = metadata
            elif record.kind is RecordKind.SESSION:
                metadata = check_session_metadata(record.metadata)
                goes_on = is_running and not sessions
                sessions.append(_session(metadata, ends.get(metadata["session"]), goes_on=goes_on))
    return sessions[::-1]


def _session(
    metadata: dict[str, Plain], end: dict[str, Plain] | None, *, goes_on: bool
) -> SessionView:
    return SessionView(
        number=metadata["session"],
        host=metadata["host"],
        pid=metadata["pid"],
        began=metadata["began"],
        ended=None if end is None else end["at"],
        how=(RUNNING if goes_on else KILLED) if end is None else end["ended"],
        config=metadata["config"],
        config_digest=metadata["config_digest"],
        changes=tuple((change[0], change[1], change[2]) for change in metadata["changes"]),
        output_dir=metadata["output_dir"],
        counts={} if end is None else end["counts"],
        runtime_s=metadata["runtime_s"],
        reason=None if end is None else end.get("reason"),
        next_due=None if end is None else end.get("next_due"),
        code=metadata.get("code", {}),
    )


DoneKind = Literal[RecordKind.BATCH, RecordKind.SKIP]
DONE_KINDS: tuple[DoneKind, ...] = (RecordKind.BATCH, RecordKind.SKIP)
"""The kinds of records after which a batch is done."""


class LiveRecord(msgspec.Struct, frozen=True):
    """A record that defines the status of its batch: no later record has reverted it."""

    sequence: int
    index: int
    record: Record


class LiveRecords:
    """Selects the records that are live at one moment: no later record has reverted them.

    The moment is its creation, at which the sets of `progress` are copied.  Progress that changes
    later would count a redone batch as confirmed, by another record than the old one that is
    being read.

    Give it the records of a stream, newest first.  Records that were saved later are passed over.

    Args:
        progress: The progress of the stream.
    """

    def __init__(self, progress: Progress) -> None:
        self._through = progress.sequence
        self._confirmed = progress.confirmed.copy()
        self._skipped = progress.skipped.copy()
        self._seen = IndexSet()

    def of(
        self,
        records: list[tuple[int, Record]],
        kinds: tuple[DoneKind, ...] = (RecordKind.BATCH,),
    ) -> list[LiveRecord]:
        """The live records of some kinds in a page, newest first."""
        done: dict[RecordKind, IndexSet] = {
            RecordKind.BATCH: self._confirmed,
            RecordKind.SKIP: self._skipped,
        }
        found: list[LiveRecord] = []
        for sequence, record in records:
            index = record.index
            if record.kind not in kinds or index is None or index not in done[record.kind]:
                continue
            if sequence > self._through:
                continue
            if self._seen.add(index):  # newest first: older ones of this batch were reverted
                found.append(LiveRecord(sequence, index, record))
        return found


ReadPages = Callable[[], AsyncGenerator[list[tuple[int, Record]]]]


async def live_records(
    progress: Progress, read: ReadPages, kinds: tuple[DoneKind, ...] = DONE_KINDS
) -> AsyncGenerator[LiveRecord]:
    """The live records of some kinds, newest first.

    Args:
        progress: The progress of the stream.
        read: Reads its records, newest first.
        kinds: The kinds of records.
    """
    live = LiveRecords(progress)
    async with aclosing(read()) as pages:
        async for records in pages:
            for entry in live.of(records, kinds):
                yield entry


class CheckpointView(Shown, msgspec.Struct, frozen=True):
    """One checkpoint of a stream.

    Attributes:
        sequence: Its sequence number in the stream, from 1.
        kind: Its kind: ``batch``, ``skip``, ``attempt``, ``fail``, ``finish``, …
        at: When it was saved; Unix time, s.
        batch_index: The batch that it is about; None: it is not about a batch.
        attempts: How often that batch was tried.
        records, outputs: How many records the batch produced, and its files, with their hashes.
        totals, spent: What it produced, and what it cost, by name.
        metadata: The metadata of the batch, or the reason of the record.
        error: What went wrong.
        state_bytes: The size of the state saved with it, where that is not in a blob.
        reserved: By how much it changes what is reserved, by name.
    """

    sequence: int
    kind: str
    at: float
    batch_index: int | None
    attempts: int
    records: int
    outputs: tuple[Output, ...]
    totals: Mapping[str, Number]
    spent: Mapping[str, Number]
    metadata: Mapping[str, Plain]
    error: ErrorInfo | None
    state_bytes: int
    reserved: Mapping[str, Number] = {}

    def _shown(self) -> Iterable[tuple[str, str]]:
        yield "checkpoint", f"{number(self.sequence)}, saved at {moment(self.at)}"
        yield "kind", self.kind
        yield "batch", "" if self.batch_index is None else number(self.batch_index)
        yield "records", number(self.records)
        yield "error", "" if self.error is None else self.error.type


async def read_history(
    store: Store, run_id: str, key: StreamKey, *, generation: int | None = None
) -> AsyncGenerator[CheckpointView]:
    """The checkpoints of a stream, newest first; any process can read them without a lock.

    Args:
        store: The store of the run.
        run_id: The run.
        key: The key of the stream.
        generation: The generation of the run; default: the newest.

    Raises:
        UnknownRunError: the store has no such run.
        StoreDamagedError: a record is not what was saved.

    Cancellation: a cancellation point for each page.
    """
    key = stream_key("key", key)
    stored = await read_known_run(store, run_id, generation)
    async with aclosing(iter_records(store, run_id, stored.generation, key)) as records:
        async for sequence, record in records:
            yield _checkpoint(sequence, record)


TROUBLES_OF = 50  # how many of the newest records of a stream are searched for troubles


async def read_troubles(
    store: Store, run_id: str, generation: int, key: StreamKey
) -> list[tuple[float, str]]:
    """Recent problems of a stream that did not stop it: when and what, newest first.

    Raises:
        StoreDamagedError: a record is not what was saved.
    """
    async with aclosing(read_pages(store, run_id, generation, key, limit=TROUBLES_OF)) as pages:
        newest = [record for _, record in await anext(pages) if record.kind is RecordKind.NOTE]
    texts = [(record.at, record.metadata.get(TROUBLE)) for record in newest]
    return [(at, text) for at, text in texts if isinstance(text, str)]


LEAVE_OPEN = frozenset(
    {RecordKind.NOTE, RecordKind.ADD, RecordKind.PIN, RecordKind.UNPIN, RecordKind.INTENT}
)  # the batch whose state was saved inside of it goes on from there after a record of these


async def read_state_inside(
    store: Store, run_id: str, generation: int, key: StreamKey
) -> tuple[int, float] | None:
    """The batch inside of which the newest state was saved, and when; None: it has ended since.

    Raises:
        StoreDamagedError: a record is not what was saved.
    """
    async with aclosing(read_pages(store, run_id, generation, key, limit=TROUBLES_OF)) as pages:
        for _, record in await anext(pages):
            if record.kind is RecordKind.SNAPSHOT and record.index is not None:
                return record.index, record.at
            if record.kind not in LEAVE_OPEN:
                return None
    return None


async def read_history_page(
    store: Store, run_id: str, key: StreamKey, *, cursor: str | None, limit: int
) -> tuple[list[CheckpointView], str | None]:
    """A page of the checkpoints of a stream, newest first, and the cursor of the next page.

    Returns:
        The checkpoints, and the cursor; None: that was the last page.

    Raises:
        UnknownRunError: the store has no such run.
        StoreDamagedError: a record is not what was saved.
        StoreError: the cursor was not given for this stream.
    """
    stored = await read_known_run(store, run_id)
    seal = store.seal(run_id, stored.generation, key)
    page = await store.history(
        run_id, encode_key(key), generation=stored.generation, cursor=cursor, limit=limit
    )
    opened = [(s.sequence, decode_record(seal.open(s.sequence, s.payload))) for s in page.records]
    return [_checkpoint(sequence, record) for sequence, record in opened], page.cursor


def _checkpoint(sequence: int, record: Record) -> CheckpointView:
    return CheckpointView(
        sequence,
        record.kind.name.lower(),
        record.at,
        record.index,
        record.attempts,
        record.records,
        record.outputs,
        record.totals,
        numbers(record.spent),
        record.metadata,
        record.error,
        len(record.state),
        numbers(record.reserved or {}),
    )


ENDED, STOPPED = "ended", "was stopped"  # recorded by sessions that ended in good order
