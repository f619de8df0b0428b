"""What differs between the kinds of local stores: how they are written, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from ..._journal.store import Checkpoint, Fold, HistoryPage, Pruned, RunKey, RunSummary, StoredRun

if TYPE_CHECKING:
    from .check import Step


class LocalWriter(Protocol):
    """Changes a store.  Every method blocks, and is called in one thread."""

    def raise_owner(self, run_id: str) -> int:
        """Raise a run's owner number, durably, and return it; the run exists from now on."""
        ...

    def count(self, run_id: str) -> tuple[int, int]:
        """Return the newest generation of an owned run, and its records in all generations.

        Only valid right after the run was locked or pruned.
        """
        ...

    def give_back(self, run_id: str) -> None:
        """Prepare a run for its unlocking.

        Raises:
            StoreConflictError: the store was removed or replaced since the last save.
        """
        ...

    def save(
        self,
        run: RunKey,
        group: Sequence[Checkpoint],
        folds: Sequence[Fold],
        summary: bytes | None,
    ) -> list[Exception | None]:
        """See `Store.save`."""
        ...

    def prune(self, run: RunKey, keep: int) -> tuple[Pruned, set[str]]:
        """See `Store.prune`; blobs are neither counted nor removed.

        Returns:
            What was removed, and the digests that it named.
        """
        ...

    def drop_blobs(self, run: RunKey, stream: str, sequences: Sequence[int]) -> set[str]:
        """See `Store.drop_blobs`; returns the digests that were named."""
        ...

    def owning(self, run: RunKey) -> AbstractContextManager[None]:
        """Let no other process become the owner of a run until the context ends.

        Raises:
            StoreConflictError: another owner has the run, or the store was removed or replaced.
        """
        ...

    def unnamed(self, run_id: str, digests: Collection[str]) -> list[str]:
        """Return the digests that no record of a run names."""
        ...

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, also of those that were removed, as far as is known."""
        ...

    def close(self) -> None:
        """Close all files."""
        ...


class LocalReader(Protocol):
    """Reads a store while others may write it; blocking functions."""

    def read_run(self, run_id: str, generation: int | None) -> StoredRun | None:
        """See `Store.read_run`."""
        ...

    def history(
        self, run_id: str, stream: str, generation: int | None, place: str | None, limit: int
    ) -> HistoryPage:
        """See `Store.history`."""
        ...

    def list_runs(self, prefix: str, after: str | None, limit: int) -> tuple[RunSummary, ...]:
        """See `Store.list_runs`; it does not tell which runs are owned."""
        ...

    def close(self) -> None:
        """Close all files."""
        ...


class MakeWriter(Protocol):
    """Opens or makes a store; see `trio_ckpt.stores.open_store` for what it raises."""

    def __call__(
        self, folder: Path, *, durability: Literal["full", "process"], create: bool
    ) -> LocalWriter:
        """Return the writer of the store."""
        ...


class LocalKind(msgspec.Struct, frozen=True):
    """A kind of local store.

    Attributes:
        scheme: The scheme of its URLs.
        make_writer: Opens or makes a store.
        make_reader: Opens a store for reading.
        check_steps: Yields the steps that check a store.
        reads_in_thread: Whether the reader is bound to one thread, as a database connection is.
    """

    scheme: str
    make_writer: MakeWriter
    make_reader: Callable[[Path], LocalReader]
    check_steps: Callable[[Path], Iterator[Step]]
    reads_in_thread: bool
