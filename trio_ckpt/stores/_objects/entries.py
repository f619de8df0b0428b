"""The log of a run: its entries, and what they amount to.

Theory of operation.  A run is a sequence of entries, each an object that was created once.
`LogState.apply` is the one place that says what an entry means; the owner that saves and the
process that reads both go through it, so they cannot disagree.  What all entries up to a position
amount to is a `LogState`, which is also what a *base* has in it.

An entry with a `Holder` begins an owner.  All entries behind it are of that owner, until the next
such entry: a former owner cannot create one, because its next position is taken by its heir.  So an
entry of any other owner is damage.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..._util.errors import StoreDamagedError
from .layout import LogPage


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """The process that owns a run.

    Attributes:
        host: Its host name.
        pid: Its process id.
        since: When it took the run, by the store's clock; Unix time, s.
        lease_s: How long it keeps the run without a new entry, in seconds.
        nonce: Tells its entry from that of a process which asked at the same moment.
    """

    host: str
    pid: int
    since: float
    lease_s: float
    nonce: bytes


class LogRecord(msgspec.Struct, frozen=True, array_like=True):
    """A saved checkpoint.

    Attributes:
        stream: The key of its stream as text.
        sequence: Its sequence number.
        prev: The position of the record before it in its stream; 0: it is the first.
        payload: The sealed record; empty if it is a blob.
        blob: The digest of the payload, if it is a blob.
        blobs: The digests of its attached blobs, each once.
    """

    stream: str
    sequence: int
    prev: int
    payload: bytes
    blob: str | None = None
    blobs: tuple[str, ...] = ()


class NewFold(msgspec.Struct, frozen=True, array_like=True):
    """A fold as a save gives it."""

    stream: str
    through: int
    payload: bytes


class NewBlob(msgspec.Struct, frozen=True, array_like=True):
    """A blob that a record names for the first time: its digest, its upload, its size in bytes."""

    digest: str
    upload: str
    size: int


class Drop(msgspec.Struct, frozen=True, array_like=True):
    """Attached blobs that are dropped: those of some checkpoints of a stream."""

    stream: str
    sequences: tuple[int, ...]


class LogEntry(msgspec.Struct, frozen=True, array_like=True):
    """An entry of the log.

    Attributes:
        owner: The owner that wrote it.
        generation: The newest generation after it.
        at: When it was written, by the store's clock; Unix time, s.
        records: The checkpoints.
        folds: The folds.
        uploads: The blobs that these are the first to name.
        summary: The summary; None: that before stays.
        drops: The attached blobs that are dropped.
        first: The oldest generation that is left; None: as before.
        holder: The owner that begins with it.
        is_released: Whether the owner gives the run back with it.
    """

    owner: int
    generation: int
    at: float
    records: tuple[LogRecord, ...] = ()
    folds: tuple[NewFold, ...] = ()
    uploads: tuple[NewBlob, ...] = ()
    summary: bytes | None = None
    drops: tuple[Drop, ...] = ()
    first: int | None = None
    holder: Holder | None = None
    is_released: bool = False


class StreamHead(msgspec.Struct, array_like=True):
    """The end of a stream: its newest record, the position of that, and its fold."""

    sequence: int = 0
    position: int = 0
    through: int = 0
    fold: bytes | None = None


class Generation(msgspec.Struct, array_like=True):
    """A generation of a run.

    Attributes:
        start: The position of its first entry.
        records: How many records it has.
        size: The size of their payloads in bytes, but for those that are blobs.
        heads: The ends of its streams.
        attached: The attached blobs that are not dropped, by stream and sequence.
        payloads: The blobs that are payloads, and of how many records.
        updated_at: When its newest record was saved, by the store's clock; None: it has none.
        summary: Its summary.
    """

    start: int
    records: int = 0
    size: int = 0
    heads: dict[str, StreamHead] = {}
    attached: dict[str, dict[int, tuple[str, ...]]] = {}
    payloads: dict[str, int] = {}
    updated_at: float | None = None
    summary: bytes = b""


class NamedBlob(msgspec.Struct, array_like=True):
    """A blob that records name: its upload, its size in bytes, and how often it is named."""

    name: str
    size: int
    names: int = 0


class LogState(msgspec.Struct, array_like=True):
    """What the entries of a log up to a position amount to.

    Attributes:
        position: The position of the newest entry.
        owner: The number of the newest owner.
        generation: The newest generation.
        first: The oldest generation that was not pruned; above `generation`: the run is removed.
        holder: The owner, unless it has given the run back.
        generations: The generations that are left.
        uploads: The blobs that their records name, by digest.
        pages: The pages, and in the next list the indexes of older pages, and so on.
    """

    position: int = 0
    owner: int = 0
    generation: int = 0
    first: int = 0
    holder: Holder | None = None
    generations: dict[int, Generation] = {}
    uploads: dict[str, NamedBlob] = {}
    pages: list[list[LogPage]] = []

    @property
    def newest(self) -> Generation | None:
        """The newest generation; None: the run is removed."""
        return self.generations.get(self.generation) if self.first <= self.generation else None

    @property
    def start(self) -> int:
        """The position of the first entry that a generation which is left has."""
        starts = [generation.start for generation in self.generations.values()]
        return min(starts, default=self.position + 1)

    def next_generation(self) -> int:
        """The generation that a new owner goes on with."""
        return max(self.generation, self.first)

    def apply(self, group: LogEntry) -> dict[str, NamedBlob]:
        """Go on by an entry, the one behind `position`.

        Returns:
            The blobs that no record names any more.

        Raises:
            StoreDamagedError: such an entry was never written here.
        """
        self._begin_owner(group)
        self.position += 1
        self._begin_generation(group.generation)
        generation = self.newest
        if generation is None:
            if group.records or group.folds or group.drops:
                raise StoreDamagedError(f"entry {self.position} is of a run that was removed")
        else:
            self._append(generation, group)
        freed = dict[str, NamedBlob]()
        if generation is not None:
            for drop in group.drops:
                attached = generation.attached.get(drop.stream, {})
                for sequence in drop.sequences:
                    self._unname(attached.pop(sequence, ()), freed)
        if group.first is not None and group.first > self.first:
            self.first = group.first
            for number in [number for number in self.generations if number < self.first]:
                self._forget(self.generations.pop(number), freed)
        if group.is_released:
            self.holder = None
        return freed

    def _begin_owner(self, group: LogEntry) -> None:
        if group.holder is not None and group.owner == self.owner + 1:
            self.owner, self.holder = group.owner, group.holder
        elif group.holder is not None or group.owner != self.owner or self.holder is None:
            raise StoreDamagedError(
                f"entry {self.position + 1} is of owner {group.owner}, behind owner {self.owner}"
            )

    def _begin_generation(self, number: int) -> None:
        is_first = self.position == 1
        if number == self.generation and not is_first:
            return
        if number != self.generation + (not is_first):
            raise StoreDamagedError(
                f"entry {self.position} is of generation {number}, behind {self.generation}"
            )
        self.generation = number
        self.generations[number] = Generation(self.position)

    def _append(self, generation: Generation, group: LogEntry) -> None:
        for new in group.uploads:
            self.uploads[new.digest] = NamedBlob(new.upload, new.size)
        for record in group.records:
            head = generation.heads.setdefault(record.stream, StreamHead())
            if (record.sequence, record.prev) != (head.sequence + 1, head.position):
                raise StoreDamagedError(
                    f"entry {self.position} has checkpoint {record.sequence} of stream "
                    f"{record.stream}, behind {head.sequence}"
                )
            head.sequence, head.position = record.sequence, self.position
            generation.records += 1
            generation.size += len(record.payload)
            generation.updated_at = group.at
            self._name(generation, record)
        for fold in group.folds:
            head = generation.heads.get(fold.stream, StreamHead())
            head.through, head.fold = fold.through, fold.payload
        if group.summary is not None:
            generation.summary = group.summary

    def _name(self, generation: Generation, record: LogRecord) -> None:
        try:
            for digest in record.blobs:
                self.uploads[digest].names += 1
            if record.blob is not None:
                self.uploads[record.blob].names += 1
        except KeyError as error:
            raise StoreDamagedError(f"entry {self.position} names blob {error}, unknown") from error
        if record.blobs:
            generation.attached.setdefault(record.stream, {})[record.sequence] = record.blobs
        if record.blob is not None:
            generation.payloads[record.blob] = generation.payloads.get(record.blob, 0) + 1

    def _forget(self, generation: Generation, freed: dict[str, NamedBlob]) -> None:
        for attached in generation.attached.values():
            for digests in attached.values():
                self._unname(digests, freed)
        for digest, count in generation.payloads.items():
            self._unname([digest] * count, freed)

    def _unname(self, digests: Iterable[str], freed: dict[str, NamedBlob]) -> None:
        for digest in digests:
            upload = self.uploads[digest]
            upload.names -= 1
            if not upload.names:
                freed[digest] = self.uploads.pop(digest)
