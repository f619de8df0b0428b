"""What trio_ckpt costs, beside the physical controls and the peers of the same run.

    python -m benchmarks [--only tokens,steps,resume,frontier,answers,pages,json,state,...]
                         [--quick]

Machines are noisy, so a figure alone says little: every section measures its controls in turns
with ours and speaks of ratios. None of this is a test; a target that is not met is printed so.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import attrs

MIB = 2**20


@attrs.frozen
class Target:
    """A figure and what it should be.

    Attributes:
        name: What was measured.
        value: The figure.
        limit: What it should reach, or stay within.
        unit: Of both.
        at_least: Whether more is better.
    """

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the figure is as good as it should be."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@attrs.frozen
class Section:
    """What one benchmark found: figures for programs, lines for people, and its targets."""

    figures: dict[str, object]
    lines: list[str]
    targets: list[Target]


@attrs.frozen(kw_only=True)
class Options:
    """How to measure.

    Attributes:
        folder: On the disk to measure; the benchmarks make temporary folders in it.
        is_quick: Fewer operations and rounds: to see that it runs, not to quote it.
        peers_cache: Where the peers' environment is or is to be made; None: leave them out.
        large_state_mib: A second size for the section `state`; 0: none.
    """

    folder: Path
    is_quick: bool = False
    peers_cache: Path | None = None
    large_state_mib: int = 0


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def median(values: Sequence[float]) -> float:
    """The middle one, so that no figure is of two rounds."""
    return statistics.median_low(values)
