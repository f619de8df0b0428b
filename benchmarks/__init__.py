"""What trio_ckpt costs, beside the physical controls and the peers of the same run.

    python -m benchmarks [--only tokens,steps,...] [--quick] [--json FILE]

Machines are noisy, so a figure alone says little: every section measures its controls in turns
with ours (`state` measures most of them once, first) and speaks of ratios. A section is a module
with ``measure(options) -> Section``, entered in `benchmarks.__main__`; what its figures should be
stands in `benchmarks.targets` alone. None of this is a test; a target that is not met is printed
so.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

MIB = 2**20


@attrs.frozen
class Found:
    """What one run measured for a row of `benchmarks.targets`.

    Attributes:
        value: In the row's unit.
        control: What the row's control came to in the same run, with its unit.
        peer: The best peer of the same run and its figure; empty: no peer was measured.
    """

    value: float
    control: str
    peer: str = ""


@attrs.frozen
class Section:
    """What one benchmark found.

    Attributes:
        figures: Everything that was measured, for programs.
        lines: The same for people.
        found: What belongs to the rows of `benchmarks.targets`, by their names.
        peers: The peers that were measured, as ``dbos 3.4.0``.
    """

    figures: dict[str, object]
    lines: list[str]
    found: dict[str, Found]
    peers: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Options:
    """How to measure.

    Attributes:
        folder: On the disk to measure; the benchmarks make temporary folders in it.
        is_quick: Small sizes and few rounds: to see that it runs, not to quote it.
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


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """One figure against another of the same round: the median of the rounds."""
    return median([one / other for one, other in zip(above, below, strict=True)])


def best(figures: Mapping[str, float], unit: str, *, least: bool = False) -> str:
    """The best of some peers and its figure, as ``LangGraph 579/s``; empty: there is none."""
    if not figures:
        return ""
    name = (min if least else max)(figures, key=figures.__getitem__)
    return f"{name} {figures[name]:,.4g}{unit}"
