"""When what follows from records is saved beside them: folds of streams, the summary of the run.

Both are derived.  Folds go with a group of records, so that they cost no save of their own, or with
the last save of a session, and the summary goes with that one: any later record makes it out of
date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .._journal.overview import encode_overview
from .._journal.progress import Progress
from .._journal.store import FarStore, Fold, RunKey, RunView, Store, StreamView
from .._util.plain import StreamKey
from .stream_log import StreamLog

RECORDS_PER_FOLD = 500  # bounds what a resume reads; the cost of a fold is spread over them


class Derived(msgspec.Struct, frozen=True):
    """What is saved beside the records of a group, or after the last one.

    Attributes:
        folds: Folds of streams.
        summary: The summary of the run; None: the one in the store stays.
    """

    folds: Sequence[Fold] = ()
    summary: bytes | None = None

    @property
    def nbytes(self) -> int:
        """The size of all of it."""
        return sum(len(fold.payload) for fold in self.folds) + len(self.summary or b"")


class FoldSchedule:
    """Which streams are due for a fold: every `RECORDS_PER_FOLD` records, and at the end."""

    def __init__(
        self, store: Store, run_key: RunKey, known: Mapping[StreamKey, Progress] | None
    ) -> None:
        """Make one for a session.

        Args:
            store: The store of the run.
            run_key: The run.
            known: The progress of every stream in the store; None: it is not known, so no summary
                is made.
        """
        self._store = store
        self._run_key = run_key
        self._has_summary = known is not None and not isinstance(store, FarStore)
        self._streams = dict(known or {})
        self._unfolded = 0
        self._dirty: dict[StreamLog, None] = {}  # have new records since their last fold

    def add_stream(self, stream_log: StreamLog) -> None:
        """Include a stream of this session in the summary."""
        self._streams[stream_log.key] = stream_log.progress

    def add(self, stream_log: StreamLog) -> None:
        """Count a record of a stream that is durable."""
        self._unfolded += 1
        self._dirty[stream_log] = None

    def take_due(self) -> Derived:
        """What is due: folds of the streams that have enough new records."""
        if self._unfolded < RECORDS_PER_FOLD:
            return _NOTHING
        self._unfolded = 0
        return Derived(self._take([log for log in self._dirty if log.is_fold_due]))

    def take_all(self) -> Derived:
        """Folds of all streams with new records, and the summary."""
        folds = self._take(list(self._dirty))
        return Derived(folds, self._summary() if folds else None)

    def _take(self, stream_logs: Iterable[StreamLog]) -> list[Fold]:
        folds: list[Fold] = []
        for stream_log in stream_logs:
            del self._dirty[stream_log]
            fold = stream_log.fold()
            folds += [] if fold is None else [fold]
        return folds

    def _summary(self) -> bytes | None:
        if not self._has_summary:
            return None
        key = self._run_key
        streams = {name: StreamView(name, part) for name, part in self._streams.items()}
        return encode_overview(self._store, RunView(key.run_id, key.generation, key.owner, streams))


_NOTHING = Derived()
