"""Giving batches up from outside: the records that skip what is left and is not worked on."""

from __future__ import annotations

import time
from collections.abc import Container

from .._journal.progress import Progress
from .._journal.record import Record, RecordKind, describe_error
from .._util.index_set import IndexSet
from .._util.text import batches_are, number

MAX_GIVEN_UP = 1_000  # batches by one act: each is a record


def skip_records(
    progress: Progress,
    indexes: IndexSet,
    reason: str,
    *,
    stop: int | None,
    is_open: Container[int] = (),
) -> list[Record]:
    """The records that give batches up.

    They have no digest of an item: a start passes over that when it compares its source.

    Args:
        progress: The progress of the stream.
        indexes: The batches.
        reason: Why, in their records.
        stop: One more than the last batch of the stream; None: it is not known.
        is_open: The batches that are being worked on.

    Raises:
        ValueError: they cannot be given up; the message says why.
    """
    _check_any(indexes)
    if len(indexes) > MAX_GIVEN_UP:
        raise ValueError(
            f"{number(len(indexes))} batches; at most {number(MAX_GIVEN_UP)} are given up at a time"
        )
    if progress.has_frontier:
        raise ValueError("the stream has a Frontier, whose items are given up by their own batches")
    if done := IndexSet(index for index in indexes if progress.is_done(index)):
        raise ValueError(f"{batches_are(done)} done already")
    if busy := IndexSet(index for index in indexes if index in is_open):
        raise ValueError(
            f"{batches_are(busy)} being worked on: pause the run, and skip when the attempt is over"
        )
    if unknown := IndexSet(index for index in indexes if not _is_known(progress, index, stop)):
        raise ValueError(f"{batches_are(unknown)} not known to be in the stream")
    now = time.time()
    return [
        Record(
            kind=RecordKind.SKIP,
            at=now,
            index=index,
            attempts=progress.failures[index].attempts if index in progress.failures else 0,
            error=describe_error(reason),
        )
        for index in indexes
    ]


def check_done(progress: Progress, indexes: IndexSet) -> None:
    """Raise ValueError unless there are some and all are done, so that they can be re-queued.

    What passes is no more than the stream has, whatever a caller sends.
    """
    _check_any(indexes)
    undone = indexes.copy()
    undone.subtract(progress.done)
    if undone:
        is_deferred = any(index in undone for index in progress.deferred)
        advice = "; `trio-ckpt retry` lifts deferrals while the run is not running"
        problem = f"{batches_are(undone)} neither confirmed nor skipped"
        raise ValueError(problem + (advice if is_deferred else ""))


def known_end(progress: Progress) -> int | None:
    """One more than the last batch of a stream, as its records say; None: they do not."""
    return None if progress.total is None else progress.first_index + progress.total


def _check_any(indexes: IndexSet) -> None:
    if not indexes:
        raise ValueError("no batch is named")


def _is_known(progress: Progress, index: int, stop: int | None) -> bool:
    """Whether a stream has a batch: a start with a source that ends before it would be refused."""
    is_listed = stop is not None and progress.first_index <= index < stop
    return is_listed or index in progress.failures or index < progress.done.stop
