"""What an attempt at a batch has staged, until the gate saves it; and the state of an attempt."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from .._journal.record import Output
from .._util.exact_sum import Amount, Number
from .reservations import Reservations
from .sink_writer import StagedPiece
from .stream_outputs import AnyPath

UNSET = msgspec.UNSET

RowsCommit: TypeAlias = Callable[[bytes, bool], Awaitable[Exception | None]]
"""Commits the rows of a batch in a database of the user, with its record beside them.

It gets the encoded record, and whether the record names blobs or lines, which the database does not
have.  It returns None, or why the database has none of the rows.
"""


class AttemptState(enum.Enum):
    """The state of an attempt."""

    OPEN = "open"
    COMPLETED = "completed"
    SUBMITTED = "submitted"
    FAILED = "failed"
    SKIPPED = "skipped"
    DEFERRED = "deferred"
    WITHDRAWN = "withdrawn"
    OVER = "over"

    __hash__ = object.__hash__


class Staged(msgspec.Struct):  # one for each batch: its empty defaults cost least to make
    """What is saved with a batch's checkpoint.

    Attributes:
        digest: The digest of the item; empty where there is no source.
        outputs: The outputs that are written, by name.
        adopted: Files that the body wrote itself.
        is_last: Whether it is the last batch of the stream.
        lines: What is appended, by append file; not compressed yet.
        adds: Items for the frontier, by their keys.
        error: What the attempt was failed or skipped with.
        is_final: No retry, whatever the table says.
        problem: Why it was not saved.
        commit: Commits its rows, before its record is submitted; None: it has none.
        is_committed: Its rows are committed, so that its record has to follow.
        reservations: What it has reserved; None: nothing.
        due: Until when it is deferred; Unix time, s.
        previous: The batch of the last generation with its item, and its place in `PreviousItems`.
        carried: Outputs of the last generation that it confirms once more; None: it is not
            `unchanged`.
    """

    digest: bytes = b""
    outputs: dict[str, Output] = {}
    adopted: list[AnyPath] = []
    records: int = 0
    cursor: Any = UNSET
    totals: dict[str, Number] = {}
    spent: dict[str, Amount] = {}
    metadata: dict[str, Any] = {}
    is_last: bool = False
    lines: dict[str, StagedPiece] = {}
    adds: dict[str, Any] = {}
    error: BaseException | str | None = None
    is_final: bool = False
    problem: Exception | None = None
    commit: RowsCommit | None = None
    is_committed: bool = False
    reservations: Reservations | None = None
    due: float | None = None
    previous: tuple[int, int] | None = None
    carried: tuple[Output, ...] | None = None


def settlement_of(staged: Staged) -> dict[str, Amount] | None:
    """What the last record of an attempt says of its reservations; None: it has made none."""
    reservations = staged.reservations
    return None if reservations is None else reservations.at_end()
