"""The values that stores take and return: stored records, summaries of runs, and findings."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from datetime import datetime

import attrs
import msgspec

from .._util.errors import StoreDamagedError
from .._util.plain import StreamKey, decode_key
from .progress import Progress


class RunKey(msgspec.Struct, frozen=True):
    """The run and the owner that save; every save compares it in its transaction.

    Attributes:
        run_id: The run.
        generation: How often the run was started again from the beginning.
        owner: The number that `Store.lock_run` gave, the fence.
    """

    run_id: str
    generation: int
    owner: int


class Checkpoint(msgspec.Struct, frozen=True, gc=False):  # one is made for each batch
    """One record to be saved.

    Attributes:
        stream: The stream's key as text, see `trio_ckpt._util.plain.encode_key`.
        sequence: Its sequence number: the predecessor's plus one; 1 for the first of a stream.
        payload: The sealed record; empty if it is a blob.
        blob: The name that `Store.put_blob` gave to the payload; None: it is in `payload`.
        blobs: The digests of other blobs that it needs, its *attached* blobs: each was put
            for this run under the same lock, or is named by a record of it already.  Any number
            of checkpoints of the run may name the same blob; it is kept as long as one does.
    """

    stream: str
    sequence: int
    payload: bytes
    blob: str | None = None
    blobs: tuple[str, ...] = ()


class BlobPart(msgspec.Struct, frozen=True, eq=False):
    """A part of a blob, and the memory that it is read into.

    Attributes:
        digest: The name of the blob.
        offset: The offset of the first byte.
        targets: Writeable memory of bytes, filled one after the other.
    """

    digest: str
    offset: int
    targets: Sequence[memoryview]

    @property
    def nbytes(self) -> int:
        """The length of the part."""
        return sum(map(len, self.targets))


def scatter(data: bytes, targets: Sequence[memoryview]) -> None:
    """Copy bytes into several targets, one after the other.

    Raises:
        StoreDamagedError: there are fewer or more bytes than the targets take.
    """
    if len(data) != sum(map(len, targets)):
        raise StoreDamagedError("a part of a blob has another length than was asked for")
    view, at = memoryview(data), 0
    for target in targets:
        target[:] = view[at : at + len(target)]
        at += len(target)


class Fold(msgspec.Struct, frozen=True):
    """The progress of a stream, through a checkpoint that is saved already.

    Attributes:
        stream: The stream's key as text.
        through: The sequence number of the newest record folded into it.
        payload: The progress, sealed under ``-through``, so that it is never mistaken for a
            record.
    """

    stream: str
    through: int
    payload: bytes


class StoredRecord(msgspec.Struct, frozen=True):
    """One saved record as a store returns it, its blob resolved.

    Attributes:
        sequence: Its sequence number in its stream.
        payload: The sealed record.
        blobs: The attached blobs that it still names, in their order, each once; read them
            with `Store.read_blob`.
    """

    sequence: int
    payload: bytes
    blobs: tuple[str, ...] = ()


class StoredStream(msgspec.Struct, frozen=True):
    """What a resume reads of a stream.

    Attributes:
        stream: Its key as text.
        sequence: The sequence number of its newest record.
        fold: Its newest fold, or None.
        tail: The records after the fold, oldest first; the first is ``fold.through + 1``.
    """

    stream: str
    sequence: int
    fold: Fold | None
    tail: tuple[StoredRecord, ...]


class StoredRun(msgspec.Struct, frozen=True):
    """What a resume reads of a run."""

    run_id: str
    generation: int
    owner: int
    streams: tuple[StoredStream, ...]


class HistoryPage(msgspec.Struct, frozen=True):
    """Some records of a stream, newest first.

    Attributes:
        records: The records, at most as many as were asked for.
        cursor: The cursor that gives the next page of `Store.history`; None: this is the last.
    """

    records: tuple[StoredRecord, ...]
    cursor: str | None


_SUMMARY_HEAD = struct.Struct(">?Q")  # whether the run is complete, and how many records it has


def join_summary(sealed: bytes, *, records: int, is_complete: bool) -> bytes:
    """The summary of a run as `Store.save` takes it: a head that stores can read, and the rest.

    Args:
        sealed: The sealed rest.
        records: How many records the newest generation has, in all streams together.
        is_complete: Whether nothing is left to do.
    """
    return _SUMMARY_HEAD.pack(is_complete, records) + sealed


def sealed_part(summary: bytes) -> bytes:
    """The sealed rest of a summary."""
    return summary[_SUMMARY_HEAD.size :]


class RunSummary(msgspec.Struct, frozen=True, gc=False):  # one is made for each run
    """One line of a list of runs.

    Attributes:
        run_id: The run.
        generation: Its newest generation.
        owner: The number of its newest owner.
        streams: How many streams that generation has.
        records: How many records these streams have.
        is_owned: Whether a process owns the run now, as `Store.read_owner` tells.
        updated_at: When the newest record of that generation was saved, by the clock of the
            store; Unix time, s; None: it has none, or an older version saved it.
        summary: What `Store.save` was last given as the summary of that generation; empty: nothing.
    """

    run_id: str
    generation: int
    owner: int
    streams: int
    records: int
    is_owned: bool = False
    updated_at: float | None = None
    summary: bytes = b""

    @property
    def summarized(self) -> int | None:
        """How many records the summary counts; None: there is no summary."""
        if len(self.summary) < _SUMMARY_HEAD.size:
            return None
        return int(_SUMMARY_HEAD.unpack_from(self.summary)[1])

    @property
    def is_current(self) -> bool:
        """Whether the summary counts all records: none was saved after it."""
        return self.summarized == self.records

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do: a current summary says so."""
        return self.is_current and self.summary[:1] == b"\x01"


