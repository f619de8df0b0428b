"""Retention: which saved states keep their arrays.

Theory of operation
===================

The states of one chain build on each other, so a chain is kept or dropped as a whole.  `Versions`
tracks chains, not states: a long run saves millions of states, most of which have
nothing to drop, or are dropped soon.  Its size is proportional to what the store keeps of them.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Iterable

import attrs
import msgspec

from .._util.arguments import checked_by, path_text, seconds, whole_number
from .._util.index_set import IndexSet
from ._tree.limits import MAX_CHAIN


class Version(msgspec.Struct, frozen=True):
    """A state in the store.

    Attributes:
        sequence: The sequence of its record.
        at: When it was saved; Unix time, s.
        lineage: The lineage of its chain.
        blob_bytes: The size of its arrays that can be dropped; 0: it has none in a blob.
    """

    sequence: int
    at: float
    lineage: bytes
    blob_bytes: int


def _url_of(store: str | os.PathLike[str]) -> str:
    return path_text("archive", store)


@attrs.frozen
class Retention:
    """Which saved states keep their arrays: those that any of these settings selects.

    The states of one chain build on each other, so a chain is kept or dropped as a whole; the
    newest one is always kept, and only that one once the stream is complete.  Records are always
    kept, with trees and small arrays; only large arrays are dropped.

    Attributes:
        last: This many of the newest states.
        every: One in this many records of the stream; 0: none for this reason.
        max_age_s: States that were saved in the last so many seconds; 0: none for this reason.
        max_bytes: Of the states selected above, from the newest on, only as many as have at
            most this many bytes of large arrays together, as stored; 0: all.  States that are
            always kept count, too.
        max_deltas: After this many differences a state is saved whole, and a new chain begins;
            earlier if the differences are larger than the state.  Fewer differences
            make a start faster, and allow old states to be dropped sooner.
        archive: A store, by its URL or its folder, into which the others are moved instead of
            being deleted: the run ``RUN-GENERATION`` in it, for `read_arrays`.
    """

    last: int = attrs.field(default=2, validator=checked_by(whole_number, least=1))
    every: int = attrs.field(default=0, validator=checked_by(whole_number))
    max_age_s: float = attrs.field(default=0.0, validator=checked_by(seconds))
    max_bytes: int = attrs.field(default=0, validator=checked_by(whole_number))
    max_deltas: int = attrs.field(
        default=50, validator=checked_by(whole_number, least=1, most=MAX_CHAIN - 1), kw_only=True
    )
    archive: str | None = attrs.field(
        default=None, converter=attrs.converters.optional(_url_of), kw_only=True
    )


@attrs.define(eq=False, repr=False)
class _StateChain:
    """States that build on each other, at least one of which has something to drop."""

    newest: int = 0  # sequence
    newest_at: float = 0.0
    is_kth: bool = False
    blobs: IndexSet = attrs.field(factory=IndexSet)  # the sequences of the records
    nbytes: int = 0


class Versions:
    """The saved states of one stream, as far as retention needs them.

    Attributes:
        retention: The settings.
    """

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self._recent: deque[bytes] = deque(maxlen=retention.last)  # chains of the newest states
        self._newest_at = 0.0
        self._chains: dict[bytes, _StateChain] = {}
        self._nbytes = 0  # the size of all chains
        # The open chain, which may have nothing to drop yet.
        self._open: tuple[bytes, _StateChain] = (b"", _StateChain())

    def __len__(self) -> int:
        """Return the number of chains that have something to drop."""
        return len(self._chains)

    def add(self, version: Version) -> None:
        """Add a version, which is the newest."""
        self._recent.append(version.lineage)
        self._newest_at = version.at
        self._count(version)

    def add_older(self, version: Version) -> None:
        """Add a version that is older than all others."""
        if len(self._recent) < self.retention.last:
            self._recent.appendleft(version.lineage)
        if not self._newest_at:
            self._newest_at = version.at
        self._count(version)

    def _count(self, version: Version) -> None:
        lineage = version.lineage
        if lineage != self._open[0]:
            self._open = lineage, self._chains.get(lineage, _StateChain())
        chain = self._open[1]
        if version.sequence > chain.newest:
            chain.newest, chain.newest_at = version.sequence, version.at
        chain.is_kth = chain.is_kth or self._is_kth(version.sequence)
        if version.blob_bytes:
            chain.blobs.add(version.sequence)
            chain.nbytes += version.blob_bytes
            self._nbytes += version.blob_bytes
            self._chains[lineage] = chain

    def add_all(self, versions: Iterable[Version]) -> None:
        """Add several versions, the oldest first."""
        for version in versions:
            self.add(version)

    def clear(self) -> None:
        """Forget all versions."""
        self._recent.clear()
        self._chains.clear()
        self._nbytes = 0
        self._newest_at = 0.0
        self._open = b"", _StateChain()

    def take_dropped(
        self, needed: Collection[bytes], *, is_complete: bool
    ) -> dict[bytes, list[int]]:
        """Return and forget the chains to drop, each with its records that have blobs.

        Args:
            needed: Chains that are kept in any case.
            is_complete: Whether the stream is: then of the others only the newest is kept.
        """
        kept = {*needed, *list(self._recent)[-1:]}
        if not is_complete:
            kept |= self._named(kept)
        dropped: dict[bytes, list[int]] = {}
        for lineage in [lineage for lineage in self._chains if lineage not in kept]:
            chain = self._chains.pop(lineage)
            self._nbytes -= chain.nbytes
            dropped[lineage] = list(chain.blobs)
        return dropped

    @property
    def is_too_large(self) -> bool:
        """Return whether the chains exceed `max_bytes`, unless all are kept in any case."""
        return 0 < self.retention.max_bytes < self._nbytes

    def _named(self, kept: Collection[bytes]) -> set[bytes]:
        """Return the chains that retention selects, beside those kept in any case."""
        recent = set(self._recent)
        named: set[bytes] = set()
        room = self.retention.max_bytes or math.inf
        room -= sum(chain.nbytes for lineage, chain in self._chains.items() if lineage in kept)
        newest_first = sorted(self._chains.items(), key=lambda item: -item[1].newest)
        for lineage, chain in newest_first:
            if lineage not in kept and (lineage in recent or self._is_kept(chain)):
                room -= chain.nbytes
                if room < 0:
                    break
                named.add(lineage)
        return named

    def _is_kth(self, sequence: int) -> bool:
        every = self.retention.every
        return every > 0 and sequence % every == 0

    def _is_kept(self, chain: _StateChain) -> bool:
        max_age_s = self.retention.max_age_s
        is_young = max_age_s > 0 and self._newest_at - chain.newest_at <= max_age_s
        return chain.is_kth or is_young
