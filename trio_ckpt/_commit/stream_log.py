"""One stream's way to the store: what is durable of it, and what is on its way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import attrs
import trio

from .._journal.folds import encode_progress
from .._journal.progress import MAX_SUM, Progress
from .._journal.record import Seal
from .._journal.store import Fold
from .._util.errors import NotEncodableError
from .._util.exact_sum import ExactSum, add_sums
from .._util.index_set import IndexSet
from .._util.log import at
from .._util.plain import StreamKey
from .._util.text import plural
from ..outputs import AppendFile

log = logging.getLogger("trio_ckpt.saver")

MAX_FOLD_BYTES = 2**28  # a row of a database has room for it
FOLD_BYTES_PER_RECORD = 50  # a quarter of what a small record takes


@attrs.define(eq=False)
class Tools:
    """What a stream is worked on with; made when it is needed, given back when it is left.

    Attributes:
        seal: Binds its records to their places.
        placing: Held while a checkpoint is put as a blob, which is sealed for its sequence.
        sinks: Its append files, by path.
        redone: Batches that were put back to work since the newest verification began.
        cut_back: Append files that a rewind has cut; what is behind is in the archive.
        redo_lock: Whoever puts batches back holds it: none is taken back twice.
    """

    seal: Seal
    placing: trio.Lock = attrs.field(factory=trio.Lock)
    sinks: dict[str, AppendFile] = attrs.field(factory=dict[str, AppendFile])
    redone: IndexSet = attrs.field(factory=IndexSet)
    cut_back: set[str] = attrs.field(factory=set[str])
    redo_lock: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def is_idle(self) -> bool:
        """Whether others like them can take their place."""
        is_held = self.placing.locked() or self.redo_lock.locked()
        return not (is_held or self.sinks or self.redone or self.cut_back)


@attrs.define(eq=False)
class StreamLog:
    """One stream's way to the store.

    A run has one for each stream that it has touched, so what a stream needs only while it is
    worked on is kept apart.

    Attributes:
        key: The stream's key.
        text: The same as stores know it.
        progress: What is durable, nothing else.
        submitted: The sequence of the newest checkpoint on its way.
        records_ahead: How many records the batches on their way have produced.
        folded: The sequence of the last fold.
        fold_bytes: Its size.
        before: What other sessions had added.
        confirmed, skipped, retries: What this session has done.
        open_s: Seconds that it was open in this session, and is not any more.
        is_left: It was opened in this session, and left.
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
    is_left: bool = attrs.field(default=False, init=False)

    @property
    def tools(self) -> Tools:
        """What the stream is worked on with."""
        if self._tools is None:
            self._tools = Tools(self._make_seal(self.key))
        return self._tools

    @property
    def sinks(self) -> dict[str, AppendFile]:
        """The append files that are open, by path."""
        return {} if self._tools is None else self._tools.sinks

    def rest(self) -> None:
        """Give the tools back when the stream is left, unless they know what others do not."""
        self.is_left = True
        is_saved = self.submitted == self.progress.sequence
        if self._tools is not None and is_saved and self._tools.is_idle:
            self._tools = None

    def expect(self, records: int) -> None:
        """Count the records of a batch that is about to be saved.

        Raises:
            NotEncodableError: with those on their way they are more than can be counted.
        """
        ahead = self.records_ahead + records
        if abs(self.progress.records + ahead) >= MAX_SUM:
            problem = f"with {records:,} more the stream has more than can be counted, 2**63"
            raise NotEncodableError("records", problem)
        self.records_ahead = ahead

    @property
    def is_fold_due(self) -> bool:
        """Whether a fold is worth its size, which grows with the gaps in what is done.

        So the bytes of all folds stay in proportion to the number of records.
        """
        return (self.progress.sequence - self.folded) * FOLD_BYTES_PER_RECORD >= self.fold_bytes

    def fold(self) -> Fold | None:
        """Progress as it is stored; None: it cannot be encoded, which is logged."""
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
                "progress of %s has %s: not folded",
                self.text,
                plural(len(payload), "byte"),
                extra=at(None, self.key),
            )
            return None
        self.fold_bytes = len(payload)
        return Fold(self.text, through, payload)


@attrs.frozen
class Added:
    """What was produced and spent.

    Attributes:
        records: Produced.
        totals: Produced, by name.
        spent: On all attempts, by name.
    """

    records: int
    totals: dict[str, ExactSum]
    spent: dict[str, ExactSum]

    @classmethod
    def by_all(cls, progress: Progress) -> Added:
        """By all sessions, up to now."""
        if not (progress.records or progress.totals or progress.spent):
            return _NOTHING
        return cls(progress.records, dict(progress.totals), dict(progress.spent))

    @classmethod
    def by_session(cls, stream_logs: Iterable[StreamLog]) -> Added:
        """By this session, in some streams."""
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
