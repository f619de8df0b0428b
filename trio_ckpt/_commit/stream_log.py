"""What a run knows of the log of each stream: what is durable, on its way, and folded.

Progress moves in one place, `PendingCommit.end`, which the group committer calls for each
checkpoint when its outcome is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs
import msgspec
import trio

from .._journal.apply import apply
from .._journal.folds import encode_progress
from .._journal.observer import AttemptEnd
from .._journal.progress import MAX_SUM, Progress
from .._journal.record import Record, Seal
from .._journal.store import Checkpoint, Fold
from .._util.errors import NotEncodableError
from .._util.exact_sum import ExactSum, add_sums
from .._util.exceptions import text_of
from .._util.index_set import IndexSet
from .._util.log import at, get_logger
from .._util.plain import StreamKey
from .._util.text import plural
from .._util.threads import refuse_to_abort
from .._util.uninterrupted import uninterrupted
from ..outputs import AppendFile

log = get_logger(__name__)

MAX_FOLD_BYTES = 2**28  # fits into a row of a database
FOLD_BYTES_PER_RECORD = 50  # a quarter of the size of a small record

Lines: TypeAlias = tuple[tuple[AppendFile, bytes], ...]
"""What is appended to files: for each file its lines."""


class OnItsWay(msgspec.Struct):
    """What an append file was given that is not confirmed yet.

    Attributes:
        pieces: How many pieces.
        size: How many bytes they have.
        taken: Set when one of them is taken back; None: no task waits for that.
    """

    pieces: int = 0
    size: int = 0
    taken: trio.Event | None = None


@attrs.define(eq=False, repr=False)
class Tools:
    """What an open stream needs beside its progress; made on first use, dropped when it is left.

    Attributes:
        seal: Binds its records to their sequence numbers.
        placing: Held while a checkpoint, sealed for its sequence number, is written as a blob.
        sinks: Its open append files, by path; those that were used last are last.
        on_its_way: What each append file was given that is not confirmed yet.
        redone: Batches that were re-queued since the newest verification began.
        cut_back: Append files that a rewind has cut; the tails are in the archive.
        redo_lock: Held by the task that re-queues batches, so that no batch is reverted twice.
    """

    seal: Seal
    placing: trio.Lock = attrs.field(factory=trio.Lock)
    sinks: dict[str, AppendFile] = attrs.field(factory=dict[str, AppendFile])
    on_its_way: dict[str, OnItsWay] = attrs.field(factory=dict[str, OnItsWay])
    redone: IndexSet = attrs.field(factory=IndexSet)
    cut_back: set[str] = attrs.field(factory=set[str])
    redo_lock: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def is_idle(self) -> bool:
        """Whether they can be dropped: new ones would be equal."""
        is_held = self.placing.locked() or self.redo_lock.locked()
        return not (is_held or self.sinks or self.redone or self.cut_back)


@attrs.define(eq=False, repr=False)
class StreamLog:
    """The log of a stream: durable progress, and the sequence number last submitted.

    A run has one for each stream that it has touched, so it is small: what a stream needs only
    while it is open is in its `tools`.

    Attributes:
        key: The stream's key.
        text: The stream's key as stores spell it.
        progress: What is durable, nothing else.
        submitted: The sequence number of the newest submitted checkpoint.
        records_ahead: How many records the submitted batches produced that are not durable yet.
        folded: The sequence number of the last fold.
        fold_bytes: The size of the last fold.
        before: What earlier sessions had added, and what was carried over.
        confirmed, skipped, retries: How many batches this session confirmed, skipped and retried.
        open_s: For how long it was open in this session, in seconds, until it was last left.
        has_closed: It was opened in this session, and its block has ended.
    """

    key: StreamKey
    text: str
    _make_seal: Callable[[StreamKey], Seal]
    progress: Progress
    submitted: int
    records_ahead: int = attrs.field(default=0, init=False)
    folded: int = 0
    fold_bytes: int = 0
    _tools: Tools | None = attrs.field(default=None, init=False)
    before: Added = attrs.field(
        default=attrs.Factory(
            lambda stream_log: Added.by_all(stream_log.progress), takes_self=True
        ),
        init=False,
    )
    confirmed: int = attrs.field(default=0, init=False)
    skipped: int = attrs.field(default=0, init=False)
    retries: int = attrs.field(default=0, init=False)
    open_s: float = attrs.field(default=0.0, init=False)
    has_closed: bool = attrs.field(default=False, init=False)

    def note_unsaved(self, error: Exception | None) -> None:
        """Log that a record which no task waits for was not saved."""
        if error is not None:
            log.warning(
                "%s: its last record was not saved: %s",
                self.text,
                text_of(error),
                extra=at(None, self.key),
            )

    @property
    def tools(self) -> Tools:
        """What the stream needs while it is open; made on first use."""
        if self._tools is None:
            self._tools = Tools(self._make_seal(self.key))
        return self._tools

    @property
    def sinks(self) -> dict[str, AppendFile]:
        """The append files that are open, by path."""
        return {} if self._tools is None else self._tools.sinks

    def give_piece(self, path: str, size: int) -> None:
        """Count a piece for an append file, which stays open until the piece is taken back."""
        given = self.tools.on_its_way.setdefault(path, OnItsWay())
        given.pieces, given.size = given.pieces + 1, given.size + size

    def take_pieces(self, pieces: Iterable[tuple[str, int]]) -> None:
        """Count pieces, each a file with a size, as appended or as given up."""
        on_its_way = self.tools.on_its_way
        for path, size in pieces:
            given = on_its_way[path]
            given.pieces, given.size = given.pieces - 1, given.size - size
            if not given.pieces:
                del on_its_way[path]
            if given.taken is not None:
                given.taken.set()
                given.taken = None

    def take_lines(self, lines: Lines) -> None:
        """Count the pieces of lines as appended or as given up."""
        if lines:
            self.take_pieces([(sink.path, len(piece)) for sink, piece in lines])

    def length_of(self, path: str) -> int:
        """How many bytes an append file has when all that is on its way to it is confirmed."""
        given = self.tools.on_its_way.get(path)
        return self.progress.sinks.get(path, 0) + (0 if given is None else given.size)

    def is_beginning(self, path: str) -> bool:
        """Whether the first bytes of an append file are on their way, and none is confirmed."""
        return path in self.tools.on_its_way and not self.progress.sinks.get(path)

    async def wait_piece(self, path: str) -> None:
        """Wait until a piece that is on its way to a file is confirmed or given up."""
        given = self.tools.on_its_way[path]
        if given.taken is None:
            given.taken = trio.Event()
        await given.taken.wait()

    def leave(self, open_s: float) -> None:
        """Mark the stream as left, and drop its tools unless they are still needed.

        Args:
            open_s: For how long it was open, in seconds.
        """
        self.open_s += open_s
        self.has_closed = True
        is_saved = self.submitted == self.progress.sequence
        if self._tools is not None and is_saved and self._tools.is_idle:
            self._tools = None

    def count(self, end: AttemptEnd) -> None:
        """Count an attempt of this session by its end."""
        if end is AttemptEnd.CONFIRMED:
            self.confirmed += 1
        elif end is AttemptEnd.SKIPPED:
            self.skipped += 1
        elif end is AttemptEnd.RETRIED:
            self.retries += 1

    def count_from_here(self) -> None:
        """Count what is there as added by earlier sessions: it was carried over."""
        self.before = Added.by_all(self.progress)

    def reserve(self, sequence: int, records: int) -> None:
        """Mark a checkpoint as submitted, and count the records of its batch.

        Raises:
            NotEncodableError: with those already submitted they are more than a sum can hold.
        """
        ahead = self.records_ahead + records
        if abs(self.progress.records + ahead) >= MAX_SUM:
            problem = f"with {records:,} more the stream has more than the largest count, 2**63"
            raise NotEncodableError("records", problem)
        self.records_ahead, self.submitted = ahead, sequence

    def give_back(self, sequence: int) -> None:
        """Free the sequence numbers from that of a checkpoint that is not saved."""
        self.submitted = min(self.submitted, sequence - 1)

    @property
    def is_fold_due(self) -> bool:
        """Whether a fold is worth its size, which grows with the gaps in what is done.

        This ensures that the bytes of all folds stay in proportion to the number of records.
        """
        return (self.progress.sequence - self.folded) * FOLD_BYTES_PER_RECORD >= self.fold_bytes

    def fold(self) -> Fold | None:
        """Encode progress as a fold; None: it cannot be encoded, which is logged."""
        self.folded = through = self.progress.sequence
        seal = self._make_seal(self.key) if self._tools is None else self._tools.seal
        try:
            payload = seal.close(-through, encode_progress(self.progress))
        except (TypeError, ValueError, OverflowError) as error:
            log.warning(
                "progress of %s cannot be folded: %s", self.text, error, extra=at(None, self.key)
            )
            return None
        if len(payload) > MAX_FOLD_BYTES:
            log.warning(
                "progress of %s takes %s, which is too large: it is not folded",
                self.text,
                plural(len(payload), "byte"),
                extra=at(None, self.key),
            )
            return None
        self.fold_bytes = len(payload)
        return Fold(self.text, through, payload)


@uninterrupted
class PendingCommit(msgspec.Struct, eq=False):  # one for each batch
    """One checkpoint that is queued or being saved, and the task that waits for it.

    Attributes:
        stream_log: The log of its stream.
        record: The record.
        checkpoint: The record as sealed bytes.
        lines: What is appended before the save: append files of the stream, and bytes for each.
        produced: How many records the batch produced; 0 where the record is not about a batch.
        on_outcome: Called with None or the error, before the waiting task wakes.
        is_over: Whether the outcome is known.
        error: Why it was not saved.
    """

    stream_log: StreamLog
    record: Record
    checkpoint: Checkpoint
    lines: Lines
    produced: int
    on_outcome: Callable[[Exception | None], None]
    is_over: bool = False
    error: Exception | None = None
    _task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Wait for the outcome.

        Raises:
            Exception: the reason why it was not saved.

        Cancellation: none; a submitted save is never abandoned.  It ends in bounded time,
            see `GroupCommitter`.
        """
        if not self.is_over:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(refuse_to_abort)
        if self.error is not None:
            raise self.error

    def end(self, error: Exception | None) -> None:
        """Set the outcome: progress first, then `on_outcome`, then the waiting task wakes.

        Args:
            error: Why it is not saved; None: it is durable, with its lines.

        Raises:
            StoreDamagedError: progress cannot take the record; the run cannot go on.
        """
        stream_log = self.stream_log
        if error is None:
            for sink, lines in self.lines:
                sink.confirm(sink.confirmed + len(lines))
            apply(stream_log.progress, self.checkpoint.sequence, self.record)
        try:
            self.is_over, self.error = True, error  # from here on it is not ended again
            stream_log.take_lines(self.lines)
            stream_log.records_ahead -= self.produced
            self.on_outcome(error)
        finally:
            self.wake()

    def wake(self) -> None:
        """Wake the task that waits; called again where `end` was interrupted."""
        if self._task is not None:
            # In one line: an error between two would lose the task, or wake it twice.
            self._task = trio.lowlevel.reschedule(self._task)


class Added(msgspec.Struct, frozen=True):
    """What was produced and spent.

    Attributes:
        records: How many records were produced.
        totals: What was produced, by name.
        spent: What all attempts cost, by name.
    """

    records: int
    totals: dict[str, ExactSum]
    spent: dict[str, ExactSum]

    @classmethod
    def by_all(cls, progress: Progress) -> Added:
        """What all sessions together have added to a stream."""
        if not (progress.records or progress.totals or progress.spent):
            return _NOTHING
        return cls(progress.records, dict(progress.totals), dict(progress.spent))

    @classmethod
    def by_session(cls, stream_logs: Iterable[StreamLog]) -> Added:
        """What this session has added to some streams."""
        records, totals, spent = 0, dict[str, ExactSum](), dict[str, ExactSum]()
        for stream_log in stream_logs:
            records += stream_log.progress.records - stream_log.before.records
            for sums, now, was in (
                (totals, stream_log.progress.totals, stream_log.before.totals),
                (spent, stream_log.progress.spent, stream_log.before.spent),
            ):
                add_sums(sums, now)
                add_sums(sums, was, sign=-1)
        return cls(records, totals, spent)


_NOTHING = Added(0, {}, {})
