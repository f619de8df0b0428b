"""What a batch asks of its stream: contracts, so that its file knows no stream.

`trio_ckpt._commit.open_stream`, `gate` and `intents` keep them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from .._journal.record import CheckpointResult, Record
from .._util.exact_sum import Number
from .._util.plain import Plain
from .staged import RowsCommit
from .stream_outputs import StreamFiles

B = TypeVar("B", contravariant=True)  # the batches


class BatchIntents(Protocol[B]):
    """What an open batch puts on record before it is done."""

    def notes_of(self, batch: B) -> dict[str, Plain]:
        """Copies of the notes of a batch."""
        ...

    async def note(self, batch: B, name: str, value: Any, cost: Mapping[str, Number]) -> None:
        """Save a note."""
        ...

    async def reserve(self, batch: B, amounts: Mapping[str, Number]) -> None:
        """Save a reservation, or stop the run."""
        ...


class BatchHost(Protocol[B]):
    """What a batch asks of its stream."""

    @property
    def files(self) -> StreamFiles:
        """The outputs of the stream."""
        ...

    @property
    def intents(self) -> BatchIntents[B]:
        """What is saved of open batches."""
        ...

    def check_withdraw(self, batch: B) -> None:
        """Raise RuntimeError where the batch cannot be withdrawn."""
        ...

    def check_last(self, batch: B) -> None:
        """Raise ValueError where the source defines the last batch."""
        ...

    def check_cursor(self) -> None:
        """Raise ValueError where batches run side by side."""
        ...

    def stage_items(self, items: Iterable[Any]) -> dict[str, Any]:
        """Copy items for the frontier, by their keys; TypeError if the stream has no frontier."""
        ...

    def aside(self, batch: B) -> AbstractAsyncContextManager[None]:
        """A block that a stop does not wait for."""
        ...


class BatchGate(Protocol[B]):
    """What every exit of a batch passes."""

    def previous_of(self, batch: B) -> CheckpointResult | None:
        """What the last generation knows of the item of a batch."""
        ...

    def carry_over(self, batch: B) -> Record:
        """What the last generation had of it; RuntimeError, TypeError: it cannot be unchanged."""
        ...

    async def confirm(self, batch: B) -> None:
        """Pass the gate now, before the batch is left."""
        ...

    async def commit(self, batch: B, rows: RowsCommit) -> None:
        """Pass the gate at the end of a transaction, with what commits its rows."""
        ...
