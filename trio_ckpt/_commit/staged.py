"""What an attempt at a batch has staged, until the gate saves it."""

from __future__ import annotations

from typing import Any

import msgspec

from .._journal.record import Output
from .._util.exact_sum import Amount, Number
from .stream_outputs import AnyPath

UNSET = msgspec.UNSET


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
    lines: dict[str, bytearray] = {}
    adds: dict[str, Any] = {}
    error: BaseException | str | None = None
    is_final: bool = False
    problem: Exception | None = None
