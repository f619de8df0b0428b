"""Which saved states keep their arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs


@attrs.frozen
class Version:
    """A state that the store has.

    Attributes:
        sequence: Of its record.
        at: When it was saved; Unix time, s.
        lineage: Its chain.
        has_blob: Whether there is something to let go of.
    """

    sequence: int
    at: float
    lineage: bytes
    has_blob: bool


@attrs.frozen
class Retention:
    """Which saved states keep their arrays: those that any of these names.

    The states of one chain build on each other, so a chain is kept or goes as a whole; the
    newest one always stays, and only it once the stream is complete.  Records stay in any
    case, with trees and small arrays; what is let go of is large arrays.

    Attributes:
        last: The newest so many.
        every: One in so many records of the stream; 0: none because of that.
        max_age_s: Those that were saved in the last so many seconds; 0: none because of that.
    """

    last: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    every: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    max_age_s: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))

    def choose(
        self, versions: Sequence[Version], needed: Collection[bytes] = frozenset()
    ) -> list[int]:
        """The sequences of those whose blobs may go.

        Args:
            versions: The oldest first.
            needed: Chains that stay in any case.
        """
        if not versions:
            return []
        newest = versions[-1].at
        kept = {*needed, *(version.lineage for version in versions[-self.last :])}
        for version in versions:
            is_kth = self.every and version.sequence % self.every == 0
            if is_kth or (self.max_age_s and newest - version.at <= self.max_age_s):
                kept.add(version.lineage)
        return [v.sequence for v in versions if v.has_blob and v.lineage not in kept]