class Owner(msgspec.Struct, frozen=True, gc=False):
    """The process that owns a run at this moment.

    Attributes:
        host: Its host name.
        pid: Its process id.
        since: When it took the run, aware, in UTC.
        lease_left_s: How long its lease lasts unless it renews it, in seconds; None: it has a lock
            that ends with its process.
    """

    host: str
    pid: int
    since: datetime
    lease_left_s: float | None = None


class Pruned(msgspec.Struct, frozen=True):
    """What `Store.prune` removed.

    Attributes:
        generations: How many generations.
        records: How many records of those generations, in all streams together.
        bytes: The size of the payloads of those records and of their folds, and of the blobs,
            attached ones included, that no record of the run names any more.  What a store of
            format 2 shared among its runs stays, and does not count.
    """

    generations: int
    records: int
    bytes: int


class Repaired(msgspec.Struct, frozen=True):
    """A step of a repair.

    Attributes:
        where: The file or the row that it changed.
        what: What it did, as text.
        is_loss: Whether something that was saved is lost by it.
    """

    where: str
    what: str
    is_loss: bool = False


class StreamView(msgspec.Struct, frozen=True):
    """A stream as the store has it."""

    key: StreamKey
    progress: Progress


class RunView(msgspec.Struct, frozen=True):
    """A run as the store has it: ``view.streams["repo", "pulls"].progress.confirmed``."""

    run_id: str
    generation: int
    owner: int
    streams: dict[StreamKey, StreamView]


class Severity(enum.Enum):
    """How bad a finding is."""

    GOOD = "good"
    NOTE = "note"  # worth knowing, nothing to do
    DOUBT = "doubt"  # it works, but may not hold what it promises
    BAD = "bad"  # something that was saved has changed, or something does not work


class FindingKind(enum.Enum):
    """What a finding is about."""

    STORE = "store"  # a file or a row of a store, or a record
    STATE = "state"  # a saved state, not the record that has it
    OUTPUT = "output"  # the output folder, or a file in it
    LOSS = "loss"  # the store has less than it has acknowledged
    CHECK = "check"  # a check of a machine, or of a run as a whole


@attrs.frozen
class Finding:
    """What a check found, most often a problem.

    Attributes:
        where: The file or the row, as a user can find it; or what was checked.
        what: What is wrong with it, as text.
        advice: What can be done; empty: nothing.
        severity: How bad it is.
        kind: What it is about.
        run_id: The run, if it is about one.
        generation: The generation of the run.
        stream: The key of the stream as text, if it is about one; see `key`.
        sequence: The sequence number of the checkpoint, if it is about one.
        batch_index: The batch, if it is about one; None for a whole append file.
        blob: The digest of the blob, if it is about one.
        path: The output file, relative to the output folder, if it is about one.
    """

    where: str
    what: str
    advice: str = ""
    severity: Severity = Severity.BAD
    kind: FindingKind = attrs.field(default=FindingKind.STORE, kw_only=True)
    run_id: str | None = attrs.field(default=None, kw_only=True)
    generation: int | None = attrs.field(default=None, kw_only=True)
    stream: str | None = attrs.field(default=None, kw_only=True)
    sequence: int | None = attrs.field(default=None, kw_only=True)
    batch_index: int | None = attrs.field(default=None, kw_only=True)
    blob: str | None = attrs.field(default=None, kw_only=True)
    path: str | None = attrs.field(default=None, kw_only=True)

    @property
    def is_damage(self) -> bool:
        """Whether something that was saved has changed; else it is only a notice."""
        return self.severity is Severity.BAD

    @property
    def key(self) -> StreamKey:
        """The key of its stream; empty if it is about none.

        Raises:
            StoreDamagedError: `stream` is no key.
        """
        return () if self.stream is None else decode_key(self.stream)
