"""How fast a run went lately: samples of a count, as a rate between each two."""

from __future__ import annotations

import itertools
from collections import deque

import attrs

from ._records import PacePoint

SAMPLE_EVERY_S = 5.0
MAX_SAMPLES = 361  # half an hour


@attrs.define(eq=False)
class Pace:
    """The samples of one run."""

    _samples: deque[tuple[float, int]] = attrs.field(
        factory=lambda: deque[tuple[float, int]](maxlen=MAX_SAMPLES), init=False
    )

    def sample(self, at: float, confirmed: int) -> None:
        """Take a sample, if it is time.

        Args:
            at: Unix time, s.
            confirmed: Batches confirmed by then.
        """
        if not self._samples or at - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((at, confirmed))

    def points(self) -> list[PacePoint]:
        """Batches per second before each sample; re-queued batches count as none."""
        samples = list(self._samples)
        return [
            PacePoint(at=at, per_s=round(max(0, now - was) / (at - before), 4))
            for (before, was), (at, now) in itertools.pairwise(samples)
        ]
